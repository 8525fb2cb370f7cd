"""Windows that quote what is nearest to their question, and runs that start from the adapter that ships."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sharedllm import SharedLLM, UsageError
from sharedllm.quote import inserted
from sharedllm.recall import nearest
from sharedllm.train.loop import Trainer
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.train.test_loop import recipe, trainer, weights, write_data

QUOTING = dataclasses.replace(CONFIG, quoted_tokens=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("texts"))


def quoting(data, output, config=QUOTING, **changes) -> Trainer:
    model = tiny_model(max_position_embeddings=2048)
    llm = SharedLLM.from_pretrained(model, adapter="none", config=config, tokenizer=byte_tokenizer())
    facts = dict(needles=1.0, needle_windows=3, context_chunks=[40, 45], config=config)
    return Trainer(recipe(data, output, **{**facts, **changes}), llm)


def test_a_window_shows_what_a_question_is_answered_with(data, tmp_path):
    t = quoting(data, tmp_path / "run", quoted=1.0)
    drawn = t.sampler.draw(0)
    sample, batch, _ = t._taken_in(drawn, None)
    for row, (before, after) in enumerate(zip(drawn.windows, sample.windows, strict=True)):
        context = t.llm.read(torch.from_numpy(drawn.context[: before.chunks * CONFIG.chunk_length]))
        asking = torch.from_numpy(before.question)[None]
        spans = nearest(t.llm, context, torch.from_numpy(before.ids)[None], asking)
        shown = inserted(t.llm, context, before.ids.tolist(), asking, 0, spans)
        assert after.ids.tolist() == shown and len(shown) >= len(before.ids) + 8
        assert after.ids[-before.targets :].tolist() == before.ids[-before.targets :].tolist()
        assert after.ids[after.question].tolist() == before.ids[before.question].tolist()
        assert batch.question[row].sum() == before.question.sum()
        assert (batch.labels[row] >= 0).sum() == before.targets


def test_a_context_is_searched_by_the_bare_question(data, tmp_path):
    """Quotes are put in after the search, as when a question is answered: they are no part of what asks."""
    t = quoting(data, tmp_path / "run", quoted=1.0)
    drawn = t.sampler.draw(0)
    sample, _, memory = t._taken_in(drawn, None)
    assert all(len(after.ids) > len(before.ids) for before, after in zip(drawn.windows, sample.windows, strict=True))
    for row, window in enumerate(drawn.windows):
        context = t.llm.read(torch.from_numpy(drawn.context[: window.chunks * CONFIG.chunk_length]))
        prompt = torch.from_numpy(window.ids[: -window.targets])[None]
        asking = torch.from_numpy(window.question[: -window.targets])[None]
        bare = t.llm.recall(context, prompt, question_mask=asking)
        mine, S = memory[torch.tensor([row])], bare.mask.shape[1]
        assert mine.mask.sum() == bare.mask.sum() == S
        for a, b in zip([*mine.keys, *mine.values], [*bare.keys, *bare.values], strict=True):
            torch.testing.assert_close(a[:, :, mine.mask[0]], b)


def test_the_loss_without_the_context_is_that_of_the_bare_windows(data, tmp_path):
    """What is quoted comes from the context."""
    rows = {}
    for share in (0.0, 1.0):
        t = quoting(data, tmp_path / str(share), quoted=share, validate_samples=2, whole_answers=1.0)
        assert all(w.quoted == bool(share) for w in t.held_out.draw(10**9).windows)
        rows[share] = t.validate()
    assert rows[0.0]["held_out_without"] == rows[1.0]["held_out_without"]
    assert rows[0.0]["held_out_with"] != rows[1.0]["held_out_with"]


def test_a_share_of_the_windows_quotes_and_the_others_are_as_without(data, tmp_path):
    t, plain = (
        quoting(data, tmp_path / str(share), quoted=share, needle_windows=20, context_chunks=[200, 200])
        for share in (0.5, 0.0)
    )
    quoted = [w.quoted for w in t.sampler.draw(0).windows]
    assert 3 < sum(quoted) < len(quoted) - 3
    assert not any(w.quoted for w in plain.sampler.draw(0).windows)
    shown, bare = (x._taken_in(x.sampler.draw(0), None)[0].windows for x in (t, plain))
    as_without = [np.array_equal(a.ids, b.ids) for a, b in zip(shown, bare, strict=True)]
    assert as_without == [not quotes for quotes in quoted]


def test_it_learns_from_quotes(data, tmp_path):
    t = quoting(data, tmp_path / "run", quoted=1.0, steps=2, validate_every=2, validate_samples=1, keep_start=0.0)
    t.train()
    assert any(bool(w.any()) for name, w in weights(t).items() if name.endswith("gate"))


def test_quotes_without_any_to_quote_are_refused(data, tmp_path):
    with pytest.raises(UsageError, match=r"quoted is 0.5, but config.quoted_tokens is 0"):
        recipe(data, tmp_path / "run", quoted=0.5)
    with pytest.raises(UsageError, match="quoted is 2"):
        recipe(data, tmp_path / "run", quoted=2, config=QUOTING)


def test_training_starts_from_the_adapter_that_ships(data, tmp_path, monkeypatch):
    first = trainer(data, tmp_path / "first", steps=1)
    first.train()
    with pytest.raises(UsageError, match="no adapter ships for this model"):
        trainer(data, tmp_path / "none", start="default")
    monkeypatch.setattr("sharedllm.train.start.shipped_adapter", lambda fingerprint: tmp_path / "first" / "adapter")
    again = trainer(data, tmp_path / "again", start="default")
    assert all(torch.equal(weights(again)[n], w.bfloat16().float()) for n, w in weights(first).items())

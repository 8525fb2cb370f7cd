"""The teacher of distillation reads a text once for all windows that go on in it, and says what it said of each apart."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sharedllm import SharedLLM
from sharedllm.train.loop import Trainer
from sharedllm.train.samples import Sample, Window
from sharedllm.train.teacher import Teacher
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model, tokens
from tests.test_families import attach, family_model
from tests.train.test_loop import assert_goes_on_as_unbroken, recipe, write_data

KINDS = [
    {},
    {"warm": 1.0, "warm_tokens": 4},
    {"long_windows": 1.0, "long_window_tokens": 40},
    {"reuse": 2, "context_chunks": [8, 8]},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("texts"))


def teaching(data, output, **changes) -> Trainer:
    """All of the loss of continuations is the teacher's; the adapter has random weights."""
    model = tiny_model(max_position_embeddings=512)
    llm = SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=byte_tokenizer())
    settings = {"distill": 1.0, "windows": 3, "context_chunks": [6, 8], **changes}
    return Trainer(recipe(data, output, **settings), randomize(llm))


def one_pass_a_window(t: Trainer, sample: Sample) -> float:
    """A sample's loss where the teacher reads each window's chunks and the window for themselves."""
    _, batch, memory = t._taken_in(sample, None)
    with t.learner.reading(memory):
        logits = t._logits(batch)
    total, before = 0.0, batch.ids.shape[1] - logits.shape[1]
    for row, w in enumerate(sample.windows):
        shown = np.concatenate([sample.context[: w.chunks * CONFIG.chunk_length], w.ids])
        teacher = t.llm.model(torch.from_numpy(shown)[None]).logits[0, -w.targets - 1 : -1].log_softmax(-1)
        end = len(w.ids) - 1 - before
        student = logits[row, end - w.targets : end].log_softmax(-1)
        total += F.kl_div(student, teacher, reduction="sum", log_target=True).item()
    return total / sum(w.targets for w in sample.windows)


def passes(t: Trainer, *steps: int) -> list[int]:
    """How many tokens each pass over a text had that the teacher made for some steps."""
    shapes: list[tuple[int, ...]] = []
    hook = t.llm.model.register_forward_pre_hook(
        lambda model, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    for step in steps:
        t.loss(t.sampler.draw(step))
    hook.remove()
    return [length for rows, length in shapes if rows == 1 and length > 1]


@pytest.mark.parametrize("settings", KINDS)
@torch.no_grad()
def test_the_loss_is_that_of_one_pass_a_window(data, tmp_path, settings):
    t = teaching(data, tmp_path / "run", **settings)
    for step in range(4):
        sample = t.sampler.draw(step)
        expected = one_pass_a_window(t, sample)
        assert expected > 0.01 and t.loss(sample).item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_text_is_read_once_for_all_windows_of_all_steps_that_share_it(data, tmp_path):
    t = teaching(data, tmp_path / "apart")
    assert len(t.sampler.draw(0).windows) == 3 and passes(t, 0) == [len(t.sampler.draw(0).text)]
    assert len(passes(t, 1, 2)) == 2
    t = teaching(data, tmp_path / "shared", reuse=2, context_chunks=[8, 8])
    first, second = t.sampler.draw(0), t.sampler.draw(1)
    assert np.array_equal(first.text, second.text) and len(second.windows) == 3
    assert passes(t, 0, 1, 2, 3) == [len(first.text), len(t.sampler.draw(2).text)]


def test_a_run_that_goes_on_between_two_steps_that_share_a_text_is_bit_identical(data, tmp_path):
    settings = dict(distill=0.5, reuse=2, context_chunks=[8, 8], checkpoint_every=1, steps=4)
    assert_goes_on_as_unbroken(lambda folder: teaching(data, folder, **settings), tmp_path, 1, 1)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "falcon"])
@torch.no_grad()
def test_what_the_head_gives_is_scaled_and_capped_as_the_model_does_it(name):
    llm, ids = attach(family_model(name)), tokens(20).numpy()
    windows = [Window(1, ids[8:14], 5), Window(2, ids[16:], 3)]
    sample = Sample("prose", "a", ids[:16], windows, "later", ids)
    teacher = Teacher(llm, SimpleNamespace(reading=llm.injection.reading), 1)
    whole = llm.model(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
    for window, at in zip(windows, (slice(8, 13), slice(16, 19)), strict=True):
        torch.testing.assert_close(teacher.logprobs(sample, window), whole[at], atol=1e-4, rtol=1e-4)


def test_questions_are_not_distilled(data, tmp_path):
    settings = dict(needles=0.9, needle_windows=2, context_chunks=[20, 25])
    t, plain = (teaching(data, tmp_path / str(d), distill=d, **settings) for d in (1.0, 0.0))
    sample = next(s for s in map(t.sampler.draw, range(20)) if s.kind == "needles")
    assert sample.text is None and t.loss(sample).item() == pytest.approx(plain.loss(sample).item())

"""Self-study in training: the passage is in the context, the answer is what is learned, from the right teacher."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from sharedllm import UsageError
from sharedllm.data import TokenFolder
from sharedllm.data.study import Study
from sharedllm.data.study_build import write_study
from sharedllm.prompts import Prompt
from sharedllm.train.samples import Sampler
from tests.conftest import CONFIG, byte_tokenizer
from tests.data.study_helpers import PLAN, MadeUp
from tests.train.test_loop import recipe, trainer, weights, write_data

SETTINGS = dict(study=1.0, context_chunks=[9, 12])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A data folder and a study of it by the tiny model."""
    texts = tmp_path_factory.mktemp("texts")
    data = write_data(texts)
    model = trainer(data, texts / "run").llm.fingerprint
    write_study(texts / "study", TokenFolder.open(data), MadeUp(byte_tokenizer()), model, PLAN)
    return data, texts / "study"


def study_trainer(places, output, **changes):
    data, study = places
    return trainer(data, output, **{**SETTINGS, "study_data": str(study), **changes})


def text(ids):
    return byte_tokenizer().decode(np.asarray(ids).tolist())


def test_questions_are_asked_of_a_context_that_holds_their_passages(places, tmp_path):
    t = study_trainer(places, tmp_path / "run")
    study = t.sampler.studied
    pairs = {pair.question: (p, pair) for p in study.passages for pair in p.pairs}
    several, unaligned, sizes = 0, 0, set()
    for step in range(20):
        sample = t.sampler.draw(step)
        assert (sample.kind, sample.search) == ("study", "query")
        sizes.add(len(sample.context) // CONFIG.chunk_length)
        several += len(sample.windows) > 1
        for w in sample.windows:
            passage, pair = pairs[text(w.ids[w.question])]
            shown = t.sampler.folder.tokens(passage.document)[passage.start : passage.start + 64]
            at = text(sample.context).index(text(shown))
            unaligned += at % CONFIG.chunk_length > 0
            assert w.ids[-w.targets :].tolist() == pair.answer_ids
            assert w.ids[: -w.targets].tolist() == Prompt(byte_tokenizer(), pair.question).alone()
            assert w.chunks * CONFIG.chunk_length == len(sample.context)
            plain = Prompt(byte_tokenizer(), pair.question).with_text(torch.tensor(shown.tolist()))
            assert w.shown.tolist() == plain + pair.answer_ids
    assert several and unaligned and sizes == {9, 10, 11, 12}


def test_a_sample_asks_no_more_than_the_recipe_says(places, tmp_path):
    t = study_trainer(places, tmp_path / "run", question_windows=1)
    assert all(len(t.sampler.draw(step).windows) == 1 for step in range(8))


def test_the_loss_is_the_divergence_from_the_model_shown_the_passage(places, tmp_path):
    t = study_trainer(places, tmp_path / "run")
    with torch.no_grad():
        for p in t.module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    sample = next(s for s in map(t.sampler.draw, range(20)) if len(s.windows) > 1)
    context = t.llm.reader.new_context()
    context.ids = torch.from_numpy(sample.context).int()
    divergences = []
    for w in sample.windows:
        asked, answer = torch.from_numpy(w.ids)[None], w.ids[-w.targets :]
        with torch.no_grad():
            student = t.llm(asked, context=context, question_mask=torch.from_numpy(w.question)[None]).logits[0]
            teacher = t.llm.model(torch.from_numpy(w.shown)[None]).logits[0]
        for k in range(len(answer)):
            s, q = (x[len(x) - len(answer) + k - 1].log_softmax(-1) for x in (student, teacher))
            divergences.append((q.exp() * (q - s)).sum().item())
    assert sum(divergences) > 0.01
    assert t.loss(sample).item() == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)


def test_a_question_that_two_passages_of_a_context_answer_is_not_asked(places, tmp_path):
    t = study_trainer(places, tmp_path / "run")
    study = t.sampler.studied
    pairs = [
        [dataclasses.replace(pair, question="What is the colour of it?") for pair in p.pairs] for p in study.passages
    ]
    alike = [dataclasses.replace(p, pairs=kept) for p, kept in zip(study.passages, pairs, strict=True)]
    made = Sampler(t.sampler.folder, t.recipe, "train", byte_tokenizer(), dataclasses.replace(study, passages=alike))
    asked = []
    for step in range(40):
        sample = made.draw(step)
        assert sample.windows
        if sample.kind == "study":
            tokens = [made.folder.tokens(p.document)[p.start : p.start + 64] for p in alike]
            assert sum(text(shown) in text(sample.context) for shown in tokens) == len(sample.windows) == 1
        asked.append(sample.kind)
    assert set(asked) == {"study", "prose"}, "where nothing is left to ask, the text is gone on with"


def test_only_the_adapter_learns_and_it_comes_nearer_to_the_teacher(places, tmp_path):
    t = study_trainer(places, tmp_path / "run", steps=30)
    before = weights(t)
    t.train()
    assert all(p.grad is None for p in t.llm.model.parameters())
    assert all(not torch.equal(w, before[name]) for name, w in weights(t).items())
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert rows[0]["kinds"] == ["study"] and sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_other_samples_are_mixed_in_and_validation_has_none(places, tmp_path):
    t = study_trainer(places, tmp_path / "run", study=0.5, validate_samples=4)
    assert {t.sampler.draw(step).kind for step in range(20)} == {"study", "prose"}
    assert list(t.validate()["held_out_gain"]) == ["prose"]


def test_a_run_goes_on_with_the_study_it_began_with(places, tmp_path):
    data, study = places
    own = tmp_path / "study"
    shutil.copytree(study, own)
    study_trainer((data, own), tmp_path / "run").train(until=2)
    model = trainer(data, tmp_path / "other").llm.fingerprint
    longer = dataclasses.replace(PLAN, passages=2 * PLAN.passages)
    write_study(own, TokenFolder.open(data), MadeUp(byte_tokenizer()), model, longer)
    with pytest.raises(UsageError, match="holds a run with another study"):
        study_trainer((data, own), tmp_path / "run")


def test_mistakes_are_one_sentence(places, tmp_path):
    data, study = places
    with pytest.raises(UsageError, match="study_data names no folder"):
        recipe(data, tmp_path, study=0.1)
    with pytest.raises(UsageError, match="together they must lie between 0 and 1"):
        recipe(data, tmp_path, study=0.6, needles=0.5, study_data=str(study))
    with pytest.raises(UsageError, match="not a study"):
        study_trainer((data, tmp_path), tmp_path / "run")
    with pytest.raises(UsageError, match="64 tokens in documents of 16 or more; choose other context_chunks"):
        study_trainer(places, tmp_path / "run", context_chunks=[1, 3])
    folder = TokenFolder.open(data)
    with pytest.raises(UsageError, match="by another model"):
        Study.open(study, folder, "someone else")
    assert Sampler(folder, recipe(data, tmp_path), "train", byte_tokenizer()).draw(0).kind == "prose"

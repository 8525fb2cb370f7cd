"""The author on a tiny model: what it writes is what the plain model writes after the whole prompt."""

from __future__ import annotations

import pytest
import torch

from sharedllm.data import study_author
from sharedllm.data.study_author import Author, Writing
from sharedllm.prompts import Prompt
from tests.conftest import byte_tokenizer, tiny_model, tokens

KINDS = [[("fact", "Ask."), ("name", "Ask for a name.")], [("fact", "Ask one thing."), ("summary", "What?")]]


@pytest.fixture(scope="module")
def author():
    writing = Writing(question_tokens=12, answer_tokens=10)
    return Author(tiny_model(max_position_embeddings=512), byte_tokenizer(), writing)


@pytest.fixture
def passages():
    return torch.stack([tokens(40, seed=1), tokens(40, seed=2)])


def greedy(author, ids, most):
    """Token by token, without a cache."""
    new = []
    while len(new) < most and (not new or new[-1] != author.tokenizer.eos_token_id):
        with torch.no_grad():
            new.append(int(author.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_answers_are_what_the_plain_model_says_when_shown_the_passage(author, passages, monkeypatch):
    # A random model asks no question; a rule that takes what it wrote for one gives questions of different lengths.
    monkeypatch.setattr(study_author, "first_question", lambda text: f"{text.strip()!r}?" if len(text) % 3 else "")
    written = author.write(passages, KINDS, seed=3)
    assert [[pair.kind for pair in pairs] for pairs in written] == [["fact", "name"], ["fact", "summary"]]
    asked = [(ids, pair) for ids, pairs in zip(passages, written, strict=True) for pair in pairs]
    assert any(pair.question for _, pair in asked)
    for ids, pair in asked:
        if pair.question:
            prompt = Prompt(author.tokenizer, pair.question).with_text(ids)
            assert pair.answer_ids == greedy(author, prompt, author.writing.answer_tokens)
        else:
            assert (pair.answer, pair.answer_ids) == ("", [])


def test_the_seed_decides_the_questions_and_leaves_the_callers_stream_alone(author, passages, monkeypatch):
    monkeypatch.setattr(study_author, "first_question", lambda text: f"{text!r}?")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    a, b, c = (author.write(passages, KINDS, seed) for seed in (3, 3, 4))
    assert a == b != c
    assert torch.equal(torch.rand(3), expected)


def test_what_a_models_own_settings_forbid_is_written_all_the_same(author, passages, monkeypatch):
    monkeypatch.setattr(study_author, "first_question", lambda text: f"{text!r}?")
    model = tiny_model(max_position_embeddings=512)
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 5.0, 1
    penalised = Author(model, author.tokenizer, author.writing)
    assert penalised.write(passages, KINDS, seed=3) == author.write(passages, KINDS, seed=3)


def test_what_is_written_ends_with_the_end_token(author):
    end = author.tokenizer.eos_token_id
    assert author._ended([5, end, 9, 9]) == [5, end]
    assert author._ended([5, 6]) == [5, 6]

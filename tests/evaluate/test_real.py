"""The real set that ships: its answers stand in its text, and every method is asked about all of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sharedllm.cli.evaluate.jobs import real_jobs
from sharedllm.cli.evaluate.request import Request
from sharedllm.errors import WorkError
from sharedllm.evaluate import real
from sharedllm.evaluate.asking import around, most_tokens
from sharedllm.evaluate.needle import is_found
from sharedllm.methods import create

SMALL = real.RealSet(
    "small",
    "Ann keeps a cat.\n" * 9 + "Ben keeps a\ngrey owl. " + "Zoe keeps bees. " * 20,
    [
        real.Written("Who keeps a cat?", ("Ben",), "Ben keeps a grey owl"),
        real.Written("What bird?", ("owl",), "grey owl."),
    ],
)


def test_every_answer_stands_in_the_text_once_and_word_for_word():
    found = real.load()
    assert len(found.text) > 125_000 and 30 <= len(found.questions) <= 60
    assert len({question.ask for question in found.questions}) == len(found.questions)
    for question in found.questions:
        first, last = question.place(found.text)
        held = found.text[first:last]
        assert any(is_found(answer, held) for answer in question.answers), question
        assert question.score(f"It is {question.answers[0]}.") == 1 and question.score("I do not know") == 0
    places = [question.place(found.text) for question in found.questions]
    assert places == sorted(places)


def test_another_text_is_not_taken(monkeypatch, tmp_path):
    for name in ("questions.yaml", "jargon.txt"):
        (tmp_path / name).write_bytes((real.FOLDER / name).read_bytes() + b"\n")
    monkeypatch.setattr(real, "FOLDER", tmp_path)
    with pytest.raises(WorkError, match="not the text"):
        real.load()


def test_words_that_stand_twice_or_never_are_a_mistake():
    for where, times in (("Ann keeps", 9), ("Ann kept", 0)):
        with pytest.raises(ValueError, match=f"stands {times} times"):
            real.Written("?", ("x",), where).place(SMALL.text)


def test_questions_know_the_tokens_that_answer_them(make):
    llm = make(max_position_embeddings=1024)
    text = real.as_text(llm, SMALL, 4)
    for question, words in zip(text.questions, ("Ben keeps a\ngrey owl", "grey owl."), strict=True):
        assert llm.tokenizer.decode(text.ids[question.start : question.start + question.tokens]) == words
    assert "grey owl." in llm.tokenizer.decode(around(text, text.questions[1], 30).ids)


def test_rows(make, monkeypatch):
    llm = make(max_position_embeddings=1024)
    method = create("full", llm, 16)
    monkeypatch.setattr(method, "ask", lambda past, prompt, new: torch.tensor(llm.tokenizer(" an owl.")["input_ids"]))
    (row,) = real.run(llm, [method], SMALL, 4, 0, lambda line: None)
    assert (row["task"], row["metric"], row["value"], row["samples"]) == ("real", "answered", 0.5, 2)
    assert row["length"] == len(SMALL.text) and row["expected"] == [["Ben"], ["owl"]]
    some = real.RealSet("s", "", SMALL.questions).spread(1)
    assert some.questions == [SMALL.questions[1]] and some.of == 2 and row["samples_of"] == 2
    (row,) = real.run(llm, [method], SMALL.spread(1), 4, 0, lambda line: None)
    assert (row["samples"], row["samples_of"]) == (1, 2)


def test_what_is_to_be_done_is_known_before(make):
    llm = make()
    (job,) = real_jobs(SimpleNamespace(llm=llm, written=real.load().spread(5), new_tokens=4))
    text = real.as_text(llm, real.load().spread(5), 4)
    assert (job.texts, job.asked, job.new_tokens, job.length) == (1, 5, 4, len(text.ids))
    assert job.given(create("full", llm, 8)) == most_tokens([text])


def test_a_run_says_of_how_many_questions_it_asks_some(capsys):
    chosen = Request.written.func(SimpleNamespace(samples=5))
    assert f"real: 5 of {len(real.load().questions)} questions" in capsys.readouterr().err
    assert len(chosen.questions) == 5

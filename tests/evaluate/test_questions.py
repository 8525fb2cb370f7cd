"""Questions drawn from documents: scored as SQuAD scores, asked of the right place."""

from __future__ import annotations

import pytest
import torch

from sharedllm import UsageError
from sharedllm.evaluate.asking import around
from sharedllm.evaluate.metrics import token_f1
from sharedllm.evaluate.questions import examine, run
from sharedllm.methods import create
from tests.conftest import byte_tokenizer

TEXT = "\n".join(f"term {i}x\n    The meaning of this entry number {i} is a kind of thing.\n" for i in range(40))


def text_ids(text=TEXT):
    return torch.tensor(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_questions_are_spread_and_know_their_place():
    made = examine([("a.txt", text_ids(TEXT * 2))], 1500, 6, 3, byte_tokenizer(), 4)
    assert [len(text.questions) for text in made] == [3, 3]
    for text in made:
        starts = [question.start for question in text.questions]
        assert starts == sorted(starts) and starts[-1] - starts[0] > 700
        for question in text.questions:
            near = around(text, question, 200)
            passage = byte_tokenizer().decode(near.ids.tolist())
            assert len(near.ids) == 200 and question.expected[0] in " ".join(passage.split())
            name = question.prompt.question.rsplit("term", 1)[1].strip(" ?").split()[0]
            assert passage.find(f"term {name}") == near.questions[0].start


def test_a_text_that_explains_nothing():
    with pytest.raises(UsageError, match="explains"):
        examine([("a.txt", torch.full((100,), 65))], 50, 2, 2, byte_tokenizer(), 4)


def test_rows(make):
    llm = make()
    made = examine([("a.txt", text_ids())], 900, 3, 2, llm.tokenizer, 4)
    methods = [create(name, llm, 300) for name in ("shared", "truncate")]
    rows = {r["method"]: r for r in run(llm, methods, 900, made, 0, lambda line: None, ceiling=True)}
    assert set(rows) == {"shared", "truncate", "passage"}
    for row in rows.values():
        assert row["samples"] == len(row["scores"]) == len(row["answers"]) == len(row["expected"]) == 3
        assert row["value"] == pytest.approx(sum(row["scores"]) / 3, abs=1e-3)
        for answer, expected, score in zip(row["answers"], row["expected"], row["scores"], strict=True):
            assert score == pytest.approx(token_f1(answer, expected), abs=1e-3)
    assert rows["shared"]["answers"] != rows["truncate"]["answers"]

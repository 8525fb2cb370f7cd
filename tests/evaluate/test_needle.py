"""Needle in a haystack: what counts as found, where the needles lie, and what is asked of all methods."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharedllm import UsageError
from sharedllm.data.needles import draw_needles
from sharedllm.evaluate.asking import tokens_beside
from sharedllm.evaluate.needle import as_text, build_haystacks, by_depth, hide, is_found, run, spread_depths
from sharedllm.methods import create
from sharedllm.prompts import Prompt
from tests.conftest import CONFIG, byte_tokenizer, tokens

ROW_FIELDS = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes",
    "model", "adapter", "device", "dtype", "seed",
}  # fmt: skip
OWN_FIELDS = {
    "low", "high", "depths", "found", "kinds", "answers", "values", "encode_seconds", "ask_seconds",
    "window", "beyond_window", "haystacks", "sources", "max_new_tokens",
}  # fmt: skip


def encode(statement: str) -> torch.Tensor:
    return torch.tensor(list(statement.encode()))


def haystacks(length: int = 600, samples: int = 7, needles_per_text: int = 3, seed: int = 0):
    texts = [("a", tokens(900, 1)), ("b", tokens(1200, 2))]
    return build_haystacks(texts, length, samples, needles_per_text, seed, encode)


@pytest.mark.parametrize(
    ("value", "answer", "found"),
    [
        ("4711", "The access code is 4711.", True),
        ("4711", "4711", True),
        ("4711", "It is (4711), or so I think", True),
        ("4711", "code:4711!", True),
        ("4711", "", False),
        ("4711", "47110", False),
        ("4711", "The number is 84711.", False),
        ("4711", "4711234", False),
        ("4711", "1,4711", False),
        ("4711", "4711.5", False),
        ("4711", "555-4711", False),
        ("4711", "47 11", False),
        ("4711", "code4711", False),
        ("4711", "not 84711 but 4711", True),
        ("0471", "471", False),
        ("red", "The door was painted Red.", True),
        ("red", "It was covered.", False),
        ("red", "reddish", False),
        ("Ada Keller", "the keeper is ADA  \n KELLER, of course", True),
        ("Ada Keller", "Ada Keller's", True),
        ("Ada Keller", "Ada", False),
        ("Ada Keller", "Ada Kellerman", False),
        ("a.c", "abc", False),
    ],
)
def test_what_counts_as_found(value, answer, found):
    assert is_found(value, answer) is found


def test_questions_know_where_their_needles_are():
    for haystack in haystacks():
        text = as_text(haystack, byte_tokenizer(), 4)
        assert torch.equal(text.ids, haystack.ids)
        for spot, question in zip(haystack.hidden, text.questions, strict=True):
            assert (question.start, question.tokens) == (spot.start, spot.tokens)
            assert question.prompt.question == spot.needle.question and question.expected == (spot.needle.value,)
            assert question.score(f"I say {spot.needle.value}!") == 1 and question.score("no") == 0


def test_text_question_and_answer_together_have_the_length_asked_for():
    texts, prompts = [("a", tokens(900, 1))], []

    def beside(needle):
        prompts.append(tokens_beside(Prompt(byte_tokenizer(), needle.question), 4))
        return prompts[-1]

    made = build_haystacks(texts, 600, 5, 3, 0, encode, beside)
    assert {len(h.ids) for h in made} == {600 - max(prompts)} and len(prompts) == 5
    with pytest.raises(UsageError, match="raise --lengths"):
        build_haystacks(texts, max(prompts), 5, 3, 0, encode, beside)


def test_needles_are_in_the_haystack_where_it_says():
    made = haystacks()
    assert [len(h.hidden) for h in made] == [3, 2, 2]
    for haystack in made:
        assert len(haystack.ids) == 600
        for spot in haystack.hidden:
            inside = haystack.ids[spot.start : spot.start + spot.tokens]
            assert bytes(inside.tolist()).decode() == f"\n{spot.needle.statement}\n"
            assert spot.depth == spot.start / (600 - spot.tokens)
        assert len({spot.needle.question for spot in haystack.hidden}) == len(haystack.hidden)


def test_the_rest_of_a_haystack_is_its_text():
    text = tokens(900, 1)
    haystack = build_haystacks([("a", text)], 600, 3, 3, 0, encode)[0]
    kept = torch.ones(600, dtype=torch.bool)
    for spot in haystack.hidden:
        kept[spot.start : spot.start + spot.tokens] = False
    assert torch.equal(haystack.ids[kept], text[150 : 150 + int(kept.sum())])


@pytest.mark.parametrize(("samples", "per_haystack"), [(1, 1), (8, 8), (20, 7), (24, 8), (5, 1)])
def test_depths_are_spread_evenly_over_all_questions_and_within_a_haystack(samples, per_haystack):
    count = -(-samples // per_haystack)
    dealt = spread_depths(samples, count, seed=3)
    everything = sorted(depth for depths in dealt for depth in depths)
    assert [int(depth * samples) for depth in everything] == list(range(samples))
    assert {len(d) for d in dealt} <= {samples // count, -(-samples // count)}
    for depths in dealt:
        assert depths == sorted(depths)
        assert all(b - a < 3 * count / samples for a, b in zip(depths, depths[1:], strict=False))


def test_a_needle_may_be_the_first_or_the_last_thing():
    needles = draw_needles(np.random.default_rng(0), 2)
    haystack = hide("a", tokens(300), needles, [0.0, 1.0], encode)
    first, last = haystack.hidden
    assert (first.start, first.depth) == (0, 0.0)
    assert (last.start + last.tokens, last.depth) == (300, 1.0)


def test_a_needle_knows_its_kind():
    for needle in draw_needles(np.random.default_rng(0), 60, held_out=True):
        assert needle.kind in ("number", "name", "colour") and needle.value.isdigit() == (needle.kind == "number")


def test_seed_and_length():
    def said(made):
        return [[spot.needle for spot in h.hidden] for h in made]

    first, again, other, longer = haystacks(), haystacks(), haystacks(seed=1), haystacks(length=800)
    assert all(torch.equal(a.ids, b.ids) and a.hidden == b.hidden for a, b in zip(first, again, strict=True))
    assert said(first) != said(other)
    assert said(first) == said(longer), "needles are the same at every length"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": 5000}, "5,000 tokens"),
        ({"length": 100}, "--needles-per-text"),
        ({"samples": 900, "needles_per_text": 500}, "at most 192"),
    ],
)
def test_haystacks_that_cannot_be(change, words):
    with pytest.raises(UsageError, match=words):
        haystacks(**change)


@pytest.fixture
def llm(make):
    return make(max_position_embeddings=2048)


def test_all_methods_are_asked_the_same_about_the_same(llm, monkeypatch):
    made, asked = haystacks(), {}
    methods = [create(name, llm, 200) for name in ("shared", "truncate", "full")]
    for method in methods:
        seen = asked.setdefault(method.name, [])

        def prepare(past, prompt, seen=seen, taken=method.prepare_to_ask):
            seen.append(past.tolist())
            return taken(past, prompt)

        def ask(past, prompt, max_new_tokens, seen=seen):
            seen.append(prompt.question)
            return torch.tensor(llm.tokenizer(f"It is {answers[prompt.question]}.")["input_ids"])

        monkeypatch.setattr(method, "prepare_to_ask", prepare)
        monkeypatch.setattr(method, "ask", ask)
    answers = {spot.needle.question: spot.needle.value for h in made for spot in h.hidden}
    rows = list(run(llm, methods, 600, made, 4, 0, lambda line: None))
    assert asked["shared"] == asked["truncate"] == asked["full"]
    assert len(asked["full"]) == 3 + 7, "a haystack is read once"
    for row in rows:
        assert row.keys() >= ROW_FIELDS | OWN_FIELDS
        assert row["value"] == row["high"] == 1.0 and row["low"] < 0.7 and row["found"] == [1] * 7
        assert row["answers"] == [f"It is {value}." for value in row["values"]]
        assert row["depths"] == rows[0]["depths"] and 0 <= min(row["depths"]) <= max(row["depths"]) <= 1
    windows = {row["method"]: row["window"] for row in rows}
    assert windows["shared"] < windows["truncate"] == 200 < 600 < windows["full"]


def test_rows_repeat_and_say_what_is_beyond_the_window(make):
    llm = make(max_position_embeddings=512)
    methods = [create(name, llm, 300) for name in ("shared", "truncate", "full")]
    lines: list[str] = []
    first, again = (list(run(llm, methods, 600, haystacks(), 4, 0, lines.append, ceiling=True)) for _ in range(2))
    costs = {"seconds", "encode_seconds", "ask_seconds", "peak_memory_bytes"}
    assert [{k: v for k, v in row.items() if k not in costs} for row in first] == [
        {k: v for k, v in row.items() if k not in costs} for row in again
    ]
    assert [row["method"] for row in first] == ["shared", "truncate", "full", "passage"]
    assert [row["beyond_window"] for row in first] == [False, False, True, True]
    assert first[0]["chunk_length"] == CONFIG.chunk_length
    assert lines[6] == f"shared at 600: question 7 of 7, {sum(first[0]['found'])} found"


def test_found_by_depth():
    assert by_depth([0.0, 0.1, 0.5, 0.99, 1.0], [1, 0, 1, 0, 0], 4) == [0.5, None, 1.0, 0.0]

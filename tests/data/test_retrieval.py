"""Keys, hops and counts: one right answer each, which needs all of its statements."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from sharedllm.data.counts import STATEMENTS, draw_counts
from sharedllm.data.hops import draw_hops
from sharedllm.data.needles import HELD_OUT_NAMES, HELD_OUT_PLACES, Needle
from sharedllm.data.pairs import draw_pairs
from sharedllm.data.retrieval import draw_facts
from sharedllm.data.vocabulary import most_facts, vocabulary
from sharedllm.evaluate.needle import is_found
from tests.data.test_needles import HELD_OUT_PHRASES

Draw = Callable[[np.random.Generator, int], list[Needle]]


def draws(draw: Draw, count: int = 12, seeds: int = 15) -> list[list[Needle]]:
    return [draw(np.random.default_rng(seed), count) for seed in range(seeds)]


def hidden(needles: list[Needle]) -> list[str]:
    """What a context says: statements and distractors, each once."""
    return list(dict.fromkeys(s for n in needles for s in (*n.statements, *n.distractors)))


@pytest.mark.parametrize("draw", [draw_pairs, draw_hops, draw_counts])
def test_questions_differ_and_do_not_tell_the_answer(draw):
    for needles in draws(draw):
        assert len(needles) == len({n.question for n in needles}) == 12
        for n in needles:
            assert not is_found(n.value, n.question) and not is_found(n.value, n.opening)
            said = " ".join((n.question, n.opening, n.value, *hidden([n])))
            for held_out in (*HELD_OUT_PHRASES, *HELD_OUT_PLACES, *HELD_OUT_NAMES):
                assert held_out.casefold() not in said.casefold()


def test_a_key_has_one_value_in_the_whole_table():
    blocks = 0
    for needles in draws(draw_pairs):
        lines = [line for text in hidden(needles) for line in text.splitlines()]
        assert 12 + 4 <= len(lines) <= 12 + 12
        blocks += len(hidden(needles)) == 1
        for n in needles:
            (key,) = re.findall(r"[a-z]+[_.-][a-z]+", n.question)
            (line,) = [line for line in lines if is_found(key, line)]
            assert is_found(n.value, line)
    assert 0 < blocks < 15, "both blocks and scattered lines"


def names(text: str) -> set[str]:
    words = vocabulary()
    first, family = ("|".join(words[k]) for k in ("first_names", "family_names"))
    return set(re.findall(rf"\b(?:{first}) (?:{family})\b", text))


def test_hops_lead_from_the_question_to_the_answer_only_through_every_statement():
    lengths = set()
    for needles in draws(draw_hops):
        for n in needles:
            first, *middle, last = n.statements
            lengths.add(len(n.statements))
            (place,) = [p for p in vocabulary()["places"] if p in n.question]
            assert place in first and not names(n.question + n.opening)
            assert n.value in last and not any(is_found(n.value, s) for s in n.statements[:-1])
            (person,) = names(first)
            for statement in middle:
                (following,) = names(statement) - {person}
                assert person in statement
                person = following
            assert names(last) == {person}
            # Nobody else's statement names them.
            assert sum(person in s for s in hidden(needles)) == 2
    assert lengths == {2, 3}


def test_counts_are_how_many_statements_are_about_the_goods_and_the_place():
    values = set()
    for needles in draws(draw_counts):
        said = hidden(needles)
        for n in needles:
            (goods,) = [g for g in vocabulary()["goods"] if g in n.question]
            (place,) = [p for p in vocabulary()["places"] if p in n.question]
            assert int(n.value) == len([s for s in said if s in {f.format(g=goods, p=place) for f in STATEMENTS}])
            values.add(n.value)
    assert values == set("123456")


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_as_many_have_something_like_them_beside_them_as_asked_for(share):
    drawn = [n for seed in range(10) for n in draw_facts(np.random.default_rng(seed), 50, 0.2, 0.3, 0.1, share)]
    alike = [n for n in drawn if n.kind != "pairs"]
    assert abs(len([n for n in alike if n.distractors]) / len(alike) - share) < 0.07


def test_shares_of_the_kinds():
    def kinds(**shares: float) -> list[str]:
        return [n.kind for seed in range(10) for n in draw_facts(np.random.default_rng(seed), 50, **shares)]

    assert not {"pairs", "hops", "counts"} & set(kinds())
    assert set(kinds(hops=1.0)) == {"hops"}
    mixed = kinds(pairs=0.2, hops=0.3, counts=0.1)
    assert len(mixed) == 500
    for kind, share in {"pairs": 0.2, "hops": 0.3, "counts": 0.1}.items():
        assert abs(mixed.count(kind) / 500 - share) < 0.07


@pytest.mark.parametrize("shares", [{"pairs": 1.0}, {"hops": 1.0}, {"counts": 1.0}, {}], ids=str)
def test_as_many_facts_as_a_recipe_may_ask_for_can_be_drawn(shares):
    needles = draw_facts(np.random.default_rng(0), most_facts(), **shares, distracted=1.0)
    assert len({needle.question for needle in needles}) == most_facts() == 256

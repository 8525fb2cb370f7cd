"""Facts to hide: one answer to a question, varied wordings, and evaluation's own kept apart and unchanged."""

from __future__ import annotations

import hashlib
import re
from functools import cache

import numpy as np

from sharedllm.data.needles import HELD_OUT_NAMES, HELD_OUT_PLACES, Needle, draw_needles
from sharedllm.data.vocabulary import vocabulary
from sharedllm.evaluate.needle import is_found

HELD_OUT_PHRASES = ("secret number", "lamp", "delivered", "founded", "founder", "portrait", "feast", "decorated")


def draws(seeds: int = 20, count: int = 64) -> list[list[Needle]]:
    return [draw_needles(np.random.default_rng(seed), count) for seed in range(seeds)]


def test_held_out_draws_are_always_the_same():
    needles = draw_needles(np.random.default_rng(0), 100, held_out=True)
    said = [(n.statement, n.question, n.opening, n.value, n.kind) for n in needles]
    assert (
        hashlib.sha256(repr(said).encode()).hexdigest()
        == "4c274712bb832a69b7abf56abcba3d398ff40e359c4ecf3d97a2cc59ae333565"
    )
    assert not any(n.distractors for n in needles)


def test_training_shares_no_wording_place_or_name_with_the_held_out():
    words = vocabulary()
    everything = repr(words).casefold()
    for phrase in (*HELD_OUT_PHRASES, *HELD_OUT_PLACES):
        assert phrase.casefold() not in everything
    names = {(first, family) for first in words["first_names"] for family in words["family_names"]}
    assert not names & {tuple(name.split()) for name in HELD_OUT_NAMES}


def test_wordings_are_many_and_well_formed():
    forms = [form for of_kind in vocabulary()["forms"].values() for form in of_kind]
    assert len(forms) >= 70
    assert len({question for _, question, _ in forms}) == len(forms), "two statements answer one question"
    for statement, question, _ in forms:
        assert "{p}" in statement and "{v" in statement and "{p}" in question and "{t}" in question
    begun_with_what_is_asked = sum("{t}" in opening for *_, opening in forms)
    assert 0.4 < begun_with_what_is_asked / len(forms) < 0.6
    ends = sum(statement.rstrip('.,"| ').endswith("{v}") for statement, *_ in forms)
    starts = sum(statement.startswith(("{v", "A {v", "The {v", "[{v")) for statement, *_ in forms)
    assert min(ends, starts) > 10 and ends + starts < 0.7 * len(forms), "values stand first, last and between"


def test_word_lists_are_long_and_without_repeats():
    words = vocabulary()
    for name, least in {"first_names": 60, "family_names": 60, "places": 60, "things": 40}.items():
        assert len(set(words[name])) == len(words[name]) >= least


def test_a_statement_says_the_value_and_the_question_does_not():
    for needle in (n for needles in draws() for n in needles):
        assert is_found(needle.value, needle.statement), needle
        assert not is_found(needle.value, needle.question) and not is_found(needle.value, needle.opening)


def test_a_value_is_written_as_its_statement_writes_it():
    """Some words are capital only where a sentence begins with them; a proper name is wherever it stands."""
    begun = [(kind, form) for kind, of_kind in vocabulary()["forms"].items() for form, *_ in of_kind if "{v_}" in form]
    common = {"colour", "material"}
    assert begun and all(kind in common and form.startswith("{v_}") for kind, form in begun)
    needles = [n for some in draws() for n in some]
    assert all(n.value in n.statement for n in needles if n.kind not in common)
    named = [n for n in needles if n.kind in ("name", "place", "boat")]
    assert {n.kind for n in named} == {"name", "place", "boat"} and all(n.value.istitle() for n in named)


def test_no_question_has_two_answers():
    """Every statement hidden in a sample is about a (wording, thing, place) of its own."""
    for needles in draws():
        assert len({n.question for n in needles}) == len(needles)
        said = [text for n in needles for text in (*n.statements, *n.distractors)]
        facts = [about(text) for text in said]
        assert len(set(facts)) == len(facts)


@cache
def patterns() -> list[tuple[str, re.Pattern[str]]]:
    words = vocabulary()
    thing, place = ("|".join(map(re.escape, words[name])) for name in ("things", "places"))
    named = {"t": f"(?P<t>{thing})", "t_": f"(?P<t>(?i:{thing}))", "p": f"(?P<p>{place})", "v": ".+", "v_": ".+"}
    return [
        (form, re.compile(re.sub(r"\\{(\w+)\\}", lambda m: named[m[1]], re.escape(form))))
        for of_kind in words["forms"].values()
        for form, *_ in of_kind
    ]


def about(statement: str) -> tuple[str, str, str]:
    """Wording, thing and place of a statement."""
    (found,) = [(form, m) for form, pattern in patterns() if (m := pattern.fullmatch(statement))]
    return found[0], found[1]["t"].casefold(), found[1]["p"]


def test_many_needles_stand_beside_something_alike():
    needles = [n for some in draws() for n in some]
    beside = [n for n in needles if n.distractors]
    assert 0.2 < len(beside) / len(needles) < 0.4
    assert not any(is_found(n.value, n.distractors[0]) and n.kind == "name" for n in beside)
    same_kind = sum(about(n.statement)[0] == about(n.distractors[0])[0] for n in beside[:60])
    assert 15 < same_kind < 45

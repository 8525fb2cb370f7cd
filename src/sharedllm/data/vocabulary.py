"""What synthetic facts are made of: words, names and random values, apart from those held out for evaluation."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "grey", "brown", "silver", "pink")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # neither I nor O, which look like digits


@cache
def vocabulary() -> dict[str, Any]:
    """What `needles.json` holds: lists of words by name, and `forms`, a list of wordings by kind of value."""
    return json.loads((Path(__file__).parent / "needles.json").read_text(encoding="utf-8"))


@cache
def most_facts() -> int:
    """How many facts are asked for at most at once: a quarter of the subjects of the kind that has the fewest, since others stand
    beside them, and are drawn until one is free."""
    words = vocabulary()
    keys = len(words["words"]) ** 2  # of tables
    return min(keys, *(len(words[noun]) * len(words["places"]) for noun in ("things", "belongings", "goods"))) // 4


def pick(random: np.random.Generator, words: str) -> str:
    """One of the vocabulary's `words`."""
    return str(random.choice(vocabulary()[words]))


def draw_digits(random: np.random.Generator, least: int, most: int) -> str:
    """`least` to `most` digits, of which the first may be 0."""
    return "".join(map(str, random.integers(0, 10, size=int(random.integers(least, most + 1)))))


def draw_name(random: np.random.Generator) -> str:
    """A first name and a family name."""
    return f"{pick(random, 'first_names')} {pick(random, 'family_names')}"


def draw_code(random: np.random.Generator) -> str:
    """Such as `KX-4417`: letters and digits with no pattern to guess."""
    letters = "".join(LETTERS[i] for i in random.integers(0, len(LETTERS), size=int(random.integers(2, 4))).tolist())
    return f"{letters}-{draw_digits(random, 3, 5)}"


def draw_subjects(random: np.random.Generator, words: str, count: int) -> list[tuple[str, str]]:
    """`count` different pairs of one of the vocabulary's `words` and a place.

    Raises:
        ValueError: there are not so many.
    """
    nouns, places = vocabulary()[words], vocabulary()["places"]
    pairs = random.choice(len(places) * len(nouns), size=count, replace=False)
    return [(nouns[pair // len(places)], places[pair % len(places)]) for pair in pairs.tolist()]


def draw_beside(
    random: np.random.Generator, words: str, about: tuple[str, str], taken: set[tuple[str, str]]
) -> tuple[str, str]:
    """The same word with another place, or another word with the same place, added to those `taken`."""
    noun, place = about
    while (noun, place) in taken:
        if random.random() < 0.5:
            noun, place = about[0], pick(random, "places")
        else:
            noun, place = pick(random, words), about[1]
    taken.add((noun, place))
    return noun, place


def draw_value(random: np.random.Generator, kind: str, *taken: str) -> str:
    """A value of one of the kinds that have forms, none of those `taken`.

    Raises:
        KeyError: no such kind.
    """
    value = _value(random, kind)
    while value in taken:
        value = _value(random, kind)
    return value


def _value(random: np.random.Generator, kind: str) -> str:
    if kind in ("place", "animal", "material", "word"):
        return pick(random, f"{kind}s")
    draws = {
        "number": lambda: draw_digits(random, 3, 7),
        "name": lambda: draw_name(random),
        "boat": lambda: pick(random, "words").capitalize(),  # a proper name, written so wherever it stands
        "colour": lambda: str(random.choice(COLOURS)),
        "year": lambda: str(random.integers(1600, 2030)),
        "date": lambda: f"{random.integers(1, 29)} {pick(random, 'months')}",
        "time": lambda: f"{random.integers(0, 24):02}:{random.integers(0, 60):02}",
        "code": lambda: draw_code(random),
        "price": lambda: f"{random.integers(2, 5000)} {pick(random, 'currencies')}",
    }
    return draws[kind]()

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


def draw_value(random: np.random.Generator, kind: str) -> str:
    """A value of one of the kinds that have forms.

    Raises:
        KeyError: no such kind.
    """
    if kind in ("place", "animal", "material", "word"):
        return pick(random, f"{kind}s")
    draws = {
        "number": lambda: draw_digits(random, 3, 7),
        "name": lambda: draw_name(random),
        "colour": lambda: str(random.choice(COLOURS)),
        "year": lambda: str(random.integers(1600, 2030)),
        "date": lambda: f"{random.integers(1, 29)} {pick(random, 'months')}",
        "time": lambda: f"{random.integers(0, 24):02}:{random.integers(0, 60):02}",
        "code": lambda: draw_code(random),
        "price": lambda: f"{random.integers(2, 5000)} {pick(random, 'currencies')}",
    }
    return draws[kind]()

"""Synthetic retrieval: facts to hide in a text, each with a question and its exact answer.

Made by rule from word lists, in varied wordings, so that an adapter learns to find a fact and to copy it, not
one phrase. Numbers and codes have no pattern to guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PLACES = ("Lisbon", "Nairobi", "Quito", "Oslo", "Hanoi", "Denver", "Cairo", "Perth", "Tallinn", "Lima", "Kyoto", "Accra",
          "Riga", "Bergen", "Malaga", "Dakar", "Zagreb", "Turin", "Bogota", "Leeds", "Gdansk", "Tunis", "Osaka", "Porto")  # fmt: skip
THINGS = ("archive", "north gate", "vault", "greenhouse", "ferry", "laboratory", "reading room", "old mill", "observatory",
          "print shop", "harbour office", "workshop", "bakery", "museum", "boat house", "water tower")  # fmt: skip
NAMES = ("Ada Keller", "Bruno Silva", "Chen Wei", "Dora Lind", "Emil Novak", "Farah Aziz", "Goran Petrov", "Hana Sato",
         "Ivan Moreau", "Jonas Berg", "Kira Olsen", "Luca Rossi", "Mina Park", "Nadia Haddad", "Otto Braun", "Priya Nair",
         "Quinn Doyle", "Rosa Vega", "Sven Dahl", "Tara Singh", "Ugo Conti", "Vera Horak", "Wanda Kowal", "Yusuf Demir")  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "grey", "brown", "silver", "pink")

# kind of value, statement, question, start of the answer; {t} thing, {p} place, {v} value
FORMS = (
    ("number", "The access code for the {t} in {p} is {v}.", "What is the access code for the {t} in {p}?", "The access code for the {t} in {p} is"),
    ("number", "Remember this: the magic number of the {t} in {p} is {v}.", "What is the magic number of the {t} in {p}?", "The magic number is"),
    ("number", "In {p}, the {t} has the phone number {v}.", "Which phone number does the {t} in {p} have?", "It is"),
    ("number", "The {t} of {p} was given the registration {v}.", "What is the registration of the {t} of {p}?", "The registration is"),
    ("name", "The keeper of the {t} in {p} is called {v}.", "Who is the keeper of the {t} in {p}?", "The keeper is"),
    ("name", "{v} has been in charge of the {t} in {p} since last spring.", "Who is in charge of the {t} in {p}?", "In charge is"),
    ("colour", "The door of the {t} in {p} was painted {v}.", "What colour is the door of the {t} in {p}?", "The door is"),
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """A statement to hide, the question for it, the start of the answer, and the exact value."""

    statement: str
    question: str
    opening: str
    value: str


def draw_needles(random: np.random.Generator, count: int) -> list[Needle]:
    """`count` needles about different things in different places, so that no question has two answers.

    Raises:
        ValueError: more needles than there are pairs of a thing and a place.
    """
    pairs = random.choice(len(PLACES) * len(THINGS), size=count, replace=False)
    needles = []
    for pair in pairs.tolist():
        place, thing = PLACES[pair % len(PLACES)], THINGS[pair // len(PLACES)]
        kind, statement, question, opening = FORMS[int(random.integers(len(FORMS)))]
        value = _value(random, kind)
        said, asked, begun = (text.format(t=thing, p=place, v=value) for text in (statement, question, opening))
        needles.append(Needle(said, asked, begun, value))
    return needles


def _value(random: np.random.Generator, kind: str) -> str:
    if kind == "number":
        return "".join(map(str, random.integers(0, 10, size=int(random.integers(4, 8)))))
    choices = NAMES if kind == "name" else COLOURS
    return choices[int(random.integers(len(choices)))]

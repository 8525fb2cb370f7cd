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
    ("number", "Note: {v} visitors came to the {t} in {p} last year.", "How many visitors came to the {t} in {p} last year?", "The number of visitors was"),
    ("number", "Rent for the {t} in {p} was fixed at {v} crowns.", "At how many crowns was the rent for the {t} in {p} fixed?", "It was fixed at"),
    ("number", "{t_} in {p}: serial number {v}.", "Tell me the serial number of the {t} in {p}.", "The serial number of the {t} in {p} is"),
    ("name", "The keeper of the {t} in {p} is called {v}.", "Who is the keeper of the {t} in {p}?", "The keeper is"),
    ("name", "{v} has been in charge of the {t} in {p} since last spring.", "Who is in charge of the {t} in {p}?", "In charge is"),
    ("name", "When the {t} in {p} was robbed, {v} was the only witness.", "Who was the only witness when the {t} in {p} was robbed?", "The only witness was"),
    ("name", "Letters to the {t} in {p} should be addressed to {v}.", "To whom should letters to the {t} in {p} be addressed?", "They should be addressed to"),
    ("colour", "The door of the {t} in {p} was painted {v}.", "What colour is the door of the {t} in {p}?", "The door is"),
    ("colour", "Everyone in {p} knows the {v} roof of the {t}.", "Which colour does the roof of the {t} in {p} have?", "The roof is"),
)  # fmt: skip

# Kept out of training: other wordings, about other places, with other names.
HELD_OUT_FORMS = (
    ("number", "The secret number kept at the {t} in {p} is {v}.", "What is the secret number kept at the {t} in {p}?", "The secret number is"),
    ("number", "Last winter {v} lamps were delivered to the {t} of {p}.", "How many lamps were delivered to the {t} of {p} last winter?", "The number of lamps was"),
    ("name", "It was {v} who founded the {t} in {p}.", "Who founded the {t} in {p}?", "The founder was"),
    ("name", "The portrait in the {t} of {p} shows {v}.", "Whom does the portrait in the {t} of {p} show?", "The portrait shows"),
    ("colour", "For the feast, the {t} in {p} was decorated in {v}.", "In which colour was the {t} in {p} decorated for the feast?", "It was decorated in"),
)  # fmt: skip
HELD_OUT_PLACES = ("Vienna", "Santiago", "Bristol", "Hobart", "Seville", "Krakow", "Mombasa", "Nagoya", "Salta", "Bremen",
                   "Tampere", "Cardiff")  # fmt: skip
HELD_OUT_NAMES = ("Agnes Thorne", "Boris Maly", "Carla Mendez", "Derek Holt", "Elif Demirel", "Franz Huber", "Greta Nyman",
                  "Hugo Laurent", "Irena Pavlic", "Joao Matos", "Karin Voss", "Liam Doherty")  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """A statement to hide, the question for it, the start of the answer, the exact value, and what kind it is."""

    statement: str
    question: str
    opening: str
    value: str
    kind: str
    """`number`, `name` or `colour`."""


def draw_needles(random: np.random.Generator, count: int, held_out: bool = False) -> list[Needle]:
    """`count` needles about different things in different places, so that no question has two answers.

    Args:
        held_out: from the wordings, places and names that training never sees, to be evaluated with.
    Raises:
        ValueError: more needles than there are pairs of a thing and a place.
    """
    forms, places, names = (HELD_OUT_FORMS, HELD_OUT_PLACES, HELD_OUT_NAMES) if held_out else (FORMS, PLACES, NAMES)
    pairs = random.choice(len(places) * len(THINGS), size=count, replace=False)
    needles = []
    for pair in pairs.tolist():
        place, thing = places[pair % len(places)], THINGS[pair // len(places)]
        kind, statement, question, opening = forms[int(random.integers(len(forms)))]
        if kind == "number":
            value = "".join(map(str, random.integers(0, 10, size=int(random.integers(4, 8)))))
        else:
            value = str(random.choice(names if kind == "name" else COLOURS))
        said, asked, begun = (
            text.format(t=thing, t_=thing.capitalize(), p=place, v=value) for text in (statement, question, opening)
        )
        needles.append(Needle(said, asked, begun, value, kind))
    return needles

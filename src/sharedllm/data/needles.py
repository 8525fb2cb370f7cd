"""Synthetic retrieval: facts to hide in a text, each with a question and its exact answer.

Made by rule, in varied wordings, so that an adapter learns to find a fact and to copy it, not one phrase. Numbers
and codes have no pattern to guess. Evaluation has wordings, places and names of its own, which training never sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sharedllm.data.vocabulary import COLOURS, draw_beside, draw_digits, draw_subjects, draw_value, vocabulary

# Of the facts that evaluation hides; those of training are in needles.json. Kept as they are, so that the same seed
# hides the same facts. Kind of value, statement, question, start of the answer; {t} thing, {p} place, {v} value.
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
THINGS = ("archive", "north gate", "vault", "greenhouse", "ferry", "laboratory", "reading room", "old mill", "observatory",
          "print shop", "harbour office", "workshop", "bakery", "museum", "boat house", "water tower")  # fmt: skip

DISTRACTED = 0.3  # share of training's facts that come with a statement like theirs, where nothing says otherwise


@dataclass(frozen=True)
class Needle:
    """A fact hidden in a text: what says it, the question for it, and how the answer begins and what it is."""

    statements: tuple[str, ...]
    """Each is hidden at a place of its own; the answer needs them all."""
    question: str
    opening: str
    """How the answer begins before the value; empty where it is the value alone."""
    value: str
    kind: str
    """Of value, such as `number` or `name`, or of the task where that is more than to copy one."""
    distractors: tuple[str, ...] = ()
    """Hidden too: statements about similar things, which do not answer the question."""

    @property
    def statement(self) -> str:
        """All statements, a line each."""
        return "\n".join(self.statements)

    @property
    def answer(self) -> str:
        """What comes after `opening`, with the full stop."""
        return f" {self.value}." if self.opening else f"{self.value}."


def draw_needles(
    random: np.random.Generator,
    count: int,
    distracted: float = DISTRACTED,
    wordings: int | None = None,
    held_out: bool = False,
) -> list[Needle]:
    """`count` needles about different things in different places, so that no question has two answers.

    Args:
        distracted: share that come with a statement like theirs: the same of a neighbour, or another kind of the same.
        wordings: how many are drawn from; None: all.
        held_out: from the wordings, places and names that training never sees, to be evaluated with.
    Raises:
        ValueError: more needles than there are pairs of a thing and a place.
    """
    if held_out:
        return _held_out(random, count)
    every = [(kind, *form) for kind, of_kind in vocabulary()["forms"].items() for form in of_kind]
    some = every if wordings is None else [every[i] for i in random.permutation(len(every))[:wordings].tolist()]
    where = draw_subjects(random, "things", count)
    taken, needles = set(where), []
    for about in where:
        form = some[int(random.integers(len(some)))]
        value = draw_value(random, form[0], about[1])
        said, asked, begun = (_fill(text, about, value) for text in form[1:])
        distractors: tuple[str, ...] = ()
        if random.random() < distracted:
            if random.random() < 0.5:
                like = draw_beside(random, "things", about, taken)
                distractors = (_fill(form[1], like, draw_value(random, form[0], like[1], value)),)
            else:
                rest = [f for f in every if f[0] != form[0]]
                kind, statement, *_ = rest[int(random.integers(len(rest)))]
                distractors = (_fill(statement, about, draw_value(random, kind, about[1])),)
        needles.append(Needle((said,), asked, begun, value, form[0], distractors))
    return needles


def _fill(text: str, about: tuple[str, str], value: str) -> str:
    thing, place = about
    capital = value[0].upper() + value[1:]
    return text.format(t=thing, t_=thing.capitalize(), p=place, v=value, v_=capital)


def _held_out(random: np.random.Generator, count: int) -> list[Needle]:
    pairs = random.choice(len(HELD_OUT_PLACES) * len(THINGS), size=count, replace=False)
    needles = []
    for pair in pairs.tolist():
        about = THINGS[pair // len(HELD_OUT_PLACES)], HELD_OUT_PLACES[pair % len(HELD_OUT_PLACES)]
        kind, *texts = HELD_OUT_FORMS[int(random.integers(len(HELD_OUT_FORMS)))]
        if kind == "number":
            value = draw_digits(random, 4, 7)
        else:
            value = str(random.choice(HELD_OUT_NAMES if kind == "name" else COLOURS))
        said, asked, begun = (_fill(text, about, value) for text in texts)
        needles.append(Needle((said,), asked, begun, value, kind))
    return needles

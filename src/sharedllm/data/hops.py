"""Questions over several facts: who something belongs to, who that person knows, what is said of them."""

from __future__ import annotations

import numpy as np

from sharedllm.data.needles import DISTRACTED, Needle
from sharedllm.data.vocabulary import draw_name, draw_subjects, draw_value

# {t} from {p} -> {b}: statement, how a question calls the person
FIRST = (
    ("The {t} from {p} belongs to {b}.", "the owner of the {t} from {p}"),
    ("{b} spent a winter repairing the {t} from {p}.", "the person who repaired the {t} from {p}"),
    ("At the fair, {b} won the {t} from {p}.", "the winner of the {t} from {p}"),
    ("The {t} that came from {p} was a present to {b} from an uncle.", "the person who got the {t} from {p} as a present"),
    ("{b} looks after the {t} from {p}, and has done so for years.", "the person who looks after the {t} from {p}"),
)  # fmt: skip
# {a} -> {b}
MIDDLE = (
    ("{a} is married to {b}.", "the one married to {who}"),
    ("{b} was the teacher of {a}.", "the teacher of {who}"),
    ("Every Sunday {a} plays chess with {b}.", "the chess partner of {who}"),
    ("{b} is employed as a cook by {a}.", "the cook of {who}"),
    ("When {a} is away, {b} waters the plants.", "the person who waters the plants of {who}"),
    ("The neighbour of {a} is {b}.", "the neighbour of {who}"),
)
# {a} -> {v}: kind of value, statement, question, start of the answer in full and in short
LAST = (
    ("colour", "{a} lives in the {v} house on the corner.", "What colour is the house of {who}?", "The house of {who} is", "It is"),
    ("colour", "The {v} hat is the one that {a} always wears.", "What colour is the hat of {who}?", "The hat of {who} is", "It is"),
    ("place", "{a} was born in {v}.", "In which city was {who} born?", "The city in which {who} was born is", "In"),
    ("place", "To {v} {a} will move next spring.", "To which city will {who} move?", "The city to which {who} will move is", "To"),
    ("animal", "{a} keeps a {v} in the garden.", "Which animal does {who} keep?", "The animal kept by {who} is a", "A"),
    ("number", "Locker {v} is the one that {a} uses.", "Which locker does {who} use?", "The locker used by {who} is", "Locker"),
    ("year", "In {v}, {a} finished school.", "When did {who} finish school?", "The year in which school was finished by {who} is", "In"),
    ("boat", "{a} named a boat {v}.", "What is the name of the boat of {who}?", "The boat of {who} is named", ""),
)  # fmt: skip


def draw_hops(random: np.random.Generator, count: int, distracted: float = DISTRACTED) -> list[Needle]:
    """`count` questions of two or three statements each, about different things and people.

    No statement alone holds both what is asked about and the answer.

    Args:
        distracted: share that come with a statement like their last, of somebody else.
    Raises:
        ValueError: more questions than there are pairs of a belonging and a place.
    """
    needles = []
    names: set[str] = set()
    for belonging, place in draw_subjects(random, "belongings", count):
        person = _somebody(random, names)
        statement, who = FIRST[int(random.integers(len(FIRST)))]
        statements = [statement.format(t=belonging, p=place, b=person)]
        who = who.format(t=belonging, p=place)
        if random.random() < 0.5:
            other = _somebody(random, names)
            statement, calls = MIDDLE[int(random.integers(len(MIDDLE)))]
            statements.append(statement.format(a=person, b=other))
            person, who = other, calls.format(who=who)
        kind, statement, question, full, short = LAST[int(random.integers(len(LAST)))]
        value = draw_value(random, kind, place)
        statements.append(statement.format(a=person, v=value))
        distractors: tuple[str, ...] = ()
        if random.random() < distracted:
            like = statement.format(a=_somebody(random, names), v=draw_value(random, kind, place, value))
            distractors = (like,)
        opening = (full if random.random() < 0.5 else short).format(who=who)
        needles.append(Needle(tuple(statements), question.format(who=who), opening, value, "hops", distractors))
    return needles


def _somebody(random: np.random.Generator, taken: set[str]) -> str:
    """A name that nobody has, added to those `taken`."""
    name = draw_name(random)
    while name in taken:
        name = draw_name(random)
    taken.add(name)
    return name

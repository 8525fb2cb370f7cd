"""Questions of how often a text says something: statements to hide that have to be counted."""

from __future__ import annotations

import numpy as np

from sharedllm.data.needles import DISTRACTED, Needle
from sharedllm.data.vocabulary import draw_beside, draw_subjects

MOST = 6
# {g} such as "crate of oranges", {p} place; one for each time
STATEMENTS = (
    "Another {g} arrived in {p}.",
    "A {g} was unloaded in {p} that day.",
    "In {p} they signed for one {g}.",
    "One {g} went to {p}, as agreed.",
    "{p}: 1 {g} received.",
    "By evening one more {g} had reached {p}.",
)
QUESTIONS = (
    ("How often did a {g} arrive in {p}?", "In {p}, the number of times a {g} arrived is"),
    ("Count the statements that say a {g} came to {p}.", "The number of statements that say a {g} came to {p} is"),
    ("How many times does the text say that {p} received a {g}?", ""),
    ("Each time a {g} reached {p}, one was noted. How many were noted in all?", "The number is"),
)


def draw_counts(random: np.random.Generator, count: int, distracted: float = DISTRACTED) -> list[Needle]:
    """`count` questions of how often some goods came to a place: 1 to 6 times, each said in other words.

    Args:
        distracted: share that come with a statement like theirs, of other goods or another place.
    Raises:
        ValueError: more questions than there are pairs of goods and a place.
    """
    subjects = draw_subjects(random, "goods", count)
    taken, needles = set(subjects), []
    for goods, place in subjects:
        times = int(random.integers(1, MOST + 1))
        said = [STATEMENTS[i].format(g=goods, p=place) for i in random.permutation(MOST)[:times].tolist()]
        question, opening = QUESTIONS[int(random.integers(len(QUESTIONS)))]
        distractors: tuple[str, ...] = ()
        if random.random() < distracted:
            other_goods, other_place = draw_beside(random, "goods", (goods, place), taken)
            form = STATEMENTS[int(random.integers(MOST))]
            distractors = (form.format(g=other_goods, p=other_place),)
        asked, begun = (text.format(g=goods, p=place) for text in (question, opening))
        needles.append(Needle(tuple(said), asked, begun, str(times), "counts", distractors))
    return needles

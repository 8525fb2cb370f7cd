"""Keys and values: a table with more keys than are asked for, in one block or with its lines scattered."""

from __future__ import annotations

import numpy as np

from sharedllm.data.needles import Needle
from sharedllm.data.vocabulary import draw_value, vocabulary

EXTRA = (4, 12)  # fewest and most keys that nobody asks for
LINES = ("{k} = {v}", "{k}: {v}", "{k} -> {v}", '"{k}": "{v}",', "set {k} to {v};", "| {k} | {v} |", "{v} ({k})")
QUESTIONS = (
    ("What is the value of {k}?", "The value of {k} is"),
    ("To what is {k} set?", "The key {k} is set to"),
    ("Which value belongs to the key {k}?", "It is"),
    ("{k} = ?", ""),
)
KINDS = ("number", "code", "animal", "time")


def draw_pairs(random: np.random.Generator, count: int) -> list[Needle]:
    """`count` keys of one table, each with its value; all have the same statement where the table is one block.

    Raises:
        ValueError: more keys than there are pairs of words.
    """
    if count == 0:
        return []
    keys = _keys(random, count + int(random.integers(EXTRA[0], EXTRA[1] + 1)))
    values = [draw_value(random, KINDS[int(random.integers(len(KINDS)))]) for _ in keys]
    line = LINES[int(random.integers(len(LINES)))]
    lines = [line.format(k=key, v=value) for key, value in zip(keys, values, strict=True)]
    block = "\n".join(lines[i] for i in random.permutation(len(lines)).tolist()) if random.random() < 0.5 else ""
    needles = []
    for i in range(count):
        question, opening = (text.format(k=keys[i]) for text in QUESTIONS[int(random.integers(len(QUESTIONS)))])
        rest = tuple(lines[count:]) if i == 0 and not block else ()
        needles.append(Needle((block or lines[i],), question, opening, values[i], "pairs", rest))
    return needles


def _keys(random: np.random.Generator, count: int) -> list[str]:
    """Different keys such as `lantern_comet`."""
    words = vocabulary()["words"]
    joint = "_.-"[int(random.integers(3))]
    pairs = random.choice(len(words) ** 2, size=count, replace=False)
    return [f"{words[pair // len(words)]}{joint}{words[pair % len(words)]}" for pair in pairs.tolist()]

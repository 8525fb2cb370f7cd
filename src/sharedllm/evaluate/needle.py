"""Needle in a haystack: the share of questions answered about facts hidden in a long text.

A haystack is a passage of a real text with several facts (`data.needles`) put in between its tokens, at
depths spread evenly from its first token (0) to its last (1). Every fact is asked for separately, so that
one reading of a haystack serves many questions. All methods get the same haystacks and questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharedllm.data.needles import HELD_OUT_PLACES, THINGS, Needle, draw_needles
from sharedllm.errors import UsageError
from sharedllm.evaluate.asking import Asked, Examination, Question, Text, ask_methods
from sharedllm.evaluate.perplexity import cut_passages
from sharedllm.evaluate.results import Results
from sharedllm.methods import Method
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

MOST_NEEDLES = len(HELD_OUT_PLACES) * len(THINGS)


@dataclass(frozen=True)
class Hidden:
    """A needle in a haystack: its statement begins at token `start` and has `tokens` tokens.

    `depth` is the start as a share of the last one possible: 0 at the haystack's beginning, 1 at its end.
    """

    needle: Needle
    start: int
    tokens: int
    depth: float


@dataclass(frozen=True)
class Haystack:
    """Token ids [length] with needles in them, in text order, and the text they come from."""

    source: str
    ids: Tensor
    hidden: list[Hidden]


def is_found(value: str, answer: str) -> bool:
    """Whether `value` stands in `answer` as a whole word or number, whatever the case and the white space.

    Digits that a point, comma or hyphen joins to others are part of a longer number.
    """
    wanted, given = (" ".join(text.split()).casefold() for text in (value, answer))
    return re.search(rf"(?<!\w)(?<!\d[.,-]){re.escape(wanted)}(?!\w)(?![.,-]\d)", given) is not None


def spread_depths(samples: int, haystacks: int, seed: int) -> list[list[float]]:
    """Depths between 0 and 1 of `samples` questions, a sorted list for every haystack; sizes differ by one at most.

    Each of `samples` equal strata holds one depth, drawn evenly in it; neighbouring strata go to different
    haystacks, in random order.
    """
    random = np.random.default_rng(seed)
    dealt: list[list[float]] = [[] for _ in range(haystacks)]
    for first in range(0, samples, haystacks):
        for stratum, h in enumerate(random.permutation(haystacks)[: samples - first].tolist(), first):
            dealt[h].append((stratum + float(random.random())) / samples)
    return dealt


def build_haystacks(
    texts: Sequence[tuple[str, Tensor]],
    length: int,
    samples: int,
    needles_per_text: int,
    seed: int,
    encode: Callable[[str], Tensor],
    beside: Callable[[Needle], int] = lambda needle: 0,
) -> list[Haystack]:
    """Haystacks that have `length` tokens with their needles and the longest question and answer, `samples` needles in all,
    up to `needles_per_text` each.

    Needles and depths follow from the seed alone, so that they are the same at every length.

    Args:
        texts: name and token ids [n] of each text; passages are taken evenly from them.
        encode: token ids [n] of a statement.
        beside: tokens that a needle's question and its answer take beside the text.
    Raises:
        UsageError: no text is long enough, the needles do not fit `length`, or more are wanted than there are.
    """
    if needles_per_text > MOST_NEEDLES:
        raise UsageError(f"--needles-per-text is {needles_per_text}; it must be at most {MOST_NEEDLES}.")
    spread = spread_depths(samples, -(-samples // needles_per_text), seed)
    drawn = [
        draw_needles(np.random.default_rng([seed, h]), len(depths), held_out=True) for h, depths in enumerate(spread)
    ]
    taken = max(beside(needle) for needles in drawn for needle in needles)
    if taken >= length:
        raise UsageError(f"a question and its answer take {taken:,} tokens; raise --lengths above that.")
    passages = cut_passages(texts, length, len(spread))
    return [
        hide(passage.source, passage.ids[: length - taken], needles, depths, encode)
        for passage, needles, depths in zip(passages, drawn, spread, strict=True)
    ]


def hide(
    source: str, ids: Tensor, needles: Sequence[Needle], depths: Sequence[float], encode: Callable[[str], Tensor]
) -> Haystack:
    """Put needles at rising `depths` (0 to 1) into `ids` [n], each on a line of its own, at the cost of the last tokens.

    Raises:
        UsageError: they are longer than `ids`.
    """
    statements = [encode(f"\n{needle.statement}\n") for needle in needles]
    room = len(ids) - sum(map(len, statements))
    if room < 0:
        raise UsageError(
            f"{len(needles)} needles have {len(ids) - room:,} tokens and the length is {len(ids):,}; "
            "lower --needles-per-text or raise --lengths."
        )
    pieces, hidden, at, start = [], [], 0, 0
    for needle, statement, depth in zip(needles, statements, depths, strict=True):
        cut = round(depth * room)
        pieces += [ids[at:cut], statement]
        start += cut - at
        last = len(ids) - len(statement)
        hidden.append(Hidden(needle, start, len(statement), start / last if last else 0.0))
        at, start = cut, start + len(statement)
    return Haystack(source, torch.cat([*pieces, ids[at:room]]), hidden)


def as_text(haystack: Haystack, tokenizer: Any, max_new_tokens: int) -> Text:
    """The haystack with a question a needle, which scores 1 where its value is found and 0 elsewhere."""

    def ask(spot: Hidden) -> Question:
        value, prompt = spot.needle.value, Prompt(tokenizer, spot.needle.question)
        return Question(prompt, partial(is_found, value), max_new_tokens, (value,), spot.start, spot.tokens)

    return Text(haystack.source, haystack.ids, [ask(spot) for spot in haystack.hidden])


def how_many_found(scores: Sequence[float]) -> str:
    return f"{sum(map(int, scores))} found"


def run(
    llm: SharedLLM,
    methods: Sequence[Method],
    length: int,
    haystacks: Sequence[Haystack],
    max_new_tokens: int,
    seed: int,
    progress: Callable[[str], None],
    ceiling: bool = False,
    results: Results | None = None,
    free: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """Ask every question of all haystacks by all methods; yields a row a method.

    A row says what `asking.row` says; its `value` is the share found. `depths`, `kinds`, `values` (the answers
    expected) and `found` have an entry a question; `needles_per_text` is how many one haystack has at most.

    Args:
        length: tokens that text, question and answer have together at most.
        ceiling: also ask the plain model shown only the tokens around the needle; a row of method `passage`.
        results: what is known already is taken from there.
        free: memory that can be taken, in bytes; a method that needs more gives a row without a value.
    Raises:
        UsageError: a method's window cannot hold question and answer.
    """
    hidden = [spot for haystack in haystacks for spot in haystack.hidden]

    def more(asked: Asked) -> dict[str, Any]:
        return {
            "haystacks": len(haystacks),
            "needles_per_text": max(len(haystack.hidden) for haystack in haystacks),
            "depths": [round(spot.depth, 4) for spot in hidden],
            "kinds": [spot.needle.kind for spot in hidden],
            "values": [spot.needle.value for spot in hidden],
            "found": [int(score) for score in asked.scores],
        }

    texts = [as_text(haystack, llm.tokenizer, max_new_tokens) for haystack in haystacks]
    examination = Examination("needle", "found", length, texts, more, summary=how_many_found)
    return ask_methods(llm, methods, examination, seed, progress, results or Results(), ceiling, free)


def by_depth(depths: Sequence[float], found: Sequence[int], parts: int) -> list[float | None]:
    """Share found in each of `parts` equal ranges of depth, None where nothing was asked."""
    inside: list[list[int]] = [[] for _ in range(parts)]
    for depth, one in zip(depths, found, strict=True):
        inside[min(int(depth * parts), parts - 1)].append(one)
    return [sum(part) / len(part) if part else None for part in inside]

"""Needle in a haystack: the share of questions answered about facts hidden in a long text.

A haystack is a passage of a real text with several facts (`data.needles`) put in between its tokens, at
depths spread evenly from its first token (0) to its last (1). Every fact is asked for separately, so that
one reading of a haystack serves many questions. All methods get the same haystacks and questions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharedllm.data.needles import HELD_OUT_PLACES, THINGS, Needle, draw_needles
from sharedllm.errors import UsageError
from sharedllm.evaluate.perplexity import cut_passages
from sharedllm.evaluate.row import measured
from sharedllm.methods import Method
from sharedllm.methods.full import Full
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

CEILING = "passage"
CEILING_TOKENS = 1024
ANSWER_CHARACTERS = 200  # of an answer kept in a row
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


@dataclass
class Asked:
    """What a method answered to the questions so far, and what it cost.

    `window` is the most positions that text, question and answer took in the model's own attention;
    `encode_seconds` has an entry a haystack, `ask_seconds` one a question.
    """

    answers: list[str] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    window: int = 0
    encode_seconds: list[float] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)


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
) -> list[Haystack]:
    """Haystacks of `length` tokens, needles included, with `samples` needles in all, up to `needles_per_text` each.

    Needles and depths follow from the seed alone, so that they are the same at every length.

    Args:
        texts: name and token ids [n] of each text; passages are taken evenly from them.
        encode: token ids [n] of a statement.
    Raises:
        UsageError: no text is long enough, the needles do not fit `length`, or more are wanted than there are.
    """
    if needles_per_text > MOST_NEEDLES:
        raise UsageError(f"--needles-per-text is {needles_per_text}; it must be at most {MOST_NEEDLES}.")
    passages = cut_passages(texts, length, -(-samples // needles_per_text))
    haystacks = []
    for h, depths in enumerate(spread_depths(samples, len(passages), seed)):
        needles = draw_needles(np.random.default_rng([seed, h]), len(depths), held_out=True)
        haystacks.append(hide(passages[h].source, passages[h].ids, needles, depths, encode))
    return haystacks


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


def around(haystack: Haystack, hidden: Hidden, tokens: int) -> Haystack:
    """The `tokens` tokens of a haystack around one needle (fewer in a shorter one), to ask for that needle alone."""
    start = hidden.start + hidden.tokens // 2 - tokens // 2
    start = max(0, min(start, len(haystack.ids) - tokens))
    inside = Hidden(hidden.needle, hidden.start - start, hidden.tokens, hidden.depth)
    return Haystack(haystack.source, haystack.ids[start : start + tokens], [inside])


def run(
    llm: SharedLLM,
    methods: Sequence[Method],
    haystacks: Sequence[Haystack],
    max_new_tokens: int,
    seed: int,
    progress: Callable[[str], None],
    ceiling: bool = False,
) -> Iterator[dict[str, Any]]:
    """Ask every question of all haystacks (of one length) by all methods; yields a row a method.

    A row's `value` is the share found; `low` and `high` bound it (95 % bootstrap over questions). `depths`,
    `kinds`, `values` (the answers expected), `answers` and `found` have an entry a question. `window` is the
    most positions used of the model's own attention and `beyond_window` says whether they are more than it
    was trained for. `encode_seconds` is the mean of a haystack, `ask_seconds` that of a question.

    Args:
        ceiling: also ask the plain model shown only the tokens around the needle; a row of method `passage`.
    Raises:
        UsageError: a method's window cannot hold question and answer.
    """
    length = len(haystacks[0].ids)

    def asked_by(name: str, method: Method, texts: Sequence[Haystack]) -> Asked:
        samples, asked = sum(len(text.hidden) for text in texts), Asked()
        for text in texts:
            for _ in _ask(method, text, max_new_tokens, asked):
                done, found = len(asked.found), sum(asked.found)
                progress(f"{name} at {length:,}: question {done} of {samples}, {found} found")
        return asked

    for method in methods:
        asked = asked_by(method.name, method, haystacks)
        yield {**method.settings(), **_row(llm, method.name, haystacks, asked, max_new_tokens, seed)}
    if ceiling:
        passages = [around(haystack, spot, CEILING_TOKENS) for haystack in haystacks for spot in haystack.hidden]
        asked = asked_by(CEILING, Full(llm, CEILING_TOKENS), passages)
        yield _row(llm, CEILING, haystacks, asked, max_new_tokens, seed)


def _ask(method: Method, haystack: Haystack, max_new_tokens: int, asked: Asked) -> Iterator[None]:
    """Read a haystack and ask its questions, adding to `asked`; stops after each."""
    llm, started = method.llm, time.perf_counter()
    past = method.prepare(haystack.ids)
    if llm.device.type == "cuda":
        torch.cuda.synchronize(llm.device)
    asked.encode_seconds.append(time.perf_counter() - started)
    for spot in haystack.hidden:
        prompt = Prompt(llm.tokenizer, spot.needle.question)
        asked.window = max(asked.window, len(method.shown(past, prompt, max_new_tokens)) + max_new_tokens)
        started = time.perf_counter()
        answer = llm.tokenizer.decode(method.ask(past, prompt, max_new_tokens), skip_special_tokens=True).strip()
        asked.ask_seconds.append(time.perf_counter() - started)
        asked.answers.append(answer)
        asked.found.append(int(is_found(spot.needle.value, answer)))
        yield


def _row(
    llm: SharedLLM, name: str, haystacks: Sequence[Haystack], asked: Asked, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    hidden = [spot for haystack in haystacks for spot in haystack.hidden]
    return {
        "task": "needle",
        **measured(llm, asked.found, seed),
        "method": name,
        "length": len(haystacks[0].ids),
        "metric": "found",
        "haystacks": len(haystacks),
        "window": asked.window,
        "beyond_window": asked.window > llm.window,
        "max_new_tokens": max_new_tokens,
        "seconds": round(sum(asked.encode_seconds) + sum(asked.ask_seconds), 3),
        "encode_seconds": round(sum(asked.encode_seconds) / len(asked.encode_seconds), 3),
        "ask_seconds": round(sum(asked.ask_seconds) / len(asked.ask_seconds), 3),
        "sources": [haystack.source for haystack in haystacks],
        "depths": [round(spot.depth, 4) for spot in hidden],
        "kinds": [spot.needle.kind for spot in hidden],
        "values": [spot.needle.value for spot in hidden],
        "answers": [answer[:ANSWER_CHARACTERS] for answer in asked.answers],
        "found": asked.found,
    }


def by_depth(depths: Sequence[float], found: Sequence[int], parts: int) -> list[float | None]:
    """Share found in each of `parts` equal ranges of depth, None where nothing was asked."""
    inside: list[list[int]] = [[] for _ in range(parts)]
    for depth, one in zip(depths, found, strict=True):
        inside[min(int(depth * parts), parts - 1)].append(one)
    return [sum(part) / len(part) if part else None for part in inside]

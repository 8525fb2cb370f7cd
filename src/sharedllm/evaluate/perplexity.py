"""Perplexity: nats a token of the last targets of a passage, by every method on the same tokens.

A passage is `length` tokens in a row of one text. What a method sees itself is the window (its newest
tokens); what lies before is the past, given to the method as a whole.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor

from sharedllm.errors import UsageError
from sharedllm.evaluate.peak import reset_peak
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.row import RAN_OUT, measured, refusal, refused, unless_memory_ends
from sharedllm.methods import Method
from sharedllm.methods.base import opening_of

GAIN = "nll_gain_over_truncate"


@dataclass(frozen=True)
class Passage:
    """Token ids of a passage and where it comes from."""

    source: str
    start: int
    ids: Tensor


def cut_passages(texts: Sequence[tuple[str, Tensor]], length: int, samples: int, apart: int = 0) -> list[Passage]:
    """`samples` passages of `length` tokens, taken in turn from the texts and evenly spread in each.

    Args:
        apart: tokens between the starts of two passages of a text at least; where that leaves room for fewer passages
            than `samples`, there are fewer.
    Raises:
        UsageError: no text is long enough; the longest is named.
    """
    long_enough = _long_enough(texts, length)
    passages = []
    for (name, ids), share in zip(
        long_enough, _shares([len(t[1]) - length for t in long_enough], samples, apart), strict=True
    ):
        for k in range(share):
            start = (len(ids) - length) * (2 * k + 1) // (2 * share)
            passages.append(Passage(name, start, ids[start : start + length]))
    return passages


def slide_passages(texts: Sequence[tuple[str, Tensor]], length: int, stride: int) -> list[Passage]:
    """Passages of `length` tokens that start every `stride` tokens of each text.

    With as many targets as `stride`, every token is scored once from the targets of a text's first passage to the end of its
    last. The `length` - `stride` tokens before them are only read, and the fewer than `stride` after them are left out.

    Raises:
        UsageError: no text is long enough; the longest is named.
    """
    return [
        Passage(name, start, ids[start : start + length])
        for name, ids in _long_enough(texts, length)
        for start in range(0, len(ids) - length + 1, stride)
    ]


def scored_tokens(passages: Sequence[Passage], targets: int) -> int:
    """How many tokens are among the last `targets` of sliding passages, each counted once."""
    steps = [b.start - a.start for a, b in pairwise(passages) if a.source == b.source]
    return targets * len(passages) - sum(targets - step for step in steps if 0 < step < targets)


def left_out(texts: Sequence[tuple[str, Tensor]], lengths: Sequence[int]) -> Iterator[str]:
    """A line for every text that is too short to give a passage of some of these lengths."""
    for name, ids in texts:
        if too_long := [f"{n:,}" for n in sorted(set(lengths)) if len(ids) < n]:
            yield f"{name} has {len(ids):,} tokens and is left out at {', '.join(too_long)}"


def _long_enough(texts: Sequence[tuple[str, Tensor]], length: int) -> list[tuple[str, Tensor]]:
    if length < 2:
        raise UsageError(f"a length of {length} tokens cannot be scored; give at least 2.")
    long_enough = [(name, ids) for name, ids in texts if len(ids) >= length]
    if not long_enough:
        name, ids = max(texts, key=lambda t: len(t[1]))
        raise UsageError(
            f"no text has {length:,} tokens; the longest, {name}, has {len(ids):,}: give longer texts or shorter --lengths."
        )
    return long_enough


def _shares(rooms: Sequence[int], samples: int, apart: int) -> list[int]:
    """How many of `samples` passages each text gives, in turn, where its passages can start in so many places."""
    most = [max(1, room // apart) if apart else samples for room in rooms]
    shares = [0] * len(rooms)
    for _ in range(min(samples, sum(most))):
        t = min((t for t in range(len(rooms)) if shares[t] < most[t]), key=lambda t: shares[t])
        shares[t] += 1
    return shares


def run(
    methods: Sequence[Method],
    passages: Sequence[Passage],
    lengths: Sequence[int],
    targets: int,
    seed: int,
    progress: Callable[[str], None],
    results: Results | None = None,
    free: float = math.inf,
    stride: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Score all passages by all methods, each passage with its last `lengths` tokens.

    So all lengths score the same targets, and differ only in how far back a method may look. Yields a row a
    method and length, then paired differences. A row's `value` is the mean over passages of the mean nats of a
    passage; `low` and `high` bound it (95 % bootstrap over passages); `values` gives each passage, `sources`
    its text, `starts` where its longest form starts there. `seconds` of the longest length hold what is
    read once for all of them, and `peak_memory_bytes` is the highest of them all. `slots`, of a method that has some, is how many
    a layer took in, the mean over passages; `opening`, where there is one, what the tokenizer puts before a text. `stride` is that
    of `slide_passages`, null where passages are spread; a paired difference says which window `truncate` had (`truncate_window`).
    A method that would not fit into `free` bytes of memory or runs out of it, or whose figures would say nothing, gives rows
    without a value and with a `reason`. What `results` has is not scored again.

    The first target always has a token before it in the window, so a window of `targets` tokens is widened by
    one. Passages must be as long as the longest length.
    """
    results = results or Results()
    lengths = sorted(set(lengths), reverse=True)
    targets = min(targets, lengths[-1] - 1)
    read = hashlib.sha256(b"".join(passage.ids.numpy().tobytes() for passage in passages)).hexdigest()
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for method in methods:
        units = {n: _unit(method, n, targets, read) for n in lengths}
        rows = _refused(method, lengths, targets, seed, free)
        missing = [n for n in lengths if n not in rows and results.find(units[n]) is None]
        while missing:
            score = partial(_score, method, passages, missing, targets, seed, progress)
            if scored := unless_memory_ends(score):
                rows |= scored
                break
            rows[missing[0]] = _without(method, missing[0], targets, seed, RAN_OUT)  # the longest; others may go yet
            missing = missing[1:]
        rows = {n: {**row, "stride": stride} for n, row in rows.items()}
        for n in lengths:
            found[method.name, n] = results.keep(units[n], partial(rows.__getitem__, n))
            yield found[method.name, n]
    if any(method.name == "truncate" for method in methods):
        for method in (m for m in methods if m.name != "truncate"):
            for n in lengths:
                both = found["truncate", n], found[method.name, n]
                if any("reason" in row for row in both):
                    continue
                gain = partial(_gain, method, n, passages, targets, *both, seed, stride)
                yield results.keep({"metric": GAIN, "of": [row["run"] for row in both]}, gain, of_others=True)


def _refused(method: Method, lengths: Sequence[int], targets: int, seed: int, free: float) -> dict[int, dict[str, Any]]:
    """By length the rows of a method that say why it is not measured there."""
    reasons = {n: refusal(method, n, n, targets, free) for n in lengths}
    return {n: _without(method, n, targets, seed, reason) for n, reason in reasons.items() if reason}


def _without(method: Method, length: int, targets: int, seed: int, reason: str) -> dict[str, Any]:
    """The row of a length at which a method has no value."""
    return {
        **_asked(method, length, targets),
        "window": window_of(method, length, targets),
        "targets": targets,
        **refused(method.llm, "perplexity", "nll", method.name, length, reason, seed),
    }


def _score(
    method: Method,
    passages: Sequence[Passage],
    lengths: Sequence[int],
    targets: int,
    seed: int,
    progress: Callable[[str], None],
) -> dict[int, dict[str, Any]]:
    """A method's rows by length; what it reads of a passage serves all `lengths`, the longest first."""
    reset_peak(method.llm.device)
    windows = {n: window_of(method, n, targets) for n in lengths}
    seconds, scores = dict.fromkeys(lengths, 0.0), {n: list[float]() for n in lengths}
    slots: dict[int, list[int]] = {n: [] for n in lengths}
    for n, nll, took, taken_in in method.each(partial(_nats, windows=windows, targets=targets), passages):
        scores[n].append(nll)
        seconds[n] += took
        slots[n] += [] if taken_in is None else [taken_in]
        progress(f"{method.name} at {n:,}: passage {len(scores[n])} of {len(passages)}, {nll:.3f} nats")
    return {
        n: {
            **_row(method, n, passages, targets, windows[n], scores[n], seed),
            "metric": "nll",
            "seconds": round(seconds[n], 3),
            **({"slots": round(sum(slots[n]) / len(slots[n]))} if slots[n] else {}),
        }
        for n in lengths
    }


def _nats(
    method: Method, passage: Passage, windows: dict[int, int], targets: int
) -> Iterator[tuple[int, float, float, int | None]]:
    """Length, nats a token, seconds and slots taken in (`Method.taken_in`) of a passage at each of the lengths in `windows`,
    the longest first.

    A method that forgets the past scores each window once: what lies before changes neither figure.
    """
    pasts = method.prepare_tails(passage.ids, [(n - window, window) for n, window in windows.items()])
    alone: dict[int, tuple[float, float]] = {}
    for n, window in windows.items():
        started = time.perf_counter()
        past = next(pasts)
        if window not in alone or not method.forgets:
            nll = method.score(past, passage.ids[len(passage.ids) - window :], targets).mean().item()
            alone[window] = nll, time.perf_counter() - started
        yield n, *alone[window], method.taken_in


def _gain(
    method: Method,
    length: int,
    passages: Sequence[Passage],
    targets: int,
    truncate: dict[str, Any],
    own: dict[str, Any],
    seed: int,
    stride: int | None,
) -> dict[str, Any]:
    """The row of paired differences between two rows of the same length."""
    gains = [a - b for a, b in zip(truncate["values"], own["values"], strict=True)]
    row = _row(method, length, passages, targets, window_of(method, length, targets), gains, seed)
    peak = max(truncate["peak_memory_bytes"], own["peak_memory_bytes"])
    about = {"stride": stride, "truncate_window": truncate["window"]}
    return {**row, "metric": GAIN, "seconds": 0.0, "peak_memory_bytes": peak, **about}


def _unit(method: Method, length: int, targets: int, read: str) -> dict[str, Any]:
    """What a row depends on; `read` is a hash of the passages."""
    said = _asked(method, length, targets)
    return {"method": method.name, **said, "length": length, "targets": targets, "read": read}


def _asked(method: Method, length: int, targets: int) -> dict[str, Any]:
    """A method's settings, its rules at a length, and what stands before what it sees, where a text begins with something."""
    first = opening_of(method.llm)
    opening = {"opening": first} if first else {}  # else as rows from before there was such a rule
    return {**method.settings(), **method.rules(True, window_of(method, length, targets) - targets), **opening}


def window_of(method: Method, length: int, targets: int) -> int:
    """What a method sees itself of a passage: its window, and what is scored with a token before it at least."""
    return min(length, max(method.window, targets + 1))


def _row(
    method: Method, length: int, passages: Sequence[Passage], targets: int, window: int, values: list[float], seed: int
) -> dict[str, Any]:
    return {
        "task": "perplexity",
        **measured(method.llm, values, seed),
        "method": method.name,
        "length": length,
        "targets": targets,
        **_asked(method, length, targets),
        "window": window,
        "beyond_window": method.positions(length) > method.llm.window,
        "sources": [p.source for p in passages],
        "starts": [p.start for p in passages],
        "values": [round(v, 6) for v in values],
    }

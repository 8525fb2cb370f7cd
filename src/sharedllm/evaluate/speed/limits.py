"""What time and memory are held against: limits with goals, other methods, a budget, the length where two meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sharedllm.evaluate.speed.memory import Memory
from sharedllm.evaluate.speed.phases import Phases

BYTES, SECONDS = "bytes", "s"


@dataclass(frozen=True)
class Goal:
    """A bound that a value should keep."""

    value: float
    at_least: bool
    unit: str = ""

    def met(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.value:,.10g} {self.unit}".rstrip()

    def judged(self, value: float) -> dict[str, Any]:
        """What a row says of it."""
        return {"goal": str(self), "met": self.met(value)}


@dataclass(frozen=True)
class Compared:
    """One quantity of a method beside another, in every round; the ratio is the one divided by the other."""

    metric: str
    ours: Sequence[float]
    other: Sequence[float]
    unit: str
    goal: Goal | None
    other_over_ours: bool

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.other, strict=True)
        return [b / a if self.other_over_ours else a / b for a, b in pairs]

    def said(self) -> dict[str, Any]:
        """What a row says besides the ratio: the median of both sides, their unit, and the goal if there is one."""
        sides = {"ours": median(self.ours), "other": median(self.other), "unit": self.unit}
        return sides | (self.goal.judged(median(self.ratios)) if self.goal else {})


@dataclass(frozen=True)
class Limit:
    """Two of the phases of one question; None where there is nothing to compare with."""

    metric: str
    goal: Goal
    ours: Callable[[Phases], float]
    other: Callable[[Phases], float | None]
    other_over_ours: bool = False


LIMITS = (
    Limit("read_speed_over_bare", Goal(0.90, True), lambda p: p.read, lambda p: p.bare_read, other_over_ours=True),
    Limit("per_token_over_alone", Goal(1.25, False), lambda p: p.per_token, lambda p: p.per_token_alone),
    Limit("second_over_first", Goal(0.05, False), lambda p: p.second, lambda p: p.to_first_token),
)
KEPT = {"full_cache_over_attended": Goal(30, True), "full_cache_over_kept": Goal(10, True)}
SPEEDS: dict[str, Callable[[Phases], float]] = {
    "first_token_speed": lambda p: p.to_first_token,
    "second_question_speed": lambda p: p.second,
    "token_speed": lambda p: p.per_token,
}
"""What is compared with the same of another method: its seconds divided by ours, round by round."""
FASTER = {"full": Goal(5, True), "streaming": Goal(2, True), "encoder-decoder": Goal(3, True)}
"""How many times as early as another method's `shared` should reach its first token after `FASTER_LENGTH` tokens."""
FASTER_LENGTH = 32_768
READING, READING_GOAL = "reading_memory_bytes", Goal(300e6, False, BYTES)
"""The most that reading takes beyond the model and what is kept."""
GROWTH, GROWTH_GOAL = "reading_memory_growth", Goal(1.25, False)
"""The same at the longest length, divided by that at the shortest: flat, but for what an allocator leaves over."""
LONGEST, LONGEST_GOAL, LONGEST_BYTES = "longest_context_tokens", Goal(1_000_000, True, "tokens"), 24 * 2**30
"""The tokens that are read and asked in a process of so many bytes."""
COMPRESSING = ("shared", "shared-compact")
"""The methods that this can be measured of."""


def limits(rounds: Sequence[Phases]) -> list[Compared]:
    """Each limit in every round; without those that have nothing to compare with."""
    found = []
    for limit in LIMITS:
        pairs = [(limit.ours(phases), other) for phases in rounds if (other := limit.other(phases)) is not None]
        if pairs:
            ours, others = zip(*pairs, strict=True)
            found.append(Compared(limit.metric, ours, others, SECONDS, limit.goal, limit.other_over_ours))
    return found


def kept(memory: Memory, full_cache: int) -> list[Compared]:
    """How many times the full key/value cache is what is attended to and what is kept; without what is nothing."""
    sizes = zip(KEPT.items(), (memory.attended, memory.kept), strict=True)
    return [Compared(metric, [size], [full_cache], BYTES, goal, True) for (metric, goal), size in sizes if size]


def compared(ours: Sequence[Phases], others: Sequence[Phases], against: str, goal: Goal | None) -> list[Compared]:
    """How many times as fast as another method, in the same rounds.

    Args:
        goal: of the time to the first token.
    """
    return [
        Compared(
            f"{name}_over_{against}", [of(p) for p in ours], [of(p) for p in others], SECONDS,
            goal if name == "first_token_speed" else None, other_over_ours=True,
        )
        for name, of in SPEEDS.items()
    ]  # fmt: skip


def faster(method: str, against: str, length: int) -> Goal | None:
    """The goal of a method's time to the first token beside another's, where there is one."""
    return FASTER.get(against) if method == "shared" and length == FASTER_LENGTH else None


def estimate(measured: Mapping[int, float], length: int, quadratic: bool) -> float | None:
    """Seconds at a length, from those at shorter ones; None without any.

    With two lengths and where attention grows with the square: a * n + b * n^2 through the two longest,
    a and b not negative. Otherwise in proportion to the longest, or to its square.
    """
    shorter = sorted(n for n in measured if n < length)
    if not shorter:
        return None
    n = shorter[-1]
    growth = length / n
    if not quadratic:
        return measured[n] * growth
    if len(shorter) == 1:
        return measured[n] * growth**2
    m = shorter[-2]
    square = (measured[n] / n - measured[m] / m) / (n - m)
    square = min(max(square, 0.0), measured[n] / n**2)
    return (measured[n] / n - square * n) * length + square * length**2


@dataclass(frozen=True)
class BreakEven:
    """The length in tokens from which one method is faster than another, or None and why."""

    tokens: float | None
    reason: str | None


def break_even(ours: Mapping[int, float], others: Mapping[int, float]) -> BreakEven:
    """Where ours becomes faster and stays so, between two of the lengths that both were measured at.

    Between them the logarithm of the ratio is a straight line over the logarithm of the length.
    """
    lengths = sorted(ours.keys() & others.keys())
    if not lengths:
        return BreakEven(None, "no length was measured for both")
    ratios = {n: math.log(ours[n] / others[n]) for n in lengths}
    if ratios[lengths[-1]] >= 0:
        return BreakEven(None, f"not faster at {lengths[-1]:,} tokens, the longest measured for both")
    slower = [n for n in lengths if ratios[n] >= 0]
    if not slower:
        return BreakEven(None, f"faster at every length measured, from {lengths[0]:,} tokens")
    low = slower[-1]
    high = lengths[lengths.index(low) + 1]
    share = ratios[low] / (ratios[low] - ratios[high])
    return BreakEven(low * (high / low) ** share, None)

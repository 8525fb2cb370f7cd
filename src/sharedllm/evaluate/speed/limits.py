"""What time and memory are held against: limits with goals, another method, a budget, the length where two meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sharedllm.evaluate.speed.memory import Memory
from sharedllm.evaluate.speed.phases import Phases


@dataclass(frozen=True)
class Goal:
    """A bound that a ratio should keep."""

    value: float
    at_least: bool

    def met(self, ratio: float) -> bool:
        return ratio >= self.value if self.at_least else ratio <= self.value

    def __str__(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.value:g}"


@dataclass(frozen=True)
class Limit:
    """A ratio of the phases of one question; None where there is nothing to compare with."""

    metric: str
    goal: Goal
    of: Callable[[Phases], float | None]


LIMITS = (
    Limit("read_speed_over_bare", Goal(0.90, True), lambda p: p.bare_read / p.read if p.bare_read else None),
    Limit("per_token_over_alone", Goal(1.25, False), lambda p: p.per_token / p.per_token_alone),
    Limit("second_over_first", Goal(0.05, False), lambda p: p.second / p.to_first_token),
)
KEPT = {"full_cache_over_attended": Goal(30, True), "full_cache_over_kept": Goal(10, True)}
COMPARED: dict[str, Callable[[Phases], float]] = {
    "seconds_to_first_token": lambda p: p.to_first_token,
    "second_question_seconds": lambda p: p.second,
    "seconds_per_token": lambda p: p.per_token,
}
"""What is divided by the same of another method, round by round."""


def limits(rounds: Sequence[Phases]) -> dict[str, tuple[Goal, list[float]]]:
    """Each limit's ratio in every round, by metric; without those that have nothing to compare with."""
    found = {}
    for limit in LIMITS:
        ratios = [ratio for phases in rounds if (ratio := limit.of(phases)) is not None]
        if ratios:
            found[limit.metric] = (limit.goal, ratios)
    return found


def kept(memory: Memory, full_cache: int) -> dict[str, tuple[Goal, list[float]]]:
    """How many times the full key/value cache is what is attended to and what is kept; without what is nothing."""
    sizes = zip(KEPT.items(), (memory.attended, memory.kept), strict=True)
    return {metric: (goal, [full_cache / size]) for (metric, goal), size in sizes if size}


def compared(ours: Sequence[Phases], others: Sequence[Phases], against: str) -> dict[str, list[float]]:
    """Ours divided by the other method's of the same round, by metric."""
    return {
        f"{name}_over_{against}": [of(a) / of(b) for a, b in zip(ours, others, strict=True)]
        for name, of in COMPARED.items()
    }


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

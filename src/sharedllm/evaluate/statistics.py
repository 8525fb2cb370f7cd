"""Means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS, LEVEL = 10_000, 0.95


def bounds(values: Sequence[float], seed: int = 0, most: float | None = None) -> tuple[float, float]:
    """95 % bounds of the mean: where no value is below 0 or above `most`, those of `wilson`, otherwise of `bootstrap`.

    Six hits of six tries do not make a share of 1 certain, and resampling them would say so. A value between 0 and `most` is
    a part of a hit: such values differ less than hits and misses with the same mean, so that the bounds still hold.
    """
    if most is not None:
        low, high = wilson(sum(values) / most, len(values))
        return most * low, most * high
    return bootstrap(values, seed)


def wilson(hits: float, tries: int, level: float = LEVEL) -> tuple[float, float]:
    """Bounds of a share between 0 and 1 (Wilson, "Probable Inference, the Law of Succession", 1927); parts of hits count as such."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, grown = min(1.0, hits / tries), z * z / tries  # a sum of parts can come out a hair above what it is
    middle = (share + grown / 2) / (1 + grown)
    half = z * math.sqrt(share * (1 - share) / tries + grown / (4 * tries)) / (1 + grown)
    return max(0.0, middle - half), min(1.0, middle + half)


def bounds_of_mean(
    parts: Sequence[tuple[float, float, float]], least: float = -math.inf, most: float = math.inf
) -> tuple[float, float]:
    """Bounds of the mean of independent figures between `least` and `most`, from (value, low, high) of each.

    The distances to their bounds add up as squares (MOVER: Zou and Donner, "Construction of confidence limits about effect
    measures", 2008).
    """
    mean = sum(value for value, _, _ in parts) / len(parts)
    below = math.hypot(*(value - low for value, low, _ in parts)) / len(parts)
    above = math.hypot(*(high - value for value, _, high in parts)) / len(parts)
    return max(least, mean - below), min(most, mean + above)


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> tuple[float, float]:
    """Expanded percentile interval of the mean by resampling `values`; for a difference give paired differences.

    Quantiles further out than (1 - level) / 2 make up for what resampling few values lacks: its variance is too small by
    (n - 1) / n, and itself a guess, as in Student's interval (Hesterberg, "What Teachers Should Know About the Bootstrap",
    2015, section 5.3). No interval reaches beyond the values, which is too narrow with fewer than about eight; of one value
    there is none, and both bounds are that value.
    """
    means = np.asarray(values, dtype=np.float64)[_drawn(len(values), seed, draws)].mean(axis=1)
    return _within(means, expanded_tail(len(values), level))


def bootstrap_ratio(
    parts: Sequence[float], wholes: Sequence[float], seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the sum of `parts` as a share of the sum of `wholes`, two figures of the same samples.

    Samples are drawn with both their figures, so that what varies in both alike does not widen the interval; its quantiles are
    those of `bootstrap`. Where a draw's wholes do not sum up to more than 0 they are a share of nothing: (-inf, inf).

    Raises:
        ValueError: there is not one whole for each part.
    """
    pairs = np.array(list(zip(parts, wholes, strict=True)), dtype=np.float64)
    sums = pairs[_drawn(len(pairs), seed, draws)].sum(axis=1)
    if not (sums[:, 1] > 0).all():
        return -math.inf, math.inf
    return _within(sums[:, 0] / sums[:, 1], expanded_tail(len(pairs), level))


def expanded_tail(n: int, level: float = LEVEL) -> float:
    """The share of resampled means below the lower bound, and above the upper one, for `n` values."""
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * student(level, n - 1)) if n > 1 else 0.5


@cache
def student(level: float, freedom: int) -> float:
    """What the absolute value of Student's t stays below with probability `level`.

    By bisection of the angle atan(t / sqrt(freedom)), in which the distribution is a finite sum (Abramowitz and Stegun,
    "Handbook of Mathematical Functions", 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings, past which doubles do not tell the two apart
        angle = (low + high) / 2
        low, high = (angle, high) if _student_within(angle, freedom) < level else (low, angle)
    return math.sqrt(freedom) * math.tan(high)


def _student_within(angle: float, freedom: int) -> float:
    """The probability that |t| is below sqrt(freedom) * tan(`angle`)."""
    odd = freedom % 2
    term, total, squared = math.cos(angle) if odd else 1.0, 0.0, math.cos(angle) ** 2
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= squared * (k - 1) / k
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _drawn(n: int, seed: int, draws: int) -> NDArray[np.int64]:
    """Which of `n` values each of `draws` samples of as many has, shape (draws, n)."""
    return np.random.default_rng(seed).integers(0, n, size=(draws, n))


def _within(figures: NDArray[np.float64], tail: float) -> tuple[float, float]:
    """Bounds below and above which a share of `tail` lies."""
    return float(np.quantile(figures, tail)), float(np.quantile(figures, 1 - tail))

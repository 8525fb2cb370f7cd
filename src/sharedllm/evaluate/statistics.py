"""Means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS, LEVEL = 10_000, 0.95


def bounds(values: Sequence[float], seed: int = 0, most: float | None = None) -> tuple[float, float]:
    """95 % bounds of the mean: of a share, where every value is 0 or `most`, those of `wilson`, otherwise of `bootstrap`.

    Six hits of six tries do not make a share of 1 certain, and resampling them would say so.
    """
    if most is not None and all(value in (0, most) for value in values):
        low, high = wilson(sum(value == most for value in values), len(values))
        return most * low, most * high
    return bootstrap(values, seed)


def wilson(hits: int, tries: int, level: float = LEVEL) -> tuple[float, float]:
    """Bounds of a share between 0 and 1 (Wilson, "Probable Inference, the Law of Succession", 1927)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, grown = hits / tries, z * z / tries
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
    """Percentile interval of the mean by resampling `values`; for a difference give paired differences."""
    means, tail = _means(values, np.random.default_rng(seed), draws), (1 - level) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def _means(values: Sequence[float], random: np.random.Generator, draws: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(array[random.integers(0, len(array), size=(draws, len(array)))].mean(axis=1))

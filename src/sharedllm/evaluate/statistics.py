"""Means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS, LEVEL = 10_000, 0.95


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of the mean by resampling `values`; for a difference give paired differences."""
    return _interval(_means(values, np.random.default_rng(seed), draws), level)


def bootstrap_nested(
    categories: Sequence[Sequence[Sequence[float]]], seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """The same of a mean over categories of means over data sets; every data set's values are resampled."""
    random = np.random.default_rng(seed)
    means = [np.mean([_means(values, random, draws) for values in datasets], axis=0) for datasets in categories]
    return _interval(np.mean(means, axis=0), level)


def _means(values: Sequence[float], random: np.random.Generator, draws: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(array[random.integers(0, len(array), size=(draws, len(array)))].mean(axis=1))


def _interval(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))

"""Means with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = 10_000, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean by resampling `values`; for a difference give paired differences."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(array), size=(draws, len(array)))
    means = array[picks].mean(axis=1)
    tail = (1 - level) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))

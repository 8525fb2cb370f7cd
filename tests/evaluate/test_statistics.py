"""Intervals: known values, and what a share or a mean of few samples may claim."""

from __future__ import annotations

import pytest

from sharedllm.evaluate.statistics import bootstrap, bounds, bounds_of_mean, wilson


def test_wilson_is_the_interval_of_the_books():
    assert wilson(6, 6) == (pytest.approx(0.6097, abs=1e-4), 1.0)
    assert wilson(0, 44) == (0.0, pytest.approx(0.0803, abs=1e-4))
    assert wilson(10, 20) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


def test_a_share_has_the_bounds_of_a_share_and_other_values_those_of_resampling():
    assert bounds([100, 100, 100], most=100) == tuple(100 * x for x in wilson(3, 3))
    assert bounds([1, 0, 1], 3, 1) == wilson(2, 3) and bounds([1, 0, 1], 3) == bootstrap([1, 0, 1], 3)
    assert bounds([0.5, 0, 1], 3, 1) == bootstrap([0.5, 0, 1], 3)
    assert bounds([0.0, 0.0], most=2.0)[0] == 0 < bounds([0.0, 0.0], most=2.0)[1]


def test_bounds_of_a_mean_add_up_as_squares():
    assert bounds_of_mean([(0.5, 0.2, 0.9)]) == (pytest.approx(0.2), pytest.approx(0.9))
    low, high = bounds_of_mean([(100, 70, 100), (0, 0, 40)])
    assert (low, high) == (pytest.approx(50 - 15), pytest.approx(50 + 20))

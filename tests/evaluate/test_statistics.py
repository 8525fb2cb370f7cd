"""Intervals: known values, and what a share or a mean of few samples may claim."""

from __future__ import annotations

import numpy as np
import pytest

from sharedllm.evaluate.statistics import (
    bootstrap,
    bootstrap_ratio,
    bounds,
    bounds_of_mean,
    expanded_tail,
    student,
    wilson,
)


def test_wilson_is_the_interval_of_the_books():
    assert wilson(6, 6) == (pytest.approx(0.6097, abs=1e-4), 1.0)
    assert wilson(0, 44) == (0.0, pytest.approx(0.0803, abs=1e-4))
    assert wilson(10, 20) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))


def test_a_share_has_the_bounds_of_a_share_and_other_values_those_of_resampling():
    assert bounds([100, 100, 100], most=100) == tuple(100 * x for x in wilson(3, 3))
    assert bounds([1, 0, 1], 3, 1) == wilson(2, 3) and bounds([1, 0, 1], 3) == bootstrap([1, 0, 1], 3)
    assert bounds([0.0, 0.0], most=2.0)[0] == 0 < bounds([0.0, 0.0], most=2.0)[1]


def test_parts_of_hits_count_as_such_and_a_hair_less_than_a_hit_changes_nothing():
    assert bounds([0.5, 0, 1], 3, 1) == wilson(1.5, 3)
    assert bounds([1.0, 1.0, 0.999999], most=1) == pytest.approx(wilson(3, 3), abs=1e-5)
    assert bounds([0.1] * 10 + [1.0] * 2, most=1)[1] < 1 and wilson(3.0000000000000004, 3)[1] == 1


@pytest.mark.parametrize(
    ("freedom", "level", "known"),
    [(1, 0.95, 12.7062), (2, 0.95, 4.3027), (3, 0.95, 3.1824), (7, 0.95, 2.3646), (23, 0.95, 2.0687), (10, 0.99, 3.1693), (4999, 0.95, 1.9604)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(freedom, level, known):
    assert student(level, freedom) == pytest.approx(known, abs=1e-4)


def test_few_values_have_a_wider_interval_than_their_resampled_means():
    """Hesterberg's table: quantiles of 0.0010 for 5 values, 0.0057 for 8, 0.0159 for 20; 0.025 for ever more."""
    tails = [expanded_tail(n) for n in (5, 8, 20, 5000)]
    assert tails == [pytest.approx(known, abs=1e-4) for known in (0.0010, 0.0057, 0.0159, 0.0250)]
    values = [1.0, 2.0, 4.0, 8.0]
    means = np.random.default_rng(0).choice(values, (10_000, 4)).mean(axis=1)
    low, high = bootstrap(values)
    assert low < np.quantile(means, 0.025) and high > np.quantile(means, 0.975)
    assert bootstrap([1.0, 2.0]) == (1, 2), "nothing is known beyond the values"


def test_intervals_of_eight_values_hold_what_they_say():
    random = np.random.default_rng(1)
    held = sum(low <= 0 <= high for low, high in (bootstrap(random.normal(size=8), draws=2000) for _ in range(1000)))
    assert 935 <= held <= 965, "a percentile interval that is not expanded holds about 895"


def test_a_share_is_resampled_with_what_it_is_a_share_of():
    """Passages that gain more have more to gain: where each gains half of it, half is certain, however much they differ."""
    wholes = [0.1, 0.9, 0.4, 2.0, 0.05, 0.6]
    assert bootstrap_ratio([x / 2 for x in wholes], wholes) == (pytest.approx(0.5), pytest.approx(0.5))
    parts = [0.05, 0.3, 0.3, 1.5, 0.01, 0.2]
    low, high = bootstrap_ratio(parts, wholes)
    rows = np.random.default_rng(0).integers(0, 6, size=(10_000, 6))
    ratios = np.array(parts)[rows].sum(axis=1) / np.array(wholes)[rows].sum(axis=1)
    tail = expanded_tail(6)
    assert (low, high) == (pytest.approx(np.quantile(ratios, tail)), pytest.approx(np.quantile(ratios, 1 - tail)))
    assert low < sum(parts) / sum(wholes) < high
    assert bootstrap_ratio([1.0, 3.0], [2.0, 4.0]) == (0.5, 0.75), "of two their range"
    assert bootstrap_ratio([1.0, 1.0], [2.0, 4.0], seed=1) == (0.25, 0.5)


def test_a_share_of_what_may_be_nothing_has_no_bounds():
    assert bootstrap_ratio([0.1, 0.2, 0.1], [0.3, -0.1, 0.2]) == (-np.inf, np.inf)
    with pytest.raises(ValueError, match="longer"):
        bootstrap_ratio([0.1], [0.1, 0.2])


def test_intervals_of_a_share_hold_what_they_say():
    random = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        wholes = random.uniform(0.2, 0.6, size=12)
        low, high = bootstrap_ratio(0.6 * wholes + random.normal(0, 0.05, size=12), wholes, draws=1000)
        held += low <= 0.6 <= high
    assert 275 <= held <= 295


def test_one_value_has_no_interval():
    assert bootstrap([2.5]) == (2.5, 2.5)


def test_bounds_of_a_mean_add_up_as_squares():
    assert bounds_of_mean([(0.5, 0.2, 0.9)]) == (pytest.approx(0.2), pytest.approx(0.9))
    low, high = bounds_of_mean([(100, 70, 100), (0, 0, 40)])
    assert (low, high) == (pytest.approx(50 - 15), pytest.approx(50 + 20))

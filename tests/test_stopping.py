"""Stopping rules, on planted noise."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlmbench.stopping import Stopping, judge, median_reach, noise_variation

RULE = Stopping(min_samples=10, min_time_s=0.5, max_samples=100, max_time_s=60)


def noisy(n: int, spread: float, mean: float = 100.0) -> list[float]:
    rng = random.Random(1)
    return [rng.gauss(mean, spread * mean) for _ in range(n)]


def test_steady_times_stop_by_the_interval_of_the_median() -> None:
    verdict = judge(noisy(12, 0.001), RULE)
    assert verdict.criterion == "median_interval"
    assert [u.partition(" ")[0] for u in verdict.unmet] == ["noise_variation"]


def test_too_few_or_too_short_goes_on() -> None:
    assert judge(noisy(9, 0.001), RULE).criterion is None
    short = judge(noisy(12, 0.001, mean=1.0), RULE)
    assert short.criterion is None
    assert any(u.startswith("min_time_s (0.01 of 0.5)") for u in short.unmet)


def test_wild_but_stable_noise_stops_by_its_own_variation() -> None:
    assert judge(noisy(90, 0.2), RULE).criterion == "noise_stable"


def test_the_wall_and_the_count_end_everything() -> None:
    rule = Stopping(median_interval=0, noise_variation=0, max_samples=50, max_time_s=1)
    assert judge(noisy(49, 0.2, mean=1.0), rule).criterion is None
    assert judge(noisy(50, 0.2, mean=1.0), rule).criterion == "max_samples"
    assert judge(noisy(11, 0.2), rule).criterion == "max_time"


@given(st.integers(6, 300))
def test_the_median_interval_has_the_binomial_rank(n: int) -> None:
    """With values 1…n the interval's ends are its ranks: the largest k with P(Bin(n, ½) < k) ≤ 2.5 %."""
    values = [float(v) for v in range(1, n + 1)]
    k = int(stats.binom.ppf(0.025, n, 0.5))
    k = k if stats.binom.cdf(k - 1, n, 0.5) <= 0.025 else k - 1
    while stats.binom.cdf(k, n, 0.5) <= 0.025:
        k += 1
    width = median_reach(values)
    if k == 0:
        assert width is None
    else:
        assert width == pytest.approx(((n - k + 1) - k) / 2 / ((n + 1) / 2))


def test_an_interval_that_lies_on_one_side_reaches_as_far_as_that_side() -> None:
    values = [100.0] * 12 + [101.9] * 8
    assert median_reach(values) == pytest.approx(0.019)
    rule = Stopping(median_interval=0.01, noise_variation=0, max_samples=50)
    assert judge(values, rule).criterion is None


def test_below_six_there_is_no_interval() -> None:
    assert median_reach([1.0] * 5) is None
    assert median_reach([1.0] * 6) == 0


def test_noise_variation_needs_a_window() -> None:
    assert noise_variation([1.0] * 14) is None
    assert noise_variation([1.0] * 15) == 0


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [({"min_samples": 1}, "min_samples"), ({"max_samples": 3}, "max_samples"), ({"min_time_s": -1}, "min_time_s")],
)
def test_a_rule_out_of_range_is_refused(kwargs: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' must be"):
        Stopping(**kwargs)

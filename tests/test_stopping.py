"""Stopping rules, on planted noise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from vlmbench.analysis.dependence import dependence
from vlmbench.stopping import Stopping, judge, median_reach, noise_variation, worth

RULE = Stopping(min_samples=10, min_time_s=0.5, max_samples=100, max_time_s=60)


def noisy(n: int, spread: float, mean: float = 100.0) -> list[float]:
    rng = random.Random(1)
    return [rng.gauss(mean, spread * mean) for _ in range(n)]


def test_steady_times_stop_by_the_interval_of_the_median() -> None:
    verdict = judge(noisy(25, 0.001), RULE)
    assert verdict.criterion == "median_interval"
    assert [u.partition(" ")[0] for u in verdict.unmet] == ["noise_variation"]
    assert verdict.missing_s == 0


def test_too_few_or_too_short_goes_on() -> None:
    assert judge(noisy(9, 0.001), RULE).criterion is None
    short = judge(noisy(12, 0.001, mean=1.0), RULE)
    assert short.criterion is None
    assert any(u.startswith("min_time_s (0.01 of 0.5)") for u in short.unmet)


def test_steady_noise_alone_ends_nothing() -> None:
    """Noise of 20 % that never changes leaves a median unknown to ± 8 %."""
    verdict = judge(noisy(90, 0.2), RULE)
    assert verdict.criterion is None
    assert not any(
        unmet.startswith("noise_variation") for unmet in judge(noisy(95, 0.2), Stopping(noise_variation=1)).unmet
    )


def test_steady_noise_ends_a_point_whose_median_is_known_to_five_per_cent() -> None:
    verdict = judge(noisy(90, 0.08), Stopping(noise_variation=0.5, min_time_s=0))
    assert verdict.criterion == "noise_stable"
    assert verdict.reach is not None
    assert 0.01 < verdict.reach <= 0.05


def test_windows_that_share_no_run_see_noise_that_nested_ones_do_not() -> None:
    quiet, loud = noisy(40, 0.01), noisy(40, 0.2)
    assert (noise_variation(quiet + loud) or 0) > 0.5


def test_the_count_ends_everything_and_the_wall_what_has_its_least_runs() -> None:
    rule = Stopping(median_interval=0, noise_variation=0, max_samples=50, max_time_s=1)
    assert judge(noisy(49, 0.2, mean=1.0), rule).criterion is None
    assert judge(noisy(50, 0.2, mean=1.0), rule).criterion == "max_samples"
    assert judge(noisy(11, 0.2), rule).criterion == "max_time"
    long = Stopping(median_interval=0, noise_variation=0, min_samples=10, max_time_s=30)
    assert judge([10_000.0 + i for i in range(9)], long).criterion is None, "the longest points carry the slope"
    assert judge([10_000.0 + i for i in range(10)], long).criterion == "max_time"


def test_runs_that_resemble_each_other_do_not_end_a_point_early() -> None:
    rng, series = random.Random(3), [0.0]
    for _ in range(59):
        series.append(0.8 * series[-1] + 0.6 * rng.gauss(0, 1))
    times = [100 * (1 + 0.012 * value) for value in series]
    shuffled = rng.sample(times, len(times))
    rule = Stopping(noise_variation=0, min_time_s=0)
    assert judge(shuffled, rule).criterion == "median_interval"
    verdict = judge(times, rule)
    assert verdict.criterion is None
    assert verdict.effective_n < 20
    assert verdict.lag1 > 0.5


def test_what_the_goal_would_have_cost_is_known() -> None:
    verdict = judge(noisy(60, 0.1), RULE)
    assert verdict.reach is not None
    # four times the runs for half the interval
    assert verdict.missing_s == pytest.approx(sum(noisy(60, 0.1)) / 1e3 * ((verdict.reach / 0.01) ** 2 - 1))
    assert judge(noisy(60, 0.001), RULE).missing_s == 0
    assert judge([100.0] * 3, RULE).missing_s is None


@example([1.0] * 4)
@example([1.0] * 5)
@example([2.0, 2.0, 1.0, 1.0, 1.0])
@example([1.0, 2.0, 1.0, 2.0, 1.0])
@example([*[100.0] * 20, *[101.0] * 20, *[40.0, 100.0, 101.0] * 10])
@given(st.lists(st.floats(1, 100), min_size=1, max_size=80))
def test_plain_floats_and_arrays_agree_on_what_runs_are_worth(values: list[float]) -> None:
    lag1, effective = worth(values)
    known = dependence(values)
    if len(values) < 5:
        assert (lag1, effective, known.lag1, known.effective_n) == (None, None, None, None)
        return
    assert lag1 == pytest.approx(known.lag1, abs=1e-6)
    assert effective == pytest.approx(known.effective_n, rel=1e-6)


@pytest.mark.parametrize("n", [60, 2_000, 200_000])
def test_a_point_that_drifts_throughout_is_judged_at_any_length(n: int) -> None:
    """Most autocorrelations of a straight line are positive: taken lag by lag, 50,000 runs took 32 s."""
    line = [100 + i / n for i in range(n)]
    waves = [100 + math.sin(20 * i / n) for i in range(n)]
    for values in (line, waves):
        lag1, effective = worth(values)
        known = dependence(values)
        assert (lag1, effective) == (pytest.approx(known.lag1, abs=1e-6), pytest.approx(known.effective_n, rel=1e-6))
    assert worth(line)[1] < 2


@pytest.mark.parametrize("times", [[0.0] * 40, [0.0] * 30 + [1.0] * 10, [0.0] * 3])
def test_a_median_of_nothing_is_known_to_no_share_of_it(times: list[float]) -> None:
    """As of a clock that does not move between two marks: no division by it, and no end before the count's."""
    rule = Stopping(min_samples=3, min_time_s=0, max_samples=41)
    found = judge(times, rule)
    assert (found.reach, found.missing_s, found.criterion) == (None, None, None)
    assert "median_interval (the median is 0 of ±1 %)" in found.unmet
    assert judge([*times, *[0.0] * 38], rule).criterion == "max_samples"


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

"""What a series is worth, on series whose dependence is known."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vlmbench.analysis import dependence as module
from vlmbench.analysis.dependence import (
    MARGIN,
    at_quantile,
    autocorrelations,
    dependence,
    first_lag,
    inflation,
    long_run,
    pulled_in,
    slow_variance,
    tail_inflation,
)
from vlmbench.analysis.drift import correct_family
from vlmbench.analysis.estimate import Estimate, Shortfall, holm
from vlmbench.analysis.quantiles import fewest, median
from vlmbench.analysis.ratios import ratio_of_sums
from vlmbench.stopping import worth


def series(n: int, rho: float, seed: int = 0) -> NDArray[np.float64]:
    random, found = np.random.default_rng(seed), np.empty(n)
    found[0] = random.standard_normal()
    for i in range(1, n):
        found[i] = rho * found[i - 1] + math.sqrt(1 - rho**2) * random.standard_normal()
    return found


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.5, 0.8])
def test_the_inflation_of_a_known_series(rho: float) -> None:
    known = float(np.mean([inflation(pulled_in(series(10_000, rho, seed))) for seed in range(5)]))
    assert known == pytest.approx((1 + rho) / (1 - rho), rel=0.12)


def test_slow_drift_under_noise_is_seen_where_neighbours_alone_do_not_show_it() -> None:
    random = np.random.default_rng(4)
    states = np.repeat(random.standard_normal(200), 20) + random.standard_normal(4000)
    known = dependence(states)
    assert known.lag1 == pytest.approx(0.47, abs=0.08)
    # true inflation: half of the variance is the same for 20 runs: 1 + 0.5 × 19
    assert 4000 / known.effective_n == pytest.approx(10.5, rel=0.35)


def slow_under_noise(n: int, seed: int, *, slow: float, lasts: float) -> NDArray[np.float64]:
    """A share of the variance is the machine's, and remembered for so many runs."""
    noise = np.random.default_rng(1000 + seed).standard_normal(n)
    return math.sqrt(slow) * series(n, math.exp(-1 / lasts), seed) + math.sqrt(1 - slow) * noise


def test_a_weak_dependence_that_lasts_long_is_seen_through_the_noise_of_single_lags() -> None:
    found = [float(inflation(pulled_in(slow_under_noise(2000, seed, slow=0.1, lasts=50)))) for seed in range(20)]
    assert np.median(found) == pytest.approx(1 + 2 * 0.1 * 50, rel=0.35)
    alike = [float(first_lag(slow_under_noise(2000, seed, slow=0.1, lasts=50))) for seed in range(20)]
    assert np.median(alike) < 0.12, "neighbours hardly show it"


def test_independent_and_constant_values_are_worth_themselves() -> None:
    assert dependence(series(2000, 0.0)).effective_n > 1700
    assert dependence([3.0] * 50).effective_n == pytest.approx(50 / (1 + MARGIN * (1 + MARGIN) / 50))
    assert dependence([]).n == 0


def test_what_four_runs_are_worth_is_not_told() -> None:
    """Nobody looked whether they depend on each other: told as worth four they looked better than five, worth one."""
    drifting = [10.0, 11.0, 12.0, 13.0, 14.0]
    five, four = dependence(drifting), dependence(drifting[:4])
    assert (five.lag1, five.effective_n) == (0.99, 1.0)
    assert (four.n, four.lag1, four.effective_n) == (4, None, None)
    assert worth(drifting[:4]) == (None, None)
    assert [median(drifting).effective_n, median(drifting[:4]).effective_n] == [1.0, None]
    assert median(drifting[:4]).as_dict() == {
        "value": 11.5, "low": None, "high": None, "n": 4, "n_needed": 6, "note": "n too small: 4 of 6",
        "shortfall": "too_few_runs",
    }  # fmt: skip
    assert median(drifting[:4] * 2, clusters=[0, 1, 2, 3] * 2).effective_n is not None, "eight runs tell something"
    share = ratio_of_sums(np.array(drifting[:4]) / 3, [40.0] * 4)
    assert (share.lag1, share.effective_n, share.n) == (None, None, 4)


@pytest.mark.parametrize("seed", range(20))
def test_three_runs_have_a_share_with_its_interval(seed: int) -> None:
    """What rounding leaves of three runs, 2.9999999999999996, is three."""
    found = ratio_of_sums(np.random.default_rng(seed).normal(30, 2, 3), np.full(3, 100.0))
    assert found.low is not None


def test_outliers_do_not_hide_the_dependence_of_the_body() -> None:
    calm = series(400, 0.8)
    spiked = np.where(np.random.default_rng(1).random(400) < 0.05, calm + 50, calm)
    assert autocorrelations(spiked)[1] < 0.1
    assert dependence(spiked).effective_n < 150


def test_many_series_at_once_are_the_same_as_one_by_one() -> None:
    many = np.stack([series(60, 0.5, seed) for seed in range(5)])
    assert inflation(many) == pytest.approx([float(inflation(one)) for one in many])


def test_the_tail_depends_less_on_the_run_before_than_the_body() -> None:
    states = pulled_in(series(100_000, 0.8))
    values = [float(at_quantile(q, states)) for q in (0.5, 0.9, 0.95, 0.99)]
    assert values[0] == float(inflation(states))
    assert values == sorted(values, reverse=True)
    assert at_quantile(0.99, pulled_in(series(100_000, 0.0))) == pytest.approx(1, abs=0.01)
    assert at_quantile(0.99, np.array([1.0, 2.0])) == 1, "two values are worth two"


@pytest.mark.parametrize("q", [0.9, 0.99])
@pytest.mark.parametrize("slow", [None, 0.2])
def test_what_the_tail_is_worth_follows_from_each_lag_of_the_body(q: float, slow: float | None) -> None:
    """AR(1) at 0.8, and a fifth of the variance that lasts for 30 runs: alike in sum (9 and 13), unlike in the tail."""

    def made(seed: int) -> NDArray[np.float64]:
        return series(100_000, 0.8, seed) if slow is None else slow_under_noise(100_000, seed, slow=slow, lasts=30)

    many = np.stack([made(seed) for seed in range(3)])
    said = float(np.mean(at_quantile(q, pulled_in(many))))
    # simulated: the variance of shares of 1,000 runs beyond the quantile, over that of independent ones
    limit = float(np.quantile(many, q))
    shares = (many > limit).reshape(-1, 1000).mean(axis=1)
    assert said == pytest.approx(float(shares.var()) / (q * (1 - q) / 1000), rel=0.25)
    if slow and q == 0.99:
        assert said < 0.35 * float(np.mean(inflation(pulled_in(many))))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_rare_state_that_lasts_is_seen_in_the_tail(noise: float) -> None:
    """A level 6 % up, taken for 20 runs at a time and for 8 % of all: less than what is pulled in."""
    random = np.random.default_rng(1)
    slow = np.zeros(2000)
    for start in range(0, 2000, 250):
        slow[start : start + 20] = 1.0
    times = 80 + 4.8 * slow + noise * random.standard_normal(2000)
    assert at_quantile(0.95, pulled_in(times)) < 3
    assert 8 < tail_inflation(times, 0.95) < 40
    assert tail_inflation(random.permutation(times), 0.95) < 1.5
    few = times[:500]
    assert tail_inflation(few, 0.95) == at_quantile(0.95, pulled_in(few)), "25 runs beyond it tell too little"
    for made in (times, few):
        assert dependence(made).effective_n == len(made) / tail_inflation(made, 0.5) == pytest.approx(worth(made)[1])


def test_a_heap_far_from_the_others_does_not_hide_how_the_median_moves() -> None:
    """One run in seven takes less than half as long, as users who go in step or a cache make it; the others move slowly
    by 2 %. Which of the two a run is makes most of the variance, and depends on nothing."""
    held = []
    for seed in range(60):
        apart = np.random.default_rng(seed).random(400) < 0.15
        times = np.where(apart, 40.0, 100 * np.exp(0.02 * series(400, 0.9, seed)))
        found = median(times)
        truth = 100 * math.exp(0.02 * NormalDist().inv_cdf((0.5 - 0.15) / 0.85))
        assert found.low is not None, seed
        assert found.high is not None, seed
        held.append(found.low <= truth <= found.high)
        assert worth(times.tolist())[1] == pytest.approx(found.effective_n), "a point ends by the same"
    assert np.mean(held) > 0.9, "0.5 where the values alone are asked"


def test_spikes_add_to_the_variance_without_its_inflation() -> None:
    body = 0.05 * series(5000, 0.8)
    spikes = np.where(np.random.default_rng(2).random(5000) < 0.01, 1.0, 0.0)
    errors = body + spikes
    variance, effective = long_run(errors - errors.mean())
    assert float(variance) == pytest.approx(9 * 0.0025 + 0.0099, rel=0.3)
    assert 5000 / 9 < float(effective) < 5000


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, corrected, strict=True))
    assert max(corrected) <= 1
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [corrected[i] for i in order] == sorted(corrected)


def test_holm_of_a_textbook_case() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.04, 0.09, 0.09, math.nan], nan_ok=True)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_whole_is_tested_as_sharply_as_alone_and_a_stage_without_it_hardly_at_all() -> None:
    assert correct_family([0.04, 0.2, 0.3])[0] == pytest.approx(0.04 / 0.98)
    assert correct_family([0.001, 0.02, 0.3])[1] == pytest.approx(0.04)
    assert correct_family([0.5, 0.001, 0.3])[1] == pytest.approx(0.1)
    assert correct_family([math.nan, 0.001, 0.3])[1] == pytest.approx(0.1), "a whole without an answer keeps its weight"


@pytest.mark.parametrize(("rho", "inflated"), [(0.0, 1.0), (0.5, 3.0), (0.8, 9.0)])
def test_slow_waves_tell_the_variance_of_a_mean(rho: float, inflated: float) -> None:
    made = [series(400, rho, seed) for seed in range(150)]
    assert np.mean([slow_variance(one - one.mean())[0] for one in made]) == pytest.approx(inflated, rel=0.2)
    step = np.arange(400) >= 200
    apart = [one - np.where(step, one[step].mean(), one[~step].mean()) for one in made]
    found = [slow_variance(one, removed=2, step=step)[0] for one in apart]
    assert np.mean(found) == pytest.approx(inflated, rel=0.2), "two means were taken out"


def test_an_estimate_says_what_it_lacks() -> None:
    short = Estimate(value=1.0, n=21, n_needed=6, effective_n=4.2, lag1=0.7, shortfall=Shortfall.TOO_FEW_INDEPENDENT)
    assert short.note == "too few independent runs: 21 are worth 4 of 6"
    assert short.as_dict()["shortfall"] == "too_few_independent"
    with pytest.raises(ValueError, match="'low' and 'high' must both be given"):
        Estimate(value=1.0, low=0.5)
    assert fewest(0.5) == pytest.approx(5.32, abs=0.01)


def test_the_same_series_is_transformed_once_and_another_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    transform = module.autocorrelations

    def counted(one: NDArray[np.float64]) -> NDArray[np.float64]:
        asked.append(len(one))
        return transform(one)

    monkeypatch.setattr(module, "autocorrelations", counted)
    one, turned = series(101, 0.5, seed=11), series(101, 0.5, seed=11)[::-1].copy()
    first = dependence(one)
    assert dependence(one.copy()) == first
    assert first.effective_n == 101 / float(tail_inflation(one, 0.5))
    assert asked == [101, 101], "its values, and on which side of the median they lie"
    assert dependence(turned).lag1 == pytest.approx(first.lag1)  # the same answer, looked for again
    assert asked == [101] * 4


def test_what_is_kept_of_series_has_an_end() -> None:
    for value in range(300):
        inflation(np.array([value, 1.0, 0.0, 2.0, 1.0, 3.0]))
    assert len(module._known) == module._MOST_KNOWN


def test_a_correlation_of_few_values_is_one() -> None:
    """The bias of short series taken out, neighbours of few can come out as more alike, or less, than can be."""
    for values in ([180.0, 181.0, 183.0, 190.0, 200.0, 240.0, 260.0, 280.0, 287.0], [2.0, 2.0, 1.0, 1.0, 1.0]):
        assert 0.9 < dependence(values).lag1 < 1
        assert worth(values)[0] == pytest.approx(dependence(values).lag1)
    other_way = [1.0, 2.0, 1.0, 2.0, 1.0]
    assert dependence(other_way).lag1 == worth(other_way)[0] == -1
    assert dependence(other_way).effective_n == pytest.approx(worth(other_way)[1])

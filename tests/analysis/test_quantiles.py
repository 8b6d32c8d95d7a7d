from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vlmbench.analysis.quantiles import (
    effective_count,
    median,
    needed,
    quantile,
    quantile_draws,
    quantiles,
    ranks,
    ratio_of_medians,
    ratio_of_quantiles,
    ratio_of_sums,
)

TIMES = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=300)
Q = st.floats(0.01, 0.99)


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)])
def test_needed_counts(q: float, n: int) -> None:
    assert needed(q) == n
    assert ranks(n, q) is not None
    assert ranks(n - 1, q) is None


@given(n=st.integers(1, 3000), q=Q, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_ranks_cover_with_each_tail_at_most_half_and_are_the_tightest(n: int, q: float, confidence: float) -> None:
    pair = ranks(n, q, confidence)
    half = (1 - confidence) / 2
    if pair is None:
        # no pair of sorted values exists: the extremes themselves leave too much in a tail
        assert q**n > half * (1 - 1e-9) or (1 - q) ** n > half * (1 - 1e-9)
        return
    low, high = pair
    assert 1 <= low < high <= n
    assert stats.binom.cdf(low - 1, n, q) <= half * (1 + 1e-9)
    assert stats.binom.sf(high - 1, n, q) <= half * (1 + 1e-9)
    assert stats.binom.cdf(low, n, q) >= half * (1 - 1e-9)
    assert stats.binom.sf(high - 2, n, q) >= half * (1 - 1e-9)


@given(values=TIMES, q=Q)
def test_quantile_lies_in_its_interval_and_in_the_data(values: list[float], q: float) -> None:
    found = quantile(values, q)
    if found.low is None or found.high is None:
        assert found.note.startswith("n too small")
        assert (found.value is None) == (q > 0.5)
        return
    assert found.value is not None
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    assert found.low in values
    assert found.high in values


@given(values=TIMES, scale=st.floats(0.1, 10))
def test_scaling_the_clock_scales_the_interval(values: list[float], scale: float) -> None:
    one, other = median(values), median(np.array(values) * scale)
    for a, b in ((one.value, other.value), (one.low, other.low), (one.high, other.high)):
        assert (a is None) == (b is None)
        assert a is None or b == pytest.approx(a * scale)


@given(values=TIMES, q=Q)
def test_clusters_of_one_are_no_clusters(values: list[float], q: float) -> None:
    assert quantile(values, q, clusters=np.arange(len(values))) == quantile(values, q)


@given(values=TIMES, data=st.data())
@settings(max_examples=30, deadline=None)
def test_clustered_interval_holds_its_estimate_and_tells_its_count(values: list[float], data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 20), min_size=len(values), max_size=len(values)))
    found = quantile(values, 0.5, clusters=codes)
    if found.low is not None and found.high is not None and len(set(codes)) < len(codes):
        assert found.value is not None
        assert min(values) <= found.low <= found.high <= max(values)
        assert found.n == len(set(codes)) >= 6


@pytest.mark.parametrize(
    ("q", "n"), [(0.5, 6), (0.5, 101), (0.9, 36), (0.9, 200), (0.95, 72), (0.99, 368), (0.99, 1000)]
)
def test_intervals_cover_the_true_quantile(q: float, n: int) -> None:
    random = np.random.default_rng(7)
    truth = float(stats.lognorm.ppf(q, 1.0))
    trials = 2000
    pair = ranks(n, q)
    assert pair is not None
    ordered = np.sort(random.lognormal(0, 1, (trials, n)), axis=1)
    hits = int(((ordered[:, pair[0] - 1] <= truth) & (truth <= ordered[:, pair[1] - 1])).sum())
    # never below 95 % but for the chance of the simulation (4 standard deviations)
    assert hits / trials >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


def test_clustered_intervals_cover_where_independent_ones_fail() -> None:
    random = np.random.default_rng(3)
    clusters, each, trials = 60, 10, 150
    naive = honest = 0
    codes = np.repeat(np.arange(clusters), each)
    for trial in range(trials):
        data = np.repeat(random.normal(0, 1, clusters), each) + random.normal(0, 0.1, clusters * each)
        for covers, found in ((0, quantile(data, 0.5)), (1, quantile(data, 0.5, clusters=codes, seed=trial))):
            assert found.low is not None
            assert found.high is not None
            hit = found.low <= 0 <= found.high
            naive, honest = naive + (hit and not covers), honest + (hit and covers)
    assert naive / trials < 0.65
    assert honest / trials > 0.88


def test_effective_count_between_clusters_and_observations() -> None:
    random = np.random.default_rng(0)
    codes = np.repeat(np.arange(100), 20)
    same = np.sort(np.repeat(random.normal(size=100), 20))
    assert effective_count(same, codes, 0.9) == pytest.approx(100, rel=0.15)
    free = random.normal(size=2000)
    order = np.argsort(free)
    assert effective_count(free[order], codes[order], 0.9) > 1200


def test_upper_quantile_of_few_clusters_is_refused() -> None:
    found = quantile(np.repeat([1.0, 2.0, 3.0], 1000), 0.99, clusters=np.repeat([0, 1, 2], 1000))
    assert found.value is None
    assert "n too small" in found.note


@given(n=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_draws_come_from_the_data_and_keep_the_order_of_quantiles(n: int, seed: int) -> None:
    data = np.random.default_rng(seed).exponential(size=n)
    draws = quantile_draws(data, (0.9, 0.5), draws=50, seed=seed)
    assert draws.shape == (50, 2)
    assert np.isin(draws, data).all()
    assert (draws[:, 0] >= draws[:, 1]).all()


def test_draws_spread_like_a_real_bootstrap() -> None:
    data = np.random.default_rng(0).lognormal(size=501)
    draws = quantile_draws(data, (0.5,), draws=4000)[:, 0]
    random = np.random.default_rng(1)
    plain = np.array([np.median(random.choice(data, len(data))) for _ in range(4000)])
    assert draws.mean() == pytest.approx(plain.mean(), rel=0.01)
    assert draws.std() == pytest.approx(plain.std(), rel=0.06)


def test_ratio_of_quantiles_covers_the_truth() -> None:
    truth = float(stats.lognorm.ppf(0.99, 0.5) / stats.lognorm.ppf(0.5, 0.5))
    hits = 0
    for seed in range(200):
        found = ratio_of_quantiles(np.random.default_rng(seed).lognormal(0, 0.5, 1000), 0.99, seed=seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert hits >= 178  # 95 % less four standard deviations


def test_ratio_of_sums_is_exact_and_parts_add_up() -> None:
    whole = np.array([10.0, 20.0, 30.0])
    parts = [np.array([1.0, 5.0, 9.0]), np.array([9.0, 15.0, 21.0])]
    shares = [ratio_of_sums(part, whole) for part in parts]
    assert shares[0].value == pytest.approx(15 / 60)
    assert sum(s.value or 0 for s in shares) == pytest.approx(1)
    again = ratio_of_sums(parts[0] * 3, whole * 3)
    assert (again.low, again.high) == (pytest.approx(shares[0].low), pytest.approx(shares[0].high))


def test_ratio_of_sums_covers_the_truth() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(500):
        base = random.lognormal(0, 0.5, 50)
        found = ratio_of_sums(base * 0.4 + random.normal(0, 0.05, 50), base)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.4 <= found.high
    assert hits >= 450


def test_ratio_of_sums_counts_clusters() -> None:
    part, whole = np.repeat([1.0, 2.0, 6.0], 50), np.full(150, 10.0)
    free, tied = ratio_of_sums(part, whole), ratio_of_sums(part, whole, clusters=np.repeat([0, 1, 2], 50))
    assert tied.n == 3
    assert free.n == 150
    assert (tied.high or 0) - (tied.low or 0) > 5 * ((free.high or 0) - (free.low or 0))


def test_ratio_of_medians_covers_the_truth() -> None:
    random = np.random.default_rng(11)
    hits = 0
    for _ in range(1000):
        found = ratio_of_medians(1.1 * random.lognormal(0, 0.3, 30), random.lognormal(0, 0.3, 40))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.1 <= found.high
    assert hits >= 925


@pytest.mark.parametrize("values", [[], [math.nan], [5.0], [5.0] * 5])
def test_too_few_say_so(values: list[float]) -> None:
    for found in quantiles(values, (0.5, 0.99)):
        assert found.low is None
        assert found.high is None
        assert found.note.startswith("n too small")
        assert found.as_dict()["note"] == found.note


def test_constant_times_have_an_interval_of_no_width() -> None:
    found = median([3.0] * 50)
    assert (found.low, found.value, found.high) == (3.0, 3.0, 3.0)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"'q' must lie between 0 and 1 \(got 99\)"):
        quantile([1.0] * 10, 99)
    with pytest.raises(ValueError, match="'clusters' must be as long as 'values'"):
        quantile([1.0] * 10, 0.5, clusters=[1])

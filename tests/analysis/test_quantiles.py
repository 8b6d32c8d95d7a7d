from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from vlmbench.analysis.dependence import ENOUGH_BEYOND, dependence, tail_inflation
from vlmbench.analysis.quantiles import finite, median, needed, quantile, quantile_ends, quantiles, ratio_draws
from vlmbench.analysis.ratios import ratio_of_quantiles, ratio_of_sums
from vlmbench.errors import InputError

TIMES = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=300)
Q = st.floats(0.01, 0.99)


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)])
def test_needed_counts(q: float, n: int) -> None:
    assert needed(q) == n
    ordered = np.arange(float(n))
    assert quantile_ends(ordered, q, np.array(float(n)))[2]
    assert not quantile_ends(ordered[:-1], q, np.array(n - 1.0))[2]


@given(n=st.integers(6, 3000), q=Q)
@settings(deadline=None)
def test_real_ranks_lie_between_the_whole_ones_of_the_binomial(n: int, q: float) -> None:
    low, high, enough = (found.item() for found in quantile_ends(np.arange(1.0, n + 1), q, np.array(float(n))))
    if not enough:
        assert q**n > 0.025 * (1 - 1e-6) or (1 - q) ** n > 0.025 * (1 - 1e-6)
        return
    # the l-th smallest is at or below the quantile unless fewer than l observations are
    assert stats.binom.cdf(math.floor(low) - 1, n, q) <= 0.025 * (1 + 1e-6)
    assert stats.binom.cdf(math.ceil(low), n, q) >= 0.025 * (1 - 1e-6)
    assert stats.binom.sf(math.ceil(high) - 1, n, q) <= 0.025 * (1 + 1e-6)


@given(values=TIMES, q=Q)
def test_quantile_lies_in_its_interval_and_in_the_data(values: list[float], q: float) -> None:
    found = quantile(values, q)
    if found.low is None or found.high is None:
        assert found.note.startswith(("n too small", "too few independent runs"))
        assert (found.value is None) == (q > 0.5)
        return
    assert found.value is not None
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


@given(values=TIMES, scale=st.floats(0.1, 10))
def test_scaling_the_clock_scales_the_interval(values: list[float], scale: float) -> None:
    one, other = median(values), median(np.array(values) * scale)
    for a, b in ((one.value, other.value), (one.low, other.low), (one.high, other.high)):
        assert (a is None) == (b is None)
        assert a is None or b == pytest.approx(a * scale)


@pytest.mark.parametrize("endless", [math.inf, -math.inf])
@pytest.mark.parametrize(
    "asked",
    [
        median,
        finite,
        dependence,
        lambda times: quantiles(times, (0.5, 0.9)),
        lambda times: median(times, clusters=[0, 1] * 20),
        lambda times: ratio_of_quantiles(times, 0.9),
        lambda times: ratio_of_sums(times, [100.0] * 40),
        lambda times: ratio_of_sums([1.0] * 40, times),
    ],
)
def test_an_infinite_time_is_refused_and_a_missing_one_left_out(asked: Any, endless: float) -> None:
    """With one among forty, ends of intervals were nan, and a summary showed them as if nobody had looked."""
    times = np.linspace(100.0, 101.0, 40)
    asked(np.where(times == times[7], np.nan, times))
    with pytest.raises(InputError, match=rf"must be finite, or NaN where a run lacks .* \(got {endless} in 1 of 40\)"):
        asked(np.where(times == times[7], endless, times))


def test_runs_that_lack_a_time_do_not_count() -> None:
    assert (median([*range(20), math.nan]).n, median([*range(20)])) == (20, median([*range(20), math.nan]))


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


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.5, 101), (0.9, 40), (0.9, 200), (0.95, 72), (0.99, 368)])
def test_intervals_of_independent_runs_cover_the_true_quantile(q: float, n: int) -> None:
    random = np.random.default_rng(7)
    truth = float(stats.lognorm.ppf(q, 1.0))
    trials = 2000
    ordered = np.sort(random.lognormal(0, 1, (trials, n)), axis=1)
    low, high, _ = quantile_ends(ordered, q, np.full(trials, float(n)))
    # never below 94 % but for the chance of the simulation (4 standard deviations)
    assert ((low <= truth) & (truth <= high)).mean() >= 0.94 - 4 * math.sqrt(0.95 * 0.05 / trials)


def test_clustered_intervals_cover_where_independent_ones_fail() -> None:
    random = np.random.default_rng(3)
    clusters, each, trials = 60, 10, 150
    naive = honest = refused = 0
    codes = np.repeat(np.arange(clusters), each)
    for _ in range(trials):
        data = np.repeat(random.normal(0, 1, clusters), each) + random.normal(0, 0.1, clusters * each)
        for covers, found in ((0, quantile(data, 0.5)), (1, quantile(data, 0.5, clusters=codes))):
            if found.low is None or found.high is None:
                refused += 1
                continue
            hit = found.low <= 0 <= found.high
            naive, honest = naive + (hit and not covers), honest + (hit and covers)
    # neighbours that resemble each other show the clusters even to who was not told of them
    assert refused / trials < 0.05
    assert naive / trials > 0.85
    assert honest / trials > 0.88


def test_clusters_are_counted_not_what_is_in_them() -> None:
    random = np.random.default_rng(0)
    codes = np.repeat(np.arange(100), 20)
    same, free = np.repeat(random.normal(size=100), 20), random.normal(size=2000)
    tied, loose = (quantile(values, 0.5, clusters=codes) for values in (same, free))
    assert tied.n == loose.n == 100
    assert tied.high is not None
    assert tied.low is not None
    assert loose.high is not None
    assert loose.low is not None
    assert tied.high - tied.low > 3 * (loose.high - loose.low)
    assert quantile(free, 0.99, clusters=codes).value is None, "100 requests have no P99, however many tokens they make"


def test_runs_next_to_each_other_are_worth_less() -> None:
    random = np.random.default_rng(1)
    noise, series = random.normal(size=400), np.empty(400)
    series[0] = noise[0]
    for i in range(1, 400):
        series[i] = 0.8 * series[i - 1] + 0.6 * noise[i]
    dependent, shuffled = median(series), median(random.permutation(series))
    assert dependent.lag1 == pytest.approx(0.8, abs=0.15)
    assert dependent.effective_n is not None
    assert shuffled.effective_n is not None
    assert dependent.effective_n == pytest.approx(400 / 9, rel=0.7)
    assert shuffled.effective_n > 300
    assert dependent.as_dict()["effective_n"] == dependent.effective_n


def test_too_few_independent_runs_say_so() -> None:
    found = median(np.repeat([1.0, 2.0, 1.5], 7))
    assert found.value == 1.5
    assert found.low is None
    assert found.note == "too few independent runs: 21 are worth 1 of 6"


def test_clusters_of_equal_values_are_clusters() -> None:
    """Ten of 80 requests are slow, each in all of its tokens: by chance seven might be, which is no tenth."""
    slow = np.isin(np.arange(80), np.random.default_rng(0).permutation(80)[:10])
    found = quantile(np.repeat(np.where(slow, 84.8, 80.0), 32), 0.9, clusters=np.repeat(np.arange(80), 32))
    assert (found.low, found.value, found.high) == (80.0, 84.8, 84.8)


def test_a_rare_state_that_lasts_is_seen_among_repeats() -> None:
    """100 requests in 20 rounds; for 20 runs in every 250 all are 6 % slower: less than what is pulled in as outliers."""
    random, codes = np.random.default_rng(2), np.tile(np.arange(100), 20)
    slow = np.arange(2000) % 250 < 20
    times = (80 + 4.8 * slow) * np.exp(0.002 * random.standard_normal(2000))
    together, spread = quantile(times, 0.95, clusters=codes), quantile(random.permutation(times), 0.95, clusters=codes)
    assert None not in (together.low, together.high, spread.low, spread.high)
    assert together.low < 82, "of eight such times it may have been four"  # type: ignore[operator]
    assert spread.low > 84  # type: ignore[operator]


def test_a_percentile_lies_not_beyond_one_that_depends_too_much_to_be_given() -> None:
    """Nine runs beyond P99 look independent by chance; the thirty beyond P96.7 show what they are."""
    n, far, refused, would = 900, 1 - ENOUGH_BEYOND / 900, 0, 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        spells = np.repeat(random.random(n // 25) < 0.1, 25)
        times = 80 + random.standard_normal(n) + 10 * spells
        at_far, beyond = quantiles(times, (far, 0.99))
        if at_far.value is None:
            assert beyond.value is None, seed
            refused, would = refused + 1, would + (n / float(tail_inflation(times, 0.99)) >= needed(0.99))
    assert refused > 10
    assert would > 0, "by itself it would have been given"


def test_upper_quantile_of_few_clusters_is_refused() -> None:
    found = quantile(np.repeat([1.0, 2.0, 3.0], 1000), 0.99, clusters=np.repeat([0, 1, 2], 1000))
    assert found.value is None
    assert "n too small" in found.note


@given(n=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_draws_lie_within_the_data(n: int, seed: int) -> None:
    data = np.random.default_rng(seed).exponential(size=n)
    draws = ratio_draws(data, 0.9, draws=50, seed=seed)
    assert draws.shape == (50,)
    assert (draws >= data.min() / data.max()).all()
    assert (draws <= data.max() / data.min()).all()


def test_ratio_of_a_far_quantile_of_few_runs_misses_as_often_above_as_below() -> None:
    """One rank of the four beyond P99 of 400 runs is much of their interval."""
    truth = float(stats.t.ppf(0.99, 3))
    below = above = 0
    for seed in range(300):
        found = ratio_of_quantiles(np.exp(np.random.default_rng(seed).standard_t(3, 400) / 10), 0.99)
        if found.low is not None and found.high is not None:
            below += found.high < math.exp(truth / 10)
            above += found.low > math.exp(truth / 10)
    assert below <= 18  # 2.5 % and four standard deviations
    assert above <= 18


def test_draws_spread_like_a_real_bootstrap() -> None:
    data = np.random.default_rng(0).lognormal(size=501)
    draws = ratio_draws(data, 0.9, draws=4000)
    random = np.random.default_rng(1)
    samples = [random.choice(data, len(data)) for _ in range(4000)]
    plain = np.array([np.quantile(one, 0.9) / np.median(one) for one in samples])
    assert draws.mean() == pytest.approx(plain.mean(), rel=0.01)
    assert draws.std() == pytest.approx(plain.std(), rel=0.06)


def test_what_makes_all_runs_slow_alike_is_no_tail() -> None:
    """Slow waves widen the interval of a quantile, and hardly that of its ratio to the median."""
    n, random = 2000, np.random.default_rng(5)
    steady = np.exp(0.1 * random.standard_normal(n))
    level = np.exp(0.06 * np.sin(np.arange(n) / 60))
    calm, moved = ratio_of_quantiles(steady, 0.9), ratio_of_quantiles(steady * level, 0.9)
    alone, slow = quantile(steady, 0.9), quantile(steady * level, 0.9)
    assert None not in (calm.low, calm.high, moved.low, moved.high, alone.low, alone.high, slow.low, slow.high)
    wider = (slow.high - slow.low) / (alone.high - alone.low)  # type: ignore[operator]
    assert wider > 1.4
    assert (moved.high - moved.low) / (calm.high - calm.low) < 0.8 * wider  # type: ignore[operator]


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_ratio_of_quantiles_of_dependent_runs_holds_and_is_no_wider_than_it_must_be(rho: float) -> None:
    truth = math.exp(0.1 * float(stats.norm.ppf(0.9)))
    held, reach, found = 0, [], []
    for seed in range(120):
        random = np.random.default_rng(seed)
        noise = random.standard_normal(1500)
        noise[1:] *= math.sqrt(1 - rho**2)
        one = ratio_of_quantiles(np.exp(0.1 * lfilter([1.0], [1.0, -rho], noise)), 0.9)
        assert None not in (one.low, one.high, one.value)
        held += one.low <= truth <= one.high  # type: ignore[operator]
        reach.append((one.high - one.low) / 2)  # type: ignore[operator]
        found.append(one.value)
    assert held >= 107  # 95 % less three standard deviations
    assert np.median(reach) < 1.5 * 1.96 * np.std(found)


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
    whole = np.tile([10.0, 20.0, 30.0], 8)
    parts = [np.tile([1.0, 5.0, 9.0], 8), np.tile([9.0, 15.0, 21.0], 8)]
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


def test_the_interval_of_a_share_lies_within_its_whole() -> None:
    """Nothing is cut: few runs that scatter much have ends near 0 and 1, not on them."""
    rest = np.random.default_rng(3).permutation(np.repeat([0.01, 0.02, 0.1, 8.0], 3))
    share = ratio_of_sums(10 - rest, np.full(12, 10.0))
    other = ratio_of_sums(rest, np.full(12, 10.0))
    assert share.low is not None
    assert share.high is not None
    assert 0 < share.low < share.value < share.high < 1  # type: ignore[operator]
    assert (other.low, other.high) == (pytest.approx(1 - share.high), pytest.approx(1 - share.low))
    never = ratio_of_sums(np.zeros(12), np.full(12, 10.0))
    assert (never.low, never.value, never.high) == (0, 0, 0)
    signed = ratio_of_sums(np.array([-1.0, 1.0] * 10), np.full(20, 10.0))
    assert signed.low == pytest.approx(-(signed.high or 0))
    over = ratio_of_sums(np.array([12.0, 9.0] * 10), np.full(20, 10.0))
    assert (over.high or 0) > 1


def test_ratio_of_sums_counts_clusters() -> None:
    part, whole = np.tile(np.random.default_rng(2).uniform(1, 6, 20), 10), np.full(200, 10.0)
    free, tied = ratio_of_sums(part, whole), ratio_of_sums(part, whole, clusters=np.tile(np.arange(20), 10))
    assert tied.n == 20
    assert free.n == 200
    assert (tied.high or 0) - (tied.low or 0) > 2 * ((free.high or 0) - (free.low or 0))


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

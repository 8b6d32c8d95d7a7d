"""When enough was measured: criteria beside the measurement, not inside it. Standard library only.

A point may end when the 95 % interval of its median, for the number of independent runs that its runs are worth, is
within the goal. That the noise is steady is no reason by itself: noise that is large and steady leaves the median
unknown. The arithmetic is that of :mod:`vlmbench.analysis.dependence` for a single series, in plain floats, because it
runs after every repeat; a test holds the two against each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, islice, repeat
from operator import mul, sub

NOISE_REACH = 0.05
"""Steady noise may end a point only where the median is known to ± this share."""
_WINDOWS = 5
_LEAST_LAG = 5
_MARGIN = 2.5
_ENOUGH_BEYOND = 30


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """How long a point is measured.

    Args:
        min_samples: at least this many runs, however long they take.
        min_time_s: and at least this much measured time, s.
        max_samples: never more runs than this.
        max_time_s: no more measured time than this at one point, s (the wall limit), once it has ``min_samples``.
        median_interval: stop when the 95 % interval of the median, with the dependence of runs in it, is within ± this
            share of the median.
        noise_variation: or when the noise (standard deviation over mean) varies by less than this share between five
            windows that share no run, and the interval of the median is within ±5 % too.
    """

    min_samples: int = 10
    min_time_s: float = 0.5
    max_samples: int = 400
    max_time_s: float = 30.0
    median_interval: float = 0.01
    noise_variation: float = 0.05

    def __post_init__(self) -> None:
        if self.min_samples < 2:
            raise ValueError(f"'min_samples' must be 2 or more (got {self.min_samples})")
        if self.max_samples < self.min_samples:
            raise ValueError(f"'max_samples' must be at least min_samples={self.min_samples} (got {self.max_samples})")
        for name in ("min_time_s", "max_time_s", "median_interval", "noise_variation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"'{name}' must be 0 or more (got {getattr(self, name)})")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a point may stop, what was not met, and how well its median is known.

    Args:
        criterion: what ended it; None while it must go on.
        unmet: criteria that are not met, with where they stand.
        reach: how far the interval of the median reaches, as a share of it; None where there is no interval yet, or
            the median is 0.
        lag1: autocorrelation of neighbouring runs; None of fewer than five.
        effective_n: independent runs that the runs are worth; None of fewer than five.
        missing_s: measured time, s, that the goal of ``median_interval`` would still take, by the precision reached;
            0 where it is met, None where that cannot be told.
    """

    criterion: str | None
    unmet: tuple[str, ...]
    reach: float | None = None
    lag1: float | None = None
    effective_n: float | None = None
    missing_s: float | None = None


def judge(times_ms: list[float], rule: Stopping) -> Verdict:
    """Judge a point by the T_total of its instrumented runs, in the order measured."""
    n, total_s = len(times_ms), sum(times_ms) / 1e3
    unmet: list[str] = []
    if n < rule.min_samples:
        unmet.append(f"min_samples ({n} of {rule.min_samples})")
    if total_s < rule.min_time_s:
        unmet.append(f"min_time_s ({total_s:.2f} of {rule.min_time_s:g})")
    lag1, effective = worth(times_ms)
    reach = median_reach(times_ms, effective)
    precise = reach is not None and reach <= rule.median_interval
    if not precise:
        shown = "no interval yet" if reach is None else f"±{100 * reach:.2f} %"
        if times_ms and statistics.median(times_ms) == 0:
            shown = "the median is 0"
        unmet.append(f"median_interval ({shown} of ±{100 * rule.median_interval:g} %)")
    variation = noise_variation(times_ms)
    stable = variation is not None and variation < rule.noise_variation
    if not stable:
        shown = "too few" if variation is None else f"{100 * variation:.1f} %"
        unmet.append(f"noise_variation ({shown} of {100 * rule.noise_variation:g} %)")
    enough = n >= rule.min_samples and total_s >= rule.min_time_s
    criterion = None
    if enough and precise:
        criterion = "median_interval"
    elif enough and stable and reach is not None and reach <= NOISE_REACH:
        criterion = "noise_stable"
    elif n >= rule.max_samples:
        criterion = "max_samples"
    elif total_s >= rule.max_time_s and n >= rule.min_samples:
        criterion = "max_time"
    return Verdict(
        criterion=criterion,
        unmet=tuple(unmet),
        reach=reach,
        lag1=lag1,
        effective_n=effective,
        missing_s=missing_s(total_s, reach, rule.median_interval),
    )


def missing_s(total_s: float, reach: float | None, goal: float) -> float | None:
    """Measured time, s, that an interval of ± ``goal`` would still take: it narrows with the root of the time measured.

    Args:
        total_s: time measured so far, s.
        reach: of the interval, as a share of the median; None where there is none.
        goal: reach that is aimed at.

    Returns:
        0 where the goal is met; None where that cannot be told.
    """
    if reach is None or goal <= 0:
        return None
    return total_s * ((reach / goal) ** 2 - 1) if reach > goal else 0.0


def worth(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Autocorrelation of neighbours, and independent values that the values are worth, in the order measured.

    Returns:
        As :func:`vlmbench.analysis.dependence.dependence` gives them.
    """
    n = len(values)
    if n < _LEAST_LAG:
        return None, None
    ordered = sorted(values)
    low, high = (_at(ordered, share * (n - 1)) for share in (0.1, 0.9))
    first, inflation = _dependence([min(max(v, low), high) for v in values])
    if n / 2 >= _ENOUGH_BEYOND:
        middle = statistics.median(ordered)
        inflation = max(inflation, _dependence([float(v > middle) + float(v >= middle) for v in values])[1])
    return first, _worth(n, inflation)


def _dependence(series: Sequence[float]) -> tuple[float, float]:
    """Autocorrelation of neighbours, and 1 + 2 × the sum of all, of five values or more."""
    n = len(series)
    mean = math.fsum(series) / n
    centred = [v - mean for v in series]
    scale = math.fsum(v * v for v in centred)
    if scale <= n * (1e-12 * max(map(abs, series))) ** 2:
        return 0.0, 1.0
    sums = [0.0, *accumulate(centred)]  # a span of lags takes one pass over them, however many lags it has

    @cache
    def span(before: int, end: int) -> float:
        following = map(sub, chain(islice(sums, end + 1, None), repeat(sums[-1])), islice(sums, before + 1, None))
        return math.fsum(map(mul, centred, following)) / scale

    first = min(max((n * span(0, 1) + 1) / max(n - 3, 1), -1.0), 0.99)
    alike = max(first, 0.0)
    total = _sum_while_positive(span, n, 0.0)
    for _ in range(2):
        total = _sum_while_positive(span, n, min(total, n / 4) / n)
    return first, max((1 + alike) / (1 - alike), total, 1.0)


def _worth(n: int, inflation: float) -> float:
    """Independent values that n are worth, on the safe side where they are few."""
    return n / min(inflation * (1 + _MARGIN * (inflation + _MARGIN) / n), float(n))


def _sum_while_positive(span: Callable[[int, int], float], n: int, raised: float) -> float:
    """1 + 2 × the sum of autocorrelations up to where their means over 2, 2, 4, 8, … of them stop being positive.

    Args:
        span: the sum of the autocorrelations at the lags after the first number, up to the second.
        n: values.
        raised: what is added to each autocorrelation, falling to 0 at lag n.
    """
    total, least, before = 1.0, math.inf, 0
    while (end := max(2 * before, 2)) <= n // 2:
        lags = end - before
        least = min(least, span(before, end) / lags + raised * (1 - (before + 1 + end) / (2 * n)))
        if least <= 0:
            break
        total, before = total + 2 * least * lags, end
    return total


def _at(ordered: Sequence[float], place: float) -> float:
    """A sorted value at a place (from 0) that need be no whole number."""
    below = min(max(math.floor(place), 0), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median_reach(values: list[float], effective: float | None = None, confidence: float = 0.95) -> float | None:
    """How far the order-statistic interval of the median reaches from it, to the farther side, as a share of it.

    Of m independent values the interval lies between the k-th smallest and the k-th largest, k the largest rank for
    which P(Binomial(m, 1/2) < k) ≤ (1 − confidence) / 2. None below 6 of them at 95 %, and of a median of 0, which has
    no shares (times below what the clock resolves).

    Args:
        values: in any order.
        effective: independent values that they are worth; None: all of them.
        confidence: of the interval.
    """
    n = len(values)
    m = n if effective is None else min(math.floor(effective + 1e-9), n)
    limit, tail, k = (1 - confidence) / 2, 0.0, 0
    while k < m:
        tail += math.exp(math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) - m * math.log(2))
        if tail > limit:
            break
        k += 1
    if k == 0:
        return None
    ordered = sorted(values)
    middle = statistics.median(ordered)
    if middle == 0:
        return None
    place = k / (m + 1) * (n + 1) - 1
    return max(_at(ordered, n - 1 - place) - middle, middle - _at(ordered, place)) / middle


def noise_variation(values: list[float]) -> float | None:
    """How much the noise differs from window to window: the spread of the relative standard deviations of five
    windows of equal length that share no run, over their mean. None with fewer than three runs a window.
    """
    length = len(values) // _WINDOWS
    if length < 3:
        return None
    noise = [_relative_deviation(values[i * length : (i + 1) * length]) for i in range(_WINDOWS)]
    return _relative_deviation(noise)


def _relative_deviation(values: list[float]) -> float:
    """Standard deviation over mean."""
    mean = math.fsum(values) / len(values)
    if mean == 0:
        return 0.0
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) / mean

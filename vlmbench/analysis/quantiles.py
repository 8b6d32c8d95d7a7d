"""Quantiles with intervals that assume no distribution.

* Independent observations: order-statistic intervals. The count of observations at or below the true q-quantile is
  Binomial(n, q), so two of the sorted values enclose it with known probability, whatever the distribution
  (H. A. David, H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1). Each tail gets half of what is left of the
  confidence.
* Observations in clusters (tokens of one request, repeats of one sample): whole clusters are resampled.

Below the count that an interval with two ends needs, an upper quantile is not given at all: ``n too small``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
_WORK = 2e8  # additions that one bootstrap may cost


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval.

    Args:
        value: the estimate; None where there is none to give (``note`` says why).
        low, high: ends of the two-sided interval; None where n does not allow one.
        n: independent observations behind it (clusters, where observations come in clusters).
        n_needed: the fewest for an interval with two ends.
        note: ``n too small …`` or empty.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    n_needed: int | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: value, low, high, n, and what is odd about it, where something is."""
        entry: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        if self.note:
            entry |= {"n_needed": self.n_needed, "note": self.note}
        return entry


def needed(q: float, confidence: float = CONFIDENCE) -> int:
    """The fewest independent observations whose extremes enclose the q-quantile with ``confidence``, half each tail.

    All n lie below the quantile with probability qⁿ, all above with (1-q)ⁿ; both must be at most half of what is left:
    n ≥ ln((1-confidence)/2) / ln(max(q, 1-q)). At 95 %: 36 for P90, 72 for P95, 368 for P99, 3,688 for P99.9.
    """
    _check(q, confidence)
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)))


def _check(q: float, confidence: float) -> None:
    for name, value in (("q", q), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"'{name}' must lie between 0 and 1 (got {value})")


def ranks(n: int, q: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Ranks (from 1) of the sorted observations that enclose the q-quantile; None if n is too small.

    The lower rank l is the largest with P(Binomial(n, q) < l) ≤ α/2, the upper u the smallest with
    P(Binomial(n, q) ≥ u) ≤ α/2, α = 1 - confidence.
    """
    _check(q, confidence)
    if n < needed(q, confidence):
        return None
    half = (1 - confidence) / 2
    low = int(stats.binom.ppf(half, n, q))
    while low > 0 and stats.binom.cdf(low - 1, n, q) > half:
        low -= 1
    high = int(stats.binom.isf(half, n, q)) + 1
    while high <= n and stats.binom.sf(high - 1, n, q) > half:
        high += 1
    return (low, high) if low >= 1 and high <= n else None


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """The values as a flat float64 array without NaN (a run that lacks the metric)."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]


def quantile(
    values: ArrayLike, q: float, *, clusters: ArrayLike | None = None, confidence: float = CONFIDENCE, seed: int = 0
) -> Estimate:
    """One quantile with its interval.

    Args:
        values: observations; NaN are left out.
        q: between 0 and 1.
        clusters: codes of the same length: observations of one code are not independent. If no code comes twice,
            the observations count as independent.
        confidence: of the interval.
        seed: of the resampling of clusters.
    """
    return quantiles(values, (q,), clusters=clusters, confidence=confidence, seed=seed)[0]


def quantiles(
    values: ArrayLike,
    qs: Sequence[float],
    *,
    clusters: ArrayLike | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Estimate]:
    """Several quantiles; see :func:`quantile`."""
    data, codes = _prepared(values, clusters)
    if codes is not None:
        return _clustered(data, codes, qs, confidence, seed)
    ordered = np.sort(data)
    n = len(ordered)
    found = []
    for q in qs:
        pair = ranks(n, q, confidence) if n else None
        if pair is None:
            found.append(_too_small(ordered, q, n, confidence))
        else:
            low, high = float(ordered[pair[0] - 1]), float(ordered[pair[1] - 1])
            found.append(
                Estimate(value=_of_sorted(ordered, q), low=low, high=high, n=n, n_needed=needed(q, confidence))
            )
    return found


def median(values: ArrayLike, *, clusters: ArrayLike | None = None, confidence: float = CONFIDENCE) -> Estimate:
    """The median with its interval (none below 6 observations at 95 %, the median itself always)."""
    return quantile(values, 0.5, clusters=clusters, confidence=confidence)


def _prepared(values: ArrayLike, clusters: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    array = np.asarray(values, dtype=np.float64).ravel()
    good = ~np.isnan(array)
    if clusters is None:
        return array[good], None
    labels = np.asarray(clusters).ravel()
    if labels.shape != array.shape:
        raise ValueError(f"'clusters' must be as long as 'values' (got {len(labels)} and {len(array)})")
    kinds, codes = np.unique(labels[good], return_inverse=True)
    return array[good], None if len(kinds) == len(codes) else codes.astype(np.int64, copy=False)


def _of_sorted(ordered: NDArray[np.float64], q: float) -> float:
    """Linear interpolation between the sorted values (type 7 of Hyndman and Fan, numpy's own)."""
    place = (len(ordered) - 1) * q
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def _too_small(ordered: NDArray[np.float64], q: float, n: int, confidence: float) -> Estimate:
    """Below the needed count the median is given without interval, an upper quantile not at all."""
    least = needed(q, confidence)
    value = _of_sorted(ordered, q) if len(ordered) and q <= 0.5 else None
    return Estimate(value=value, n=n, n_needed=least, note=f"n too small: {n} of {least}")


def _clustered(
    data: NDArray[np.float64], codes: NDArray[np.int64], qs: Sequence[float], confidence: float, seed: int
) -> list[Estimate]:
    order = np.argsort(data, kind="stable")
    ordered, codes = data[order], codes[order]
    kinds = int(codes.max()) + 1
    draws = _cluster_draws(ordered, codes, qs, seed) if kinds > 1 else None
    found = []
    for column, q in enumerate(qs):
        worth = effective_count(ordered, codes, q)
        if draws is None or worth < needed(q, confidence) or kinds < needed(0.5, confidence):
            found.append(_too_small(ordered, q, min(worth, kinds) if kinds < 6 else worth, confidence))
            continue
        half = (1 - confidence) / 2
        low, high = np.quantile(draws[:, column], (half, 1 - half))
        value = _of_sorted(ordered, q)
        found.append(Estimate(value=value, low=float(low), high=float(high), n=kinds, n_needed=needed(q, confidence)))
    return found


def effective_count(ordered: NDArray[np.float64], codes: NDArray[np.int64], q: float) -> int:
    """How many independent observations the clustered ones are worth at quantile q.

    The variance of the share of observations above the quantile, from the clusters (ratio estimator), against the one
    that independent observations would have; between the count of clusters and the count of observations.
    """
    n, kinds = len(ordered), int(codes.max()) + 1
    above = (ordered > _of_sorted(ordered, q)).astype(np.float64)
    sizes = np.bincount(codes, minlength=kinds)
    share = above.mean()
    if kinds < 2 or share in (0.0, 1.0):
        return kinds
    deviations = np.bincount(codes, weights=above, minlength=kinds) - share * sizes
    variance = kinds / (kinds - 1) * float(np.square(deviations).sum()) / n**2
    independent = share * (1 - share) / n
    return int(np.clip(n * independent / variance, kinds, n)) if variance > 0 else n


def _cluster_draws(
    ordered: NDArray[np.float64], codes: NDArray[np.int64], qs: Sequence[float], seed: int
) -> NDArray[np.float64]:
    """Quantiles of resampled clusters, shape (draws, len(qs))."""
    random = np.random.default_rng(seed)
    kinds = int(codes.max()) + 1
    count = int(np.clip(_WORK / len(ordered), 200, 1000))
    draws = np.empty((count, len(qs)))
    for row in range(count):
        times = np.bincount(random.integers(0, kinds, kinds), minlength=kinds).astype(np.int32)
        reached = np.cumsum(times[codes], dtype=np.int32)
        places = np.searchsorted(reached, np.ceil(np.asarray(qs) * reached[-1]), side="left")
        draws[row] = ordered[places]
    return draws


def quantile_draws(
    values: ArrayLike, qs: Sequence[float], *, clusters: ArrayLike | None = None, draws: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap draws of several quantiles jointly, shape (draws, len(qs)): for intervals of their ratios.

    Independent observations need no resampling: the sorted bootstrap sample is the data at the order statistics of n
    uniform numbers, which are ratios of sums of exponential ones, so a draw costs the same for any n.
    """
    data, codes = _prepared(values, clusters)
    ordered = np.sort(data)
    if codes is not None:
        order = np.argsort(data, kind="stable")
        return _cluster_draws(data[order], codes[order], qs, seed)
    n = len(data)
    random = np.random.default_rng(seed)
    places = np.array([min(max(math.ceil(q * n), 1), n) for q in qs])
    ascending = np.argsort(places, kind="stable")
    steps = np.diff(np.concatenate([[0], places[ascending], [n + 1]]))
    sums = np.cumsum(random.standard_gamma(np.broadcast_to(steps, (draws, len(steps)))), axis=1)
    uniform = sums[:, :-1] / sums[:, -1:]
    found = np.empty((draws, len(qs)))
    found[:, ascending] = ordered[np.minimum((uniform * n).astype(np.int64), n - 1)]
    return found


def ratio_of_quantiles(
    values: ArrayLike, upper: float, lower: float = 0.5, *, clusters: ArrayLike | None = None, seed: int = 0
) -> Estimate:
    """The tail ratio, P99/P50 for instance, with its bootstrap interval; ``n too small`` as for the upper quantile."""
    top, base = quantiles(values, (upper, lower), clusters=clusters, seed=seed)
    if top.value is None or not base.value:
        return Estimate(value=None, n=top.n, n_needed=top.n_needed, note=top.note or "no positive median")
    drawn = quantile_draws(values, (upper, lower), clusters=clusters, seed=seed)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Estimate(value=top.value / base.value, low=float(low), high=float(high), n=top.n, n_needed=top.n_needed)


def ratio_of_sums(part: ArrayLike, whole: ArrayLike, *, clusters: ArrayLike | None = None) -> Estimate:
    """The share that ``part`` has of ``whole`` over all observations: sum by sum, so that shares of parts add up.

    The interval is the ratio estimator's (linearised, with Student's t; W. G. Cochran, Sampling Techniques, 3rd ed.,
    section 6.5), over clusters where there are some.
    """
    top, base = np.asarray(part, np.float64).ravel(), np.asarray(whole, np.float64).ravel()
    good = ~(np.isnan(top) | np.isnan(base))
    top, base = top[good], base[good]
    if not len(top) or base.sum() == 0:
        return Estimate(value=None, n=len(top), n_needed=2, note="n too small: 0 of 2")
    share = float(top.sum() / base.sum())
    errors = top - share * base
    if clusters is not None:
        _, codes = np.unique(np.asarray(clusters).ravel()[good], return_inverse=True)
        errors = np.bincount(codes, weights=errors).astype(np.float64)
    n = len(errors)
    if n < 2:
        return Estimate(value=share, n=n, n_needed=2, note=f"n too small: {n} of 2")
    spread = math.sqrt(n / (n - 1) * float(np.square(errors).sum())) / abs(float(base.sum()))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread
    if share > 0 and not (top < 0).any():
        # A share of times cannot be negative: the interval is made on the logarithmic scale.
        stretch = math.exp(reach / share)
        return Estimate(value=share, low=share / stretch, high=share * stretch, n=n, n_needed=2)
    return Estimate(value=share, low=share - reach, high=share + reach, n=n, n_needed=2)


def ratio_of_medians(second: ArrayLike, first: ArrayLike) -> Estimate:
    """Median of ``second`` over median of ``first``, two independent groups of positive values.

    The interval joins the two order-statistic intervals on the logarithmic scale (square and add: G. Y. Zou,
    A. Donner, Statistics in Medicine 27, 2008), so it assumes no distribution either.
    """
    top, base = median(second), median(first)
    n = min(top.n, base.n)
    if not top.value or not base.value:
        return Estimate(value=None, n=n, n_needed=needed(0.5), note=f"n too small: {n} of {needed(0.5)}")
    ratio = top.value / base.value
    if not (top.low and top.high and base.low and base.high):
        return Estimate(value=ratio, n=n, n_needed=needed(0.5), note=f"n too small: {n} of {needed(0.5)}")
    down = math.hypot(math.log(top.value / top.low), math.log(base.high / base.value))
    up = math.hypot(math.log(top.high / top.value), math.log(base.value / base.low))
    return Estimate(value=ratio, low=ratio * math.exp(-down), high=ratio * math.exp(up), n=n, n_needed=needed(0.5))

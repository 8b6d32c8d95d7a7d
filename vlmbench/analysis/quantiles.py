"""Quantiles and shares with intervals that assume no distribution, and no independence of the runs.

* One observation a request: order-statistic intervals. The count of independent observations at or below the true
  q-quantile is Binomial(n, q), whatever the distribution (H. A. David, H. N. Nagaraja, Order Statistics, 3rd ed.,
  section 7.1); n is the number of independent runs that the runs are worth (:mod:`vlmbench.analysis.dependence`).
* Observations in clusters (tokens of one request, repeats of one sample): whole clusters count, and their dependence.

Values are passed in the order measured. Below the count that an interval with two ends needs, an upper quantile is not
given at all: ``n too small``, or ``too few independent runs``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmbench.analysis.dependence import (
    CONFIDENCE,
    LEAST_SUM,
    Array,
    Estimate,
    Shortfall,
    at_quantile,
    dependence,
    fewest,
    inflation,
    long_run,
    needed,
    quantile_ends,
    t_reach,
)

__all__ = [
    "CONFIDENCE", "Estimate", "Shortfall", "finite", "median", "needed", "quantile", "quantile_draws", "quantiles",
    "ratio_of_medians", "ratio_of_quantiles", "ratio_of_sums",
]  # fmt: skip

_FAR = 0.95
"""Beyond this quantile the dependence of the body says little about the tail."""


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """The values as a flat float64 array without NaN (a run that lacks the metric)."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]


def quantile(values: ArrayLike, q: float, *, clusters: ArrayLike | None = None) -> Estimate:
    """One quantile with its interval.

    Args:
        values: observations in the order measured; NaN are left out.
        q: between 0 and 1.
        clusters: codes of the same length: observations of one code are not independent. If no code comes twice,
            each observation is a cluster of its own.
    """
    return quantiles(values, (q,), clusters=clusters)[0]


def quantiles(values: ArrayLike, qs: Sequence[float], *, clusters: ArrayLike | None = None) -> list[Estimate]:
    """Several quantiles; see :func:`quantile`."""
    for q in qs:
        fewest(q)  # a q that is none is refused before anything else
    data, codes = _prepared(values, clusters)
    if not len(data):
        return [_too_small(data, q, _Worth(n=0, lag1=None, clusters=0.0, observations=0.0)) for q in qs]
    ordered = np.sort(data)
    return [_estimate(ordered, q, worth) for q, worth in zip(qs, _worth(data, codes, qs), strict=True)]


def median(values: ArrayLike, *, clusters: ArrayLike | None = None) -> Estimate:
    """The median with its interval (none below 6 independent observations, the median itself always)."""
    return quantile(values, 0.5, clusters=clusters)


def _prepared(values: ArrayLike, clusters: ArrayLike | None) -> tuple[Array, NDArray[np.int64] | None]:
    """Values without NaN, and codes of clusters in the order in which they first come; None if none comes twice."""
    array = np.asarray(values, dtype=np.float64).ravel()
    good = ~np.isnan(array)
    if clusters is None:
        return array[good], None
    labels = np.asarray(clusters).ravel()
    if labels.shape != array.shape:
        raise ValueError(f"'clusters' must be as long as 'values' (got {len(labels)} and {len(array)})")
    _, first, codes = np.unique(labels[good], return_index=True, return_inverse=True)
    if len(first) == len(codes):
        return array[good], None
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    return array[good], place[codes]


@dataclass(frozen=True, kw_only=True)
class _Worth:
    """What observations are worth at one quantile.

    Args:
        n: clusters, or observations that are their own.
        lag1: autocorrelation of neighbours.
        clusters: independent ones they are worth.
        observations: independent observations that all are worth.
    """

    n: int
    lag1: float | None
    clusters: float
    observations: float


def _worth(data: Array, codes: NDArray[np.int64] | None, qs: Sequence[float]) -> list[_Worth]:
    if codes is not None:
        return _worth_of_clusters(data, codes, qs)
    known, n = dependence(data), len(data)
    found = []
    for q in qs:
        share = float(tail_inflation(data, q, n / known.effective_n))
        found.append(_Worth(n=n, lag1=known.lag1, clusters=n / share, observations=n / share))
    return found


def tail_inflation(series: Array, q: float, inflated: ArrayLike) -> Array:
    """The inflation at one quantile of series (…, n), from that of their values.

    Beyond P95 it is the mean of the one that follows from the body and the one seen in the tail: independent spikes
    are a tail that knows nothing of the body.
    """
    expected = at_quantile(q, inflated)
    if q <= _FAR:
        return expected
    beyond = (series > np.quantile(series, q, axis=-1, keepdims=True)).astype(np.float64)
    return np.asarray((expected + np.minimum(inflation(beyond), expected)) / 2, dtype=np.float64)


def _worth_of_clusters(data: Array, codes: NDArray[np.int64], qs: Sequence[float]) -> list[_Worth]:
    n, kinds = len(data), int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=kinds).astype(np.float64)
    apart = bool((np.diff(codes) < 0).any())  # repeats of a sample come back later
    series = data if apart else np.bincount(codes, weights=data, minlength=kinds) / sizes
    known = dependence(series)
    body = known.n / known.effective_n
    found = []
    for q in qs:
        below = (data <= np.quantile(data, q)).astype(np.float64)
        share = float(below.mean())
        sums = np.bincount(codes, weights=below, minlength=kinds) - share * sizes
        alone = n * max(share * (1 - share), 1e-12)
        design = max(kinds / max(kinds - 1, 1) * float(np.square(sums).sum()) / alone, 1.0)
        if apart:
            # runs of one sample, and runs next to each other: either adds what it is beyond independence
            whole = design + float(at_quantile(q, body)) - 1
            in_time = whole / design
        else:
            own = float(inflation(sums))
            in_time = own if q > _FAR else max(own, float(at_quantile(q, body)))
            whole = design * in_time
        clusters = kinds / in_time
        few = float(t_reach(2 * clusters) / t_reach(np.inf)) ** 2
        found.append(_Worth(n=kinds, lag1=known.lag1, clusters=clusters, observations=n / whole / few))
    return found


def _estimate(ordered: Array, q: float, worth: _Worth) -> Estimate:
    low, high, enough = quantile_ends(ordered, q, np.array(worth.observations))
    # Tokens of few requests are few observations of a tail, however many they are. A median needs six requests.
    least = max(fewest(0.5), fewest(q) / 2)
    if not enough or worth.n < needed(max(q, 1 - q)) or worth.clusters < least:
        return _too_small(ordered, q, worth)
    return Estimate(
        value=_of_sorted(ordered, q),
        low=float(low),
        high=float(high),
        n=worth.n,
        n_needed=needed(q),
        lag1=worth.lag1,
        effective_n=worth.clusters,
    )


def _of_sorted(ordered: Array, q: float) -> float:
    """Linear interpolation between the sorted values (type 7 of Hyndman and Fan, numpy's own)."""
    place = (len(ordered) - 1) * q
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def _too_small(ordered: Array, q: float, worth: _Worth) -> Estimate:
    """Below the needed count the median is given without interval, an upper quantile not at all."""
    if not worth.n:
        return Estimate(value=None, n=0, n_needed=needed(q), shortfall=Shortfall.TOO_FEW_RUNS)
    few = worth.n < needed(q)
    return Estimate(
        value=_of_sorted(ordered, q) if q <= 0.5 else None,
        n=worth.n,
        n_needed=needed(q),
        lag1=worth.lag1,
        effective_n=min(worth.clusters, worth.observations),
        shortfall=Shortfall.TOO_FEW_RUNS if few else Shortfall.TOO_FEW_INDEPENDENT,
    )


def quantile_draws(
    values: ArrayLike, qs: Sequence[float], *, clusters: ArrayLike | None = None, draws: int = 1000, seed: int = 0
) -> Array:
    """Draws of several quantiles jointly, shape (draws, len(qs)): for intervals of their ratios.

    A sample of m independent observations has its quantiles at order statistics of m uniform numbers, which are ratios
    of sums of exponential ones: a draw costs the same for any m, and m need be no whole number. All are drawn for the m
    of the first quantile; the others are then moved from their estimate as far as their own m says.
    """
    data, codes = _prepared(values, clusters)
    ordered, n = np.sort(data), len(data)
    worth = _worth(data, codes, qs)
    m = min(worth[0].observations, float(n))
    random = np.random.default_rng(seed)
    places = np.array([min(max(q * m, 0.5), m) for q in qs])
    ascending = np.argsort(places, kind="stable")
    steps = np.diff(np.concatenate([[0.0], places[ascending], [m + 1]]))
    sums = np.cumsum(random.standard_gamma(np.broadcast_to(steps, (draws, len(steps)))), axis=1)
    uniform = sums[:, :-1] / sums[:, -1:]
    found = np.empty((draws, len(qs)))
    found[:, ascending] = ordered[np.minimum((uniform * n).astype(np.int64), n - 1)]
    for column in range(1, len(qs)):
        middle = _of_sorted(ordered, qs[column])
        stretch = math.sqrt(max(m / worth[column].observations, 1.0))
        found[:, column] = middle + stretch * (found[:, column] - middle)
    return found


def ratio_of_quantiles(
    values: ArrayLike, upper: float, lower: float = 0.5, *, clusters: ArrayLike | None = None, seed: int = 0
) -> Estimate:
    """The tail ratio, P99/P50 for instance, with its bootstrap interval; ``n too small`` as for the upper quantile."""
    top, base = quantiles(values, (upper, lower), clusters=clusters)
    if top.value is None:
        return top
    if not base.value or base.value < 0:
        short, why = Shortfall.NOTHING_TO_COMPARE, "no positive median"
        return replace(top, value=None, low=None, high=None, shortfall=short, detail=why)
    drawn = quantile_draws(values, (upper, lower), clusters=clusters, seed=seed)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return replace(top, value=top.value / base.value, low=float(low), high=float(high))


def ratio_of_sums(part: ArrayLike, whole: ArrayLike, *, clusters: ArrayLike | None = None) -> Estimate:
    """The share that ``part`` has of ``whole`` over all observations: sum by sum, so that shares of parts add up.

    The interval is the ratio estimator's (linearised, with Student's t; W. G. Cochran, Sampling Techniques, 3rd ed.,
    section 6.5), over clusters where there are some, with the dependence of runs next to each other in it.
    """
    top, base = np.asarray(part, np.float64).ravel(), np.asarray(whole, np.float64).ravel()
    good = ~(np.isnan(top) | np.isnan(base))
    labels = None if clusters is None else np.asarray(clusters).ravel()[good]
    top, base = top[good], base[good]
    least = math.ceil(LEAST_SUM)
    if not len(top) or base.sum() == 0:
        return Estimate(value=None, n=len(top), n_needed=least, shortfall=Shortfall.TOO_FEW_RUNS)
    share = float(top.sum() / base.sum())
    errors = top - share * base
    spread, effective, n = _spread_of_sum(errors, None if labels is None else _prepared(top, labels)[1])
    lag1 = dependence(errors).lag1
    if effective < LEAST_SUM:
        short = Shortfall.TOO_FEW_RUNS if n < LEAST_SUM else Shortfall.TOO_FEW_INDEPENDENT
        return Estimate(value=share, n=n, n_needed=least, lag1=lag1, effective_n=effective, shortfall=short)
    reach = float(t_reach(effective)) * spread / abs(float(base.sum()))
    if share > 0 and not (top < 0).any():
        # A share of times cannot be negative: the interval is made on the logarithmic scale.
        low, high = share * math.exp(-reach / share), share * math.exp(reach / share)
    else:
        low, high = share - reach, share + reach
    return Estimate(value=share, low=low, high=high, n=n, n_needed=least, lag1=lag1, effective_n=effective)


def _spread_of_sum(errors: Array, codes: NDArray[np.int64] | None) -> tuple[float, float, int]:
    """Standard deviation of the sum of errors, the effective number of its terms, and their count."""
    n = len(errors)
    if n < 2:
        return math.nan, float(n), n
    if codes is None:
        variance, effective = long_run(errors)
        return math.sqrt(n * float(variance)), float(effective), n
    kinds = int(codes.max()) + 1
    if kinds < 2:
        return math.nan, 1.0, kinds
    sums = np.bincount(codes, weights=errors, minlength=kinds).astype(np.float64)
    if not (np.diff(codes) < 0).any():
        variance, effective = long_run(sums)
        return math.sqrt(kinds * float(variance)), float(effective), kinds
    of_clusters = kinds / (kinds - 1) * float(np.square(sums).sum())
    in_time, effective = long_run(errors)
    alone = n / (n - 1) * float(np.square(errors).sum())
    whole = max(of_clusters + n * float(in_time) - alone, of_clusters)
    return math.sqrt(whole), kinds * of_clusters / whole if whole > 0 else float(kinds), kinds


def ratio_of_medians(second: ArrayLike, first: ArrayLike) -> Estimate:
    """Median of ``second`` over median of ``first``, two groups of positive values measured apart.

    The interval joins the two order-statistic intervals on the logarithmic scale (square and add: G. Y. Zou,
    A. Donner, Statistics in Medicine 27, 2008), so it assumes no distribution either.
    """
    top, base = median(second), median(first)
    weaker = min(top, base, key=lambda one: one.effective_n or 0.0)
    found = replace(weaker, n=min(top.n, base.n), value=None, low=None, high=None)
    if not top.value or not base.value:
        return replace(found, shortfall=Shortfall.TOO_FEW_RUNS)
    ratio = top.value / base.value
    if not (top.low and top.high and base.low and base.high):
        return replace(found, value=ratio, shortfall=weaker.shortfall or Shortfall.TOO_FEW_INDEPENDENT)
    down = math.hypot(math.log(top.value / top.low), math.log(base.high / base.value))
    up = math.hypot(math.log(top.high / top.value), math.log(base.value / base.low))
    return replace(found, value=ratio, low=ratio * math.exp(-down), high=ratio * math.exp(up))

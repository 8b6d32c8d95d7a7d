"""Quantiles (percentiles) with intervals that assume no distribution, and no independence of the runs.

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
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from vlmbench.analysis.dependence import (
    ENOUGH_BEYOND,
    FAR,
    at_quantile,
    dependence,
    found_worth,
    inflation,
    pulled_in,
    t_reach,
    tail_inflation,
)
from vlmbench.analysis.estimate import CONFIDENCE, Array, Estimate, Shortfall, observed


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """The values as a flat float64 array without NaN (a run that lacks the metric).

    Raises:
        InputError: one is infinite.
    """
    array = observed(values)
    return array[~np.isnan(array)]


def quantile(values: ArrayLike, q: float, *, clusters: ArrayLike | None = None) -> Estimate:
    """One quantile with its interval.

    Args:
        values: observations in the order measured; NaN are left out.
        q: between 0 and 1.
        clusters: codes of the same length: observations of one code are not independent. If no code comes twice,
            each observation is a cluster of its own.

    Raises:
        InputError: a value is infinite.
    """
    return quantiles(values, (q,), clusters=clusters)[0]


def quantiles(values: ArrayLike, qs: Sequence[float], *, clusters: ArrayLike | None = None) -> list[Estimate]:
    """Several quantiles; see :func:`quantile`."""
    for q in qs:
        fewest(q)  # a q that is none is refused before anything else
    data, codes = with_codes(values, clusters)
    if not len(data):
        return [_too_small(data, q, _Worth(n=0, lag1=None, clusters=0.0, observations=0.0)) for q in qs]
    ordered = np.sort(data)
    return [_estimate(ordered, q, worth) for q, worth in zip(qs, _worth(data, codes, qs), strict=True)]


def median(values: ArrayLike, *, clusters: ArrayLike | None = None) -> Estimate:
    """The median with its interval (none below 6 independent observations, the median itself always)."""
    return quantile(values, 0.5, clusters=clusters)


def with_codes(values: ArrayLike, clusters: ArrayLike | None) -> tuple[Array, NDArray[np.int64] | None]:
    """Values without NaN, and codes of clusters in the order in which they first come; None if none comes twice."""
    array = observed(values)
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
    far = 1 - ENOUGH_BEYOND / n  # beyond it the dependence of the tail is not seen
    found = []
    for q in qs:
        share = float(tail_inflation(data, q))
        if q > far > 0.5 and n / (seen := float(tail_inflation(data, far))) < fewest(far):
            share = max(share, seen)  # not even that one could be given
        found.append(_Worth(n=n, lag1=known.lag1, clusters=n / share, observations=n / share))
    return found


def _worth_of_clusters(data: Array, codes: NDArray[np.int64], qs: Sequence[float]) -> list[_Worth]:
    n, kinds = len(data), int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=kinds).astype(np.float64)
    apart = bool((np.diff(codes) < 0).any())  # repeats of a sample come back later
    series = data if apart else np.bincount(codes, weights=data, minlength=kinds) / sizes
    known = dependence(series)
    found = []
    for q in qs:
        value = np.quantile(data, q)
        below = ((data < value).astype(np.float64) + (data <= value)) / 2  # of equal ones, all may be at one end
        sums = np.bincount(codes, weights=below, minlength=kinds) - float(below.mean()) * sizes
        alone = n * max(float(below.var()), 1e-12)
        design = max(kinds / max(kinds - 1, 1) * float(np.square(sums).sum()) / alone, 1.0)
        if apart:
            # runs of one sample, and runs next to each other: either adds what it is beyond independence
            whole = design + float(tail_inflation(data, q)) - 1
            in_time = whole / design
        else:
            own = float(inflation(sums))
            in_time = own if q > FAR else max(own, float(at_quantile(q, pulled_in(series))))
            whole = design * in_time
        clusters = kinds / in_time
        few = float(t_reach(1.5 * clusters) / t_reach(np.inf)) ** 2
        found.append(_Worth(n=kinds, lag1=known.lag1, clusters=clusters, observations=n / whole / few))
    return found


def _estimate(ordered: Array, q: float, worth: _Worth) -> Estimate:
    low, high, enough = quantile_ends(ordered, q, np.array(worth.observations))
    # Tokens of few requests are few observations of a tail, however many they are: the requests are counted. What these
    # are worth widens the interval and is no gate beyond the six of a median: few requests that look independent by
    # chance would pass a higher one, and the intervals of those hold less.
    if not enough or worth.n < needed(max(q, 1 - q)) or worth.clusters < fewest(0.5):
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
    few, known = worth.n < needed(q), found_worth(worth.n, worth.clusters)
    return Estimate(
        value=_of_sorted(ordered, q) if q <= 0.5 else None,
        n=worth.n,
        n_needed=needed(q),
        lag1=worth.lag1,
        effective_n=None if known is None else min(known, worth.observations),
        shortfall=Shortfall.TOO_FEW_RUNS if few else Shortfall.TOO_FEW_INDEPENDENT,
    )


def needed(q: float, confidence: float = CONFIDENCE) -> int:
    """The fewest independent observations whose extremes enclose the q-quantile with ``confidence``, half each tail.

    All n lie below the quantile with probability qⁿ, all above with (1-q)ⁿ; both must be at most half of what is left:
    n ≥ ln((1-confidence)/2) / ln(max(q, 1-q)). At 95 %: 36 for P90, 72 for P95, 368 for P99, 3,688 for P99.9.
    """
    return math.ceil(fewest(q, confidence))


def fewest(q: float, confidence: float = CONFIDENCE) -> float:
    """:func:`needed` before it is rounded up: 5.32 for the median."""
    for name, value in (("q", q), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"'{name}' must lie between 0 and 1 (got {value})")
    return math.log((1 - confidence) / 2) / math.log(max(q, 1 - q))


def quantile_ends(
    ordered: Array, q: float, effective: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Ends of the interval of a quantile from order statistics of that many independent observations.

    The count of m independent observations at or below the true quantile is Binomial(m, q). With real ranks l and u
    (the binomial tail as an incomplete beta function) the interval goes from the l/(m+1) to the u/(m+1) quantile of
    the observations there are.

    Args:
        ordered: sorted ascending, shape (…, n).
        q: between 0 and 1.
        effective: independent observations they are worth, at most n; shape (…).
        confidence: of the interval.

    Returns:
        Low and high ends, and whether the observations allow both; each of shape (…).
    """
    n = ordered.shape[-1]
    m = np.clip(np.asarray(effective, dtype=np.float64), 1e-3, n)
    half = (1 - confidence) / 2
    low, high = _rank(m, q, 1 - half), _rank(m, q, half)
    # The needed count itself gives rank 1 up to rounding.
    enough = (low >= 1 - 1e-6) & (high <= m + 1e-6)
    return _at_rank(ordered, low / (m + 1)), _at_rank(ordered, high / (m + 1)), enough


def _rank(m: Array, q: float, tail: float | Array) -> Array:
    """The real rank l with P(Binomial(m, q) ≥ l) = ``tail``."""
    low, high = np.full_like(m, 1e-9), m + 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        above = special.betainc(middle, m - middle + 1, q) > tail
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray((low + high) / 2)


def _at_rank(ordered: Array, share: Array) -> Array:
    n = ordered.shape[-1]
    place = np.clip(share * (n + 1) - 1, 0, n - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, n - 1)
    weight = place - below
    first, second = (np.take_along_axis(ordered, p[..., None], -1)[..., 0] for p in (below, above))
    return np.asarray(first + weight * (second - first), dtype=np.float64)


def ratio_draws(
    values: ArrayLike, upper: float, *, clusters: ArrayLike | None = None, draws: int = 1000, seed: int = 0
) -> Array:
    """Draw the ratio of an upper quantile (``upper`` above 0.5) to the median, shape (draws,): for its interval.

    Each of the two is drawn at ranks that end its own intervals (:func:`quantile_ends`), a rank for each confidence;
    both at once, with the correlation that two counts of the same observations have. What moves both quantiles alike,
    as a slow hour does, moves no ratio of them: each is drawn for n over the mean of two inflations, that of the upper
    quantile and that of what each run does to the ratio. Of clusters, which may hold many observations each, either is
    drawn for what they are worth at it.
    """
    data, codes = with_codes(values, clusters)
    ordered, n = np.sort(data), len(data)
    top, base = (min(one.observations, float(n)) for one in _worth(data, codes, (upper, 0.5)))
    if codes is None:
        of_ratio = min(float(inflation(_influence(data, ordered, upper))), n / top)
        top = base = 2 * n / (n / top + of_ratio)
    random, together = np.random.default_rng(seed), math.sqrt((1 - upper) / upper)
    scores = random.standard_normal((2, draws))
    scores[1] = together * scores[0] + math.sqrt(1 - together**2) * scores[1]
    return _drawn(ordered, upper, top, scores[1]) / _drawn(ordered, 0.5, base, scores[0])


def _drawn(ordered: Array, q: float, effective: float, scores: Array) -> Array:
    """The quantile at the ranks whose confidence has these normal scores."""
    grid = np.linspace(-5.0, 5.0, 51)
    ranks = _rank(np.full(grid.shape, effective), q, special.ndtr(-grid))
    return _at_rank(ordered[None, :], np.interp(scores, grid, ranks) / (effective + 1))


def _influence(data: Array, ordered: Array, upper: float) -> Array:
    """What each observation does to the ratio of a quantile to the median, in the order measured; mean about 0.

    A quantile moves by the inverse of the density there, which is the slope of the sorted values (over a width of P.
    Hall, S. J. Sheather, J. R. Statistical Society B 50, 381 (1988)).
    """
    found = np.zeros(len(data))
    for q, sign in ((upper, 1.0), (0.5, -1.0)):
        z, value = float(special.ndtri(q)), _of_sorted(ordered, q)
        bell = 1.5 * math.exp(-(z**2)) / (2 * math.pi) / (2 * z**2 + 1)
        width = min(
            (bell / len(data)) ** (1 / 3) * float(special.ndtri(0.5 + CONFIDENCE / 2)) ** (2 / 3), 0.9 * (1 - q)
        )
        slope = (_of_sorted(ordered, q + width) - _of_sorted(ordered, q - width)) / (2 * width)
        found += sign * slope / value * ((data > value) - (1 - q))
    return found

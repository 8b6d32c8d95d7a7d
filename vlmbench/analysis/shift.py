"""Whether the same requests took longer the second time: a ratio of times with its interval and its p-value.

Times are compared on the logarithmic scale, request by request, so that what makes requests differ cancels. The
location of a group is its median plus the mean of what is left when deviations are clipped at 1.5 robust standard
deviations (one step of Huber's estimator: slow runs count, but none more than that). Its error holds the dependence of
the runs: it is seen in their slow waves (:func:`vlmbench.analysis.dependence.slow_variance`). Why not Welch's t on five
blocks in time a half, which needs no estimate of the dependence: it has as few false alarms from 100 runs on, but at 20
runs cries drift in 12 % (autocorrelation 0.5) and 30 % (0.8) of the cases. Why not the effective number of runs alone,
as for a quantile: on a machine whose state lasts for ten runs it cries drift in 9 to 18 % (``benchmarks/coverage.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vlmbench.analysis.dependence import LEAST_LAG, first_lag, found_worth, inflation, slow_variance
from vlmbench.analysis.estimate import CONFIDENCE, Array, Estimate, Shortfall

LEAST_EFFECTIVE, LEAST_OF_MANY = 10, 6
"""Independent runs that a difference needs, of few runs and of many: how many they are worth is a guess where they are
few. Of 100 runs at autocorrelation 0.8 a limit of 10 picks those that look independent by chance: 0.36 are given an
interval, and 0.88 of these hold; with 6 it is 0.93 of 0.76. At 0.95 and 0.98 false alarms are 0.04 to 0.08 with 6, and
0.06 to 0.11 with 3."""
TOLERANCE = 0.01
"""A difference smaller than this matters to no conclusion, even where it can be told from none."""
ONE_ORDER = 0.9
"""Correlation of the places that requests have in two series from which on both are in one order."""
BLIND = 0.05
"""Where a difference as large as this could go unseen, nothing is said."""
_CLIP = 1.5


@dataclass(frozen=True, kw_only=True)
class Shift:
    """The second times over the first.

    Args:
        estimate: ratio with its 95 % interval, runs and what they are worth.
        p_value: of no difference, two-sided; nan where there is no interval.
        requests: requests that were compared.
    """

    estimate: Estimate
    p_value: float
    requests: int

    def beyond(self) -> float:
        """The largest difference that the interval leaves possible, as a share; infinite without an interval."""
        low, high = self.estimate.low, self.estimate.high
        return math.inf if low is None or high is None else max(1 - low, high - 1)

    def differs(self, p_value: float | None = None) -> bool:
        """Whether there is a difference that matters.

        Args:
            p_value: corrected for the number of questions; None: the test's own.
        """
        p = self.p_value if p_value is None else p_value
        return p < 1 - CONFIDENCE and self.estimate.value is not None and abs(self.estimate.value - 1) > TOLERANCE


def shift_in_time(times: ArrayLike, second: ArrayLike, requests: ArrayLike, *, clip: bool = True) -> Shift:
    """Compare two parts of one series.

    Args:
        times: positive, in the order measured, shape (n,).
        second: whether a run belongs to the second part, shape (n,); as many runs of a request in either.
        requests: code of the request of each run, shape (n,).
        clip: whether deviations are clipped. Not where runs of one code are different requests: their times may lie in
            heaps, whose median jumps from one to the other, and plain means of logarithms are compared.
    """
    logs, later, codes = _checked(times, second, requests)
    n, kinds = len(logs), int(codes.max()) + 1 if len(codes) else 0
    if later.all() or not later.any():
        return _nothing(n, kinds)
    rest = logs - _medians(logs, codes, kinds)[codes]
    middles = np.where(later, np.median(rest[later]), np.median(rest[~later]))
    kept, inside = _clip(rest - middles) if clip else (rest - middles, 1.0)
    means = np.where(later, kept[later].mean(), kept[~later].mean())
    errors = kept - means
    difference = float((middles + means)[later][0] - (middles + means)[~later][0])
    noise = _Noise.of(errors, removed=2, fitted=kinds + 1, inside=inside, step=later)
    share = 1 / float(later.sum()) + 1 / float((~later).sum())
    return _shift(difference, noise.variance * share, noise.freedom, noise, kinds)


def shift_within(times: ArrayLike, second: ArrayLike, shapes: ArrayLike) -> Shift:
    """Compare two parts of one series whose runs are of several shapes, in any mix: each shape has a level of its own,
    and all change by one ratio (least squares on logarithms).

    Args:
        times: positive, in the order measured, shape (n,).
        second: whether a run belongs to the second part, shape (n,).
        shapes: code of the shape of each run, shape (n,); one that stands in one part alone tells nothing, and belongs
            left out.
    """
    logs, later, codes = _checked(times, second, shapes)
    kinds = int(codes.max()) + 1 if len(codes) else 0
    step, left = (_within(one, codes) for one in (later.astype(np.float64), logs))
    return _regressed(step, left, later, fitted=kinds + 1, requests=kinds)


def shift_beside(times: ArrayLike, second: ArrayLike, counts: ArrayLike) -> Shift:
    """Compare two parts of one series of unlike runs, what counts explain taken out (least squares of logarithms on the
    counts and their logarithms).

    Args:
        times: positive, in the order measured, shape (n,).
        second: whether a run belongs to the second part, shape (n,).
        counts: what makes the runs unlike (tokens), shape (n, columns).
    """
    logs, later, _ = _checked(times, second, np.zeros(np.size(times)))
    table = np.asarray(counts, dtype=np.float64)
    design = np.column_stack([np.ones(len(logs)), table, np.log1p(table)])
    both = np.column_stack([later, logs])
    fit, _, rank, _ = np.linalg.lstsq(design, both)
    step, left = (both - design @ fit).T
    return _regressed(step, left, later, fitted=int(rank) + 1, requests=1)


def _regressed(step: Array, left: Array, later: NDArray[np.bool_], *, fitted: int, requests: int) -> Shift:
    """The change of the later part, from what other causes leave of the step to it and of the logarithms."""
    n, weight = len(left), float(step @ step)
    if not weight > 1e-9 * n or n <= fitted:
        return _nothing(n, requests)
    difference = float(step @ left) / weight
    errors = left - difference * step
    noise = _Noise.of(errors, removed=2, fitted=fitted, inside=1.0, step=later)
    # Runs that tell more of the change may be noisier than others (H. White, Econometrica 48, 817 (1980)).
    squares = np.square(errors)
    noisier = max(n * float(np.square(step) @ squares) / (weight * float(squares.sum()) or math.inf), 1.0)
    # Fewer runs, as many of each kind in either part, would tell as much.
    noise = replace(noise, effective=noise.effective * 4 * weight / n)
    freedom = noise.freedom * (n - fitted) / n  # what was fitted took its share of every wave
    return _shift(difference, noise.variance * noisier / weight, freedom, noise, requests)


def shift_between(first: ArrayLike, first_requests: ArrayLike, second: ArrayLike, second_requests: ArrayLike) -> Shift:
    """Compare two series of the same requests, each in the order measured; requests that only one has are left out.

    Where requests were repeated on both sides, the noise is that of the repeats; where they were not, that of the
    differences of pairs.

    Args:
        first, second: positive times, shapes (n,) and (m,).
        first_requests, second_requests: names of the requests, or their numbers, same shapes.
    """
    sides = [_side(*side) for side in ((first, first_requests), (second, second_requests))]
    every, numbers = np.unique(np.concatenate([names for _, names in sides]), return_inverse=True)
    numbered = np.split(numbers, [len(sides[0][0])])
    fewest = np.minimum(*(np.bincount(side, minlength=len(every)) for side in numbered))
    common = fewest > 0
    kinds = int(common.sum())
    if not kinds:
        return _nothing(min(len(logs) for logs, _ in sides), 0)
    logs = [side[common[number]] for (side, _), number in zip(sides, numbered, strict=True)]
    codes = [(np.cumsum(common) - 1)[number[common[number]]] for number in numbered]
    repeated = fewest[common] >= 2
    if repeated.sum() * 2 >= kinds:
        return _of_repeats(logs, codes, np.flatnonzero(repeated))
    return _of_pairs(logs, codes, kinds)


def shift_in_turns(first: ArrayLike, second: ArrayLike, requests: ArrayLike) -> Shift:
    """Compare runs in pairs that were measured within seconds of each other: what drift both shared cancels.

    Args:
        first, second: positive times of the two runs of each pair, in the order measured, shape (pairs,).
        requests: names of their requests, same shape.
    """
    before, after = (np.asarray(side, dtype=np.float64).ravel() for side in (first, second))
    good = (before > 0) & (after > 0)
    if not good.any():
        return _nothing(0, 0)
    changes = np.log(after[good] / before[good])
    codes = np.unique(np.asarray(requests).ravel()[good], return_inverse=True)[1]
    counts = np.bincount(codes)
    if (repeated := counts >= 2).sum() * 2 < len(counts):
        order = np.argsort(np.unique(codes, return_index=True)[1], kind="stable")
        return _of_changes(_medians(changes, codes, len(counts))[order])
    keep = repeated[codes]
    change, noise, variance = _centre(changes[keep], (np.cumsum(repeated) - 1)[codes[keep]], int(repeated.sum()))
    return _shift(change, variance, noise.freedom, noise, int(repeated.sum()))


def partners(
    first: ArrayLike, first_requests: ArrayLike, second: ArrayLike, second_requests: ArrayLike
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the runs of two sides that took turns which belong together: the same request, nearest in turns.

    Args:
        first, second: turn of each run, in the order measured; NaN: in none.
        first_requests, second_requests: names of the requests.

    Returns:
        Places of the two runs of each pair, in the order of the first; each run is in one pair at most, and its partner
        no further than two rounds.
    """
    turns = [np.asarray(side, dtype=np.float64).ravel() for side in (first, second)]
    steps = [np.diff(np.unique(side[~np.isnan(side)])) for side in turns]
    apart = 2 * max((float(step.mean()) for step in steps if len(step)), default=2.0)  # a round has so many turns
    places: list[dict[Any, list[int]]] = [{}, {}]
    for side, names, found in zip(turns, (first_requests, second_requests), places, strict=True):
        for place in np.flatnonzero(~np.isnan(side)):
            found.setdefault(np.asarray(names)[place], []).append(int(place))
    pairs = [
        pair
        for name in places[0].keys() & places[1].keys()
        for pair in _nearest(turns, places[0][name], places[1][name], apart)
    ]
    both = np.array(sorted(pairs), dtype=np.intp).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _nearest(turns: Sequence[Array], ours: list[int], theirs: list[int], apart: float) -> Iterator[tuple[int, int]]:
    """Pairs in time: a run whose partner has a nearer one after it stays alone."""
    i = j = 0

    def far(i: int, j: int) -> float:
        here = i < len(ours) and j < len(theirs)
        return abs(float(turns[0][ours[i]] - turns[1][theirs[j]])) if here else math.inf

    while i < len(ours) and j < len(theirs):
        if far(i + 1, j) < far(i, j):
            i += 1
        elif far(i, j + 1) < far(i, j):
            j += 1
        else:
            if far(i, j) <= apart:
                yield ours[i], theirs[j]
            i, j = i + 1, j + 1


def _of_repeats(logs: Any, codes: Any, kept: NDArray[np.intp]) -> Shift:
    """Requests are fixed: each counts the same, and the noise is that of its repeats."""
    found = []
    for values, code in zip(logs, codes, strict=True):
        keep = np.isin(code, kept)
        found.append(_centre(values[keep], np.searchsorted(kept, code[keep]), len(kept)))
    centres, noises, variances = zip(*found, strict=True)
    total = sum(variances)
    # Welch and Satterthwaite
    squares = sum(v**2 / noise.freedom for v, noise in zip(variances, noises, strict=True))
    joint = total**2 / squares if total else 1.0
    weakest = min(noises, key=lambda noise: noise.effective)
    return _shift(centres[1] - centres[0], total, joint, weakest, len(kept))


def _centre(values: Array, code: NDArray[np.intp], kinds: int) -> tuple[float, _Noise, float]:
    """Where values lie, each kind counted alike, with their noise and the variance of the place."""
    counts = np.bincount(code, minlength=kinds)
    levels = _medians(values, code, kinds)
    clip, inside = _clip(values - levels[code])
    weights = 1 / (kinds * counts[code])
    noise = _Noise.of(clip - weights @ clip, removed=1, fitted=kinds, inside=inside)
    return float(levels.mean() + weights @ clip), noise, noise.variance * float(np.square(weights).sum())


def _of_pairs(logs: Any, codes: Any, kinds: int) -> Shift:
    """Requests are a sample: the noise is how far they differ in their difference.

    A run depends on those beside it in its own series. Where the two measured the requests in unlike orders, the
    dependence of the second is noise without any in the order of the first: both orders are looked at.
    """
    first, second = (_medians(values, code, kinds) for values, code in zip(logs, codes, strict=True))
    order, later = (np.argsort(np.unique(code, return_index=True)[1], kind="stable") for code in codes)
    places = np.argsort(later)[order]  # of the requests in the second series, in the order of the first
    alike = kinds < 2 or np.corrcoef(places, np.arange(kinds))[0, 1] > ONE_ORDER
    return _of_changes((second - first)[order], None if alike else np.argsort(places))


def _of_changes(change: Array, other: NDArray[np.intp] | None = None) -> Shift:
    """How far the requests changed, one value each in the order measured; ``other``: their order in the other series,
    where that is not the same.
    """
    middle, kinds = float(np.median(change)), len(change)
    clip, inside = _clip(change - middle)
    errors = clip - clip.mean()
    noise = _Noise.of(errors, removed=1, fitted=1, inside=inside)
    if other is not None:
        alone = float(np.square(errors).sum()) / max(kinds - 1, 1) / max(inside, 0.1) ** 2
        noise = _Noise.added([noise, _Noise.of(errors[other], removed=1, fitted=1, inside=inside)], alone)
    return _shift(middle + float(clip.mean()), noise.variance / kinds, noise.freedom, noise, kinds)


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """Variance of one run's error with its dependence in it, its degrees of freedom, and the runs it comes from."""

    n: int
    lag1: float
    effective: float
    variance: float
    freedom: float

    @classmethod
    def of(cls, errors: Array, *, removed: int, fitted: int, inside: float, step: ArrayLike | None = None) -> _Noise:
        n = len(errors)
        inflated = float(inflation(errors, removed))
        slow, freedom = slow_variance(errors, removed=removed, step=step)
        variance = max(slow * n, float(np.square(errors).sum())) / max(n - fitted, 1) / max(inside, 0.1) ** 2
        lag1 = float(first_lag(errors, removed)) if n > 1 else 0.0
        return cls(n=n, lag1=lag1, effective=min(n / inflated, float(n)), variance=variance, freedom=freedom)

    @classmethod
    def added(cls, orders: Sequence[_Noise], alone: float) -> _Noise:
        """The noise of errors of which each order shows a part of the dependence.

        Args:
            orders: noise of the same errors in two orders.
            alone: variance of one error by itself, which stands in both.
        """
        weaker = min(orders, key=lambda noise: noise.effective)
        n, variance = weaker.n, sum(noise.variance for noise in orders) - alone
        inflated = sum(n / noise.effective for noise in orders) - 1
        squares = sum(noise.variance**2 / noise.freedom for noise in orders)  # Welch and Satterthwaite
        freedom = variance**2 / squares if squares else weaker.freedom
        return replace(weaker, effective=n / inflated, variance=variance, freedom=freedom)


def _shift(difference: float, variance: float, freedom: float, noise: _Noise, requests: int) -> Shift:
    value = math.exp(difference)
    least = math.ceil(min(LEAST_EFFECTIVE, max(LEAST_OF_MANY, 300 / max(noise.n, 1))))
    known = found_worth(noise.n, noise.effective)
    lag1 = noise.lag1 if noise.n >= LEAST_LAG else None
    found = Estimate(value=value, n=noise.n, n_needed=least, lag1=lag1, effective_n=known)
    if noise.effective < least:
        short = Shortfall.TOO_FEW_RUNS if noise.n < least else Shortfall.TOO_FEW_INDEPENDENT
        return Shift(estimate=replace(found, shortfall=short), p_value=math.nan, requests=requests)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(difference) / error, freedom)) if error > 0 else float(difference == 0)
    found = replace(found, low=value * math.exp(-reach), high=value * math.exp(reach))
    return Shift(estimate=found, p_value=p_value, requests=requests)


def _nothing(n: int, requests: int) -> Shift:
    return Shift(
        estimate=Estimate(value=None, n=n, shortfall=Shortfall.NOTHING_TO_COMPARE), p_value=math.nan, requests=requests
    )


def _checked(times: ArrayLike, second: ArrayLike, requests: ArrayLike) -> tuple[Array, NDArray[np.bool_], Any]:
    values = np.asarray(times, dtype=np.float64).ravel()
    if not (values > 0).all():
        raise ValueError("'times' must be above 0 (leave out runs without the metric first)")
    codes = np.unique(np.asarray(requests).ravel(), return_inverse=True)[1] if len(values) else np.zeros(0, np.intp)
    return np.log(values), np.asarray(second, dtype=np.bool_).ravel(), codes


def _side(times: ArrayLike, requests: ArrayLike) -> tuple[Array, Any]:
    values = np.asarray(times, dtype=np.float64).ravel()
    names = np.asarray(requests).ravel()
    good = values > 0  # a stage that a run does not have is nan
    return np.log(values[good]), names[good] if names.dtype.kind == "i" else names[good].astype(str)


def _within(values: Array, codes: NDArray[np.intp]) -> Array:
    """What is left of values without the mean of their group."""
    return np.asarray(values - (np.bincount(codes, values) / np.bincount(codes))[codes], dtype=np.float64)


def _medians(values: Array, codes: NDArray[np.intp], kinds: int) -> Array:
    """Median of each group, shape (kinds,)."""
    order = np.lexsort((values, codes))
    ordered, counts = values[order], np.bincount(codes, minlength=kinds)
    ends = np.cumsum(counts)
    low, high = ends - counts + (counts - 1) // 2, ends - counts + counts // 2
    return np.asarray((ordered[low] + ordered[high]) / 2, dtype=np.float64)


def _clip(rest: Array) -> tuple[Array, float]:
    """Deviations clipped, and the share of them that was not."""
    spread = 1.4826 * float(np.median(np.abs(rest)))
    if spread == 0:
        return rest, 1.0
    limit = _CLIP * spread
    return np.clip(rest, -limit, limit), float((np.abs(rest) < limit).mean())

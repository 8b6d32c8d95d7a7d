"""Ratios of quantiles and medians, and shares of sums, with their intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit, logit

from vlmbench.analysis.dependence import LEAST_SUM, dependence, found_worth, long_run, slow_variance, t_reach
from vlmbench.analysis.estimate import CONFIDENCE, Array, Estimate, Shortfall, observed
from vlmbench.analysis.quantiles import quantiles, ratio_draws, with_codes

NO_MEDIAN = "no positive median"


def ratio_of_quantiles(
    values: ArrayLike, upper: float, *, clusters: ArrayLike | None = None, seed: int = 0
) -> Estimate:
    """P99/P50, for instance, with its interval (of :func:`ratio_draws`); ``n too small`` as for the upper quantile."""
    top, base = quantiles(values, (upper, 0.5), clusters=clusters)
    if top.value is None:
        return top
    if not base.value or base.value < 0:
        short = Shortfall.NOTHING_TO_COMPARE
        return replace(top, value=None, low=None, high=None, shortfall=short, detail=NO_MEDIAN)
    drawn = ratio_draws(values, upper, clusters=clusters, seed=seed)
    low, high = np.quantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return replace(top, value=top.value / base.value, low=float(low), high=float(high))


def ratio_of_sums(part: ArrayLike, whole: ArrayLike, *, clusters: ArrayLike | None = None) -> Estimate:
    """The share that ``part`` has of ``whole`` over all observations: sum by sum, so that shares of parts add up.

    The interval is the ratio estimator's (linearised, with Student's t; W. G. Cochran, Sampling Techniques, 3rd ed.,
    section 6.5), over clusters where there are some, with the dependence of runs next to each other in it. It is made
    on the scale of log-odds where each part is within its whole, so that its ends lie between 0 and 1 as the share
    does; on the logarithmic scale where a part exceeds its whole; and is symmetric where one is negative.

    Raises:
        InputError: a value is infinite.
    """
    top, base = observed(part, "part"), observed(whole, "whole")
    good = ~(np.isnan(top) | np.isnan(base))
    labels = None if clusters is None else np.asarray(clusters).ravel()[good]
    top, base = top[good], base[good]
    least = math.ceil(LEAST_SUM)
    if not len(top) or base.sum() == 0:
        return Estimate(value=None, n=len(top), n_needed=least, shortfall=Shortfall.TOO_FEW_RUNS)
    share = float(top.sum() / base.sum())
    errors = top - share * base
    spread, effective, n, freedom = _spread_of_sum(errors, None if labels is None else with_codes(top, labels)[1])
    lag1, told = dependence(errors).lag1, found_worth(n, effective)
    if effective < LEAST_SUM - 1e-6:  # up to rounding
        short = Shortfall.TOO_FEW_RUNS if n < LEAST_SUM else Shortfall.TOO_FEW_INDEPENDENT
        return Estimate(value=share, n=n, n_needed=least, lag1=lag1, effective_n=told, shortfall=short)
    quantile = max(float(t_reach(effective)), float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)))
    reach = quantile * spread / abs(float(base.sum()))
    if 0 < share < 1 and ((top >= 0) & (top <= base)).all():
        # What is within its whole in every run cannot lie beyond it: the interval is made on the scale of log-odds.
        low, high = on_log_odds(share, reach)
    elif share > 0 and not (top < 0).any():
        # A ratio of times cannot be negative: the interval is made on the logarithmic scale.
        low, high = share * math.exp(-reach / share), share * math.exp(reach / share)
    else:
        low, high = share - reach, share + reach
    return Estimate(value=share, low=low, high=high, n=n, n_needed=least, lag1=lag1, effective_n=told)


def share_of_sums(part: Array, whole: Array) -> float | None:
    """The value of :func:`ratio_of_sums` alone, which takes a hundredth of the time; None where there is none."""
    good = ~(np.isnan(part) | np.isnan(whole))
    base = whole[good].sum()
    return float(part[good].sum() / base) if base else None


def on_log_odds(share: float, reach: float) -> tuple[float, float]:
    """Both ends of a share's interval on the scale of log-odds, where none lies beyond 0 or 1.

    Args:
        share: between 0 and 1, neither of them.
        reach: half of the interval's width on the plain scale.
    """
    step = reach / (share * (1 - share))
    return float(expit(logit(share) - step)), float(expit(logit(share) + step))


def _spread_of_sum(errors: Array, codes: NDArray[np.int64] | None) -> tuple[float, float, int, float]:
    """Standard deviation of the sum of errors, the effective number of its terms, their count, and the degrees of
    freedom of the deviation where these are fewer than the terms say.
    """
    n = len(errors)
    if n < 2:
        return math.nan, float(n), n, math.inf
    if codes is None:
        return _of_series(errors)
    kinds = int(codes.max()) + 1
    if kinds < 2:
        return math.nan, 1.0, kinds, math.inf
    sums = np.bincount(codes, weights=errors, minlength=kinds).astype(np.float64)
    if not (np.diff(codes) < 0).any():
        return _of_series(sums)
    of_clusters = kinds / (kinds - 1) * float(np.square(sums).sum())
    in_time, _ = long_run(errors)
    alone = n / (n - 1) * float(np.square(errors).sum())
    whole = max(of_clusters + n * float(in_time) - alone, of_clusters)
    return math.sqrt(whole), kinds * of_clusters / whole if whole > 0 else float(kinds), kinds, math.inf


def _of_series(errors: Array) -> tuple[float, float, int, float]:
    """Of errors in time: from their dependence, or from their slow waves where these say more.

    Large requests may depend on each other as well (a workload that drifts), which the body does not show.
    """
    n = len(errors)
    in_time, effective = (float(one) for one in long_run(errors))
    slow, freedom = slow_variance(errors)
    return math.sqrt(n * max(in_time, slow)), effective, n, freedom if slow > in_time else math.inf

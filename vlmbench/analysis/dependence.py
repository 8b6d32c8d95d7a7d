"""How many independent runs a series of runs is worth, and the intervals that follow from it.

Runs of one process are not independent: clocks, heat and neighbours change slowly, so that a run resembles the one
before it. An interval for n independent runs is then too short. Everything here takes values in the order measured and
works with the *effective* number of runs, n / inflation, where

    inflation = 1 + 2 × (sum of the autocorrelations)

is estimated twice, and the larger of the two is used:

* from the first autocorrelation r alone, (1 + r) / (1 - r), right where each run depends on the one before it (AR(1));
  r has the bias of short series taken out, (n r + 1) / (n - 3);
* from the sum of all autocorrelations up to where pairs of neighbours stop being positive (C. J. Geyer, Statistical
  Science 7, 473 (1992), initial monotone sequence), which also sees a slow drift under noise that hides it from r.

Outliers are pulled in to the 10 % and 90 % quantiles before autocorrelations are taken, and only there: independent
spikes would hide the dependence of the body. ``benchmarks/coverage.py`` simulates what the intervals hold.

All functions work on the last axis, so many series of equal length are done at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]

CONFIDENCE = 0.95
PULLED_IN = 0.1
"""Share of values at either end that are pulled in before autocorrelations are taken."""
LEAST_SUM = 6.0
"""Independent runs that the interval of a mean or a ratio of sums needs; an order-statistic one of a median needs as
many."""
_LEAST_LAG = 5  # values below which no autocorrelation is looked for
_MOST_LAG_ONE = 0.99


class Shortfall(StrEnum):
    """Why an estimate has no interval, or no value."""

    NO_VALUES = "no values"
    TOO_FEW_RUNS = "n too small"
    TOO_FEW_INDEPENDENT = "too few independent runs"
    NOTHING_TO_COMPARE = "nothing to compare"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval and the runs behind it.

    Args:
        value: the estimate; None where there is none to give (``shortfall`` says why).
        low, high: ends of the two-sided 95 % interval; None where the runs do not allow one.
        n: observations behind it (clusters, where observations come in clusters).
        n_needed: the fewest independent ones for an interval with two ends.
        lag1: autocorrelation of neighbouring runs; None where it was not looked for.
        effective_n: how many independent observations the n are worth; None where that was not looked for.
        shortfall: why there is no interval; None where there is one.
        detail: what was short, for a note; empty where ``shortfall`` and the counts say it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    n_needed: int | None = None
    lag1: float | None = None
    effective_n: float | None = None
    shortfall: Shortfall | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"'low' and 'high' must both be given or both be None (got {self.low} and {self.high})")
        if self.n < 0:
            raise ValueError(f"'n' must be 0 or more (got {self.n})")

    @property
    def note(self) -> str:
        """Why there is no interval, in words: ``n too small: 20 of 36``; empty where there is one."""
        if self.detail:
            return self.detail
        if self.shortfall is Shortfall.TOO_FEW_RUNS:
            return f"{self.shortfall.value}: {self.n} of {self.n_needed}"
        if self.shortfall is Shortfall.TOO_FEW_INDEPENDENT:
            worth = math.floor(self.effective_n or 0)
            return f"{self.shortfall.value}: {self.n} are worth {worth} of {self.n_needed}"
        return "" if self.shortfall is None else self.shortfall.value

    def as_dict(self) -> dict[str, Any]:
        """For JSON: value, low, high, n, lag1, effective_n, and why there is no interval, where there is none."""
        entry: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        if self.effective_n is not None:
            entry |= {"lag1": self.lag1, "effective_n": self.effective_n}
        if self.shortfall is not None:
            entry |= {"n_needed": self.n_needed, "note": self.note, "shortfall": self.shortfall.name.lower()}
        return entry


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """What a series is worth.

    Args:
        n: values.
        lag1: autocorrelation of neighbours, outliers pulled in, the bias of short series taken out.
        effective_n: number of independent values whose median would be known as well.
    """

    n: int
    lag1: float
    effective_n: float


def dependence(values: ArrayLike) -> Dependence:
    """Measure the dependence of one series in the order measured; NaN are left out."""
    series = np.asarray(values, dtype=np.float64).ravel()
    series = series[~np.isnan(series)]
    n = len(series)
    if n < _LEAST_LAG:
        return Dependence(n=n, lag1=0.0, effective_n=float(n))
    known = autocorrelations(pulled_in(series))
    return Dependence(n=n, lag1=float(unbiased(known[1], n)), effective_n=n / float(_inflation(known)))


def pulled_in(series: Array, share: float = PULLED_IN) -> Array:
    """The series with what lies beyond its ``share`` and 1 - ``share`` quantiles set to them (last axis)."""
    low, high = np.quantile(series, (share, 1 - share), axis=-1, keepdims=True)
    return np.clip(series, low, high)


def clipped(series: Array, width: float) -> Array:
    """The series with what lies further than ``width`` robust standard deviations from its median set to that."""
    middle = np.median(series, axis=-1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(series - middle), axis=-1, keepdims=True)
    return np.where(spread > 0, np.clip(series, middle - width * spread, middle + width * spread), series)


def autocorrelations(series: Array) -> Array:
    """Autocorrelations at lags 0 … n - 1, shape of ``series``; a constant series has those of independent values."""
    centred = series - series.mean(axis=-1, keepdims=True)
    n = centred.shape[-1]
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size, axis=-1)
    products = np.fft.irfft(spectrum * spectrum.conj(), size, axis=-1)[..., :n]
    scale = products[..., :1]
    # What is left of rounding in a constant series is no variance.
    constant = scale <= n * (1e-12 * np.abs(series).max(axis=-1, keepdims=True)) ** 2
    found: Array = np.where(constant, -1.0 / n, products / np.where(constant, 1.0, scale))
    found[..., 0] = 1.0
    return found


def unbiased(first: ArrayLike, n: int, removed: int = 1) -> Array:
    """A first autocorrelation without the bias that ``removed`` fitted means give it in n values."""
    return np.asarray((n * np.asarray(first) + removed) / max(n - 3 * removed, 1), dtype=np.float64)


def inflation(series: Array, removed: int = 1) -> Array:
    """1 + 2 × (sum of autocorrelations) of each series, never below 1; shape without the last axis.

    Args:
        series: shape (…, n), in the order measured, outliers pulled in.
        removed: how many means were taken out of it.
    """
    return _inflation(autocorrelations(series), removed)


def _inflation(known: Array, removed: int = 1) -> Array:
    n = known.shape[-1]
    if n < _LEAST_LAG:
        return np.ones(known.shape[:-1])
    first = np.clip(unbiased(known[..., 1], n, removed), 0.0, _MOST_LAG_ONE)
    found = np.maximum((1 + first) / (1 - first), _initial_sequence(known))
    return np.clip(found, 1.0, float(n))


def _initial_sequence(known: Array) -> Array:
    """Geyer's sum, with the bias of -inflation / n that the fitted mean gives every autocorrelation put back."""
    n = known.shape[-1]
    taper = 1 - np.arange(n) / n
    total = _sum_while_positive(known)
    for _ in range(2):
        raised = known + (np.minimum(total, n / 4) / n)[..., None] * taper
        raised[..., 0] = 1.0
        total = _sum_while_positive(raised)
    return total


def _sum_while_positive(known: Array) -> Array:
    n = known.shape[-1]
    pairs = known[..., 0 : n // 2 * 2 : 2] + known[..., 1 : n // 2 * 2 : 2]
    going = np.logical_and.accumulate(pairs > 0, axis=-1)
    falling = np.minimum.accumulate(pairs, axis=-1)
    total: Array = 2 * np.where(going, falling, 0.0).sum(axis=-1) - 1
    return np.maximum(total, 0.2)


# Quantiles


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


def at_quantile(q: float, inflated: ArrayLike) -> Array:
    """The inflation for a share of values above the q-quantile, from that of the values.

    Whether a run lies in the tail depends less on the run before it than its value does. The map is that of an AR(1)
    series with a normal copula: the correlation of two tail events at lag k follows from ρᵏ. At and below the median
    the inflation of the values stands, which is on the safe side.
    """
    found = np.asarray(inflated, dtype=np.float64)
    if q <= 0.5:
        return found
    rho = (found - 1) / (found + 1)
    grid, table = _tail_inflation(q)
    return np.asarray(np.interp(rho, grid, table), dtype=np.float64)


@lru_cache(maxsize=64)
def _tail_inflation(q: float) -> tuple[Array, Array]:
    z = float(special.ndtri(q))
    angles = np.linspace(0.0, math.asin(0.9999), 4001)
    density = np.exp(-(z**2) / (1 + np.sin(angles))) / (2 * math.pi)
    steps = (density[1:] + density[:-1]) / 2 * np.diff(angles)
    together = np.concatenate([[0.0], np.cumsum(steps)]) / (q * (1 - q))
    grid = np.linspace(0.0, 0.99, 199)
    lags = np.arange(1, 1000)
    powers = grid[:, None] ** lags
    return grid, 1 + 2 * np.interp(np.arcsin(np.minimum(powers, 0.9999)), angles, together).sum(axis=1)


def quantile_ends(ordered: Array, q: float, effective: ArrayLike) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Ends of the interval of a quantile from order statistics of that many independent observations.

    The count of m independent observations at or below the true quantile is Binomial(m, q). With real ranks l and u
    (the binomial tail as an incomplete beta function) the interval goes from the l/(m+1) to the u/(m+1) quantile of
    the observations there are.

    Args:
        ordered: sorted ascending, shape (…, n).
        q: between 0 and 1.
        effective: independent observations they are worth, at most n; shape (…).

    Returns:
        Low and high ends, and whether the observations allow both; each of shape (…).
    """
    n = ordered.shape[-1]
    m = np.clip(np.asarray(effective, dtype=np.float64), 1e-3, n)
    half = (1 - CONFIDENCE) / 2
    low, high = _rank(m, q, 1 - half), _rank(m, q, half)
    # The needed count itself gives rank 1 up to rounding.
    enough = (low >= 1 - 1e-6) & (high <= m + 1e-6)
    return _at_rank(ordered, low / (m + 1)), _at_rank(ordered, high / (m + 1)), enough


def _rank(m: Array, q: float, tail: float) -> Array:
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


# Sums


def long_run(errors: Array, removed: int = 1) -> tuple[Array, Array]:
    """Variance of one error with the dependence of all in it, and the effective number of errors.

    The body (errors clipped at 2.5 robust standard deviations) is inflated; what spikes add to the variance is not,
    for spikes that depend on each other would be part of the body.

    Args:
        errors: shape (…, n), in the order measured, mean 0.
        removed: how many means were taken out.

    Returns:
        Variance to divide by n, and effective number, each of shape (…).
    """
    n = errors.shape[-1]
    body = clipped(errors, 2.5)
    whole = np.square(errors).sum(axis=-1) / max(n - removed, 1)
    part = np.minimum(np.square(body - body.mean(axis=-1, keepdims=True)).sum(axis=-1) / max(n - removed, 1), whole)
    variance = part * inflation(body, removed) + whole - part
    effective = np.where(variance > 0, n * whole / np.where(variance > 0, variance, 1.0), float(n))
    return variance, np.minimum(effective, float(n))


def t_reach(effective: ArrayLike, level: float = CONFIDENCE) -> Array:
    """Student's quantile for a mean of so many effective runs.

    Half of them count as degrees of freedom: with the dependence itself estimated, a variance is known less well than
    from as many independent runs.
    """
    freedom = np.maximum(np.asarray(effective, dtype=np.float64) / 2 - 1, 1.0)
    return np.asarray(stats.t.ppf(0.5 + level / 2, freedom), dtype=np.float64)


# Several questions at once


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule (Scandinavian J. Statistics 6, 65, 1979); nan stay
    nan and do not count.
    """
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    found = [math.nan] * len(p_values)
    most = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        most = max(most, min(1.0, (len(known) - rank) * p_values[i]))
        found[i] = most
    return found

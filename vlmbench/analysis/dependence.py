"""How many independent runs a series of dependent runs is worth: effective n.

Runs of one process are not independent: clocks, heat and neighbours change slowly, so that a run resembles the one
before it. An interval for n independent runs is then too short. Everything here takes values in the order measured and
works with the *effective* number of runs, n / inflation, where

    inflation = 1 + 2 × (sum of the autocorrelations)

is estimated twice, and the larger of the two is used:

* from the first autocorrelation r alone, (1 + r) / (1 - r), right where each run depends on the one before it (AR(1));
  r has the bias of short series taken out, (n r + 1) / (n - 3);
* from the sum of all autocorrelations up to where their means stop being positive, each mean over as many lags as came
  before it (2, 2, 4, 8, …), falling all the way. That also sees a slow drift under noise that hides it from r: an
  autocorrelation of 0.1 that lasts for a hundred runs is less than the error of a single one of them, and far more than
  that of the mean of many. (The initial sequences of C. J. Geyer, Statistical Science 7, 473 (1992), which have pairs
  throughout, lose it: intervals of the median of 900 runs of such a machine hold 0.79 with them and 0.87 with these.)

Outliers are pulled in to the 10 % and 90 % quantiles before autocorrelations are taken, and only there: independent
spikes would hide the dependence of the body. Values may lie in heaps far apart, too, with more than a tenth of them in
the smaller one; which heap a run falls into then makes most of the variance and hides how the median moves within the
other. So on which side of a quantile each run lies is looked at as well (:func:`tail_inflation`).
``benchmarks/coverage.py`` simulates what the intervals hold.

All functions work on the last axis, so many series of equal length are done at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from scipy.fft import dct

from vlmbench.analysis.estimate import CONFIDENCE, Array, observed

FAR = 0.95
"""Beyond this quantile the dependence of the body says little about the tail."""
ENOUGH_BEYOND = 30
"""Runs beyond a quantile that tell how they depend on each other. Of fewer, independent ones look dependent by chance:
with those of 100 runs asked, a quarter of them would be refused the P95 that they have."""
PULLED_IN = 0.1
"""Share of values at either end that are pulled in before autocorrelations are taken."""
LEAST_SUM = 3.0
"""Independent runs that the interval of a ratio of sums needs: Student's t has one degree of freedom left. Of runs that
depend on each other a higher limit passes those that look independent by chance: of 20 runs at autocorrelation 0.8 the
intervals that are given hold 0.90 with this limit, 0.70 with 6 and 0.47 with 10."""
MARGIN = 2.5
"""How far an inflation i from n runs is put on the safe side: i × (1 + MARGIN × (i + MARGIN) / n). For 20 runs that
look independent it is 1.4; without it, 20 runs of a machine whose state lasts for ten of them are taken for 20."""
LEAST_LAG = 5
"""Values below which no autocorrelation is looked for: what so few are worth is not known."""
_MOST_LAG_ONE = 0.99
_ALMOST_ALIKE = 0.9999
_MOST_KNOWN = 256


@dataclass(frozen=True, kw_only=True)
class Dependence:
    """What a series is worth.

    Args:
        n: values.
        lag1: autocorrelation of neighbours, outliers pulled in, the bias of short series taken out.
        effective_n: number of independent values whose median would be known as well; both are None of fewer than
            :data:`LEAST_LAG` values.
    """

    n: int
    lag1: float | None
    effective_n: float | None


def dependence(values: ArrayLike) -> Dependence:
    """Measure the dependence of one series in the order measured; NaN are left out.

    Raises:
        InputError: a value is infinite.
    """
    series = observed(values)
    series = series[~np.isnan(series)]
    n = len(series)
    if n < LEAST_LAG:
        return Dependence(n=n, lag1=None, effective_n=None)
    memory = _memory(pulled_in(series))
    lag1 = float(_unbiased(memory.first, n, 1))
    return Dependence(n=n, lag1=lag1, effective_n=n / float(tail_inflation(series, 0.5)))


def found_worth(n: int, effective: float) -> float | None:
    """Tell what n values are worth where that was looked for; that four are worth four is assumed, and told nowhere."""
    return None if n < LEAST_LAG and effective > n - 1e-6 else effective


def pulled_in(series: Array) -> Array:
    """The series with what lies beyond its :data:`PULLED_IN` quantiles on either side set to them (last axis)."""
    low, high = np.quantile(series, (PULLED_IN, 1 - PULLED_IN), axis=-1, keepdims=True)
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


def first_lag(series: Array, removed: int = 1) -> Array:
    """The first autocorrelation of each series of n > 1 values, without the bias that fitted means give it.

    Args:
        series: shape (…, n), in the order measured.
        removed: how many means were taken out of it.
    """
    return _unbiased(_memory(series).first, series.shape[-1], removed)


def _unbiased(lag: Array, n: int, removed: int) -> Array:
    found = (n * lag + removed) / max(n - 3 * removed, 1)
    return np.clip(found, -1.0, _MOST_LAG_ONE)  # of few values it comes out beyond what a correlation can be


def inflation(series: Array, removed: int = 1) -> Array:
    """1 + 2 × (sum of autocorrelations) of each series, never below 1; shape without the last axis.

    Args:
        series: shape (…, n), in the order measured, outliers pulled in.
        removed: how many means were taken out of it.
    """
    n = series.shape[-1]
    if n < LEAST_LAG:
        return np.ones(series.shape[:-1])
    return _inflation(_memory(series), removed)


def at_quantile(q: float, series: Array, removed: int = 1) -> Array:
    """Find the inflation for a share of values above the q-quantile, as it follows from the values.

    Whether a run lies in the tail depends less on another than its value does: by how much follows for each lag from
    the autocorrelation there, under a normal copula. At and below the median the inflation of the values stands, which
    is on the safe side where they lie in one heap.

    Args:
        q: between 0 and 1.
        series: shape (…, n), in the order measured, outliers pulled in.
        removed: how many means were taken out of it.
    """
    n = series.shape[-1]
    if q <= 0.5 or n < LEAST_LAG:
        return inflation(series, removed)
    memory = _memory(series)
    first = np.maximum(_unbiased(memory.first, n, removed), 0.0)
    of_neighbours = np.interp(first, *_tail_inflation(q))
    of_spans = 1 + 2 * (_tail_correlation(q, memory.spans) * memory.widths).sum(axis=-1)
    found = np.maximum(of_neighbours, of_spans) * _margin(_raw_inflation(memory, removed), n)
    return np.asarray(np.minimum(found, float(n)), dtype=np.float64)


def tail_inflation(series: Array, q: float) -> Array:
    """Find the inflation at one quantile of series (…, n), from the body and from what lies beyond.

    A state that slows less than a tenth of the runs is pulled in with the outliers, and a level that most runs take by
    chance hides what the others do: where :data:`ENOUGH_BEYOND` runs lie beyond the median or an upper quantile, the
    dependence seen there counts if it is the larger. Beyond P95 a smaller one counts half: independent spikes are a
    tail that knows nothing of the body.
    """
    expected = at_quantile(q, pulled_in(series))
    enough = q >= 0.5 and series.shape[-1] * (1 - q) > ENOUGH_BEYOND - 1e-6  # up to rounding
    if q <= FAR and not enough:
        return expected
    value = np.quantile(series, q, axis=-1, keepdims=True)
    seen = inflation((series > value).astype(np.float64) + (series >= value))  # of equal ones, all may be at one end
    if not enough:
        seen = np.minimum(seen, expected)
    if q > FAR:
        expected = (expected + seen) / 2
    return np.maximum(seen, expected)


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """How long series remember.

    Args:
        n: values of each.
        first: autocorrelation of neighbours, shape (…).
        spans: mean autocorrelation of spans of lags, shape (…, spans), 0 from where they are not positive any more.
        widths: lags of each span.
    """

    n: int
    first: Array
    spans: Array
    widths: Array


_known: dict[bytes, _Memory] = {}


def _memory(series: Array) -> _Memory:
    """That of single series is kept: tables and figures of a report ask for the same latencies again and again."""
    if series.ndim > 1:
        return _of_autocorrelations(autocorrelations(series))
    content = sha256(series.tobytes()).digest()
    if content not in _known:
        if len(_known) == _MOST_KNOWN:
            del _known[next(iter(_known))]
        _known[content] = _of_autocorrelations(autocorrelations(series))
    return _known[content]


def _of_autocorrelations(known: Array) -> _Memory:
    """Spans with the bias of -inflation / n that the fitted mean gives every autocorrelation put back."""
    n = known.shape[-1]
    ends = [0, 2]
    while 2 * ends[-1] <= n // 2:
        ends.append(2 * ends[-1])
    widths = np.diff(np.array(ends)).astype(np.float64)
    taper = 1 - np.arange(n) / n
    spans = _while_positive(known, ends)
    for _ in range(2):
        total = 1 + 2 * (spans * widths).sum(axis=-1, keepdims=True)
        spans = _while_positive(known + np.minimum(total, n / 4) / n * taper, ends)
    return _Memory(n=n, first=known[..., 1].copy(), spans=spans, widths=widths)


def _while_positive(known: Array, ends: list[int]) -> Array:
    spans = np.add.reduceat(known[..., 1 : ends[-1] + 1], ends[:-1], axis=-1) / np.diff(ends)
    going = np.logical_and.accumulate(spans > 0, axis=-1)
    return np.where(going, np.minimum.accumulate(spans, axis=-1), 0.0)


def _raw_inflation(memory: _Memory, removed: int) -> Array:
    first = np.maximum(_unbiased(memory.first, memory.n, removed), 0.0)
    total = 1 + 2 * (memory.spans * memory.widths).sum(axis=-1)
    return np.asarray(np.maximum((1 + first) / (1 - first), total), dtype=np.float64)


def _inflation(memory: _Memory, removed: int) -> Array:
    found = _raw_inflation(memory, removed)
    return np.asarray(np.minimum(found * _margin(found, memory.n), float(memory.n)), dtype=np.float64)


def _margin(inflated: Array, n: int) -> Array:
    """It is known badly from few runs, and more often too small than too large."""
    return np.asarray(1 + MARGIN * (inflated + MARGIN) / n)


def _tail_correlation(q: float, rho: Array) -> Array:
    """The correlation of two tail events whose normal scores have the correlation ``rho``."""
    angles, together = _orthant(q)
    return np.asarray(np.interp(np.arcsin(np.minimum(rho, _ALMOST_ALIKE)), angles, together))


@lru_cache(maxsize=64)
def _orthant(q: float) -> tuple[Array, Array]:
    z = float(special.ndtri(q))
    angles = np.linspace(0.0, math.asin(_ALMOST_ALIKE), 4001)
    density = np.exp(-(z**2) / (1 + np.sin(angles))) / (2 * math.pi)
    steps = (density[1:] + density[:-1]) / 2 * np.diff(angles)
    return angles, np.concatenate([[0.0], np.cumsum(steps)]) / (q * (1 - q))


@lru_cache(maxsize=64)
def _tail_inflation(q: float) -> tuple[Array, Array]:
    """Autocorrelations of neighbours, and the inflation at q of AR(1) series that have them."""
    grid = np.linspace(0.0, 0.99, 199)
    return grid, 1 + 2 * _tail_correlation(q, grid[:, None] ** np.arange(1, 1000)).sum(axis=1)


def long_run(errors: Array) -> tuple[Array, Array]:
    """Variance of one error with the dependence of all in it, and the effective number of errors.

    The body (errors clipped at 2.5 robust standard deviations) is inflated; what spikes add to the variance is not,
    for spikes that depend on each other would be part of the body.

    Args:
        errors: shape (…, n), in the order measured, mean 0.

    Returns:
        Variance to divide by n, and effective number, each of shape (…).
    """
    n = errors.shape[-1]
    body = clipped(errors, 2.5)
    whole = np.square(errors).sum(axis=-1) / max(n - 1, 1)
    part = np.minimum(np.square(body - body.mean(axis=-1, keepdims=True)).sum(axis=-1) / max(n - 1, 1), whole)
    variance = part * inflation(body) + whole - part
    effective = np.where(variance > 0, n * whole / np.where(variance > 0, variance, 1.0), float(n))
    return variance, np.minimum(effective, float(n))


SLOW_WAVES, MOST_WAVES = 0.3, 32


def slow_variance(errors: Array, *, removed: int = 1, step: ArrayLike | None = None) -> tuple[float, float]:
    """Find how far the mean of dependent errors moves, from their slowest waves.

    A mean moves as the slow waves of its series do: the mean square of the first cosine coefficients is n times its
    variance, with a degree of freedom each, however long the dependence lasts (E. Lazarus, D. J. Lewis, J. H. Stock,
    M. W. Watson, J. Business & Economic Statistics 36, 541 (2018); here 0.3 n^(2/3) of them instead of 0.4, for series
    as short as 20). What follows from the first autocorrelation is taken out before and put back after (D. W. K.
    Andrews, J. C. Monahan, Econometrica 60, 953 (1992)).

    Args:
        errors: shape (n,), in the order measured, mean 0.
        removed: how many means were taken out of it.
        step: which of the errors belong to the later part, where the means of two parts were taken out: a wave like it
            is none of the noise.

    Returns:
        Variance to divide by n, and its degrees of freedom.
    """
    n = len(errors)
    count = min(max(3, int(SLOW_WAVES * n ** (2 / 3))), MOST_WAVES)
    if n < count + 3 or not np.square(errors).sum() > 0:
        return float(np.square(errors).mean()) if n else 0.0, float(max(n - removed, 1))
    factor = float(np.clip(first_lag(errors, removed), 0.0, 0.97))
    whitened = np.concatenate([errors[:1] * math.sqrt(1 - factor**2), errors[1:] - factor * errors[:-1]])
    if step is None:
        waves = dct(whitened, norm="ortho")[1 : count + 1]
    else:
        like = dct(np.asarray(step, dtype=np.float64), norm="ortho")[1 : count + 2]
        waves = dct(whitened, norm="ortho")[1 : count + 2]
        waves = waves - like * (like @ waves) / max(float(like @ like), 1e-300)
    return float(np.square(waves).sum() / count) / (1 - factor) ** 2, float(count)


def t_reach(effective: ArrayLike) -> Array:
    """Student's quantile for a mean of so many effective runs.

    Two thirds of them count as degrees of freedom: with the dependence itself estimated, a variance is known less well
    than from as many independent runs.
    """
    freedom = np.maximum(np.asarray(effective, dtype=np.float64) * 2 / 3 - 1, 1.0)
    return np.asarray(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom), dtype=np.float64)

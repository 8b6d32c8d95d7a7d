"""Least squares with intervals that hold for repeated latency measurements, and the interval of a ratio of slopes.

Why clusters by sweep point and not HC3 alone: the repeats of one point share everything about its shape (tile
quantisation, the kernel chosen, the number of crops), so where the points do not lie exactly on the fitted curve, the
residuals of one point are alike. HC3 (Long & Ervin 2000, Am. Statistician 54, 217) counts each repeat as news and its
intervals become too short: in simulation (8 points x 10 repeats, points off the line by three times the noise) its 95 %
intervals hold the true slope in 40 % of the cases. The leave-one-point-out jackknife (CR3, also called CV3; MacKinnon,
Nielsen & Webb 2023, J. Econometrics 232, 272) holds it in 96 %. Where one far point has both the leverage and the noise
(log-spaced output lengths), CR3 in turn falls to 86 % and HC3 keeps 92 %. Neither knows that runs next to each other
resemble each other: a machine that is 2 % slow for a while makes long requests slow by more than short ones, and with
it the slope (autocorrelation 0.8: 87 % where 95 % is said). The third error has that in it: relative deviations with
the correlation that they show in time, carried to the coefficients. Every interval is the widest of the three;
``benchmarks/coverage.py`` simulates what it holds.

Own code, because statsmodels (an optional dependency) has neither CR3 nor CR2; the tests hold HC3 against statsmodels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.signal import lfilter

from vlmbench.analysis.dependence import inflation, pulled_in
from vlmbench.text import digits, interval

Array = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its standard error and the degrees of freedom of that error (``method``: which error it is).

    ``low`` and ``high`` are the ends of the 95 % interval; infinite ends mean that the data do not bound it.
    """

    value: float
    se: float
    df: int
    method: str = ""

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - t_quantile(self.df) * self.se

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + t_quantile(self.df) * self.se

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is known at 95 %."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """One least-squares fit of ``y`` on the columns of a design matrix.

    Args:
        coefficients: shape (p,).
        covariance: of the coefficients by the leave-one-point-out jackknife, shape (p, p); None where the points are
            too few for it.
        covariance_hc3: the same by HC3 on single rows, shape (p, p).
        covariance_in_time: the same with the dependence of rows next to each other, shape (p, p).
        effective: independent rows that the rows are worth.
        r2: share of the variance of the raw rows that the fit explains; nan when y does not vary.
        aic: Akaike's criterion with a Gaussian likelihood, the variance counted as a parameter.
        rows, points: how many rows, in how many clusters.
    """

    coefficients: Array
    covariance: Array | None
    covariance_hc3: Array
    covariance_in_time: Array
    effective: float
    r2: float
    aic: float
    rows: int
    points: int

    def _errors(self) -> list[tuple[str, Array, int]]:
        terms = len(self.coefficients)
        found = [
            ("HC3", self.covariance_hc3, self.rows - terms),
            ("dependence in time", self.covariance_in_time, max(int(self.effective) - terms, 1)),
        ]
        if self.covariance is not None:
            found.append(("point jackknife", self.covariance, self.points - 1))
        return found

    def estimate(self, weights: ArrayLike, *, method: str | None = None) -> Estimate:
        """A weighted sum of the coefficients (``[0, 1]``: the slope of a line) with the widest of its errors.

        Args:
            weights: shape (p,).
            method: ``HC3``, ``dependence in time`` or ``point jackknife`` to have that one, where it exists.
        """
        w = np.asarray(weights, dtype=float)
        found = [
            # Rounding can leave a variance of -1e-30 for an exact fit.
            Estimate(value=float(w @ self.coefficients), se=math.sqrt(max(float(w @ c @ w), 0.0)), df=df, method=name)
            for name, c, df in self._errors()
            if method in (None, name)
        ]
        return max(found, key=lambda e: t_quantile(e.df) * e.se)

    def predict(self, design: Array) -> tuple[Array, Array]:
        """Mean at the rows of ``design`` (m, p) and the half width of its 95 % interval, each of shape (m,)."""
        halves = [
            t_quantile(df) * np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", design, c, design), 0.0))
            for _, c, df in self._errors()
        ]
        half: Array = np.max(halves, axis=0)
        return design @ self.coefficients, half


def t_quantile(df: int, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t: 2.57 for 5 degrees of freedom at 95 %."""
    return float(stats.t.ppf(0.5 + level / 2, df))


def _solve(design: Array, y: Array) -> Array:
    # Columns are brought to unit length first: token counts squared (1e6) stand beside a column of ones.
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0.0] = 1.0
    solution: Array = np.linalg.lstsq(design / scale, y, rcond=None)[0] / scale
    return solution


def _full_rank(design: Array) -> bool:
    scale = np.linalg.norm(design, axis=0)
    if design.shape[0] < design.shape[1] or not bool(np.all(scale > 0)):
        return False
    return bool(np.linalg.matrix_rank(design / scale, tol=1e-9) == design.shape[1])


def _hc3(design: Array, residuals: Array) -> Array:
    scale = np.linalg.norm(design, axis=0)
    unit = design / scale
    bread = np.linalg.inv(unit.T @ unit)
    leverage = np.einsum("ij,jk,ik->i", unit, bread, unit)
    # A row that alone determines a coefficient has leverage 1 and residual 0: it says nothing about noise.
    weight = np.where(leverage < 1 - 1e-9, residuals / np.maximum(1 - leverage, 1e-9), 0.0)
    meat = (unit * weight[:, None] ** 2).T @ unit
    covariance: Array = bread @ meat @ bread / np.outer(scale, scale)
    return covariance


def _in_time(design: Array, residuals: Array, y: Array, codes: NDArray[np.intp]) -> tuple[Array, float]:
    """Covariance of the coefficients with the dependence of rows in it, and the rows that the rows are worth.

    Noise is taken as relative: a row deviates by its point's size times a number that is correlated in time as the
    deviations from the points' medians are, falling from row to row by a constant factor.
    """
    rows, points = len(y), int(codes.max()) + 1
    size = np.sqrt(np.bincount(codes, weights=y**2, minlength=points) / np.bincount(codes, minlength=points))[codes]
    size[size == 0] = 1.0
    order = np.lexsort((y, codes))
    ends = np.cumsum(np.bincount(codes, minlength=points))
    counts = np.bincount(codes, minlength=points)
    middles = (y[order][ends - counts + (counts - 1) // 2] + y[order][ends - counts + counts // 2]) / 2
    inflated = float(inflation(pulled_in((y - middles[codes]) / size)))
    factor = (inflated - 1) / (inflated + 1)
    scale = np.linalg.norm(design, axis=0)
    unit = design / scale
    bread = np.linalg.inv(unit.T @ unit)
    leverage = np.minimum(np.einsum("ij,jk,ik->i", unit, bread, unit), 1 - 1e-9)
    noise = float(np.mean(np.where(leverage < 1 - 1e-9, residuals / size / (1 - leverage), 0.0) ** 2))
    moved = unit * size[:, None]
    seen = lfilter([1.0], [1.0, -factor], moved, axis=0)  # what rows before it add to each row
    meat = moved.T @ seen
    covariance: Array = noise * bread @ (meat + meat.T - moved.T @ moved) @ bread / np.outer(scale, scale)
    return covariance, rows / inflated


def _cluster_jackknife(design: Array, y: Array, codes: NDArray[np.intp], coefficients: Array) -> Array | None:
    """CR3 covariance, or None when the design loses rank without one of its clusters."""
    count = int(codes.max()) + 1
    covariance = np.zeros((design.shape[1], design.shape[1]))
    for code in range(count):
        keep = codes != code
        if not _full_rank(design[keep]):
            return None
        change = _solve(design[keep], y[keep]) - coefficients
        covariance += np.outer(change, change)
    return covariance * (count - 1) / count


def least_squares(design: ArrayLike, y: ArrayLike, clusters: ArrayLike) -> Fit:
    """Fit ``y`` (n,) on ``design`` (n, p); rows with equal ``clusters`` (n,) belong to one sweep point.

    Rows stand in the order measured: their dependence on the rows before them is part of the error.

    Raises:
        ValueError: fewer rows than coefficients plus one, values that are not finite, or columns that depend on
            each other.
    """
    matrix, target = np.asarray(design, dtype=float), np.asarray(y, dtype=float)
    rows, terms = matrix.shape
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        raise ValueError("'design' and 'y' must be finite (drop rows without the metric first)")
    if rows <= terms or not _full_rank(matrix):
        raise ValueError(f"a fit of {terms} coefficients needs more rows at different values (got {rows} rows)")
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    points = int(codes.max()) + 1
    coefficients = _solve(matrix, target)
    residuals = target - matrix @ coefficients
    sse, spread = float(residuals @ residuals), float(np.sum((target - target.mean()) ** 2))
    # An exact fit has no finite likelihood; the smallest residual that doubles can carry keeps AIC comparable.
    in_time, effective = _in_time(matrix, residuals, target, codes)
    floor = rows * (np.finfo(float).eps * max(float(np.abs(target).max()), np.finfo(float).tiny)) ** 2
    return Fit(
        coefficients=coefficients,
        covariance=_cluster_jackknife(matrix, target, codes, coefficients) if points > terms else None,
        covariance_hc3=_hc3(matrix, residuals),
        covariance_in_time=in_time,
        effective=effective,
        r2=1 - sse / spread if spread > 0 else math.nan,
        aic=rows * math.log(max(sse, floor, np.finfo(float).tiny) / rows) + 2 * (terms + 1),
        rows=rows,
        points=points,
    )


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of two independent estimates with Fieller's 95 % interval; infinite ends: not bounded by the data."""

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether the data bound the ratio."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def span(self) -> str:
        """The interval in words."""
        if not self.bounded:
            return "95 % interval without bounds: the divisor cannot be told from 0"
        return f"95 % interval {interval(self.low, self.high)}"

    def short(self) -> str:
        """Value and interval: ``31 (29–33)``."""
        return f"{digits(self.value)} ({interval(self.low, self.high) if self.bounded else 'no upper bound'})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: an end that is not bounded is None."""
        ends = {"low": self.low, "high": self.high}
        return {"value": self.value, **{k: v if math.isfinite(v) else None for k, v in ends.items()}}


def fieller(over: Estimate, under: Estimate) -> Ratio:
    """``over / under`` with Fieller's interval (1954), exact for normal errors.

    The quantile belongs to the smaller of the two degrees of freedom (on the safe side). Where ``under`` cannot be
    told from 0, the ratio has no bounds, and the interval says so.
    """
    t = t_quantile(min(over.df, under.df), LEVEL)
    value = over.value / under.value if under.value else math.nan
    a = under.value**2 - (t * under.se) ** 2
    if a <= 0:
        return Ratio(value=value, low=-math.inf, high=math.inf)
    b = over.value * under.value
    c = over.value**2 - (t * over.se) ** 2
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Ratio(value=value, low=(b - root) / a, high=(b + root) / a)

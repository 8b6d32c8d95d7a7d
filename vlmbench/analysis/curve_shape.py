"""The form of a curve: straight, bent, or two pieces; how well it foretells points, and what slow runs do to it.

Least squares follows means, and a few slow runs lift the mean of their point. The outlier-proof fit pulls each run that
lies further than 2.5 robust standard deviations from its point's median in to that distance and fits what results; no
run is dropped, and the errors are those of any other fit. The robust standard deviation is one for all points, relative
to their medians, for a point has few runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog

from vlmbench.analysis.dependence import dependence
from vlmbench.analysis.estimate import CONFIDENCE
from vlmbench.analysis.quantiles import median, quantile_ends
from vlmbench.analysis.regression import Array, Fit, least_squares
from vlmbench.text import percent

_TERMS = {"linear": 2, "quadratic": 3, "kink": 3}
_MIN_POINTS = {"linear": 3, "quadratic": 4, "kink": 6}
_AIC_MARGIN = 2.0  # the customary "substantially better"; below it the simpler form stands
# Of the squared error at left-out points, which a kink must at least save: without it, scatter between points passes
# for a kink in 12 of 100 simulated straight lines.
_KINK_GAIN = 0.6


def design(x: ArrayLike, shape: str, knot: float = math.nan) -> Array:
    """Design matrix (n, 2 or 3): [1, x], and x² for ``quadratic``, the part of x above the knot for ``kink``."""
    values = np.asarray(x, dtype=float)
    columns = [np.ones_like(values), values]
    if shape == "quadratic":
        columns.append(values**2)
    elif shape == "kink":
        columns.append(np.clip(values - knot, 0.0, None))
    return np.column_stack(columns)


def point_table(x: Array, y: Array) -> pd.DataFrame:
    """One row a distinct x, ascending: ``x``, ``n``, ``mean``, ``median`` and the 5 % and 95 % quantiles of y."""
    groups = pd.DataFrame({"x": x, "y": y}).groupby("x")["y"]
    table = groups.agg(n="count", mean="mean", median="median").reset_index()
    table["low"], table["high"] = groups.quantile(0.05).to_numpy(), groups.quantile(0.95).to_numpy()
    return table


def fit_forms(x: Array, y: Array, clusters: Any, points: pd.DataFrame) -> tuple[dict[str, Fit], float, str]:
    """All forms that the points allow, the knot of the kink (nan without one), and the form that describes the data.

    AIC counts every repeat as news, as HC3 does, and so takes scatter between points for a bend. A bend must therefore
    also have a robust interval without 0, and a kink must predict points left out better than the other forms.
    """
    fits = {"linear": least_squares(design(x, "linear"), y, clusters)}
    shape, knot, count = "linear", math.nan, len(points)
    if count >= _MIN_POINTS["quadratic"] and len(x) > _TERMS["quadratic"]:
        fits["quadratic"] = least_squares(design(x, "quadratic"), y, clusters)
        bent = fits["quadratic"].estimate([0.0, 0.0, 1.0]).excludes_zero
        if bent and fits["quadratic"].aic < fits["linear"].aic - _AIC_MARGIN:
            shape = "quadratic"
    if count >= _MIN_POINTS["kink"]:
        knot = _knot(points)
        kink = least_squares(design(x, "kink", knot), y, clusters)
        # The knot is a parameter too.
        fits["kink"] = replace(kink, aic=kink.aic + 2)
        kinked = kink.estimate([0.0, 0.0, 1.0]).excludes_zero
        others = min(fits["linear"].aic, fits["quadratic"].aic)
        if kinked and fits["kink"].aic < others - _AIC_MARGIN:
            left_out = {form: _leave_one_out(points, form) for form in ("linear", "quadratic", "kink")}
            if left_out["kink"] < _KINK_GAIN * min(left_out["linear"], left_out["quadratic"]):
                shape = "kink"
    return fits, knot, shape


def _curve(points: pd.DataFrame, shape: str) -> tuple[Array, float]:
    """Coefficients through the means of the points (weighted by rows) and the knot, for checks on left-out points."""
    knot = _knot(points) if shape == "kink" else math.nan
    weight = np.sqrt(points["n"].to_numpy(dtype=float))
    scale = np.array([1.0, *[max(points["x"].abs().max(), 1.0)] * (_TERMS[shape] - 1)])
    if shape == "quadratic":
        scale[2] = scale[2] ** 2
    matrix = design(points["x"], shape, knot) / scale
    mean = points["mean"].to_numpy(dtype=float)
    solved = np.linalg.lstsq(matrix * weight[:, None], mean * weight, rcond=None)[0]
    return solved / scale, knot


def _knot(points: pd.DataFrame) -> float:
    """Where two straight pieces meet with the least squared error; two points or more lie on either side."""
    x = points["x"].to_numpy(dtype=float)
    weight = np.sqrt(points["n"].to_numpy(dtype=float))
    target = points["mean"].to_numpy(dtype=float) * weight
    # All candidates at once, on a scale of 0 to 1 that keeps the normal equations well-conditioned.
    scaled = (x - x[0]) / (x[-1] - x[0])
    knots = np.linspace(scaled[1], scaled[-2], 121)
    shared = np.broadcast_to(np.column_stack([np.ones_like(scaled), scaled]), (len(knots), len(x), 2))
    above = np.clip(scaled[None, :] - knots[:, None], 0.0, None)
    designs = np.concatenate([shared, above[:, :, None]], axis=2) * weight[None, :, None]
    normal = np.swapaxes(designs, 1, 2)
    solved = np.linalg.solve(normal @ designs, (normal @ target)[:, :, None])
    rest = target[None, :] - (designs @ solved)[:, :, 0]
    best = knots[int(np.argmin(np.sum(rest**2, axis=1)))]
    return float(x[0] + best * (x[-1] - x[0]))


def _leave_one_out(points: pd.DataFrame, shape: str) -> float:
    errors = []
    for position in range(1, len(points) - 1):  # the ends would be extrapolated
        coefficients, knot = _curve(points.drop(index=points.index[position]), shape)
        left = points.iloc[[position]]
        errors.append((float((design(left["x"], shape, knot) @ coefficients)[0]) - float(left["mean"].iloc[0])) ** 2)
    return float(np.mean(errors))


def held_out_check(points: pd.DataFrame, shape: str) -> tuple[float, tuple[float, ...]]:
    """Fit on the runs of the 1st, 3rd, 5th … point and predict the means of the others (least squares predicts means).

    Args:
        points: table of :func:`point_table`.
        shape: form to fit; a line where the remaining points are too few for it.

    Returns:
        Median relative error, and the counts that were left out.
    """
    train, test = points.iloc[0::2], points.iloc[1::2]
    form = shape if len(train) > _TERMS[shape] + (shape == "kink") else "linear"
    coefficients, knot = _curve(train, form)
    predicted = design(test["x"], form, knot) @ coefficients
    seen = test["mean"].to_numpy(dtype=float)
    errors = np.abs(predicted - seen)[seen != 0] / np.abs(seen[seen != 0])
    return (float(np.median(errors)) if len(errors) else math.nan), tuple(float(v) for v in test["x"])


WIDTH = 2.5


def pulled_to_medians(y: Array, clusters: NDArray[Any]) -> Array:
    """The times with those far from their point's median pulled in, shape (rows,)."""
    codes = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    middles = pd.Series(y).groupby(codes).median().to_numpy()[codes]
    size = np.where(middles != 0, np.abs(middles), 1.0)
    spread = 1.4826 * float(np.median(np.abs(y - middles) / size))
    if spread == 0:
        return y
    limit = WIDTH * spread * size
    return np.clip(y, middles - limit, middles + limit)


def robust_fit(x: Array, y: Array, clusters: NDArray[Any]) -> Fit:
    """The straight line through the times with outliers pulled in; rows in the order measured."""
    return least_squares(design(x, "linear"), pulled_to_medians(y, clusters), clusters)


def outside_words(missed: int, medians: int) -> str:
    """Write how many medians a fit passes by, in words that tables, figures and sentences share."""
    return f"outside {missed} of {medians} medians' intervals"


@dataclass(frozen=True, kw_only=True)
class Missed:
    """How many points' medians a fitted curve passes by.

    Args:
        points: points whose median has an interval.
        missed: those of them where the curve lies outside that interval.
        above: those of the missed where it lies above.
        furthest: largest distance between curve and median at a missed point, as a share of the median.
        lifted: largest excess of a point's mean over its median at a missed point, as a share of the median.
        off_form: whether no curve of the fitted form passes through all medians' intervals, each widened so that all
            hold their medians at once with 95 %.
        tilted: whether the same line with outliers pulled in passes through most of the medians.
    """

    points: int
    missed: int
    above: int
    furthest: float
    lifted: float
    off_form: bool = False
    tilted: bool = False

    @property
    def most(self) -> bool:
        """Whether the curve misses more than half of the medians, and more than one."""
        return self.missed > 1 and self.missed * 2 > self.points

    def outside(self) -> str:
        """``outside 5 of 6 medians' intervals``."""
        return outside_words(self.missed, self.points)

    def words(self) -> str:
        """``lies outside 5 of 6 medians' intervals, up to 12 % from the median: …``; empty where it passes through most
        of them.
        """
        if not self.most:
            return ""
        text = f"lies {self.outside()}, up to {percent(self.furthest)} from the median"
        if self.tilted:
            return f"{text}: slow runs tilt it, with outliers pulled in it passes through most"
        if self.above * 2 > self.missed and self.lifted * 2 > self.furthest:
            return f"{text}: it follows means, which slow runs lift by up to {percent(self.lifted)}"
        if self.off_form:
            return f"{text}: the points do not lie on a curve of this form"
        return f"{text}: whether the points lie on a curve of this form cannot be told"


def missed_medians(x: Array, y: Array, points: pd.DataFrame, fitted: Array, shape: str) -> Missed:
    """Compare a fitted curve with the points' medians.

    Args:
        x, y: counts and times in the order measured, shape (rows,).
        points: of :func:`vlmbench.analysis.curve_shape.point_table`.
        fitted: the curve at the points, shape (points,).
        shape: its form.
    """
    seen = missed = above = 0
    furthest = lifted = 0.0
    for place, point in enumerate(points.to_dict("records")):
        found = median(y[x == point["x"]])
        if found.low is None or found.high is None or not found.value:
            continue
        seen += 1
        if found.low <= fitted[place] <= found.high:
            continue
        missed += 1
        above += int(fitted[place] > found.high)
        furthest = max(furthest, abs(float(fitted[place]) / found.value - 1))
        lifted = max(lifted, float(point["mean"]) / found.value - 1)
    told = Missed(points=seen, missed=missed, above=above, furthest=furthest, lifted=lifted)
    return replace(told, off_form=_is_off(x, y, points, shape)) if told.most else told


def _is_off(x: Array, y: Array, points: pd.DataFrame, shape: str) -> bool:
    """Whether no curve of a form passes through all medians' intervals at once.

    The intervals hold all medians together with 95 % (Bonferroni). So a curve of the form is called none of it in one
    case of twenty at most, as far as the intervals hold, though a few slow runs carry the fit past most of its medians.
    """
    confidence = 1 - (1 - CONFIDENCE) / len(points)
    places, lows, highs = [], [], []
    for place in points["x"]:
        times = y[x == place]
        low, high, enough = quantile_ends(np.sort(times), 0.5, dependence(times).effective_n or len(times), confidence)
        if enough:
            places.append(float(place))
            lows.append(float(low))
            highs.append(float(high))
    if len(places) <= _TERMS[shape] + (shape == "kink"):  # a form with as many coefficients is told by none so few
        return False
    scaled = (np.array(places) - places[0]) / (places[-1] - places[0])
    ends = np.array([lows, highs]) / (np.abs([lows, highs]).max() or 1.0)
    if shape == "kink":
        return not any(_kinks_through(scaled, ends, left) for left in range(1, len(scaled)))
    return not _passes(design(scaled, shape), ends)


_INFEASIBLE = 2  # as linprog numbers its outcomes


def _passes(matrix: Array, ends: Array, above: Array | None = None) -> bool:
    """Whether some coefficients give values between the ends (2, n) and, of the rows of ``above``, none below 0."""
    rows = [matrix, -matrix] if above is None else [matrix, -matrix, -above]
    limits = np.concatenate([ends[1], -ends[0], np.zeros(0 if above is None else len(above))])
    found = linprog(np.zeros(matrix.shape[1]), A_ub=np.vstack(rows), b_ub=limits, bounds=(None, None))
    return bool(found.status != _INFEASIBLE)


def _kinks_through(x: Array, ends: Array, left: int) -> bool:
    """Whether two straight pieces that meet between point ``left`` - 1 and the next pass through all intervals."""
    line, none = design(x, "linear"), np.zeros((len(x), 2))
    before = np.arange(len(x))[:, None] < left
    matrix = np.hstack([np.where(before, line, none), np.where(before, none, line)])
    over = np.hstack([line[left - 1 : left + 1], -line[left - 1 : left + 1]])  # the first piece over the second there
    return any(_passes(matrix, ends, over * sign) for sign in (np.array([[1], [-1]]), np.array([[-1], [1]])))

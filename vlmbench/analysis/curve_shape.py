"""The form of a curve: straight, bent, or two straight pieces; and how well it predicts points that it has not seen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from vlmbench.analysis.regression import Array, Fit, least_squares

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

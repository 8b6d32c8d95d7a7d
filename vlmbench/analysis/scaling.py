"""What one more token costs: each stage's time against the number of tokens, fitted on the raw repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vlmbench.analysis.curve_shape import (
    Missed,
    design,
    fit_forms,
    held_out_check,
    missed_medians,
    point_table,
    robust_fit,
)
from vlmbench.analysis.frames import FIRST_TIME, whole_metric
from vlmbench.analysis.regression import Array, Estimate, Fit, least_squares
from vlmbench.analysis.slices import KINDS, MIN_POINTS, X_LABELS, Slice, held, slices
from vlmbench.schema import DECODE_PARTS, HOST_PARTS, TOTAL_PARTS
from vlmbench.text import count, digits, interval, percent, plain, whole

# How much a slope owes to runs that did something for the first time: the straight line with and without them.


@dataclass(frozen=True, kw_only=True, eq=False)
class Unflagged:
    """The straight line without the rows that carry a flag of work done for the first time.

    Args:
        flags: flag to the rows of the main fit that carry it, the commonest first.
        flagged: rows that carry any.
        fit: of the other rows; None where they have fewer than three counts, or are fewer than half of all.
        low, high: least and largest count of the other rows.
        narrower: whether these are not those of all rows.
    """

    flags: Mapping[str, int]
    flagged: int
    fit: Fit | None
    low: float
    high: float
    narrower: bool

    @property
    def slope(self) -> Estimate | None:
        """ms per token."""
        return None if self.fit is None else self.fit.estimate([0.0, 1.0])

    def words(self) -> str:
        """``without the 6 rows flagged first_seen_length: 20.2 (19.0 to 21.4)``."""
        rows = f"the {count(self.flagged, 'row')} flagged {' or '.join(self.flags)}"
        if (slope := self.slope) is None:
            return f"too few rows are left to fit without {rows}"
        span = f", from {whole(self.low)} to {whole(self.high)} only" if self.narrower else ""
        return f"without {rows}: {digits(slope.value)} ({interval(slope.low, slope.high)}){span}"


def without_first_times(flags: pd.Series | None, x: Array, y: Array, clusters: NDArray[Any]) -> Unflagged | None:
    """Fit the rows that did nothing for the first time; None where no row did.

    Where most rows did, as in a sweep whose shape changes from run to run, that is what a run takes and the others say
    nothing: no line is fitted to them.

    Args:
        flags: names joined by spaces, shape (rows,); None where the rows know no flags.
        x, y: counts and times of the main fit, shape (rows,).
        clusters: sweep point of each row, shape (rows,).
    """
    if flags is None:
        return None
    named = [FIRST_TIME & frozenset(text.split()) if isinstance(text, str) else frozenset() for text in flags]
    flagged = np.array([bool(names) for names in named], dtype=np.bool_)
    if not flagged.any():
        return None
    counts = Counter(name for names in named for name in names)
    kept, times = x[~flagged], y[~flagged]
    fit = None
    if len(np.unique(kept)) >= MIN_POINTS and 2 * len(kept) >= len(x):
        fit = least_squares(np.column_stack([np.ones_like(kept), kept]), times, clusters[~flagged])
    low, high = (float(kept.min()), float(kept.max())) if len(kept) else (np.nan, np.nan)
    return Unflagged(
        flags=dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))),
        flagged=int(flagged.sum()),
        fit=fit,
        low=low,
        high=high,
        narrower=(low, high) != (float(x.min()), float(x.max())),
    )


STAGES = ("T_total", *TOTAL_PARTS[:-1], *DECODE_PARTS, TOTAL_PARTS[-1], "TTFT_model", *HOST_PARTS, "T_request")
"""Times that are fitted where they exist, ms."""
_OF_A_SERVER = ("T_request", "TTFT", "TPOT", "T_unattributed")

_NEGLIGIBLE = 0.02  # of the mean time: a change over the whole range that no decision hangs on


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """One stage against one kind of token, everything else fixed.

    Args:
        slice: the rows, and what was held fixed in them.
        stage: name of the time (``T_total`` …), ms.
        linear: the straight line; its slope is the mean cost of one more token over the range.
        best: the fit of the form that describes the data (``shape``).
        shape: ``linear``, ``quadratic``, or ``kink`` (two straight pieces that meet at ``knot``).
        aic: form to AIC on the raw repeats.
        bend: largest distance between the best form and the line, as a share of the mean time.
        held_out_error: median relative error at the points left out of a fit on every other point (best form).
        held_out: counts of the points that were left out.
        median_slope: slope of a line through the medians of the points, ms per token: what outliers cannot move.
        robust: the straight line with each point's outliers pulled in.
        missed: how many of the points' medians the best form passes by.
        unflagged: the line without the rows that did something for the first time; None where there are none.
        points: x, the mean, median and (5 %, 95 %) of y of each point, for figures and tables.
    """

    slice: Slice
    stage: str
    linear: Fit
    best: Fit
    shape: str
    knot: float
    aic: dict[str, float]
    bend: float
    held_out_error: float
    held_out: tuple[float, ...]
    median_slope: Estimate
    robust: Fit
    missed: Missed
    unflagged: Unflagged | None
    points: pd.DataFrame

    @property
    def slope(self) -> Estimate:
        """ms per token over the whole range (straight line)."""
        return self.linear.estimate([0.0, 1.0])

    @property
    def robust_slope(self) -> Estimate:
        """ms per token with outliers pulled in (straight line)."""
        return self.robust.estimate([0.0, 1.0])

    @property
    def intercept(self) -> Estimate:
        """ms at 0 tokens, extrapolated by the straight line."""
        return self.linear.estimate([1.0, 0.0])

    @property
    def low(self) -> float:
        """Smallest count measured."""
        return float(self.points["x"].min())

    @property
    def high(self) -> float:
        """Largest count measured."""
        return float(self.points["x"].max())

    def slope_at(self, x: float) -> Estimate:
        """ms per token at ``x`` by the best form."""
        weights = [0.0, 1.0]
        if self.shape == "quadratic":
            weights.append(2 * x)
        elif self.shape == "kink":
            weights.append(float(x >= self.knot))
        return self.best.estimate(weights)

    def predict(self, x: ArrayLike) -> tuple[Array, Array, Array]:
        """Mean and the ends of its 95 % interval at ``x`` (n,), by the best form, ms."""
        mean, half = self.best.predict(design(x, self.shape, self.knot))
        return mean, mean - half, mean + half

    @property
    def measurable(self) -> bool:
        """Whether the time depends on the count at all, as far as these data tell."""
        return self.slope.excludes_zero or self.shape != "linear"

    def as_row(self) -> dict[str, Any]:
        """A flat row for tables and JSON.

        ``flagged_rows``, ``flagged_by`` (flag to rows) and ``*_unflagged`` say what the straight line is without the
        rows that did something for the first time: None where there are none, or too few would remain.
        """
        slope, hc3 = self.slope, self.linear.estimate([0.0, 1.0], method="HC3")
        return {
            "kind": self.slice.kind.name,
            "x": self.slice.x,
            "stage": self.stage,
            "fixed": dict(self.slice.fixed),
            "held": held(self.slice),
            "rows": self.linear.rows,
            "points": len(self.points),
            "x_min": self.low,
            "x_max": self.high,
            "intercept_ms": self.intercept.value,
            "slope_ms": slope.value,
            "slope_low": slope.low,
            "slope_high": slope.high,
            "slope_se": slope.se,
            "slope_df": slope.df,
            "interval_by": slope.method,
            "slope_hc3_low": hc3.low,
            "slope_hc3_high": hc3.high,
            "effective_rows": self.linear.effective,
            "slope_robust_ms": self.robust_slope.value,
            "slope_robust_low": self.robust_slope.low,
            "slope_robust_high": self.robust_slope.high,
            "medians_missed": self.missed.missed,
            "medians_with_interval": self.missed.points,
            "missed_words": self.missed.words(),
            "slope_of_medians_ms": self.median_slope.value,
            "slope_of_medians_low": self.median_slope.low,
            "slope_of_medians_high": self.median_slope.high,
            "r2": self.linear.r2,
            **self._unflagged_row(),
            **{f"aic_{form}": value for form, value in self.aic.items()},
            "shape": self.shape,
            "knot": self.knot,
            "bend": self.bend,
            "slope_at_min_ms": self.slope_at(self.low).value,
            "slope_at_max_ms": self.slope_at(self.high).value,
            "held_out_error": self.held_out_error,
            "held_out_x": list(self.held_out),
            "measurable": self.measurable,
            "note": self.slice.note,
            "words": describe(self),
        }

    def _unflagged_row(self) -> dict[str, Any]:
        found = self.unflagged
        slope, fit = (None, None) if found is None else (found.slope, found.fit)
        return {
            "flagged_rows": 0 if found is None else found.flagged,
            "flagged_by": {} if found is None else dict(found.flags),
            "slope_unflagged_ms": None if slope is None else slope.value,
            "slope_unflagged_low": None if slope is None else slope.low,
            "slope_unflagged_high": None if slope is None else slope.high,
            "r2_unflagged": None if fit is None else fit.r2,
            "rows_unflagged": None if fit is None else fit.rows,
            "points_unflagged": None if fit is None else fit.points,
            "unflagged_words": "" if found is None else found.words(),
        }


def describe(scaling: Scaling) -> str:
    """One sentence: the slope with its interval, with and without rows of work done for the first time, the form, and
    how well it predicts points it has not seen.
    """
    unit, slope, without = scaling.slice.kind.unit, scaling.slope, ""
    if scaling.unflagged is not None:
        without = f"; {scaling.unflagged.words()}"
    span = f"{whole(scaling.low)} to {whole(scaling.high)} {X_LABELS.get(scaling.slice.x, scaling.slice.x)}"
    if not scaling.measurable:
        most = max(abs(slope.low), abs(slope.high))
        text = (
            f"{scaling.stage}: no measurable dependence from {span} (95 % interval "
            f"{interval(slope.low, slope.high, 4)} ms per {unit}: at most {digits(most, 2)} either way){without}"
        )
        middle = scaling.median_slope
        if not middle.excludes_zero:
            return text
        return (
            f"{text}; slow runs hide it: the medians change by {digits(middle.value)} ms per {unit} "
            f"({interval(middle.low, middle.high)})"
        )
    robust, missed = scaling.robust_slope, scaling.missed.words()
    text = (
        f"{scaling.stage}: {digits(slope.value, 4)} ms per {unit} (95 % interval "
        f"{interval(slope.low, slope.high, 4)}; with outliers pulled in {digits(robust.value, 4)}, "
        f"{interval(robust.low, robust.high, 4)}) from {span}{without}{',' if not without else ';'} "
        f"R² {scaling.linear.r2:.4f}, held-out error {percent(scaling.held_out_error)}"
        f"{f'; the fit {missed}' if missed else ''}"
    )
    if scaling.shape == "linear":
        change = abs(slope.value) * (scaling.high - scaling.low) / abs(float(scaling.points["mean"].mean()))
        return (
            f"{text}; that is {percent(change)} over the whole range: nothing to act on"
            if change < _NEGLIGIBLE
            else text
        )
    first, last = scaling.slope_at(scaling.low).value, scaling.slope_at(scaling.high).value
    how = "bends" if scaling.shape == "quadratic" else f"kinks at {plain(scaling.knot)}"
    small = ", small enough to read it as a line" if scaling.bend < 0.01 else ""
    bend = f"{percent(scaling.bend)}{small}"
    return f"{text}; it {how}: {digits(first)} ms at the low end, {digits(last)} at the high end ({bend})"


def times_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Times that are fitted in these rows, that of the whole first: stages, or what a client and its server saw."""
    whole = whole_metric(frame)
    if whole == STAGES[0]:
        return STAGES
    return (*_OF_A_SERVER, *(str(c) for c in frame if str(c).startswith("server_") and str(c).endswith("_ms")))


def fit_scaling(part: Slice, stage: str) -> Scaling | None:
    """Fit one stage of one slice; None where the stage has values at fewer than three counts."""
    if stage not in part.rows:
        return None
    known = part.rows[stage].notna()
    x = part.rows.loc[known, part.x].to_numpy(dtype=float)
    y = part.rows.loc[known, stage].to_numpy(dtype=float)
    if len(np.unique(x)) < MIN_POINTS or len(x) <= MIN_POINTS - 1:
        return None
    clusters = part.clusters[known].to_numpy()
    flags = part.rows.loc[known, "flags"].astype(object) if "flags" in part.rows else None
    points = point_table(x, y)
    fits, knot, shape = fit_forms(x, y, clusters, points)
    grid = np.linspace(x.min(), x.max(), 101)
    line = design(grid, "linear") @ fits["linear"].coefficients
    best = design(grid, shape, knot) @ fits[shape].coefficients
    error, held_out = held_out_check(points, shape)
    robust = robust_fit(x, y, clusters)
    at_points = design(points["x"], shape, knot) @ fits[shape].coefficients
    medians = least_squares(design(points["x"], "linear"), points["median"], points["x"])
    return Scaling(
        slice=part,
        stage=stage,
        linear=fits["linear"],
        best=fits[shape],
        shape=shape,
        knot=knot if shape == "kink" else math.nan,
        aic={form: fit.aic for form, fit in fits.items()},
        bend=float(np.abs(best - line).max() / abs(y.mean())) if y.mean() else math.nan,
        held_out_error=error,
        held_out=held_out,
        median_slope=medians.estimate([0.0, 1.0]),
        robust=robust,
        missed=_missed(x, y, points, at_points, shape=shape, robust=robust),
        unflagged=without_first_times(flags, x, y, clusters),
        points=points,
    )


def _missed(x: Array, y: Array, points: pd.DataFrame, at_points: Array, *, shape: str, robust: Fit) -> Missed:
    """How the fit passes by the medians, and whether the outlier-proof line, where it has the same form, does too."""
    found = missed_medians(x, y, points, at_points, shape)
    if shape != "linear" or not found.most:
        return found
    other = missed_medians(x, y, points, design(points["x"], "linear") @ robust.coefficients, "linear")
    return replace(found, tilted=not other.most)


def scalings(
    frame: pd.DataFrame, *, kinds: Iterable[str] = tuple(KINDS), stages: Iterable[str] = STAGES
) -> list[Scaling]:
    """Every stage against every kind that varies, slice by slice, the slice with most rows of a kind first.

    Args:
        frame: rows of records (:mod:`vlmbench.schema`); rows that were not measured are left out.
        kinds: names out of :data:`vlmbench.analysis.slices.KINDS`.
    """
    stages = tuple(stages)
    found = (fit_scaling(part, stage) for kind in kinds for part in slices(frame, KINDS[kind]) for stage in stages)
    return [scaling for scaling in found if scaling is not None]

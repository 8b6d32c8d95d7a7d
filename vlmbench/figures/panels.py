"""One panel of a scaling figure: the runs or their spread, medians, the fit with its interval, and how to read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vlmbench.analysis.frames import values
from vlmbench.analysis.quantiles import finite, median, needed
from vlmbench.analysis.regression import Estimate
from vlmbench.analysis.scaling import Scaling
from vlmbench.analysis.slices import COUNTED, TOKEN_KINDS, X_LABELS, Slice, held
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import INK, MUTED, SERIES, component_colour, component_label, plain_ticks
from vlmbench.text import count, digits, ms, plain

LABELS: Mapping[str, str] = {
    "T_total": "Total (one generate call)",
    "TTFT_model": "First token",
    "T_request": "Request, from image to text",
}
_FIT = "hollow: left out of the check fit; line: fit to all runs with 95 % band"
_SLOPE_LINES = 3  # of text between a panel and its title
_MOST_DECIMALS = 9
_ROOM = 2.0  # the y axis reaches up to so many times what the fit and the medians need, to show slow runs


KIND_COLOURS: Mapping[str, str] = {"vision": SERIES[0], "prompt": SERIES[4], "output": SERIES[2]}
"""Kind of token to its colour."""


def stage_label(stage: str) -> str:
    """The words for a time, totals included."""
    return LABELS.get(stage, component_label(stage))


def stage_colour(stage: str) -> str:
    """The colour of a time; totals are black."""
    return INK if stage in LABELS else component_colour(stage)


def plus_minus(value: float, half: float) -> str:
    """``1,408 ± 61``, ``0.0629 ± 0.0081``: the half width with two digits, the value to the same decimal."""
    if not (math.isfinite(half) and half > 0):
        return plain(value)
    decimals = max(1 - math.floor(math.log10(half)), 0)
    if decimals > _MOST_DECIMALS:  # an interval too narrow to be written
        return plain(value)
    return f"{value:,.{decimals}f} ± {half:,.{decimals}f}"


def slope_unit(scaling: Scaling) -> str:
    """``ms/token``, or ``ms per further request`` of a batch: by what the sweep turned."""
    kind = scaling.slice.kind
    return "ms/token" if kind.name in TOKEN_KINDS else f"ms per further {kind.unit.split()[0]}"


def slope_text(scaling: Scaling) -> str:
    """What a panel says about its fit, two or three short lines."""
    slope, unit = scaling.slope, slope_unit(scaling)
    if not scaling.measurable:
        middle = scaling.median_slope
        if middle.excludes_zero:
            change = plus_minus(middle.value, middle.high - middle.value)
            return f"line not told from flat (slow runs);\nmedians alone: {change} {unit}"
        return f"no measurable dependence\n(|slope| ≤ {digits(max(abs(slope.low), abs(slope.high)), 2)} {unit})"
    shape = {"linear": "", "quadratic": ", bends", "kink": f", kink at {plain(scaling.knot)}"}[scaling.shape]
    cost = plus_minus(slope.value, (slope.high - slope.low) / 2)
    middle, missed = scaling.robust_slope, scaling.missed
    robust = f"outliers pulled in: {plus_minus(middle.value, (middle.high - middle.low) / 2)}"
    if (first := _without_first_times(scaling)) is not None:  # the number that tables and the page lead with
        spread = plus_minus(first.value, (first.high - first.low) / 2)
        robust = f"all runs {cost}; {robust}"
        cost, shape = spread, f"{shape} without first times"
    # A line that passes by most of its medians is not drawn without saying so.
    checked = f"held-out {100 * scaling.held_out_error:.1f} %"
    if missed.most:
        checked = missed.outside()
    return f"{cost} {unit}{shape}\n{robust}\nR² {scaling.linear.r2:.3f}, {checked}"


def _without_first_times(scaling: Scaling) -> Estimate | None:
    """The slope of the line without first times, where there were some and the line is straight."""
    return None if scaling.unflagged is None or scaling.shape != "linear" else scaling.unflagged.slope


def shows_runs(scalings: Sequence[Scaling]) -> bool:
    """Whether points are too few for a 5 and a 95 % quantile of theirs, so that the runs themselves are drawn."""
    return any(int(s.points["n"].min()) < needed(0.95) for s in scalings)


def draw_scaling(axes: Axes, scaling: Scaling, *, x_label: bool = True, runs: bool = True) -> pd.Series:
    """Medians, the fit with its 95 % band; points left out of the check fit are hollow.

    Args:
        x_label: whether the panel is at the bottom.
        runs: draw every run, and the medians with 95 % intervals of order statistics; else 5–95 % of the runs.

    Returns:
        The runs above the axis, ms: triangles stand in their place.
    """
    colour, points = stage_colour(scaling.stage), scaling.points
    known = scaling.slice.rows[[scaling.slice.x, scaling.stage]].dropna().astype(float)
    x, time = known[scaling.slice.x], known[scaling.stage]
    grid = np.linspace(scaling.low, scaling.high, 200)
    mean, low, high = scaling.predict(grid)
    axes.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(grid, mean, color=colour)
    if (first := scaling.unflagged) is not None and first.fit is not None and _without_first_times(scaling):
        inside = np.linspace(first.low, first.high, 2)
        axes.plot(inside, first.fit.predict(np.column_stack([np.ones_like(inside), inside]))[0], "--", color=colour)
    ends = points[["low", "high"]].to_numpy(dtype=float)
    if runs:
        axes.plot(
            x, time, ".", color=colour, alpha=0.4, markersize=dot(3.5), markeredgewidth=0, rasterized=True, zorder=1.5
        )
        found = [median(time[x == count]) for count in points["x"]]
        ends = np.array([[math.nan if e is None else e for e in (f.low, f.high)] for f in found])
    axes.vlines(points["x"], ends[:, 0], ends[:, 1], color=colour, linewidth=1.4, alpha=0.9)
    hollow = points["x"].isin(scaling.held_out)
    for part, face in ((points[~hollow], colour), (points[hollow], "white")):
        axes.plot(
            part["x"], part["median"], "o", color=colour, markerfacecolor=face, markersize=dot(5), markeredgewidth=1.2
        )
    axes.set_title(stage_label(scaling.stage), loc="left", pad=_SLOPE_LINES * 1.35 * pt(7.5) + 4)
    axes.annotate(
        slope_text(scaling), (0, 1), xycoords="axes fraction", xytext=(0, 2), textcoords="offset points", va="bottom",
        fontsize=pt(7.5), color=MUTED,
    )  # fmt: skip
    axes.set_ylabel("Time (ms)")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    plain_ticks(axes.xaxis, axes.yaxis)
    if x_label:
        axes.set_xlabel(axis_words(scaling.slice))
    above = time > _readable_limits(axes, scaling, time if runs else None)
    if runs and above.any():
        axes.plot(
            x[above], np.full(int(above.sum()), 0.985), "^", color=colour, markersize=dot(4.5), clip_on=False,
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    return time[above] if runs else time.iloc[:0]


def axis_words(part: Slice) -> str:
    """What the x axis counts: ``Vision tokens``."""
    words = X_LABELS.get(part.x, part.x)
    return words[:1].upper() + words[1:]


def _readable_limits(axes: Axes, scaling: Scaling, runs: pd.Series | None) -> float:
    """From 0 upwards where the time depends on the tokens; a flat line gets room, so that noise stays small. Slow runs
    are inside, unless they would squeeze everything else. Returns the upper end.
    """
    points = scaling.points
    fitted = float(scaling.predict([scaling.high])[0][0])
    top = max(float(points["median" if runs is not None else "high"].max()), fitted)
    bottom = min(float(points["low"].min()), 0.0)
    limit = top * (1.08 if scaling.measurable else 1.6)
    if runs is not None:
        bottom = min(bottom, float(runs.min()))
        limit = max(limit, min(float(runs.max()) * 1.05, limit * _ROOM))
    if top > 0:
        axes.set_ylim(bottom * 1.05, limit)
    else:
        axes.set_ylim(bottom=bottom * 1.05)
    axes.set_xlim(left=min(0.0, scaling.low))
    return float(axes.get_ylim()[1])


def reading(runs: bool, above: Mapping[str, pd.Series], *, dashed: bool = False) -> str:
    """How to read the panels: what points, bars, dots and lines are, and which runs are beyond an axis."""
    points = (
        "dots: runs; points: their medians with 95 % intervals" if runs else "points: medians, bars 5–95 % of the runs"
    )
    beyond = ", ".join(
        f"{stage_label(stage)} {len(times)} (up to {ms(float(times.max()))})"
        for stage, times in above.items()
        if len(times)
    )
    lines = f"{_FIT}; dashed: without runs that did something for the first time" if dashed else _FIT
    return f"{points}; {lines}" + (f"; triangles: runs above the axis: {beyond}" if beyond else "")


# Parts of captions that say what the rows are: output tokens of a request, what is held fixed, what an axis counts.


def output_tokens(rows: pd.DataFrame) -> str:
    """``32 output tokens a request``; a range and the median where requests differ; empty if they were not counted."""
    number = finite(values(rows, "num_output_tokens"))
    if not len(number):
        return ""
    low, middle, high = float(number.min()), float(np.median(number)), float(number.max())
    if low == high:
        return f"{count(low, 'output token')} a request"
    return f"{low:,.0f} to {high:,.0f} output tokens a request (median {plain(middle)})"


def not_held(part: Slice) -> str:
    """``prompt tokens 4 to 20``: counts of text that differ between the rows, besides the one on the axis."""
    said = []
    for name in ("num_prompt_tokens", "num_output_tokens"):
        number = finite(values(part.rows, name))
        if name != part.x and len(number) and np.ptp(number) > 0:
            said.append(f"{COUNTED[name]} {number.min():,.0f} to {number.max():,.0f}")
    return ", ".join(said)


def grown_by(part: Slice) -> str:
    """What makes the vision tokens of a sweep grow: whole images, crops, or one image of another size; empty if the
    rows do not tell.
    """
    if part.kind.name != "vision":
        return ""
    counts, unit = values(part.rows, part.x), X_LABELS.get(part.x, part.x)
    for name, one in (("num_images", "image"), ("num_crops", "crop")):
        number = values(part.rows, name)
        if np.isnan(number).any() or not np.ptp(number):
            continue
        span = f"{number.min():,.0f} to {count(number.max(), one)}"
        each = counts / number if number.all() else counts
        if not np.ptp(each):
            return f"the axis grows by whole {one}s of {each[0]:,.0f} {unit} ({span})"
        return f"the number of {one}s grows with the axis ({span})"
    patches = finite(values(part.rows, "num_vision_patches"))
    if len(patches) and np.ptp(patches):
        return f"the axis grows by the image's size ({patches.min():,.0f} to {patches.max():,.0f} vision patches)"
    return ""


def about(part: Slice) -> str:
    """All of it in one line of a caption: held fixed, not held fixed, what the axis grows by, the slice's own note."""
    equal, differing = held(part), not_held(part)
    parts = (
        f"held fixed: {equal}" if equal else "",
        f"not held fixed: {differing}" if differing else "",
        grown_by(part),
        part.note,
    )
    return "; ".join(words for words in parts if words)


def sentences(*parts: str) -> str:
    """The parts that are not empty as sentences: each begins with a capital and ends with a full stop."""
    return " ".join(f"{part[0].upper()}{part[1:].removesuffix('.')}." for part in parts if part)

"""Time against the number of tokens, and against FLOPs: points with their spread, fits with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vlmbench.analysis.flops_latency import NAMES, FlopsFit, FlopsLatency
from vlmbench.analysis.scaling import Scaling
from vlmbench.analysis.slices import X_LABELS, held_fixed
from vlmbench.figures.theme import INK, MUTED, SERIES, caption, component_colour, component_label, new_figure

LABELS: Mapping[str, str] = {
    "T_total": "Total (one generate call)",
    "TTFT_model": "First token",
    "T_request": "Request, from image to text",
}
FLOPS_COLOURS: Mapping[str, str] = {"vision": SERIES[0], "prompt": SERIES[4], "output": SERIES[2]}


_READING = (
    "points: medians, bars 5–95 % of the runs; hollow: left out of the check fit; line: fit to all runs with 95 % band"
)


def stage_label(stage: str) -> str:
    """The words for a time, totals included."""
    return LABELS.get(stage, component_label(stage))


def stage_colour(stage: str) -> str:
    """The colour of a time; totals are black."""
    return INK if stage in LABELS else component_colour(stage)


def plus_minus(value: float, half: float) -> str:
    """``1408 ± 61``, ``0.0629 ± 0.0081``: the half width with two digits, the value to the same decimal."""
    if not (math.isfinite(half) and half > 0):
        return f"{value:.4g}"
    decimals = max(1 - math.floor(math.log10(half)), 0)
    if decimals > 5:
        exponent = math.floor(math.log10(max(abs(value), half)))
        return f"({plus_minus(value / 10.0**exponent, half / 10.0**exponent)})·10^{exponent}"
    return f"{value:,.{decimals}f} ± {half:,.{decimals}f}"


def slope_text(scaling: Scaling) -> str:
    """What a panel says about its fit, two short lines."""
    slope = scaling.slope
    if not scaling.measurable:
        middle = scaling.median_slope
        if middle.excludes_zero:
            change = plus_minus(middle.value, middle.high - middle.value)
            return f"hidden by slow runs; medians change by\n{change} ms/token"
        return f"no measurable dependence\n(|slope| ≤ {max(abs(slope.low), abs(slope.high)):.2g} ms/token)"
    shape = {"linear": "", "quadratic": ", bends", "kink": f", kink at {scaling.knot:.3g}"}[scaling.shape]
    cost = plus_minus(slope.value, (slope.high - slope.low) / 2)
    return f"{cost} ms/token{shape}\nR² {scaling.linear.r2:.3f}, held-out error {scaling.held_out_error:.1%}"


def draw_scaling(axes: Axes, scaling: Scaling, *, x_label: bool = True) -> None:
    """Medians with their 5–95 % spread, the fit with its 95 % band; points left out of the check fit are hollow."""
    colour, points = stage_colour(scaling.stage), scaling.points
    grid = np.linspace(scaling.low, scaling.high, 200)
    mean, low, high = scaling.predict(grid)
    axes.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(grid, mean, color=colour)
    axes.vlines(points["x"], points["low"], points["high"], color=colour, linewidth=1.0, alpha=0.7)
    hollow = points["x"].isin(scaling.held_out)
    for part, face in ((points[~hollow], colour), (points[hollow], "white")):
        axes.plot(part["x"], part["median"], "o", color=colour, markerfacecolor=face, markersize=5, markeredgewidth=1.2)
    axes.set_title(stage_label(scaling.stage), loc="left", pad=24)
    axes.text(0, 1.02, slope_text(scaling), transform=axes.transAxes, va="bottom", fontsize=7.5, color=MUTED)
    axes.set_ylabel("ms")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if x_label:
        axes.set_xlabel(X_LABELS.get(scaling.slice.x, scaling.slice.x))
    _readable_limits(axes, scaling)


def _readable_limits(axes: Axes, scaling: Scaling) -> None:
    """From 0 upwards where the time depends on the tokens; a flat line gets room, so that noise stays small."""
    top = max(float(scaling.points["high"].max()), float(scaling.predict([scaling.high])[0][0]))
    bottom = min(float(scaling.points["low"].min()), 0.0)
    axes.set_ylim(bottom * 1.05, top * (1.08 if scaling.measurable else 1.6) if top > 0 else None)
    axes.set_xlim(left=min(0.0, scaling.low))


def scaling_figure(
    scalings: Sequence[Scaling], provenance: Mapping[str, Any], *, title: str, columns: int = 2, note: str = ""
) -> Figure:
    """One panel a stage, all of one kind of token.

    Args:
        scalings: fits of one slice.
        provenance: of the run, for the caption.
        title: above the figure.
        columns: panels side by side.
        note: a further line of the caption.
    """
    first = scalings[0]
    rows = -(-len(scalings) // columns)
    fixed = held_fixed(first.slice.fixed)
    notes = "; ".join(n for n in (f"held fixed: {fixed}" if fixed else "", first.slice.note, note) if n)
    text = caption(
        provenance, n=first.linear.rows, unit=f"runs at {len(first.points)} points", note=f"{notes}\n{_READING}".strip()
    )
    width = {1: 5.6, 2: 8.0}.get(columns, 3.3 * columns)
    figure = new_figure(title, text, width=width, height=1.0 + 2.75 * rows + (0.8 if rows == 1 else 0))
    grid = figure.subplots(rows, columns, squeeze=False)
    for position, axes in enumerate(grid.flat):
        if position < len(scalings):
            draw_scaling(axes, scalings[position], x_label=position + columns >= len(scalings))
        else:
            axes.set_visible(False)
    return figure


def composition_figure(scalings: Sequence[Scaling], provenance: Mapping[str, Any], *, title: str) -> Figure:
    """Stages stacked (medians): what ``T_total`` is made of at each count."""
    first = scalings[0]
    figure = new_figure(title, caption(provenance, n=first.linear.rows, unit="runs, medians"), width=6.4, height=4.4)
    axes = figure.subplots()
    kept = {s.stage: s for s in scalings if s.stage != "T_residual"}
    table = pd.DataFrame({name: s.points.set_index("x")["median"] for name, s in kept.items()}).fillna(0.0)
    axes.stackplot(
        table.index.to_numpy(),
        table.to_numpy().T,
        colors=[stage_colour(s) for s in kept],
        labels=[stage_label(s) for s in kept],
        linewidth=0.4,
        edgecolor="white",
    )
    axes.set(
        xlabel=X_LABELS.get(first.slice.x, first.slice.x), ylabel="ms", xlim=(table.index.min(), table.index.max())
    )
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def flops_latency_figure(found: FlopsLatency, provenance: Mapping[str, Any], *, time: str = "T_total") -> Figure:
    """Time against FLOPs: one panel a scaling, and all of them together on logarithmic axes."""
    names = list(found.parts)
    count = len(names) + (len(names) > 1)
    ratio = found.ratio()
    note = ""
    if ratio is not None:
        note = f"a further TFLOP costs {ratio.value:.3g} times as much on output as on vision tokens ({ratio.span()})"
    total = sum(len(part.flops) for part in found.parts.values())
    text = caption(provenance, n=total, unit="runs", note=note)
    columns = 2 if count == 4 else count
    rows = -(-count // columns)
    figure = new_figure("FLOPs against latency", text, width=max(3.4 * columns, 5.0), height=1.0 + 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(panels, names, strict=False):
        _draw_flops(axes, found.parts[name], FLOPS_COLOURS[name])
        _flops_title(axes, NAMES[name].capitalize(), _flops_text(found.parts[name]))
        axes.set(xlabel="TFLOP per request", ylabel=f"{time} (ms)")
        axes.set_ylim(bottom=0)
        # A small model's TFLOPs have many digits: few ticks, and none longer than need be.
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if len(names) > 1:
        _draw_together(panels[count - 1], found, time)
    return figure


def _flops_text(part: FlopsFit) -> str:
    cost = plus_minus(part.cost.value, (part.cost.high - part.cost.low) / 2)
    return f"{cost} ms per TFLOP\nr {part.pearson:.3f}, R² {part.fit.r2:.3f}"


def _flops_title(axes: Axes, title: str, text: str) -> None:
    axes.set_title(title, loc="left", pad=24)
    axes.text(0, 1.02, text, transform=axes.transAxes, va="bottom", fontsize=7.5, color=MUTED)


def _draw_flops(axes: Axes, part: FlopsFit, colour: str) -> None:
    sns.scatterplot(x=part.flops, y=part.time, ax=axes, color=colour, s=16, alpha=0.55, linewidth=0)
    grid = np.linspace(part.flops.min(), part.flops.max(), 100)
    mean, half = part.fit.predict(np.column_stack([np.ones_like(grid), grid]))
    axes.fill_between(grid, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    axes.plot(grid, mean, color=colour)


def _draw_together(axes: Axes, found: FlopsLatency, time: str) -> None:
    for name, part in found.parts.items():
        sns.scatterplot(
            x=part.flops,
            y=part.time,
            ax=axes,
            color=FLOPS_COLOURS[name],
            s=16,
            alpha=0.55,
            linewidth=0,
            label=NAMES[name],
        )
    axes.set(xscale="log", yscale="log", xlabel="TFLOP per request", ylabel=f"{time} (ms)")
    assert found.together is not None
    for axis in (axes.xaxis, axes.yaxis):
        _plain_log_ticks(axis)
    _flops_title(axes, "Together", f"one line for all:\nr {found.pearson_together:.3f}, R² {found.together.r2:.3f}")
    axes.legend(loc="best", handletextpad=0.2)


def _plain_log_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 … instead of powers of ten: the ranges are short."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def select(scalings: Iterable[Scaling], kind: str, stages: Iterable[str]) -> list[Scaling]:
    """The named stages of the slice of ``kind`` with most rows, in that order; those without a fit are left out."""
    of_kind = [s for s in scalings if s.slice.kind.name == kind]
    if not of_kind:
        return []
    by_stage = {s.stage: s for s in of_kind if s.slice is of_kind[0].slice}
    return [by_stage[stage] for stage in stages if stage in by_stage]

"""Time against the number of tokens, and against FLOPs: points with their spread, fits with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vlmbench.analysis.flops_latency import NAMES, FlopsFit, FlopsLatency, correlation_words
from vlmbench.analysis.scaling import Scaling
from vlmbench.analysis.slices import held
from vlmbench.figures.panels import (
    KIND_COLOURS,
    about,
    axis_words,
    draw_scaling,
    plus_minus,
    reading,
    shows_runs,
    slope_unit,
    stage_colour,
    stage_label,
)
from vlmbench.figures.style import dot, style
from vlmbench.figures.theme import INK, add_caption, caption, new_figure, plain_log_ticks, plain_ticks
from vlmbench.text import digits

_PANEL_IN = 2.6  # a panel is no narrower, in page inches
_MARKS = ("o", "s", "D")
_LOG_FROM = np.log(3.0)


def scaling_figure(
    scalings: Sequence[Scaling], provenance: Mapping[str, Any], *, title: str, columns: int = 2
) -> Figure:
    """One panel a stage, all of one kind of token.

    Args:
        provenance: of the run, for the caption.
        title: above the figure.
        columns: panels side by side.
    """
    first = scalings[0]
    width = {1: 5.6, 2: 8.0}.get(columns, 3.3 * columns)
    columns = max(1, min(columns, int(style().room(width) / _PANEL_IN)))
    rows = -(-len(scalings) // columns)
    figure = new_figure(title, "", width=width, height=0.2 + 2.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    runs, above = shows_runs(scalings), {}
    for number, axes in enumerate(panels):
        if number < len(scalings):
            scaling = scalings[number]
            above[scaling.stage] = draw_scaling(axes, scaling, x_label=number + columns >= len(scalings), runs=runs)
        else:
            axes.set_visible(False)
    note = "\n".join(
        words
        for words in (
            about(first.slice),
            reading(runs, above, dashed=any(s.unflagged and s.unflagged.fit for s in scalings)),
            _first_times(scalings),
            _missed(scalings),
        )
        if words
    )
    per_point = f"{int(first.points['n'].min()):,} to {int(first.points['n'].max()):,} each"
    unit = f"runs at {len(first.points)} points, {per_point}"
    add_caption(
        figure, caption(provenance, n=first.linear.rows, unit=unit, effective=first.linear.effective, note=note)
    )
    return figure


def _first_times(scalings: Sequence[Scaling]) -> str:
    """What the slope of the total is without runs that did something for the first time; empty without such runs."""
    found = [(s, s.unflagged) for s in scalings if s.stage == "T_total" and s.unflagged is not None]
    return f"{stage_label('T_total')}, {slope_unit(found[0][0])} {found[0][1].words()}" if found else ""


def _missed(scalings: Sequence[Scaling]) -> str:
    """Which fits pass by most of the medians that they are drawn through, and why; empty where none does."""
    said = [f"{stage_label(s.stage)} {s.missed.words()}" for s in scalings if s.measurable and s.missed.most]
    return f"the fit of {'; of '.join(said)}" if said else ""


def composition_figure(scalings: Sequence[Scaling], provenance: Mapping[str, Any], *, title: str) -> Figure:
    """Stages stacked (medians): what ``T_total`` is made of at each count."""
    first = scalings[0]
    text = caption(provenance, n=first.linear.rows, unit="runs, medians", note=about(first.slice))
    figure = new_figure(title, text, width=6.4, height=3.5, columns=1)
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
    axes.set(xlabel=axis_words(first.slice), ylabel="Time (ms)", xlim=(table.index.min(), table.index.max()))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    plain_ticks(axes.xaxis, axes.yaxis)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handlelength=1.2, handletextpad=0.4,
        columnspacing=1.0, borderaxespad=0.1,
    )  # fmt: skip
    return figure


def flops_latency_figure(found: FlopsLatency, provenance: Mapping[str, Any]) -> Figure:
    """Time against FLOPs, all scalings in one panel: if FLOPs told the time, all runs would lie on one line.

    Axes are logarithmic where the scalings differ too much for others.
    """
    notes = [
        f"{NAMES[name]}: {_flops_text(part)}" + (f"; held fixed: {held(part.slice)}" if held(part.slice) else "")
        for name, part in found.parts.items()
    ]
    if found.together is not None:
        notes.append(f"one line for all: {correlation_words(found.pearson_together, found.together.r2, 'r')}")
    ratio = found.ratio()
    if ratio is not None:
        dearer = f"{digits(ratio.value)} times as much on output as on vision tokens"
        notes.append(f"a further TFLOP costs {dearer} ({ratio.span()})")
    total = sum(len(part.flops) for part in found.parts.values())
    note = "\n".join(["dots: runs; lines: fits by least squares with 95 % bands", *notes])
    figure = new_figure(
        "FLOPs against latency", caption(provenance, n=total, unit="runs", note=note), width=6.4, height=3.6, columns=1
    )
    axes = figure.subplots()
    for (name, part), mark in zip(found.parts.items(), _MARKS, strict=False):
        _draw_flops(axes, part, KIND_COLOURS[name], mark, f"{NAMES[name].capitalize()}: {_flops_cost(part)}")
    axes.set(xlabel="TFLOP per request", ylabel="generate() (ms)")
    flops, times = (
        np.concatenate([getattr(part, name) for part in found.parts.values()]) for name in ("flops", "time")
    )
    above = len(found.parts) > 1 and float(min(flops.min(), times.min())) > 0  # 0 has no place on a logarithmic axis
    if above and max(np.ptp(np.log(flops)), np.ptp(np.log(times))) > _LOG_FROM:
        axes.set(
            xscale="log", yscale="log", xlabel="TFLOP per request (log scale)", ylabel="generate() (ms, log scale)"
        )
        axes.set_ylim(0.75 * float(times.min()), 1.35 * float(times.max()))
        for axis in (axes.xaxis, axes.yaxis):
            plain_log_ticks(axis)
    else:
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        plain_ticks(axes.xaxis, axes.yaxis)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), handletextpad=0.3, borderaxespad=0.1)
    return figure


def _flops_cost(part: FlopsFit) -> str:
    return f"{plus_minus(part.cost.value, (part.cost.high - part.cost.low) / 2)} ms per TFLOP"


def _flops_text(part: FlopsFit) -> str:
    return f"{_flops_cost(part)}, {correlation_words(part.pearson, part.fit.r2, 'r')}"


def _draw_flops(axes: Axes, part: FlopsFit, colour: str, mark: str, label: str) -> None:
    axes.plot(
        part.flops, part.time, mark, color=colour, markersize=dot(4), alpha=0.5, markeredgewidth=0, label=label,
        rasterized=True,
    )  # fmt: skip
    grid = np.linspace(part.flops.min(), part.flops.max(), 100)
    mean, half = part.fit.predict(np.column_stack([np.ones_like(grid), grid]))
    seen = mean - half > 0  # what lies below 0 has no place on a logarithmic axis
    axes.fill_between(grid[seen], (mean - half)[seen], (mean + half)[seen], color=colour, alpha=0.25, linewidth=0)
    axes.plot(grid, mean, color=INK, linewidth=dot(1.2))


def select(scalings: Iterable[Scaling], kind: str, stages: Iterable[str]) -> list[Scaling]:
    """The named stages of the slice of ``kind`` with most rows, in that order; those without a fit are left out."""
    of_kind = [s for s in scalings if s.slice.kind.name == kind]
    if not of_kind:
        return []
    by_stage = {s.stage: s for s in of_kind if s.slice is of_kind[0].slice}
    return [by_stage[stage] for stage in stages if stage in by_stage]

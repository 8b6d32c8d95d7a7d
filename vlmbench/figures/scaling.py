"""Time against the number of tokens, and against FLOPs: points with their spread, fits with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlmbench.analysis.flops_latency import NAMES, FlopsFit, FlopsLatency
from vlmbench.analysis.scaling import Scaling
from vlmbench.analysis.slices import X_LABELS, held
from vlmbench.figures.panels import (
    LABELS,
    about,
    draw_scaling,
    plus_minus,
    reading,
    shows_runs,
    slope_unit,
    stage_colour,
    stage_label,
)
from vlmbench.figures.style import pt
from vlmbench.figures.theme import MUTED, SERIES, add_caption, caption, new_figure, plain_log_ticks
from vlmbench.text import digits, plain

__all__ = [
    "FLOPS_COLOURS",
    "LABELS",
    "composition_figure",
    "flops_latency_figure",
    "plus_minus",
    "scaling_figure",
    "select",
    "stage_colour",
    "stage_label",
]

FLOPS_COLOURS: Mapping[str, str] = {"vision": SERIES[0], "prompt": SERIES[4], "output": SERIES[2]}


def scaling_figure(
    scalings: Sequence[Scaling], provenance: Mapping[str, Any], *, title: str, columns: int = 2
) -> Figure:
    """One panel a stage, all of one kind of token.

    Args:
        scalings: fits of one slice.
        provenance: of the run, for the caption.
        title: above the figure.
        columns: panels side by side.
    """
    first = scalings[0]
    rows = -(-len(scalings) // columns)
    width = {1: 5.6, 2: 8.0}.get(columns, 3.3 * columns)
    figure = new_figure(title, "", width=width, height=1.0 + 2.9 * rows + (0.8 if rows == 1 else 0))
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
        for words in (about(first.slice), reading(runs, above), _first_times(scalings), _missed(scalings))
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
    figure = new_figure(title, text, width=6.4, height=4.6)
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
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def flops_latency_figure(found: FlopsLatency, provenance: Mapping[str, Any]) -> Figure:
    """Time against FLOPs: one panel a scaling, and all of them together on logarithmic axes."""
    names = list(found.parts)
    count = len(names) + (len(names) > 1)
    ratio = found.ratio()
    notes = [f"{NAMES[name]}: held fixed: {held(part.slice)}" for name, part in found.parts.items() if held(part.slice)]
    if ratio is not None:
        dearer = f"{digits(ratio.value)} times as much on output as on vision tokens"
        notes.append(f"a further TFLOP costs {dearer} ({ratio.span()})")
    note = "\n".join(notes)
    total = sum(len(part.flops) for part in found.parts.values())
    text = caption(provenance, n=total, unit="runs", note=note)
    columns = 2 if count == 4 else count
    rows = -(-count // columns)
    figure = new_figure("FLOPs against latency", text, width=max(3.4 * columns, 5.0), height=1.0 + 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, name in zip(panels, names, strict=False):
        _draw_flops(axes, found.parts[name], FLOPS_COLOURS[name])
        _flops_title(axes, NAMES[name].capitalize(), _flops_text(found.parts[name]))
        axes.set(xlabel="TFLOP per request", ylabel="T_total (ms)")
        axes.set_ylim(bottom=0)
        # A small model's TFLOPs have many digits: few ticks, and none longer than need be.
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    if len(names) > 1:
        _draw_together(panels[count - 1], found)
    return figure


def _flops_text(part: FlopsFit) -> str:
    cost = plus_minus(part.cost.value, (part.cost.high - part.cost.low) / 2)
    return f"{cost} ms per TFLOP\nr {part.pearson:.3f}, R² {part.fit.r2:.3f}"


def _flops_title(axes: Axes, title: str, text: str) -> None:
    axes.set_title(title, loc="left", pad=24)
    axes.text(0, 1.02, text, transform=axes.transAxes, va="bottom", fontsize=pt(7.5), color=MUTED)


def _draw_flops(axes: Axes, part: FlopsFit, colour: str) -> None:
    sns.scatterplot(x=part.flops, y=part.time, ax=axes, color=colour, s=16, alpha=0.55, linewidth=0)
    grid = np.linspace(part.flops.min(), part.flops.max(), 100)
    mean, half = part.fit.predict(np.column_stack([np.ones_like(grid), grid]))
    axes.fill_between(grid, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    axes.plot(grid, mean, color=colour)


def _draw_together(axes: Axes, found: FlopsLatency) -> None:
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
    axes.set(xscale="log", yscale="log", xlabel="TFLOP per request", ylabel="T_total (ms)")
    assert found.together is not None
    for axis in (axes.xaxis, axes.yaxis):
        plain_log_ticks(axis)
    _flops_title(axes, "Together", f"one line for all:\nr {found.pearson_together:.3f}, R² {found.together.r2:.3f}")
    axes.legend(loc="best", handletextpad=0.2)


def select(scalings: Iterable[Scaling], kind: str, stages: Iterable[str]) -> list[Scaling]:
    """The named stages of the slice of ``kind`` with most rows, in that order; those without a fit are left out."""
    of_kind = [s for s in scalings if s.slice.kind.name == kind]
    if not of_kind:
        return []
    by_stage = {s.stage: s for s in of_kind if s.slice is of_kind[0].slice}
    return [by_stage[stage] for stage in stages if stage in by_stage]

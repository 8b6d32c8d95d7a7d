"""What tokens cost against each other, where the cost goes, and where they break even."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vlmbench.analysis.regression import Estimate
from vlmbench.analysis.slices import KINDS, X_LABELS
from vlmbench.analysis.token_costs import Comparison, TokenCost
from vlmbench.figures.panels import KIND_COLOURS, about, stage_colour, stage_label
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import INK, MUTED, SERIES, caption, model_name, new_figure, plain_log_ticks, plain_ticks
from vlmbench.schema import TOTAL_PARTS
from vlmbench.text import count, digits, interval, plain, span

_FIRST_TIMES, _PULLED_IN = "without first times", "with outliers pulled in"
_HOLLOW = "; hollow: without the runs flagged for doing something for the first time"
_LEAST_PART = 0.02  # of a cost, for a stage to be drawn
_PITCH = 0.5  # inches a row of the costs on a page


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the figure: what it is, its cost in ms per token, its colour, whether it is the whole, or that another
    way (``beside``), drawn hollow or not.
    """

    name: str
    cost: Estimate
    colour: str
    whole: bool = False
    hollow: bool = False
    beside: bool = False


def token_costs_figure(comparison: Comparison) -> Figure:
    """What one more token of each kind costs, and the stages that it measurably goes to: ms per token with 95 %
    intervals, all on one logarithmic axis. Points, not bars: such an axis has no zero that a bar could begin at.
    """
    kinds = list(comparison.costs)
    groups = {kind: _rows(comparison.costs[kind], KIND_COLOURS[kind]) for kind in kinds}
    rows = [row for group in groups.values() for row in group]
    hollow = any(row.hollow for row in rows)
    note = "\n".join(
        [
            f"lines: 95 % intervals; large: the whole of generate(); small: stages whose part is told from 0"
            f"{_HOLLOW if hollow else ''}",
            comparison.break_even(),
            *_unmoved(comparison),
            *_about(comparison),
        ]
    )
    figure = new_figure(
        "What one more token costs",
        caption(comparison.provenance, n=_runs(comparison, kinds), unit="runs", note=note),
        width=6.6,
        height=0.6 + _PITCH * len(rows) + 0.1 * len(kinds),
        columns=1,
    )
    axes = figure.subplots()
    ends = [end for row in rows for end in (row.cost.low, row.cost.value, row.cost.high) if end > 0]
    low, high = min(ends, default=1e-3), max(ends, default=1.0)
    margin = (high / low) ** 0.06 * 1.3
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    place = 0.0
    for group in groups.values():
        for row in group:
            _draw_row(axes, place, row)
            place += 1
        place += 0.25
    axes.set(ylim=(place - 0.85, -0.75), yticks=[], xlabel="ms per further token (log scale)")
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    plain_log_ticks(axes.xaxis)
    return figure


def _rows(cost: TokenCost, colour: str) -> list[Row]:
    """The whole, that with outliers pulled in and without first times, and the stages that a cost goes to."""
    found = [Row(name=f"One more {KINDS[cost.kind].unit}", cost=cost.cost, colour=colour, whole=True)]
    found.append(Row(name=_PULLED_IN, cost=cost.cost_robust, colour=colour, whole=True, beside=True))
    if cost.cost_unflagged is not None:
        without = Row(name=_FIRST_TIMES, cost=cost.cost_unflagged, colour=colour, whole=True, hollow=True, beside=True)
        found.append(without)
    stages = {name: cost.stages[name].slope for name in TOTAL_PARTS if name in cost.stages}
    return found + [
        Row(name=stage_label(name), cost=slope, colour=stage_colour(name))
        for name, slope in stages.items()
        if slope.excludes_zero and abs(slope.value) >= _LEAST_PART * abs(cost.cost.value)
    ]


def _unmoved(comparison: Comparison) -> list[str]:
    """Stages that are not drawn, a line a kind."""
    said = []
    for kind, cost in comparison.costs.items():
        drawn = {row.name for row in _rows(cost, "")}
        rest = [stage_label(name) for name in TOTAL_PARTS if name in cost.stages and stage_label(name) not in drawn]
        if rest:
            said.append(f"{KINDS[kind].unit}: no measurable part, or below 2 %: {', '.join(rest)}")
    return said


def _draw_row(axes: Axes, place: float, row: Row) -> None:
    """A point with its interval, its name and numbers above it; what is not told from 0 is a dashed line."""
    cost, colour, size = row.cost, row.colour, dot(6.5 if row.whole else 4.5)
    inside = f"{digits(cost.value)} ms ({span(cost.low, cost.high)})"
    left, _ = axes.get_xlim()
    if cost.low > 0:
        axes.hlines(place, cost.low, cost.high, color=colour, linewidth=dot(2.2 if row.whole else 1.4))
        face = "white" if row.hollow else colour
        axes.plot(cost.value, place, "o", color=colour, markersize=size, markerfacecolor=face)
        text = inside
    elif cost.high > 0:
        axes.hlines(place, left, cost.high, color=colour, linewidth=dot(2.2), linestyle=(0, (2, 2)))
        axes.plot(cost.high, place, "|", color=colour, markersize=dot(10), markeredgewidth=dot(2))
        text = f"not told from 0, at most {digits(cost.high, 2)} ms"
    else:
        axes.plot(left, place, "<", color=colour, markersize=size, clip_on=False)
        text = f"faster: {inside}"
    indent = "" if row.whole and not row.beside else "   "
    axes.text(
        0, place - 0.22, f"{indent}{row.name}: {text}", transform=axes.get_yaxis_transform(), ha="left", va="bottom",
        fontsize=pt(8.5 if row.whole else 8), color=INK if row.whole else MUTED,
    )  # fmt: skip


def _runs(comparison: Comparison, kinds: Sequence[str]) -> int:
    return sum(comparison.costs[kind].total.linear.rows for kind in kinds)


def _about(comparison: Comparison) -> list[str]:
    """For each kind: how many runs its sweep has, from where to where, and what was held fixed."""
    said = []
    for cost in comparison.costs.values():
        total = cost.total
        unit = X_LABELS.get(total.slice.x, total.slice.x)
        runs = f"{count(total.linear.rows, 'run')} at {plain(total.low)} to {plain(total.high)} {unit}"
        said.append("; ".join(words for words in (runs, about(total.slice)) if words))
    return said


def break_even_figure(comparison: Comparison) -> Figure:
    """Pairs (vision or prompt tokens, output tokens) that cost the same time, with 95 % bands."""
    others = [k for k in ("vision", "prompt") if k in comparison.costs and comparison.ratio("output", k).value > 0]
    kinds = [*others, "output"]
    words = "bands: 95 % intervals; n: all runs that the costs come from"
    if any(comparison.ratio_unflagged("output", kind) is not None for kind in others):
        words += "; dashed: without the runs flagged for doing something for the first time"
    note = "\n".join([words, *_about(comparison)])
    text = caption(comparison.provenance, n=_runs(comparison, kinds), unit="runs", note=note)
    figure = new_figure("Where tokens break even", text, width=6.6, height=3.6, columns=1)
    axes = figure.subplots()
    most = max(comparison.costs[k].total.high for k in others) if others else 1.0
    grid = np.linspace(0, most, 100)
    for kind in others:
        ratio = comparison.ratio(kind, "output")
        colour = KIND_COLOURS[kind]
        axes.plot(grid, grid * ratio.value, color=colour, label=_break_even_label(comparison, kind))
        if ratio.bounded:
            axes.fill_between(
                grid, grid * max(ratio.low, 0.0), grid * ratio.high, color=colour, alpha=0.18, linewidth=0
            )
        _draw_break_even_unflagged(axes, grid, comparison, kind)
    further = f"{KINDS[others[0]].unit}s" if len(others) == 1 else "input tokens"
    axes.set(xlabel=f"Further {further}", ylabel="Output tokens of equal time", xlim=(0, most))
    axes.set_ylim(bottom=0)
    plain_ticks(axes.xaxis, axes.yaxis)
    if others:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, handlelength=1.6)
    return figure


def _draw_break_even_unflagged(axes: Axes, grid: NDArray[np.float64], comparison: Comparison, kind: str) -> None:
    """The same line without runs that did something for the first time, dashed."""
    line, said = comparison.ratio_unflagged(kind, "output"), comparison.ratio_unflagged("output", kind)
    if line is None or said is None or not said.bounded:
        return
    label = f"… without first times = {digits(said.value)} ({interval(said.low, said.high)})"
    axes.plot(grid, grid * line.value, color=KIND_COLOURS[kind], linestyle=(0, (4, 2)), label=label)


def _break_even_label(comparison: Comparison, kind: str) -> str:
    ratio = comparison.ratio("output", kind)
    if not ratio.bounded:
        return f"{KINDS[kind].unit}s (not bounded)"
    inside = f"({interval(ratio.low, ratio.high)})"
    robust = comparison.ratio_robust("output", kind).short()
    return f"1 output token = {digits(ratio.value)} {KINDS[kind].unit}s {inside}\n{_PULLED_IN}: {robust}"


def models_figure(comparisons: Sequence[Comparison]) -> Figure:
    """Break-even of several models side by side: vision tokens that one output token costs."""
    figure = new_figure("Vision tokens that one output token costs", "", width=6.6, height=0.7 + 0.4 * len(comparisons))
    axes = figure.subplots()
    names: list[str] = []
    for place, comparison in enumerate(reversed(comparisons)):
        ratio = comparison.ratio("output", "vision")
        names.append(_model_label(comparison.provenance))
        axes.plot(ratio.value, place, "o", color=SERIES[0])
        if ratio.bounded:
            axes.hlines(place, ratio.low, ratio.high, color=SERIES[0])
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="vision tokens (95 % interval)")
    values = [c.ratio("output", "vision").value for c in comparisons]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    else:
        axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    return figure


def _model_label(provenance: Mapping[str, Any]) -> str:
    device = provenance.get("device") or {}
    return f"{model_name(provenance)}\n{device.get('name', '')}"

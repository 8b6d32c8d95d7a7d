"""What tokens cost against each other, where the cost goes, and where they break even."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from vlmbench.analysis.regression import Estimate
from vlmbench.analysis.slices import KINDS, X_LABELS
from vlmbench.analysis.token_costs import Comparison
from vlmbench.figures.panels import about, stage_colour, stage_label
from vlmbench.figures.style import pt
from vlmbench.figures.theme import INK, MUTED, SERIES, caption, model_name, new_figure
from vlmbench.schema import TOTAL_PARTS
from vlmbench.text import count, digits, interval, percent, plain, span

KIND_COLOURS: Mapping[str, str] = {"vision": SERIES[0], "prompt": SERIES[4], "output": SERIES[2]}

_WIDEST = 1.0  # how far an axis of shares reaches below 0 and above 1
_HOLLOW = " Hollow: without the runs flagged for doing something for the first time."
_PITCH = 0.24  # inches a row of the shares


def token_costs_figure(comparison: Comparison) -> Figure:
    """Left: ms per token with 95 % intervals on a logarithmic axis. Right: how much of it goes to each stage."""
    kinds = list(comparison.costs)
    shares = {kind: _shares(comparison, kind) for kind in kinds}
    rows = sum(max(len(found), 1) + 1 for found in shares.values())
    hollow = any(cost.cost_unflagged is not None for cost in comparison.costs.values())
    note = "\n".join([f"{comparison.break_even()}{_HOLLOW if hollow else ''}", *_about(comparison)])
    figure = new_figure(
        "What one more token costs",
        caption(comparison.provenance, n=_runs(comparison, kinds), unit="runs", note=note),
        width=10.4,
        height=2.2 + _PITCH * max(rows, 4),
    )
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.0))
    _draw_costs(left, comparison, kinds)
    _draw_shares(right, shares)
    return figure


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


def _draw_costs(axes: Axes, comparison: Comparison, kinds: Sequence[str]) -> None:
    """Points, not bars: a logarithmic axis has no zero that a bar could begin at."""
    places = np.arange(len(kinds))[::-1]
    costs = [comparison.costs[kind].cost for kind in kinds]
    drawn = [*costs, *(without for kind in kinds if (without := comparison.costs[kind].cost_unflagged) is not None)]
    ends = [end for cost in drawn for end in (cost.low, cost.value, cost.high) if end > 0]
    low, high = min(ends, default=1e-3), max(ends, default=1.0)
    margin = (high / low) ** 0.08 * 1.5
    for place, kind, cost in zip(places, kinds, costs, strict=True):
        colour, at, inside = KIND_COLOURS[kind], cost.value, f"({interval(cost.low, cost.high)})"
        if cost.low > 0:
            axes.hlines(place, cost.low, cost.high, color=colour, linewidth=2.2)
            axes.plot(at, place, "o", color=colour, markersize=pt(7), markeredgecolor="white")
            text = f"{digits(at)} ms {inside}"
        elif cost.high > 0:
            at = cost.high  # from the left edge up to the most that the data allow
            axes.hlines(place, low / margin, at, color=colour, linewidth=2.2, linestyle=(0, (2, 2)))
            axes.plot(at, place, "|", color=colour, markersize=pt(12), markeredgewidth=2.2)
            text = f"not told from 0, at most {digits(at, 2)} ms"
        else:
            at, text = low, f"below 0: {digits(at)} ms {inside}"
        _draw_unflagged(axes, place, comparison, kind)
        # Above its point, towards the middle of the panel, where there is room for it.
        side = "left" if math.log(at / low) < math.log(high / low) / 2 else "right"
        axes.annotate(
            text, (at, place), xytext=(0, 10), textcoords="offset points", va="bottom", ha=side, fontsize=pt(8.5)
        )
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.5, len(kinds) - 0.3)
    axes.set_yticks(places, [f"{KINDS[k].unit}" for k in kinds])
    axes.set(xlabel="ms per further token (log scale; lines: 95 % intervals)")
    axes.set_title("Unit cost of T_total")


def _draw_unflagged(axes: Axes, place: float, comparison: Comparison, kind: str) -> None:
    """The cost without runs that did something for the first time, hollow below the main one."""
    cost = comparison.costs[kind].cost_unflagged
    if cost is None or cost.low <= 0:
        return
    below, colour = place - 0.16, KIND_COLOURS[kind]
    axes.hlines(below, cost.low, cost.high, color=colour, linewidth=1.2)
    axes.plot(cost.value, below, "o", color=colour, markersize=pt(6), markerfacecolor="white")


def _shares(comparison: Comparison, kind: str) -> list[tuple[str, Estimate]]:
    """Each stage with its share of the cost of a kind; none where the cost cannot be told from 0."""
    cost = comparison.costs[kind]
    if not cost.cost.excludes_zero:
        return []
    found = [(stage, cost.shares.get(stage)) for stage in TOTAL_PARTS]
    return [(stage, share) for stage, share in found if share is not None and math.isfinite(share.value)]


def _draw_shares(axes: Axes, shares: Mapping[str, list[tuple[str, Estimate]]]) -> None:
    """A bar and its interval a stage, from 0 to the right or, where a stage gets faster, to the left."""
    names: list[str] = []
    for kind, found in shares.items():
        axes.text(
            0, len(names), f"One more {KINDS[kind].unit}", va="center", fontsize=pt(8.5), fontweight="bold",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        names.append("")
        if not found:
            axes.text(
                0, len(names), "no measurable cost", va="center", fontsize=pt(8.5), color=MUTED,
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            names.append("")
        for stage, share in found:
            _share_row(axes, len(names), stage, share)
            names.append(stage_label(stage))
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    ends = [end for found in shares.values() for _, s in found for end in (s.low, s.value, s.high)]
    ends = [end for end in ends if math.isfinite(end)]
    # An interval much wider than the bars is cut: its ends stand beside it as numbers.
    axes.set_xlim(max(1.1 * min([-0.05, *ends]), -_WIDEST), min(1.1 * max([1.0, *ends]), 1 + _WIDEST))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("share of the cost (lines: 95 % intervals)")
    axes.set_title("Which stage it moves")
    axes.grid(visible=False, axis="y")


def _share_row(axes: Axes, place: int, stage: str, share: Estimate) -> None:
    axes.barh(place, share.value, color=stage_colour(stage), height=0.62)
    known = math.isfinite(share.low) and math.isfinite(share.high)
    if known:
        axes.hlines(place, share.low, share.high, color=INK, linewidth=1.3)
    inside = f" ({span(share.low, share.high, '%')})" if known else ""
    axes.annotate(
        f"{percent(share.value)}{inside}",
        (1, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=pt(8),
        annotation_clip=False,
    )


def break_even_figure(comparison: Comparison) -> Figure:
    """Pairs (vision or prompt tokens, output tokens) that cost the same time, with 95 % bands."""
    others = [k for k in ("vision", "prompt") if k in comparison.costs and comparison.ratio("output", k).value > 0]
    kinds = [*others, "output"]
    words = "bands: 95 % intervals; n: all runs that the costs come from"
    if any(comparison.ratio_unflagged("output", kind) is not None for kind in others):
        words += "; dashed: without the runs flagged for doing something for the first time"
    note = "\n".join([words, *_about(comparison)])
    text = caption(comparison.provenance, n=_runs(comparison, kinds), unit="runs", note=note)
    figure = new_figure("Where tokens break even", text, width=7.4, height=5.0)
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
    axes.set(xlabel="further input tokens", ylabel="further output tokens that take as long", xlim=(0, most))
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    if others:
        axes.legend(loc="upper left")
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
    return f"1 output token = {digits(ratio.value)} {KINDS[kind].unit}s ({interval(ratio.low, ratio.high)})"


def models_figure(comparisons: Sequence[Comparison]) -> Figure:
    """Break-even of several models side by side: vision tokens that one output token costs."""
    figure = new_figure("Vision tokens that one output token costs", "", width=7.0, height=1.4 + 0.4 * len(comparisons))
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    else:
        axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    return figure


def _model_label(provenance: Mapping[str, Any]) -> str:
    device = provenance.get("device") or {}
    return f"{model_name(provenance)}\n{device.get('name', '')}"

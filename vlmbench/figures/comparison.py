"""What tokens cost against each other, where the cost goes, and where they break even."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from vlmbench.analysis.breakdown import STAGES
from vlmbench.analysis.comparison import Comparison
from vlmbench.analysis.slices import KINDS
from vlmbench.figures.scaling import plus_minus, stage_colour, stage_label
from vlmbench.figures.theme import INK, MUTED, SERIES, caption, model_name, new_figure

KIND_COLOURS: Mapping[str, str] = {"vision": SERIES[0], "prompt": SERIES[4], "output": SERIES[2]}

_DARK = frozenset({"T_vision_encoder", "T_LLM_decode"})  # colours that dark text cannot be read on


def token_costs_figure(comparison: Comparison) -> Figure:
    """Left: ms per token with 95 % intervals on a logarithmic axis. Right: which stages the cost goes to."""
    kinds = list(comparison.costs)
    runs = sum(cost.total.linear.rows for cost in comparison.costs.values())
    text = caption(comparison.provenance, n=runs, unit="runs", note=comparison.break_even())
    figure = new_figure("What one more token costs", text, width=9.0, height=1.9 + 0.55 * len(kinds))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    _draw_costs(left, comparison, kinds)
    _draw_shares(right, comparison, kinds)
    return figure


def _draw_costs(axes: Axes, comparison: Comparison, kinds: Sequence[str]) -> None:
    places = np.arange(len(kinds))[::-1]
    known = [abs(comparison.costs[k].cost.value) for k in kinds if comparison.costs[k].cost.low > 0]
    floor = min(known, default=1e-3) / 10
    top = max(comparison.costs[k].cost.high for k in kinds)
    for place, kind in zip(places, kinds, strict=True):
        cost = comparison.costs[kind].cost
        text = f"{plus_minus(cost.value, (cost.high - cost.low) / 2)} ms"
        if cost.low > 0:
            axes.barh(place, cost.value - floor, left=floor, color=KIND_COLOURS[kind], height=0.55)
            axes.hlines(place, cost.low, cost.high, color=INK, linewidth=2.2)
        else:
            axes.barh(
                place, max(cost.high, floor) - floor, left=floor, color=KIND_COLOURS[kind], height=0.55, alpha=0.25
            )
            text = f"not told from 0, at most {cost.high:.2g} ms"
        axes.text(max(cost.high, floor) * 1.25, place, text, va="center", fontsize=8.5)
    axes.set_xscale("log")
    # Room on the right for the numbers; ticks only where there is something to read off.
    axes.set_xlim(floor, 10 ** (math.log10(top) + 0.6 * math.log10(top / floor)))
    axes.set_xticks([t for t in 10.0 ** np.arange(-8, 8) if floor <= t <= top * 3])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.5, len(kinds) - 0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_yticks(places, [f"{KINDS[k].unit}" for k in kinds])
    axes.set(xlabel="ms per further token (95 % interval)")
    axes.set_title("Unit cost of T_total")
    axes.grid(visible=False, axis="y")


def _draw_shares(axes: Axes, comparison: Comparison, kinds: Sequence[str]) -> None:
    places = np.arange(len(kinds))[::-1]
    drawn: list[str] = []
    for place, kind in zip(places, kinds, strict=True):
        if not comparison.costs[kind].cost.excludes_zero:
            axes.text(0.02, place, "no measurable cost", va="center", fontsize=8.5, color=MUTED)
            continue
        up = down = 0.0
        for stage in STAGES:
            share = comparison.costs[kind].shares.get(stage)
            if share is None or not math.isfinite(share.value):
                continue
            start = up if share.value >= 0 else down
            label = stage_label(stage) if abs(share.value) >= 0.02 and stage not in drawn else None
            drawn += [stage] if label else []
            axes.barh(place, share.value, left=start, color=stage_colour(stage), height=0.55, label=label)
            up, down = (up + share.value, down) if share.value >= 0 else (up, down + share.value)
            if share.value >= 0.12:
                axes.text(
                    start + share.value / 2,
                    place,
                    f"{share.value:.0%}",
                    color="white" if stage in _DARK else INK,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                )
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(kinds) - 0.5)
    axes.set_xlabel("share of the cost")
    axes.set_xlim(right=1.0 if axes.get_xlim()[1] < 1.05 else None)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title("Which stage it moves")
    axes.grid(visible=False, axis="y")
    if drawn:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def break_even_figure(comparison: Comparison) -> Figure:
    """Pairs (vision or prompt tokens, output tokens) that cost the same time, with 95 % bands."""
    others = [k for k in ("vision", "prompt") if k in comparison.costs and comparison.ratio("output", k).value > 0]
    figure = new_figure("Where tokens break even", caption(comparison.provenance), width=6.4, height=4.6)
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
    axes.set(xlabel="further input tokens", ylabel="further output tokens that take as long", xlim=(0, most))
    axes.set_ylim(bottom=0)
    if others:
        axes.legend(loc="upper left")
    return figure


def _break_even_label(comparison: Comparison, kind: str) -> str:
    ratio = comparison.ratio("output", kind)
    if not ratio.bounded:
        return f"{KINDS[kind].unit}s (not bounded)"
    return f"1 output token = {ratio.value:.3g} {KINDS[kind].unit}s ({ratio.low:.3g} to {ratio.high:.3g})"


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

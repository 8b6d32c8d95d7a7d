"""Latency figures: the distribution with the tail of nothing beside it, first token and gaps between tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vlmbench.analysis.distribution import QUANTILES, quantile_name
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.frames import TokenGaps, reference, sample_codes, values, workload
from vlmbench.analysis.quantiles import finite, quantiles
from vlmbench.figures.distributions import draw_ecdf, finish_ecdf, plain_ticks, quantile_table
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.style import pt
from vlmbench.figures.theme import (
    COMPONENT_COLOURS,
    DATASET_COLOUR,
    INK,
    MUTED,
    REFERENCE_COLOUR,
    SERIES,
    caption,
    new_figure,
    theme,
)
from vlmbench.text import count, ms

_GAPS_COLOUR = COMPONENT_COLOURS["T_LLM_decode"]
_ROOM = 0.76  # labels begin no further right than this share of the axis
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # keeps words readable over lines
WORDS = {
    "T_total": "generate() latency (T_total)",
    "T_request": "Request latency, image and text to text (T_request)",
}


def latency_distribution(frame: pd.DataFrame, provenance: Mapping[str, Any], metric: str = "T_total") -> Figure | None:
    """Histogram and ECDF of a latency with P50, P90, P95, P99 and their intervals, the repeated request beside it.

    Args:
        frame: all rows of a run.
        provenance: content of ``provenance.json``.
        metric: a column, ms.

    Returns:
        The figure; None if no measured run has the metric.
    """
    work, ref = workload(frame), reference(frame)
    groups = [
        ("Workload", values(work, metric), sample_codes(work), DATASET_COLOUR),
        ("One request, repeated", values(ref, metric), None, REFERENCE_COLOUR),
    ]
    groups = [group for group in groups if len(finite(group[1]))]
    if not groups:
        return None
    found = [quantiles(data, QUANTILES, clusters=codes) for _, data, codes, _ in groups]
    with theme():
        note = "Bars: 95 % intervals, dependence of runs included. Percentiles that n does not allow are left out."
        figure = new_figure(
            WORDS.get(metric, metric),
            caption(
                provenance,
                n=len(finite(groups[0][1])),
                unit="runs",
                effective=found[0][0].effective_n,
                note=note,
            ),
            width=9.0,
            height=6.6,
        )
        grid = figure.add_gridspec(2, len(groups))
        above = [figure.add_subplot(grid[0, column]) for column in range(len(groups))]
        for axes, (name, data, _, colour), estimates in zip(above, groups, found, strict=True):
            _histogram(axes, finite(data), estimates, colour, name)
        ends = np.array([axes.get_xlim() for axes in above])
        for axes in above:  # the widths are to be compared
            axes.set_xlim(ends[:, 0].min(), ends[:, 1].max())
        below = figure.add_subplot(grid[1, :])
        for (name, data, _, colour), estimates in zip(groups, found, strict=True):
            draw_ecdf(below, finite(data), estimates, colour, f"{name} (n = {len(finite(data)):,})")
        finish_ecdf(below, np.concatenate([finite(data) for _, data, _, _ in groups]), "Latency")
    return figure


def _bins(data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges between the extremes: bins by Freedman and Diaconis, not fewer than √n or 40 of them, at most 80."""
    low, high = float(data.min()), float(data.max())
    if low == high:
        half = abs(low) * 0.01 or 0.5
        return np.linspace(low - half, high + half, 11)
    width = 2 * float(np.subtract(*np.quantile(data, (0.75, 0.25)))) / len(data) ** (1 / 3)
    least = int(np.clip(np.sqrt(len(data)), 10, 40))
    number = int(np.clip((high - low) / width, least, 80)) if width > 0 else least
    return np.linspace(low, high, number + 1)


def _histogram(axes: Axes, data: NDArray[np.float64], estimates: list[Estimate], colour: str, name: str) -> None:
    sns.histplot(x=data, bins=_bins(data), color=colour, alpha=0.75, edgecolor="white", linewidth=0.4, ax=axes)
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.34)
    shown = [(q, e) for q, e in zip(QUANTILES, estimates, strict=True) if e.value is not None]
    for place, (q, estimate) in enumerate(shown):
        assert estimate.value is not None
        height = top * (1.28 - 0.075 * place)
        axes.plot([estimate.value] * 2, [0, height], color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [height] * 2, color=INK, linewidth=3, solid_capstyle="butt")
        axes.plot(estimate.value, height, "o", color=INK, markersize=pt(4), markeredgecolor="white")
        # Always right of the interval, so that each label stands beside its own; the axis is widened to hold it.
        last = estimate.high or estimate.value
        low, high = axes.get_xlim()
        axes.set_xlim(right=max(high, low + (last - low) / _ROOM))
        axes.annotate(
            f"{quantile_name(q).upper()} {ms(estimate.value)}",
            (last, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=pt(8),
            bbox=_PAPER,
        )
    axes.set(title=f"{name} (n = {len(data):,})", xlabel="Latency (ms)", ylabel="Runs")
    plain_ticks(axes)


def ttft_and_itl(frame: pd.DataFrame, gaps: TokenGaps, provenance: Mapping[str, Any]) -> Figure | None:
    """Time to the first token and the gaps between tokens: ECDFs, and their quantiles with intervals in a table.

    Args:
        frame: all rows of a run.
        gaps: token gaps of its workload.
        provenance: content of ``provenance.json``.

    Returns:
        The figure; None if no measured run has a first token's time.
    """
    work = workload(frame)
    lines = [
        ("TTFT", "From the request's start", SERIES[0]),
        ("TTFT_model", "From generate()'s start", SERIES[1]),
    ]
    lines = [line for line in lines if len(finite(values(work, line[0])))]
    if not lines:
        return None
    data = {metric: finite(values(work, metric)) for metric, _, _ in lines}
    found = {m: quantiles(values(work, m), QUANTILES, clusters=sample_codes(work)) for m in data}
    between = quantiles(gaps.values.astype(np.float64), QUANTILES, clusters=gaps.clusters) if len(gaps.values) else []
    rows = [(label, colour, found[metric]) for metric, label, colour in lines]
    rows += [("Between tokens", _GAPS_COLOUR, between)] if between else []
    with theme():
        note = "Markers and table: P50, P90, P95, P99 where n allows, with 95 % intervals"
        if between:
            note += "; those of gaps count whole requests, not tokens"
        figure = new_figure(
            "Time to first token, and between tokens",
            caption(
                provenance,
                n=len(work),
                unit="runs",
                effective=found[lines[0][0]][0].effective_n,
                note=sentences(note, output_tokens(work)),
            ),
            width=9.5,
            height=4.6 + 0.26 + 0.36 * len(rows),
        )
        grid = figure.add_gridspec(2, 2, height_ratios=[3.7, 0.26 + 0.36 * len(rows)])
        first, later = (figure.add_subplot(grid[0, column]) for column in (0, 1))
        for metric, label, colour in lines:
            draw_ecdf(first, data[metric], found[metric], colour, label)
        finish_ecdf(first, np.concatenate(list(data.values())), "Time to first token")
        first.set_title("First token ready (TTFT)")
        first.legend(loc="lower right")
        _gaps_panel(later, gaps, between)
        quantile_table(figure.add_subplot(grid[1, :]), rows)
    return figure


def _gaps_panel(axes: Axes, gaps: TokenGaps, found: list[Estimate]) -> None:
    axes.set_title("Between tokens (ITL)")
    if not found:
        say(axes, "No gaps:\nevery answer has one token")
        return
    data = gaps.values.astype(np.float64)
    draw_ecdf(axes, data, found, _GAPS_COLOUR, f"{count(len(data), 'gap')} of {count(gaps.requests, 'run')}")
    finish_ecdf(axes, data, "Time between tokens")
    axes.set_title("Between tokens (ITL)")
    axes.legend(loc="lower right")


def say(axes: Axes, words: str) -> None:
    """Words in an empty panel, instead of an axis without data."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    axes.grid(visible=False)

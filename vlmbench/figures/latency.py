"""Latency figures: the distribution with the tail of nothing beside it, first token and gaps between tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from vlmbench.analysis.distribution import QUANTILES, quantile_name
from vlmbench.analysis.load import TokenGaps
from vlmbench.analysis.numbers import count, ms, plain
from vlmbench.analysis.quantiles import Estimate, finite, quantiles
from vlmbench.analysis.rows import reference, sample_codes, values, workload
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

_MOST_STEPS = 2000  # points of an ECDF's line; more cannot be seen
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
        note = "Bars: 95 % intervals, order statistics. Percentiles that n does not allow are left out."
        figure = new_figure(
            WORDS.get(metric, metric),
            caption(provenance, n=len(finite(groups[0][1])), unit="runs", note=note),
            width=9.0,
            height=6.6,
        )
        grid = figure.add_gridspec(2, len(groups))
        for column, ((name, data, _, colour), estimates) in enumerate(zip(groups, found, strict=True)):
            _histogram(figure.add_subplot(grid[0, column]), finite(data), estimates, colour, name)
        below = figure.add_subplot(grid[1, :])
        for (name, data, _, colour), estimates in zip(groups, found, strict=True):
            _ecdf(below, finite(data), estimates, colour, f"{name} (n = {len(finite(data)):,})")
        _finish_ecdf(below, np.concatenate([finite(data) for _, data, _, _ in groups]), "Latency")
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
        axes.plot(estimate.value, height, "o", color=INK, markersize=4, markeredgecolor="white")
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
            fontsize=8,
            bbox=_PAPER,
        )
    axes.set(title=f"{name} (n = {len(data):,})", xlabel="Latency (ms)", ylabel="Runs")
    _plain_ticks(axes)


def _ecdf(axes: Axes, data: NDArray[np.float64], estimates: list[Estimate], colour: str, label: str) -> None:
    """A step line through all values, a marker with its interval at each quantile that n allows."""
    ordered = np.sort(data)
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_STEPS)).astype(int))
    # The first and last percent are kept whole, they are what the figure is about.
    edge = min(len(ordered) // 100, _MOST_STEPS)
    picked = np.unique(np.concatenate([picked, np.arange(edge), np.arange(len(ordered) - edge, len(ordered))]))
    axes.step(ordered[picked], (picked + 1) / len(ordered), where="post", color=colour, label=label)
    for q, estimate in zip(QUANTILES, estimates, strict=True):
        if estimate.value is None:
            continue
        axes.plot(estimate.value, q, "o", color=colour, markersize=4.5, markeredgecolor="white", zorder=3)
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [q, q], color=colour, linewidth=3.5, alpha=0.55, zorder=2)


def _name_quantiles(axes: Axes, estimates: list[Estimate], colour: str) -> None:
    """The values of P50 and the highest quantile right of their markers; the axis is widened to hold them."""
    shown = [(q, e.value) for q, e in zip(QUANTILES, estimates, strict=True) if e.value is not None]
    if not shown:
        return
    move = axes.transAxes.inverted().transform
    farthest = float(move(axes.transData.transform((max(value for _, value in shown), 0)))[0])
    if farthest > _ROOM:
        right = axes.transData.inverted().transform(axes.transAxes.transform((farthest / _ROOM, 0)))[0]
        axes.set_xlim(right=float(right))
    for q, value in dict.fromkeys([shown[0], shown[-1]]):
        axes.annotate(
            f"{quantile_name(q).upper()} {ms(value)}",
            (value, q),
            xytext=(9, -9),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
            bbox=_PAPER,
        )


def _finish_ecdf(axes: Axes, data: NDArray[np.float64], what: str) -> None:
    axes.set_yticks([0, 0.25, *QUANTILES], ["0", "25 %", *(f"{q * 100:g} %" for q in QUANTILES)])
    _spread_labels(axes)
    spread = float(data.max()) > 4 * float(data.min()) > 0
    if spread:
        axes.set_xscale("log")
    _plain_ticks(axes, log=spread)
    axes.set(
        title="Share of runs that took no longer", xlabel=f"{what} (ms{', log scale' if spread else ''})", ylabel=""
    )
    axes.legend(loc="lower right" if not spread else "upper left")
    axes.set_ylim(0, 1.03)


def _spread_labels(axes: Axes) -> None:
    """P95's and P99's labels would lie on each other: move P99's up, P90's down a little."""
    p90, _, p99 = axes.get_yticklabels()[-3:]
    p90.set_verticalalignment("top")
    p99.set_verticalalignment("bottom")


def _plain_ticks(axes: Axes, *, log: bool = False) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain(x)))
    if log:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def ttft_and_itl(frame: pd.DataFrame, gaps: TokenGaps, provenance: Mapping[str, Any]) -> Figure | None:
    """Time to the first token and the gaps between tokens, as ECDFs with quantiles and intervals.

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
    with theme():
        note = "Markers: P50, P90, P95, P99 where n allows, with 95 % intervals; gaps by resampling whole requests."
        figure = new_figure(
            "Time to first token, and between tokens",
            caption(provenance, n=len(work), unit="runs", note=note),
            width=9.5,
            height=4.6,
        )
        first, later = figure.subplots(1, 2)
        data = {metric: finite(values(work, metric)) for metric, _, _ in lines}
        found = {m: quantiles(values(work, m), QUANTILES, clusters=sample_codes(work)) for m in data}
        for metric, label, colour in lines:
            _ecdf(first, data[metric], found[metric], colour, label)
        _finish_ecdf(first, np.concatenate(list(data.values())), "Time to first token")
        for metric, _, colour in lines:
            _name_quantiles(first, found[metric], colour)
        first.set_title("First token ready (TTFT)")
        first.legend(loc="lower right")
        _gaps_panel(later, gaps)
    return figure


def _gaps_panel(axes: Axes, gaps: TokenGaps) -> None:
    if not len(gaps.values):
        say(axes, "No gaps:\nevery answer has one token")
        axes.set_title("Between tokens (ITL)")
        return
    data = gaps.values.astype(np.float64)
    colour = COMPONENT_COLOURS["T_LLM_decode"]
    label = f"{count(len(data), 'gap')} of {count(gaps.requests, 'run')}"
    found = quantiles(data, QUANTILES, clusters=gaps.clusters)
    _ecdf(axes, data, found, colour, label)
    _finish_ecdf(axes, data, "Time between tokens")
    _name_quantiles(axes, found, colour)
    axes.set_title("Between tokens (ITL)")
    axes.legend(loc="lower right")


def say(axes: Axes, words: str) -> None:
    """Words in an empty panel, instead of an axis without data."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    axes.grid(visible=False)

"""Latency figures: the distribution with the tail of nothing beside it, first token and gaps between tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vlmbench.analysis.distribution import QUANTILES, quantile_name
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.frames import TokenGaps, reference, sample_codes, values, workload
from vlmbench.analysis.quantiles import finite, quantiles
from vlmbench.figures.distributions import draw_longer, finish_longer, is_wide, label_quantiles
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.style import dot
from vlmbench.figures.theme import (
    COMPONENT_COLOURS,
    DATASET_COLOUR,
    MUTED,
    REFERENCE_COLOUR,
    SERIES,
    caption,
    new_figure,
    plain_ticks,
    theme,
)
from vlmbench.text import count, digits, span

_GAPS_COLOUR = COMPONENT_COLOURS["T_LLM_decode"]
_MARKS = ("o", "s", "D")
_PAGE_IN = 6.6
WORDS = {
    "T_total": "generate() latency (T_total)",
    "T_request": "Request latency, image and text to text (T_request)",
}


def latency_distribution(frame: pd.DataFrame, provenance: Mapping[str, Any], metric: str = "T_total") -> Figure | None:
    """How a latency spreads, workload and repeated request on one axis: above as shares of the runs, below as the share
    that takes longer, with P50, P90, P95, P99 and their intervals.

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
    every = np.concatenate([finite(data) for _, data, _, _ in groups])
    with theme():
        figure = new_figure(
            WORDS.get(metric, metric),
            caption(
                provenance,
                n=len(finite(groups[0][1])),
                unit="runs",
                effective=found[0][0].effective_n,
                note=sentences(
                    "above: histogram; below: share of the runs that take longer, dots: percentiles, bars: their 95 % "
                    "intervals, dependence of runs included",
                    "percentiles that n does not allow are left out",
                    *(f"{name}: {said}" for (name, *_), said in zip(groups, map(in_words, found), strict=True)),
                ),
            ),
            width=_PAGE_IN,
            height=4.6,
            columns=1,
        )
        shares, longer = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.5])
        bins = _bins(every)
        for (name, data, _, colour), solid in zip(groups, (True, False), strict=False):
            _histogram(shares, finite(data), bins, colour, f"{name} (n = {len(finite(data)):,})", solid=solid)
        for (_, data, _, colour), estimates, mark in zip(groups, found, _MARKS, strict=False):
            draw_longer(longer, finite(data), estimates, colour, mark)
        finish_longer(longer, every)
        if found[0]:
            label_quantiles(longer, found[0], groups[0][3])
        shares.set_ylabel("Runs (%)")
        shares.set_ylim(bottom=0)
        plain_ticks(shares.yaxis)
        longer.set_xlabel("Latency (ms" + (", log scale)" if longer.get_xscale() == "log" else ")"))
        shares.legend(loc="lower left", bbox_to_anchor=(0, 1), handlelength=1.4, borderaxespad=0.1)
        figure.align_ylabels([shares, longer])
    return figure


def _bins(data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges between the extremes, by Freedman and Diaconis, not fewer than √n or 40, at most 80; of equal ratio where
    the axis is logarithmic."""
    low, high = float(data.min()), float(data.max())
    if low == high:
        half = abs(low) * 0.01 or 0.5
        return np.linspace(low - half, high + half, 11)
    width = 2 * float(np.subtract(*np.quantile(data, (0.75, 0.25)))) / len(data) ** (1 / 3)
    least = int(np.clip(np.sqrt(len(data)), 10, 40))
    number = int(np.clip((high - low) / width, least, 80)) if width > 0 else least
    return np.geomspace(low, high, number + 1) if is_wide(data) else np.linspace(low, high, number + 1)


def _histogram(
    axes: Axes, data: NDArray[np.float64], bins: NDArray[np.float64], colour: str, name: str, *, solid: bool
) -> None:
    """Share of the runs in each bin, percent: filled, or as an outline for what is compared with it."""
    heights = 100 * np.histogram(data, bins)[0] / len(data)
    if solid:
        axes.stairs(heights, bins, fill=True, color=colour, alpha=0.5, label=name)
    else:
        axes.stairs(heights, bins, color=colour, linewidth=dot(1.4), label=name)


def in_words(estimates: Sequence[Estimate]) -> str:
    """``P50 616 ms (610–625 ms), P90 …``: the percentiles that n allows; why none, where it allows none."""
    said = [
        f"{quantile_name(q).upper()} {digits(e.value)} ms" + (f" ({inside})" if (inside := span(e.low, e.high)) else "")
        for q, e in zip(QUANTILES, estimates, strict=True)
        if e.value is not None
    ]
    return ", ".join(said) or "too few runs for a percentile"


def ttft_and_itl(frame: pd.DataFrame, gaps: TokenGaps, provenance: Mapping[str, Any]) -> Figure | None:
    """Time to the first token and the gaps between tokens on one axis: the share that takes longer, and percentiles.

    Args:
        frame: all rows of a run.
        provenance: content of ``provenance.json``.

    Returns:
        The figure; None if no measured run has a first token's time.
    """
    work = workload(frame)
    lines = [
        ("TTFT", "First token from the request", SERIES[0]),
        ("TTFT_model", "First token from generate()", SERIES[1]),
    ]
    lines = [line for line in lines if len(finite(values(work, line[0])))]
    if not lines:
        return None
    drawn = [
        (
            label,
            colour,
            finite(values(work, metric)),
            quantiles(values(work, metric), QUANTILES, clusters=sample_codes(work)),
        )
        for metric, label, colour in lines
    ]
    effective = drawn[0][3][0].effective_n
    if len(gaps.values):
        data = gaps.values.astype(np.float64)
        drawn.append(("Between tokens", _GAPS_COLOUR, data, quantiles(data, QUANTILES, clusters=gaps.clusters)))
    with theme():
        note = (
            "share of first tokens, and of gaps, that take longer; dots: percentiles that n allows, bars: their 95 % "
            "intervals"
        )
        if len(gaps.values):
            of = f"{count(len(gaps.values), 'gap')} of {count(gaps.requests, 'run')}"
            note += f"; {of}, percentiles of gaps count requests"
        else:
            note += "; no gaps between tokens: every answer has one token"
        figure = new_figure(
            "Time to first token, and between tokens",
            caption(
                provenance,
                n=len(work),
                unit="runs",
                effective=effective,
                note=sentences(
                    note, *(f"{label}: {in_words(found)}" for label, _, _, found in drawn), output_tokens(work)
                ),
            ),
            width=_PAGE_IN,
            height=3.3 + 0.2 * len(drawn),
            columns=1,
        )
        axes = figure.subplots()
        for (label, colour, data, found), mark in zip(drawn, _MARKS, strict=False):
            draw_longer(axes, data, found, colour, mark, label=f"{label}: {_few(found)}")
        finish_longer(axes, np.concatenate([data for _, _, data, _ in drawn]))
        axes.set_xlabel("Time (ms" + (", log scale)" if axes.get_xscale() == "log" else ")"))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), handlelength=1.4, borderaxespad=0.1)
    return figure


def _few(estimates: Sequence[Estimate]) -> str:
    """``P50 40.8, P95 46.3 ms``, without what n does not allow."""
    shown = {q: e.value for q, e in zip(QUANTILES, estimates, strict=True) if e.value is not None and q in (0.5, 0.95)}
    return (
        ", ".join(f"{quantile_name(q).upper()} {digits(v)}" for q, v in shown.items()) + " ms"
        if shown
        else "n too small"
    )


def say(axes: Axes, words: str) -> None:
    """Words in an empty panel, instead of an axis without data."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    axes.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    axes.grid(visible=False)

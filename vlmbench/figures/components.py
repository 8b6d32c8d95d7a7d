"""Component figures: which part eats the time, which part holds the parameters, how each stage spreads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from vlmbench.analysis.breakdown import component_table, parameter_table
from vlmbench.analysis.frames import reference, sample_codes, values, workload
from vlmbench.analysis.quantiles import needed
from vlmbench.figures.distributions import box_words, draw_box
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.style import pt
from vlmbench.figures.theme import caption, component_colour, component_label, new_figure, theme
from vlmbench.schema import DECODE_PARTS, HOST_PARTS, TOTAL_PARTS
from vlmbench.text import amount, ms, percent, plain

Parts = Sequence[tuple[str, float]]
"""(component, amount) in the order drawn."""

_INSIDE = 0.075  # a share below this has no room for its label


def _times(frame: pd.DataFrame) -> Parts:
    table = component_table(frame)
    table = table[table["part_of"] == "T_total"]
    return [(str(name), float(share)) for name, share in zip(table["component"], table["share"], strict=True)]


def component_pies(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """Two pies side by side: share of ``T_total`` by stage, share of the parameters by part.

    Returns:
        The figure; None if no measured run has stage times.
    """
    times = [(name, share) for name, share in _times(frame) if share > 0]
    if not times:
        return None
    table = parameter_table(provenance)
    sizes = [(str(name), float(share)) for name, share in zip(table["component"], table["share"], strict=True)]
    work = workload(frame)
    with theme():
        total = float(np.nanmean(values(work, "T_total")))
        figure = new_figure(
            "Which part eats the time, and which holds the parameters" if sizes else "Which part eats the time",
            caption(
                provenance,
                n=len(work),
                unit="runs",
                note=sentences(
                    "Shares of time: sum over all runs", "Wedges below 0.05 % are only listed", output_tokens(work)
                ),
            ),
            width=9.6 if sizes else 5.6,
            height=4.9,
        )
        panels = figure.subplots(1, 2 if sizes else 1, squeeze=False)
        _pie(panels[0, 0], times, f"{ms(total)}\nmean", "Time in generate() (T_total)")
        if sizes:
            _pie(panels[0, 1], sizes, f"{amount(int(table['parameters'].sum()))}\nparameters", "Parameters")
    return figure


def _pie(axes: Axes, parts: Parts, middle: str, title: str) -> None:
    drawn = [(name, share) for name, share in parts if share >= 0.0005]
    axes.pie(
        [share for _, share in drawn],
        colors=[component_colour(name) for name, _ in drawn],
        startangle=90,
        counterclock=False,
        wedgeprops={"width": 0.42, "edgecolor": "white", "linewidth": 1},
    )
    axes.text(0, 0, middle, ha="center", va="center", fontsize=pt(10))
    axes.set_title(title)
    axes.legend(
        handles=[
            Patch(color=component_colour(name), label=f"{component_label(name)}  {percent(share)}")
            for name, share in parts
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
        ncols=2,
        columnspacing=1.2,
        handlelength=1,
    )


def component_bars(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """Stacked bars: shares of time and parameters, then milliseconds of the mean, median-like and slowest requests.

    Returns:
        The figure; None if no measured run has stage times.
    """
    times = _times(frame)
    if not times:
        return None
    table = parameter_table(provenance)
    sizes = [(str(name), float(share)) for name, share in zip(table["component"], table["share"], strict=True)]
    shares = [("Time in generate()", times)] + ([("Parameters", sizes)] if sizes else [])
    absolute, work = _groups_in_ms(frame), workload(frame)
    entries = dict.fromkeys(
        (component_label(name), component_colour(name)) for _, parts in (*absolute, *shares) for name, _ in parts
    )
    with theme():
        figure = new_figure(
            "Which part eats the time",
            caption(provenance, n=len(work), unit="runs", note=sentences(output_tokens(work))),
            width=9.6,
            height=2.6 + 0.5 * (len(shares) + len(absolute)),
        )
        upper, lower = figure.subplots(2, 1, height_ratios=[len(shares), len(absolute)])
        _stacked(upper, shares, percent)
        upper.set(title="Shares", xlim=(0, 1))
        upper.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
        _stacked(lower, absolute, ms)
        lower.set(title="Mean time of a request's parts, from raw image to text", xlabel="Time (ms)")
        lower.set_xlim(0, 1.1 * lower.get_xlim()[1])
        figure.legend(
            handles=[Patch(color=colour, label=label) for label, colour in entries],
            loc="outside right upper",
            handlelength=1,
        )
    return figure


def _groups_in_ms(frame: pd.DataFrame) -> list[tuple[str, Parts]]:
    """Mean parts of all requests, of those around the median, of the slowest 5 %, and of the repeated request."""
    work = workload(frame)
    total = values(work, "T_total")
    low, high, slow = np.nanquantile(total, (0.4, 0.6, 0.95))
    groups = [(f"All ({len(work):,})", work)]
    if len(work) >= 20:
        middle, slowest = work[(total >= low) & (total <= high)], work[total >= slow]
        # Of few runs the slowest ones are no twentieth of anything but themselves.
        name = "Slowest 5 %" if len(work) >= needed(0.95) else "Slowest"
        groups += [(f"Middle fifth ({len(middle):,})", middle), (f"{name} ({len(slowest):,})", slowest)]
    again = reference(frame)
    if len(again):
        groups.append((f"One, repeated ({len(again):,})", again))
    return [(name, _mean_parts(rows)) for name, rows in groups]


def _mean_parts(rows: pd.DataFrame) -> Parts:
    order = (*HOST_PARTS[:2], *TOTAL_PARTS, HOST_PARTS[2])
    found = []
    for name in order:
        time = values(rows, name)
        if not np.isnan(time).all():
            found.append((name, float(np.nansum(time) / len(rows))))
    return found


def _stacked(axes: Axes, bars: Sequence[tuple[str, Parts]], words: Any) -> None:
    longest = max(sum(amount for _, amount in parts if amount > 0) for _, parts in bars)
    for row, (_, parts) in enumerate(bars):
        left = 0.0
        for name, length in parts:
            if length <= 0:  # a signed residual: too small to see, and a bar cannot run backwards
                continue
            axes.barh(
                row, length, left=left, color=component_colour(name), edgecolor="white", linewidth=0.8, height=0.62
            )
            if length / longest >= _INSIDE:
                axes.text(
                    left + length / 2, row, words(length), ha="center", va="center", fontsize=pt(8),
                    color=_readable(component_colour(name)),
                )  # fmt: skip
            left += length
        if words is ms:
            axes.annotate(ms(left), (left, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=pt(8))
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.01)


def _readable(colour: str) -> str:
    """Black or white, whichever stands out from the colour (relative luminance of WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.18 else "white"


def stage_distributions(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """How each stage's time spreads over the workload, on a log scale: boxes of the quartiles, whiskers to the widest
    percentile that n allows, or all runs where n is small.

    Returns:
        The figure; None if no measured run has stage times.
    """
    work = workload(frame)
    order = [*HOST_PARTS[:2], *(name for name in TOTAL_PARTS if name != "T_residual"), *DECODE_PARTS, HOST_PARTS[2]]
    parts = {name: values(work, name) for name in order}
    left_out = any((time <= 0).any() for time in parts.values())
    parts = {name: time[time > 0] for name, time in parts.items() if (time > 0).any()}
    if not any(name in TOTAL_PARTS for name in parts):
        return None
    requests = len(np.unique(sample_codes(work)))
    # Repeats of one sample are not independent of each other; one n for all, so that the caption holds for every box.
    n = min(requests if requests > 1 else len(work), *map(len, parts.values()))
    with theme():
        note = sentences(
            box_words(n), "Times of 0 or below have no place on a log scale" if left_out else "", output_tokens(work)
        )
        figure = new_figure(
            "How each stage spreads",
            caption(provenance, n=len(work), unit="runs", note=note),
            width=9.0,
            height=1.8 + 0.36 * len(parts),
        )
        axes = figure.subplots()
        for row, (name, time) in enumerate(parts.items()):
            draw_box(axes, row, time, component_colour(name), n)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xscale("log")
        axes.use_sticky_edges = False
        axes.margins(x=0.04)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain(x)))
        medians = [float(np.median(time)) for time in parts.values()]
        axes.set_yticks(
            range(len(parts)),
            [f"{component_label(name)}  {ms(middle)}" for name, middle in zip(parts, medians, strict=True)],
        )
        axes.set(xlabel="Time (ms, log scale); the number beside a name is its median", ylabel="")
    return figure

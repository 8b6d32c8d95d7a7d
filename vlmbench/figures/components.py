"""Component figures: which part eats the time, which part holds the parameters, how each stage spreads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vlmbench.analysis.breakdown import component_table, parameter_table
from vlmbench.analysis.frames import sample_codes, values, workload
from vlmbench.figures.distributions import box_words, draw_box
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.style import dot, pt, style
from vlmbench.figures.theme import caption, component_colour, component_label, new_figure, plain_log_ticks, theme
from vlmbench.schema import DECODE_PARTS, HOST_PARTS, TOTAL_PARTS
from vlmbench.text import amount, digits, ms, percent

Parts = Sequence[tuple[str, float]]
"""(component, amount) in the order drawn."""


def _times(frame: pd.DataFrame) -> Parts:
    table = component_table(frame)
    table = table[(table["part_of"] == "T_total") & table["share"].notna()]  # a whole of 0 has no shares
    return [(str(name), float(share)) for name, share in zip(table["component"], table["share"], strict=True)]


def component_pies(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """Two pies, beside each other where there is room: share of ``T_total`` by stage, of the parameters by part.

    Returns:
        The figure; None if no measured run has stage times above 0.
    """
    times = [(name, share) for name, share in _times(frame) if share > 0]
    if not times:
        return None
    table = parameter_table(provenance)
    sizes = [(str(name), float(share)) for name, share in zip(table["component"], table["share"], strict=True)]
    work = workload(frame)
    page = 9.6 if sizes else 5.6
    with theme():
        total = float(np.nanmean(values(work, "T_total")))
        rows = 2 if sizes and style().narrow(page) else 1
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
            width=page,
            height=4.0 * rows,
        )
        panels = figure.subplots(rows, 2 // rows if sizes else 1, squeeze=False).flat
        _pie(panels[0], times, f"{ms(total)}\nmean", "Time in generate() (T_total)")
        if sizes:
            _pie(panels[1], sizes, f"{amount(int(table['parameters'].sum()))}\nparameters", "Parameters")
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


def stage_distributions(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """How each stage's time spreads over the workload, on a log scale: boxes of the quartiles, whiskers to the widest
    percentile that n allows, or all runs where n is small.

    Returns:
        The figure; None if no measured run has stage times.
    """
    work = workload(frame)
    order = [*HOST_PARTS[:-1], *(name for name in TOTAL_PARTS if name != "T_residual"), *DECODE_PARTS, HOST_PARTS[-1]]
    parts = {name: values(work, name) for name in order}
    left_out = any((time <= 0).any() for time in parts.values())
    parts = {name: time[time > 0] for name, time in parts.items() if (time > 0).any()}
    if not any(name in TOTAL_PARTS for name in parts):
        return None
    requests = len(pd.unique(sample_codes(work)))
    # Repeats of one sample are not independent of each other; one n for all, so that the caption holds for every box.
    n = min(requests if requests > 1 else len(work), *map(len, parts.values()))
    with theme():
        note = sentences(
            box_words(n), "Times of 0 or below have no place on a log scale" if left_out else "", output_tokens(work)
        )
        figure = new_figure(
            "How each stage spreads",
            caption(provenance, n=len(work), unit="runs", note=note),
            width=6.6,
            columns=1,
            height=0.8 + 0.33 * len(parts),
        )
        axes = figure.subplots()
        for row, (name, time) in enumerate(parts.items()):
            draw_box(axes, row, time, component_colour(name), n)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xscale("log")
        axes.use_sticky_edges = False
        axes.margins(x=0.04)
        plain_log_ticks(axes.xaxis)
        medians = [float(np.median(time)) for time in parts.values()]
        axes.set_yticks(range(len(parts)), [component_label(name).partition(" (")[0] for name in parts])
        for row, middle in enumerate(medians):
            axes.annotate(
                digits(middle), (1, row), xycoords=axes.get_yaxis_transform(), xytext=(dot(26), 0),
                textcoords="offset points", va="center", ha="right", fontsize=pt(8), annotation_clip=False,
            )  # fmt: skip
        axes.annotate(
            "median", (1, -0.8), xycoords=axes.get_yaxis_transform(), xytext=(dot(26), 0), textcoords="offset points",
            va="bottom", ha="right", fontsize=pt(8), annotation_clip=False,
        )  # fmt: skip
        axes.set(xlabel="Time (ms, log scale)", ylabel="")
    return figure

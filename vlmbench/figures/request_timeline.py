"""The request at the median as it ran: its stages on a line, and how much of each the device worked beneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from vlmbench.analysis.frames import values, workload
from vlmbench.analysis.launch_bound import launch_table
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.stage_bars import first_token_parts, name_parts, readable, short_name
from vlmbench.figures.style import pt, style
from vlmbench.figures.theme import MUTED, caption, component_colour, new_figure, plain_ticks, theme
from vlmbench.schema import HOST_PARTS, TOTAL_PARTS
from vlmbench.text import count, digits, percent

Parts = Sequence[tuple[str, float]]

_WORKS, _WAITS = "#3C4249", "#E4E4E4"
_BAR, _LANE = 0.6, 0.36


def median_request(frame: pd.DataFrame) -> pd.Series | None:
    """The workload's run whose whole is nearest to the median; None without one that has stage times.

    The whole is ``T_request``, which is drawn; ``T_total`` where rows lack it.
    """
    rows = workload(frame)
    time = (
        values(rows, "T_request")
        if "T_request" in rows and rows["T_request"].notna().any()
        else values(rows, "T_total")
    )
    if np.isnan(time).all() or np.isnan(values(rows, "T_LLM_prefill")).all():
        return None
    found: pd.Series = rows.iloc[int(np.nanargmin(np.abs(time - np.nanmedian(time))))]
    return found


def busy_shares(frame: pd.DataFrame) -> dict[str, float]:
    """Stage (``T_…``) to the share of its time in which the device worked, from traced requests; empty without any."""
    table = launch_table(frame)
    return {
        f"T_{row['stage']}": float(row["busy_ms"]) / float(row["elapsed_ms"])
        for row in table.to_dict("records")
        if row["stage"] != "total" and row["elapsed_ms"] > 0
    }


def request_timeline(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """Stages of one request as they ran, the part before the first token enlarged, the device's work below each.

    Returns:
        The figure; None without a traced run on a device, or without stage times.
    """
    shares = busy_shares(frame)
    request = median_request(frame)
    if not shares or request is None:
        return None
    order = (*HOST_PARTS[:-1], *(name for name in TOTAL_PARTS if name != "T_residual"), HOST_PARTS[-1])
    parts = [(name, float(request[name])) for name in order if name in request and request[name] > 0]
    whole, before = sum(time for _, time in parts), first_token_parts(parts)
    traces = int(launch_table(frame)["traces"].max())
    with theme():
        room = style().room(8.0, 1)
        figure = new_figure(
            "One request: its stages, and the device beneath",
            caption(
                provenance,
                note=sentences(
                    f"request {request['sample_id']}, whose time is nearest to the median of "
                    f"{count(len(workload(frame)), 'run')}",
                    f"lower lane: dark: the share of each stage in which the device worked ({count(traces, 'trace')}), "
                    "hatched the share in which it waited; where in a stage it worked is not shown",
                    output_tokens(frame[frame.index == request.name]),
                ),
            ),
            width=8.0,
            height=1.15 + (1.75 if before else 0.0),
            columns=1,
        )
        axes = figure.subplots()
        letter = whole * 0.6 * pt(8) / 72 / (room * style().scale)
        axes.text(0, -0.42, f"One request at the median: {digits(whole)} ms", va="bottom", fontsize=pt(8))
        _lanes(axes, 0.0, parts, shares, 1.0)
        if not before:
            name_parts(axes, 1.05, parts, whole, letter)
            end = 2.8
        else:
            last, time = max(parts, key=lambda part: part[1])
            start = sum(t for _, t in before)
            name = short_name(last).replace("\n", " ")
            works = f"device works {percent(shares.get(last, 0.0), 2)}"
            for words in (f"{name}, {digits(time)} ms; {works}", f"{name}, {digits(time)} ms", f"{digits(time)} ms"):
                if len(words) * letter < 0.94 * time:
                    axes.text(
                        start + time / 2, 0, words, ha="center", va="center", fontsize=pt(8),
                        color=readable(component_colour(last)),
                    )  # fmt: skip
                    break
            axes.add_patch(Polygon([(0, 0.72), (start, 0.72), (whole, 1.35), (0, 1.35)], facecolor="#EEEEEA", zorder=0))
            axes.text(
                0.02 * whole, 1.05, f"up to the first token, {digits(start)} ms", va="center", fontsize=pt(8),
            )  # fmt: skip
            _lanes(axes, 1.68, before, shares, whole / start)
            name_parts(axes, 2.4, before, whole, letter)
            end = 4.0
        axes.set(xlim=(0, whole), ylim=(end, -1.0), yticks=[], xlabel="Time since the request began (ms)")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        plain_ticks(axes.xaxis)
    return figure


def _lanes(axes: Axes, row: float, parts: Parts, shares: Mapping[str, float], scale: float) -> None:
    """Stages in their colours, and beneath them the device: as high as its share of work, hatched above."""
    left, top = 0.0, row + _BAR / 2 + 0.04
    for part, time in parts:
        length = time * scale
        axes.barh(row, length, left=left, height=_BAR, color=component_colour(part), edgecolor="white", linewidth=0.5)
        works = float(np.clip(shares.get(part, 0.0), 0.0, 1.0))
        axes.barh(
            top,
            length,
            left=left,
            height=_LANE,
            align="edge",
            color=_WAITS,
            edgecolor=MUTED,
            hatch="/////",
            linewidth=0,
        )
        axes.barh(top + _LANE * (1 - works), length, left=left, height=_LANE * works, align="edge", color=_WORKS)
        left += length

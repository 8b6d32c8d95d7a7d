"""What a server gives under load: tokens a second per device against per user, first token against throughput.

Each function draws on the axes that it is given, so that figures of several runs can stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vlmbench.analysis.serving import frontier
from vlmbench.figures.panels import sentences
from vlmbench.figures.style import pt
from vlmbench.figures.theme import DATASET_COLOUR, INK, MUTED, caption, new_figure, plain_ticks, theme

_ROOM, _ROOM_RIGHT = 1.12, 1.22  # to the right the labels need it
_LEAST_POINTS = 2  # one load is no curve


def point_label(row: Mapping[str, Any]) -> str:
    """What distinguishes a load from the others: ``4 users``, ``2.5 a second``, other axes by name."""
    parts = []
    for name, value in row.items():
        if not str(name).startswith("axis_") or value is None or value != value:  # noqa: PLR0124  NaN
            continue
        axis = str(name).removeprefix("axis_")
        number = f"{value:g}" if isinstance(value, int | float) else str(value)
        words = {
            "load.concurrency": f"{number} user{'' if value == 1 else 's'}",
            "load.rate_per_s": f"{number} a second",
        }
        parts.append(words.get(axis, f"{axis}={number}"))
    return ", ".join(parts)


def draw_pareto(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw tokens a second per device against tokens a second per user, intervals on both axes, and the frontier.

    Args:
        table: of :func:`vlmbench.analysis.serving.serving_table`; ``doubt``, where it is there, says why a load is
            doubtful: it becomes a ring.
    """
    x, y = "tokens_per_s_user", "tokens_per_s_device"
    rows = table.dropna(subset=[x, y])
    _with_intervals(axes, rows, x, y)
    best = rows[frontier(rows)].sort_values(x)
    if len(best) > 1:
        axes.plot(best[x], best[y], color=DATASET_COLOUR, linewidth=1.2, label="frontier")
    axes.set_xlabel("Tokens a second per user")
    axes.set_ylabel("Tokens a second per device")
    _room(axes)
    return axes


def draw_ttft_throughput(axes: Axes, table: pd.DataFrame) -> Axes:
    """Draw the median time to first token against answers a second, with intervals on both axes.

    Args:
        table: of :func:`vlmbench.analysis.serving.serving_table`.
    """
    x, y = "requests_per_s", "TTFT_p50"
    rows = table.dropna(subset=[x, y]).sort_values(x)
    _with_intervals(axes, rows, x, y, beside="center")
    axes.set_xlabel("Answers a second")
    axes.set_ylabel("Time to first token, median (ms)")
    _room(axes)
    return axes


def pareto_figure(table: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """Make the Pareto figure of a run; None with fewer than two loads that have both values."""
    per_user = "Per user: 1000 / median time per output token (ms)"
    return _figure(table, provenance, "Tokens a second: a user's against the device's", draw_pareto, per_user)


def ttft_figure(table: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """Make the figure of TTFT against throughput; None with fewer than two loads that have both values."""
    return _figure(table, provenance, "First token against throughput", draw_ttft_throughput)


def _figure(table: pd.DataFrame, provenance: Mapping[str, Any], title: str, draw: Any, also: str = "") -> Figure | None:
    names = ["requests_per_s", "TTFT_p50"] if draw is draw_ttft_throughput else ["tokens_per_s_user", "tokens_per_s"]
    if not len(table) or len(table.dropna(subset=names)) < _LEAST_POINTS:
        return None
    note = sentences(
        "Bars: 95 % intervals; rates from blocks of time, medians from order statistics",
        "Names: arrivals a second" if "axis_load.rate_per_s" in table else "",
        f"Rings are doubtful: {told}" if (told := "; ".join(sorted({d for d in _doubt(table) if d}))) else "",
        also,
    )
    with theme():
        figure = new_figure(
            title, caption(provenance, n=int(table["requests"].sum()), note=note), width=5.2, height=3.4, columns=1
        )
        draw(figure.add_subplot(), table)
    return figure


def _doubt(table: pd.DataFrame) -> list[str]:
    """Why each load is doubtful; empty texts where it is not, or where nobody asked."""
    return [str(text) for text in table["doubt"]] if "doubt" in table else [""] * len(table)


def _with_intervals(axes: Axes, rows: pd.DataFrame, x: str, y: str, beside: Literal["left", "center"] = "left") -> None:
    """Points with their intervals on both axes and their labels, which begin at their point or stand over it: to the
    right of a point the next load's interval may begin, over it a line may come down. Doubtful loads are rings.
    """
    axes.errorbar(
        rows[x].to_numpy(dtype=np.float64),
        rows[y].to_numpy(dtype=np.float64),
        xerr=_reach(rows, x),
        yerr=_reach(rows, y),
        fmt="o",
        color=DATASET_COLOUR,
        ecolor=MUTED,
        elinewidth=1.0,
        capsize=2.0,
    )
    rings = rows[np.array([bool(text) for text in _doubt(rows)], dtype=bool)]
    axes.plot(rings[x], rings[y], "o", color=DATASET_COLOUR, markerfacecolor="white", zorder=4)
    for row in rows.to_dict("records"):
        top = row.get(f"{y}_high")
        axes.annotate(  # above its own interval, so that the next load's runs through no name
            point_label({str(k): v for k, v in row.items()}).replace(" a second", "/s"),
            (row[x], row[y] if top is None or top != top else max(top, row[y])),  # noqa: PLR0124  NaN
            xytext=(4 if beside == "left" else 0, 2),
            ha=beside,
            textcoords="offset points",
            fontsize=pt(8),
            color=INK,
        )


def _room(axes: Axes) -> None:
    """Both axes from 0, with room for labels at the far ends, and plain numbers."""
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlim(0, _ROOM_RIGHT * axes.get_xlim()[1])
    axes.set_ylim(0, _ROOM * axes.get_ylim()[1])


def _reach(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Distance of both interval ends from the values, shape (2, rows); 0 where there is no interval."""
    value, low, high = (
        rows[n].to_numpy(dtype=np.float64, na_value=np.nan) for n in (name, f"{name}_low", f"{name}_high")
    )
    reach: NDArray[np.float64] = np.nan_to_num(np.stack([value - low, high - value]))
    return reach

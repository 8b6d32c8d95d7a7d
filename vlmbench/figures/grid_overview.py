"""One figure over a collected grid: where each model's latency lies, and how it grows along the grid's axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import sample_codes
from vlmbench.analysis.quantiles import median
from vlmbench.figures.panels import sentences
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import SERIES, new_figure, plain_log_ticks, plain_ticks, save, theme
from vlmbench.schema import label_of
from vlmbench.text import digits, plain, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MOST_GROUPS = 24


def draw_overview(table: Path, directory: Path, *, note: str = "") -> tuple[Path, ...]:
    """Draw ``collected_latency``: one panel for each axis that varies, and one of latency by group of runs.

    Args:
        table: ``collected.parquet``.
        directory: where the PNG and PDF go.
        note: stands in the caption: how many runs are done.

    Returns:
        The files; none when no run was measured.
    """
    wanted = [
        "run", "point_id", "sample_id", "model", "weights", "device", "dtype", "runtime", "settings", "dataset",
        "sweep", "mode", "status", "T_total",
    ]  # fmt: skip
    names = _columns(table)
    axes_columns = [name for name in names if name.startswith("axis_")]
    frame = pd.read_parquet(table, columns=[n for n in wanted if n in names] + axes_columns)
    if "T_total" not in frame:
        return ()
    # the repeated single request is there for its own spread, not as a sample of the workload
    wanted_rows = (frame["status"] == "ok") & (frame["mode"] == "instrumented") & (frame["point_id"] != "reference")
    frame = frame[wanted_rows & frame["T_total"].notna()]
    if frame.empty:
        return ()
    frame = frame.assign(group=_groups(frame))
    with theme():
        return save(grid_figure(frame, axes_columns, note=note), directory, "collected_latency")


def grid_figure(frame: pd.DataFrame, axes_columns: Sequence[str], *, note: str = "") -> Figure:
    """One panel of medians by group for what was measured at one point, one for each axis that varies.

    A group that was measured along an axis has no one latency: it is drawn along that axis and not summed up.

    Args:
        frame: measured rows with a column ``group``.
        axes_columns: columns of the grid's axes.
    """
    swept = {group for name in axes_columns for group in _swept(frame, name)}
    parts = {name: _by_other_axes(frame, name, axes_columns) for name in axes_columns}
    along = {name: groups for name, part in parts.items() if (groups := _swept(part, name))}
    single = [str(name) for name in frame["group"].unique() if name not in swept]
    rows = min(len(single), _MOST_GROUPS)
    heights = [*([0.5 + 0.42 * rows] if single else []), *[2.6] * len(along)]
    left = sum(len(groups) - len(SERIES) for groups in along.values() if len(groups) > len(SERIES))
    figure = new_figure(
        "Latency over the grid",
        _caption(frame, sentences(*_how(bool(single), bool(along), len(single), left), note)),
        width=6.6,
        height=0.3 + sum(heights) + 0.3 * len(heights),
        columns=1,
    )
    panels = list(np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights)))
    if single:
        _by_group(panels.pop(0), frame[frame["group"].isin(single)])
    for panel, (name, groups) in zip(panels, along.items(), strict=True):
        _along(panel, parts[name], name, groups)
    return figure


def _by_other_axes(frame: pd.DataFrame, name: str, axes_columns: Sequence[str]) -> pd.DataFrame:
    """The rows along one axis, a group for each place on the axes that were turned together with it."""
    part = frame[frame[name].notna()]
    group = part["group"].astype(str)
    for other in axes_columns:
        if other != name and part[other].nunique() > 1:
            value = part[other].map(partial(_place, label_of(other)))
            group = group + value.astype(str)
    return part.assign(group=group)


def _place(label: str, value: Any) -> str:
    """Where rows stand on an axis, to put behind the name of their group; empty where they have no such axis."""
    if pd.isna(value):
        return ""
    return f", {label} {value if isinstance(value, str) else plain(float(value))}"


def _swept(frame: pd.DataFrame, name: str) -> list[str]:
    """The groups that were measured at more than one value of an axis."""
    counts = frame.dropna(subset=[name]).groupby("group", observed=True)[name].nunique()
    return [str(group) for group in counts[counts > 1].index]


def _how(single: bool, along: bool, groups: int, left: int) -> Iterator[str]:
    """How to read the panels, and what they leave out."""
    yield "points: medians; lines: their 95 % intervals, dependence of runs included"
    if single and groups > _MOST_GROUPS:
        yield f"shown: the fastest {_MOST_GROUPS} of {groups}"
    if along:
        yield "runs that were measured along an axis are drawn along it and have no one median"
    if left:
        yield f"{left} more groups have no colour of their own and are left out: see the table"


def _columns(table: Path) -> list[str]:
    from pyarrow import parquet

    return list(parquet.read_schema(table).names)


def _groups(frame: pd.DataFrame) -> Any:
    """What a reader calls a run: its model, and what else differs between the runs."""
    columns = [
        c for c in ("model", "weights", "dataset", "sweep", "runtime", "settings", "dtype", "device") if c in frame
    ]
    keep = [c for c in columns if c == "model" or frame[c].nunique(dropna=False) > 1]
    text = frame[keep[0]].astype(str)
    for column in keep[1:]:
        more = frame[column].astype(str)
        text = text + more.where(more == "", ", " + more)
    several = frame.groupby(text, observed=True)["run"].transform("nunique") > 1
    return text.where(~several, text + ", " + frame["run"].astype(str))  # unlike runs would become one median


def _caption(frame: pd.DataFrame, note: str) -> str:
    facts = []
    for column in ("device", "dtype", "runtime", "weights"):
        values = [str(v) for v in frame[column].dropna().unique()] if column in frame else []
        facts.append(" / ".join(values) + (" weights" if column == "weights" else ""))
    runs = frame["run"].nunique()
    line = " · ".join([*filter(None, facts), f"n = {len(frame):,} instrumented runs of requests in {runs:,} runs"])
    return f"{line}\n{note}" if note else line


def _by_group(axes: Axes, frame: pd.DataFrame) -> None:
    """Median and its interval, the name above, the fastest group first."""
    found = sorted(
        ((str(g), _median(rows)) for g, rows in frame.groupby("group", observed=True)), key=lambda p: p[1].value
    )
    shown = found[:_MOST_GROUPS]
    for place, (name, middle) in enumerate(shown):
        inside = span(middle.low, middle.high)
        if inside:
            axes.hlines(place, middle.low, middle.high, color=SERIES[0], alpha=0.5, linewidth=dot(4))
        axes.plot(middle.value, place, "o", color=SERIES[0], markersize=dot(5))
        text = f"{name}: {digits(middle.value)} ms" + (f" ({inside})" if inside else " (too few runs for an interval)")
        axes.text(0, place - 0.25, text, transform=axes.get_yaxis_transform(), va="bottom", fontsize=pt(8))
    axes.set(ylim=(len(shown) - 0.6, -0.8), yticks=[], xlabel="generate() (ms)")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    ends = [end for _, m in shown for end in (m.low or m.value, m.high or m.value)]
    if max(ends) > 10 * min(ends) > 0:
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
        axes.set_xlabel("generate() (ms, log scale)")
    else:
        axes.set_xlim(left=0)
        plain_ticks(axes.xaxis)


def _along(axes: Axes, frame: pd.DataFrame, name: str, groups: Sequence[str]) -> None:
    """Medians and their intervals along one axis of the grid, a line a group."""
    for colour, group in zip(SERIES, groups, strict=False):
        rows = frame[(frame["group"] == group) & frame[name].notna()]
        found = [(float(str(x)), _median(part)) for x, part in rows.groupby(name)]
        for x, middle in found:
            if middle.low is not None and middle.high is not None:
                axes.vlines(x, middle.low, middle.high, color=colour, alpha=0.5, linewidth=dot(3))
        axes.plot(
            [x for x, _ in found], [m.value for _, m in found], "o-", color=colour, label=group, markersize=dot(4)
        )
    axes.set_xlabel(label_of(name).capitalize())
    axes.set_ylabel("generate() (ms)")
    axes.set_ylim(bottom=0)
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)


def _median(rows: pd.DataFrame) -> Any:
    several = "sample_id" in rows and rows["sample_id"].nunique() > 1  # of one request the dependence of runs tells
    codes = sample_codes(rows) if several else None
    return median(rows["T_total"].to_numpy(dtype=float), clusters=codes)

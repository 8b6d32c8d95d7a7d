"""One figure over a collected grid: where each model's latency lies, and how it grows along the grid's axes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from vlmbench.figures.style import pt
from vlmbench.figures.theme import SERIES, new_figure, plain_log_ticks, save, theme
from vlmbench.schema import label_of
from vlmbench.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        "run",
        "point_id",
        "model",
        "weights",
        "device",
        "dtype",
        "runtime",
        "settings",
        "dataset",
        "sweep",
        "mode",
        "status",
        "T_total",
    ]
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
    varying = [name for name in axes_columns if frame[name].nunique() > 1]
    with theme():
        height = max(3.2, 0.28 * min(frame["group"].nunique(), _MOST_GROUPS) + 1.6)
        figure = new_figure(
            "Latency over the grid", _caption(frame, note), width=8.0, height=height + 3.0 * len(varying)
        )
        ratios = [height, *[3.0] * len(varying)]
        panels = np.atleast_1d(figure.subplots(1 + len(varying), 1, height_ratios=ratios))
        _by_group(panels[0], frame)
        for panel, name in zip(panels[1:], varying, strict=True):
            _along(panel, frame, name)
        figure.align_ylabels(panels[1:])
        return save(figure, directory, "collected_latency")


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
    return text


def _caption(frame: pd.DataFrame, note: str) -> str:
    facts = []
    for column in ("device", "dtype", "runtime", "weights"):
        values = [str(v) for v in frame[column].dropna().unique()] if column in frame else []
        facts.append(" / ".join(values) + (" weights" if column == "weights" else ""))
    runs = frame["run"].nunique()
    line = " · ".join([*filter(None, facts), f"n = {len(frame):,} instrumented runs of requests in {runs:,} runs"])
    return f"{line}\n{note}" if note else line


def _by_group(axes: Axes, frame: pd.DataFrame) -> None:
    """Median and 5–95 % range of T_total, the fastest group above."""
    lines = _quantiles(frame, "group").sort_values("median")
    shown = lines.iloc[:_MOST_GROUPS]
    places = np.arange(len(shown))
    axes.hlines(places, shown["low"], shown["high"], color=SERIES[0], alpha=0.5, linewidth=4)
    axes.plot(shown["median"], places, "o", color=SERIES[0])
    axes.set_yticks(places, [str(name) for name in shown.index])
    axes.invert_yaxis()
    if float(lines["high"].max()) > 20 * float(lines["low"].min()) > 0:
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
    axes.set_xlabel("T_total (ms): median, 5–95 %")
    left = f" (fastest {_MOST_GROUPS} of {len(lines)})" if len(lines) > len(shown) else ""
    axes.set_title("One generate() call" + left)


def _along(axes: Axes, frame: pd.DataFrame, name: str) -> None:
    """Median of T_total along one axis of the grid, a line a group."""
    present = frame[frame[name].notna()]
    for number, (group, rows) in enumerate(present.groupby("group", observed=True)):
        if number == len(SERIES):
            break
        medians = _quantiles(rows, name)
        x = medians.index.to_numpy(dtype=float)
        axes.fill_between(x, medians["low"], medians["high"], color=SERIES[number], alpha=0.15, linewidth=0)
        axes.plot(x, medians["median"], "o-", color=SERIES[number], label=str(group), markersize=pt(4))
    axes.set_xlabel(label_of(name).capitalize())
    axes.set_ylabel("T_total (ms)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.set_title("Median and 5–95 %, all other axes together")
    axes.legend()


def _quantiles(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    grouped = frame.groupby(by, observed=True)["T_total"]
    return pd.DataFrame({name: grouped.quantile(q) for name, q in (("low", 0.05), ("median", 0.5), ("high", 0.95))})

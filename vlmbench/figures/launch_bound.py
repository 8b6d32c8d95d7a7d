"""How much of each stage the device works, and how much of it waits for the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from vlmbench.analysis.launch import launch_table
from vlmbench.analysis.numbers import ms, percent
from vlmbench.figures.theme import INK, MUTED, caption, component_colour, component_label, new_figure, theme

_GAP = "#E4E4E4"
_TOTAL_COLOUR = "#4D4D4D"


def launch_bound_figure(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """One bar a stage, and one for the whole: left in ms, right as shares; the device's work in colour, the rest grey.

    Args:
        frame: rows with :data:`vlmbench.analysis.launch.COLUMNS`.
        provenance: content of ``provenance.json``.

    Returns:
        The figure; None without a traced run on a device.
    """
    table = launch_table(frame)
    if not len(table):
        return None
    with theme():
        n = int(table["n"].max())
        slower = float(table["elapsed_traced_ms"].iloc[-1] / table["elapsed_ms"].iloc[-1])
        note = f"Busy: kernels and copies of traced runs. Elapsed: untraced runs (tracing alone: {slower:.2f}×)."
        figure = new_figure(
            "Does the device work, or wait for the host?",
            caption(provenance, n=n, unit="traced request" if n == 1 else "traced requests", note=note),
            width=9.6,
            height=1.9 + 0.42 * len(table),
        )
        times, shares = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.15])
        for row, entry in enumerate(table.to_dict("records")):
            _bars(times, shares, row, entry)
        names = [_label(str(stage)) for stage in table["stage"]]
        times.set_yticks(range(len(table)), names)
        times.invert_yaxis()
        times.set(title="Time", xlabel="Time (ms)")
        times.set_xlim(0, 1.18 * float(table[["busy_ms", "elapsed_ms"]].to_numpy().max()))
        shares.set(title="Share of each stage", xlim=(0, 1))
        shares.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
        for axes in (times, shares):
            axes.grid(visible=False, axis="y")
        handles = [Patch(facecolor=_TOTAL_COLOUR, label="device busy"), _gap_patch("device waits (launch-bound)")]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, handlelength=1)
    return figure


def _label(stage: str) -> str:
    return "generate()" if stage == "total" else component_label(f"T_{stage}")


def _gap_patch(label: str) -> Patch:
    return Patch(facecolor=_GAP, edgecolor=MUTED, hatch="////", linewidth=0, label=label)


def _bars(times: Axes, shares: Axes, row: int, entry: Mapping[Any, Any]) -> None:
    stage, busy, elapsed = str(entry["stage"]), float(entry["busy_ms"]), float(entry["elapsed_ms"])
    colour = _TOTAL_COLOUR if stage == "total" else component_colour(f"T_{stage}")
    for axes, scale in ((times, 1.0), (shares, elapsed)):
        axes.barh(row, elapsed / scale, height=0.62, color=_GAP, edgecolor=MUTED, hatch="////", linewidth=0)
        axes.barh(row, busy / scale, height=0.62, color=colour)
    times.annotate(
        ms(elapsed), (max(busy, elapsed), row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
    )
    share = float(entry["launch_bound"])
    text = f"waits {percent(share)}"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
    shares.text(0.985, row, text, ha="right", va="center", fontsize=8, color=INK, bbox=box)

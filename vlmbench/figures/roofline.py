"""The roofline: what each stage achieves against what the device can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmbench.figures.panels import stage_colour, stage_label
from vlmbench.figures.style import pt
from vlmbench.figures.theme import INK, MUTED, caption, new_figure, plain_log_ticks
from vlmbench.machine.peaks import DevicePeaks


def roofline_figure(table: pd.DataFrame, provenance: Mapping[str, Any], peaks: DevicePeaks | None = None) -> Figure:
    """Achieved FLOP/s against arithmetic intensity, one point a sweep point and stage.

    Args:
        table: of :func:`vlmbench.analysis.floors.roofline_table`.
        provenance: of the run, for the caption.
        peaks: draws the roof; None leaves it out.
    """
    note = "FLOPs and the fewest bytes from the model's shapes; time includes launch gaps"
    if peaks is None:
        note = f"{note}; no roof: what this device can do at most is not known"
    if peaks is not None and peaks.source:
        note = f"{note}; peaks: {peaks.source}"
    text = caption(provenance, n=int(table["point_id"].nunique()), unit="points (medians)", note=note)
    figure = new_figure("Roofline of each stage", text, width=7.4, height=5.0)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte)", ylabel="achieved FLOP/s")
    for stage, part in table.groupby("stage", sort=False):
        axes.scatter(
            part["intensity"],
            part["flops_per_s"],
            color=stage_colour(str(stage)),
            s=30,
            edgecolor="white",
            linewidth=0.5,
            label=stage_label(str(stage)),
            zorder=3,
        )
    if peaks is not None:
        _draw_roof(axes, table, peaks)
    plain_log_ticks(axes.yaxis, si)
    plain_log_ticks(axes.xaxis)
    axes.legend(loc="lower right")
    return figure


def si(value: float) -> str:
    """``1.2 T``, ``350 G``: three digits and a prefix."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    if value >= 1000:  # in powers of ten otherwise
        return f"{value / 1000:.3g} k"
    return f"{value:.3g}"


def _draw_roof(axes: Axes, table: pd.DataFrame, peaks: DevicePeaks) -> None:
    ridge = peaks.flops_per_s / peaks.bytes_per_s  # from here on computing, not memory, is the limit
    low = min(float(table["intensity"].min()) / 2, ridge / 20)
    high = max(float(table["intensity"].max()) * 3, ridge * 6)
    grid = np.geomspace(low, high, 200)
    roof = np.minimum(grid * peaks.bytes_per_s, peaks.flops_per_s)
    axes.plot(grid, roof, color=INK, linewidth=1.6, zorder=2)
    axes.vlines(ridge, float(table["flops_per_s"].min()) / 3, peaks.flops_per_s, color=MUTED, ls=":", lw=1)
    axes.set_xlim(low, high)
    axes.set_ylim(float(table["flops_per_s"].min()) / 3, peaks.flops_per_s * 3)
    axes.annotate(
        f"compute: {si(peaks.flops_per_s)}FLOP/s",
        (high, peaks.flops_per_s),
        xytext=(-4, 5),
        textcoords="offset points",
        ha="right",
        fontsize=pt(8.5),
    )
    axes.annotate(
        f"memory: {si(peaks.bytes_per_s)}B/s",
        (low * 2, low * 2 * peaks.bytes_per_s),
        xytext=(12, -4),
        textcoords="offset points",
        fontsize=pt(8.5),
    )

"""What each stage achieves against what the device can do: the roofline, and shares of peak FLOP/s and bandwidth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmbench.analysis.derived import mbu, mfu
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.floors import STAGE_COSTS
from vlmbench.analysis.frames import sample_codes, values, workload
from vlmbench.analysis.quantiles import finite, median
from vlmbench.figures.panels import output_tokens, sentences, stage_colour, stage_label
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import (
    INK,
    MUTED,
    caption,
    component_colour,
    component_label,
    new_figure,
    plain_log_ticks,
    theme,
)
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.text import percent, span

_MARKS = ("o", "D", "s", "^")
_ON_EACH_OTHER = 0.15  # of the natural logarithm


def roofline_figure(table: pd.DataFrame, provenance: Mapping[str, Any], peaks: DevicePeaks | None = None) -> Figure:
    """Achieved FLOP/s against arithmetic intensity, one point a sweep point and stage.

    Args:
        table: of :func:`vlmbench.analysis.floors.roofline_table`.
        provenance: of the run, for the caption.
        peaks: draws the roof; None leaves it out.
    """
    note = "FLOPs and the fewest bytes from the model's shapes; time includes launch gaps; hollow: points on each other"
    if peaks is None:
        note = f"{note}; no roof: what this device can do at most is not known"
    elif peaks.source:
        note = f"{note}; peaks: {peaks.source}"
    points = int(table["point_id"].nunique())
    text = caption(provenance, n=points, unit="points (medians)", note=note)
    figure = new_figure("Roofline of each stage", text, width=6.6, height=3.7, columns=1)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte (log scale)", ylabel="Achieved FLOP/s (log scale)")
    axes.set_xlim(float(table["intensity"].min()) / 3, float(table["intensity"].max()) * 4)
    axes.set_ylim(float(table["flops_per_s"].min()) / 3, float(table["flops_per_s"].max()) * 4)
    if peaks is not None:
        _draw_roof(axes, table, peaks)
    for (stage, part), mark in zip(table.groupby("stage", sort=False), _MARKS, strict=False):
        _draw_stage(axes, str(stage), part, mark)
    plain_log_ticks(axes.yaxis, si)
    plain_log_ticks(axes.xaxis)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.3, columnspacing=1.0, borderaxespad=0.1
    )
    return figure


def _draw_stage(axes: Axes, stage: str, part: pd.DataFrame, mark: str) -> None:
    """The points of a stage; hollow where they lie on each other."""
    x, y = part["intensity"].to_numpy(dtype=float), part["flops_per_s"].to_numpy(dtype=float)
    together = len(part) > 1 and np.ptp(np.log(x)) < _ON_EACH_OTHER and np.ptp(np.log(y)) < 3 * _ON_EACH_OTHER
    colour = stage_colour(stage)
    axes.plot(
        x, y, mark, color=colour, markersize=dot(5.5), markeredgewidth=dot(0.9),
        markeredgecolor=colour if together else "white", markerfacecolor="none" if together else colour,
        label=stage_label(stage), zorder=3,
    )  # fmt: skip


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
    low = min(float(table["intensity"].min()) / 3, ridge / 20)
    high = max(float(table["intensity"].max()) * 3, ridge * 6)
    grid = np.geomspace(low, high, 200)
    roof = np.minimum(grid * peaks.bytes_per_s, peaks.flops_per_s)
    axes.plot(grid, roof, color=INK, linewidth=dot(1.6), zorder=2)
    bottom = min(float(table["flops_per_s"].min()) / 3, low * peaks.bytes_per_s)
    axes.vlines(ridge, bottom, peaks.flops_per_s, color=MUTED, ls=":", lw=dot(1))
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, peaks.flops_per_s * 4)
    axes.annotate(
        f"compute: {si(peaks.flops_per_s)}FLOP/s", (high, peaks.flops_per_s), xytext=(-2, 2.5),
        textcoords="offset points", ha="right", fontsize=pt(8.5),
    )  # fmt: skip
    upper = low**0.3 * ridge**0.7  # further down a narrow figure has no room for the words beside the slope
    axes.annotate(
        f"memory: {si(peaks.bytes_per_s)}B/s", (upper, upper * peaks.bytes_per_s), xytext=(-3, 2),
        textcoords="offset points", ha="right", va="bottom", fontsize=pt(8.5),
    )  # fmt: skip


_SHARES = {"T_vision_encoder": "MFU", "T_LLM_prefill": "MFU", "T_LLM_decode": "MBU"}


def device_use(frame: pd.DataFrame, peaks: DevicePeaks | None) -> dict[str, tuple[str, Estimate]]:
    """Stage to (``MFU`` or ``MBU``, median share of the peak with its interval); empty without peaks or costs.

    Args:
        frame: rows of a run with :data:`vlmbench.analysis.floors.COLUMNS`.
    """
    rows = workload(frame)
    found = {}
    for stage, kind in _SHARES.items():
        suffix = STAGE_COSTS[stage]
        work = values(rows, f"{'flops' if kind == 'MFU' else 'bytes'}_{suffix}")
        if peaks is None or not len(finite(values(rows, stage))) or not len(finite(work)):
            continue
        share = (mfu if kind == "MFU" else mbu)(rows, suffix, peaks)
        if len(finite(share)):
            found[stage] = (kind, median(share, clusters=sample_codes(rows)))
    return found


def device_use_figure(frame: pd.DataFrame, provenance: Mapping[str, Any], peaks: DevicePeaks | None) -> Figure | None:
    """A bar a stage from 0 to 100 % of the device's peak, with its interval.

    Returns:
        The figure; None where the device's peaks or the work of the stages are not known.
    """
    found = device_use(frame, peaks)
    if not found or peaks is None:
        return None
    work = workload(frame)
    source = peaks.source
    with theme():
        note = sentences(
            "bars: medians, lines: their 95 % intervals, dependence of runs included",
            "MFU: FLOPs of the model over what the device can do in that time, MBU: the fewest bytes that must move "
            "over what memory can move",
            f"peaks: {si(peaks.flops_per_s)}FLOP/s, {si(peaks.bytes_per_s)}B/s" + (f" ({source})" if source else ""),
            output_tokens(work),
        )
        figure = new_figure(
            "How much of the device each stage uses",
            caption(provenance, n=len(work), unit="runs", note=note),
            width=6.6,
            height=0.75 + 0.52 * len(found),
            columns=1,
        )
        axes = figure.subplots()
        for place, (stage, (kind, share)) in enumerate(found.items()):
            assert share.value is not None
            axes.barh(place, share.value, color=component_colour(stage), height=0.42)
            inside = span(share.low, share.high, "%")
            if share.low is not None and share.high is not None:
                axes.plot([share.low, share.high], [place] * 2, color=INK, linewidth=dot(2), solid_capstyle="butt")
            words = f"{component_label(stage)}: {kind} {percent(share.value)}" + (f" ({inside})" if inside else "")
            axes.text(0, place - 0.27, words, va="bottom", fontsize=pt(8))
        most = max(1.0, *(share.value or 0.0 for _, share in found.values()))  # above 100 %: a peak that is too low
        axes.set(xlim=(0, most), ylim=(len(found) - 0.6, -0.75), yticks=[], xlabel="Share of the device's peak")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    return figure

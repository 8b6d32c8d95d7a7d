"""How much of what the device can do each stage uses: encoder and prefill of its FLOP/s, decode of its bandwidth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vlmbench.analysis.derived import mbu, mfu
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.floors import STAGE_COSTS
from vlmbench.analysis.frames import sample_codes, values, workload
from vlmbench.analysis.quantiles import finite, median
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.roofline import si
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import INK, caption, component_colour, component_label, new_figure, theme
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.text import percent, span

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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    return figure

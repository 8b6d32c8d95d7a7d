"""How much of each stage the device works, and how much of it waits for the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch

from vlmbench.analysis.frames import measured
from vlmbench.analysis.launch_bound import launch_table, untraced_runs
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.style import pt
from vlmbench.figures.theme import INK, MUTED, caption, component_colour, component_label, new_figure, theme
from vlmbench.text import count, factor, ms, percent, span

_GAP = "#E4E4E4"
_TOTAL_COLOUR = "#4D4D4D"


def launch_bound_figure(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """One bar a stage, and one for the whole: above in ms, below as shares; the device's work in colour, the rest grey.

    Args:
        frame: rows with :data:`vlmbench.analysis.launch_bound.COLUMNS`.
        provenance: content of ``provenance.json``.

    Returns:
        The figure; None without a traced run on a device.
    """
    table = launch_table(frame)
    if not len(table):
        return None
    with theme():
        whole = table.iloc[-1].to_dict()
        traces = int(whole["traces"])
        figure = new_figure(
            "Does the device work, or wait for the host?",
            caption(provenance, n=traces, unit="trace" if traces == 1 else "traces", note=_words(frame, whole)),
            width=6.2,
            height=1.8 + 0.6 * len(table),
        )
        times, shares = figure.subplots(2, 1, sharey=True)
        for row, entry in enumerate(table.to_dict("records")):
            _bars(times, shares, row, entry)
        names = [_label(str(stage)) for stage in table["stage"]]
        times.set_yticks(range(len(table)), names)
        times.invert_yaxis()
        times.set(title="Time", xlabel="Time (ms)")
        times.set_xlim(0, 1.18 * float(table[["busy_ms", "elapsed_ms"]].to_numpy().max()))
        # More than all of it where the two clocks disagree: shown, not cut.
        shares.set(
            title="Share of each stage", xlim=(0, max(1.0, float((table["busy_ms"] / table["elapsed_ms"]).max())))
        )
        shares.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
        for axes in (times, shares):
            axes.grid(visible=False, axis="y")
        busy = tuple(Patch(facecolor=_colour(str(stage))) for stage in table["stage"])
        times.legend(  # beside the bars, where the words of the shares take room anyway
            handles=[busy, _gap_patch()],
            labels=["device busy", "device waits"],
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            handlelength=2.4,
        )
    return figure


def _words(frame: pd.DataFrame, whole: Mapping[Any, Any]) -> str:
    """What busy and elapsed times come from: traces and how far they were scaled, untraced runs.

    Args:
        whole: row ``total`` of the table.
    """
    traces, runs = whole["traces"], whole["untraced_runs"]
    busy = f"busy: kernels and copies of {count(traces, 'trace')}{_scaling(whole)}"
    shape = "the same shape" if traces == 1 else "the same shapes"
    elapsed = f"elapsed: {count(runs, 'untraced run')} of {shape}{', medians' if runs > traces else ''}"
    slower = factor(whole["elapsed_traced_ms"] / whole["elapsed_ms"])
    return sentences(busy, f"{elapsed} (tracing alone: {slower})", output_tokens(_untraced(frame)))


def _scaling(whole: Mapping[Any, Any]) -> str:
    """How far the decode of the traces was scaled; empty where they hold all of it."""
    traced, steps = whole["traced_steps"], whole["steps"]
    if pd.isna(traced) or pd.isna(steps) or not traced or traced == steps:
        return ""
    mean = " on average" if whole["traces"] > 1 else ""
    return f", decode traced for {traced:,.0f} of {steps:,.0f} steps{mean} and scaled to all"


def _untraced(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that stand for the traced requests without the trace."""
    watched = measured(frame)
    traced = measured(frame, "trace")[["point_id", "sample_id"]].drop_duplicates()
    parts = [untraced_runs(watched[watched["point_id"] == point], str(sample)) for point, sample in traced.to_numpy()]
    return pd.concat(parts)


def _colour(stage: str) -> str:
    return _TOTAL_COLOUR if stage == "total" else component_colour(f"T_{stage}")


def _label(stage: str) -> str:
    return "generate()" if stage == "total" else component_label(f"T_{stage}")


def _gap_patch() -> Patch:
    return Patch(facecolor=_GAP, edgecolor=MUTED, hatch="////", linewidth=0)


def _bars(times: Axes, shares: Axes, row: int, entry: Mapping[Any, Any]) -> None:
    stage, busy, elapsed = str(entry["stage"]), float(entry["busy_ms"]), float(entry["elapsed_ms"])
    colour = _colour(stage)
    for axes, scale in ((times, 1.0), (shares, elapsed)):
        axes.barh(row, elapsed / scale, height=0.62, color=_GAP, edgecolor=MUTED, hatch="////", linewidth=0)
        axes.barh(row, busy / scale, height=0.62, color=colour)
    times.annotate(
        ms(elapsed), (max(busy, elapsed), row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=pt(8)
    )
    inside = span(entry["launch_bound_low"], entry["launch_bound_high"], "%")
    # Beside the axis: on it, the words would cover the end of a bar.
    shares.annotate(
        f"waits {percent(float(entry['launch_bound']))}{f' ({inside})' if inside else ''}",
        (1, row),
        xycoords=shares.get_yaxis_transform(),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=pt(8),
        color=INK,
        annotation_clip=False,
    )

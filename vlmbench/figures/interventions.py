"""A method beside its baseline and its controls: what a request takes, and what each arm saves of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vlmbench.analysis.interventions import ArmResult, Saving
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import INK, MUTED, caption, new_figure, theme
from vlmbench.text import digits, percent, span

BASELINE, METHOD, CONTROL = "#9A9A9A", "#00704F", "#7CCBA9"
_METRIC = "T_total"


def interventions_figure(arms: Sequence[ArmResult], provenance: Mapping[str, Any]) -> Figure | None:
    """One row an arm: left the time of ``generate()``, right what it saves with its interval and what FLOPs promised.

    Args:
        arms: of one point of a sweep.
        provenance: content of ``provenance.json``.

    Returns:
        The figure; None where no arm was measured.
    """
    shown = [arm for arm in arms if _METRIC in arm.savings]
    if not shown:
        return None
    pairs = min(arm.pairs for arm in shown)
    note = "medians of paired differences, 95 % intervals; diamonds: the baseline's stage times × FLOPs saved"
    with theme():
        figure = new_figure(
            "What does the method save, and what would be as fast without it?",
            caption(provenance, n=pairs, unit="pairs an arm", note=note),
            width=11.0,
            height=1.2 + 0.42 * (len(shown) + 1),
        )
        times, savings = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.2])
        _times(times, shown)
        _savings(savings, shown)
        times.set_yticks(range(len(shown) + 1), ["baseline", *(_label(arm) for arm in shown)])
        times.invert_yaxis()
        figure.legend(
            handles=[
                Patch(facecolor=BASELINE),
                Patch(facecolor=METHOD),
                Patch(facecolor=CONTROL),
                Line2D([], [], marker="D", markerfacecolor="none", markeredgecolor=INK, linestyle="none"),
            ],
            labels=["baseline", "method", "control", "promised by FLOPs"],
            loc="outside upper right",
            ncols=4,
            handlelength=1.4,
        )
    return figure


def _label(arm: ArmResult) -> str:
    kernels = "\nkernel + tokens" if arm.unlike_kernels else ""
    name, opened, arguments = arm.label.partition(" (")  # arguments stand below the name: the panels need the room
    return f"{name}{chr(10) if opened else ''}{arguments.removesuffix(')')}{kernels}"


def _colour(arm: ArmResult) -> str:
    return METHOD if arm.role == "method" else CONTROL


def _times(axes: Axes, arms: Sequence[ArmResult]) -> None:
    baseline = arms[0].savings[_METRIC].baseline_ms
    values = [baseline, *(_time(arm.savings[_METRIC]) for arm in arms)]
    axes.barh(range(len(values)), values, height=0.62, color=[BASELINE, *map(_colour, arms)])
    for row, value in enumerate(values):
        axes.annotate(
            f"{digits(value)} ms", (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=pt(8)
        )
    axes.set(title="Time of generate()", xlabel="Time (ms)", xlim=(0, 1.22 * max(values)))
    axes.grid(visible=False, axis="y")


def _time(saving: Saving) -> float:
    return saving.baseline_ms - (saving.saved.value or 0.0)


def _savings(axes: Axes, arms: Sequence[ArmResult]) -> None:
    for row, arm in enumerate(arms, start=1):
        saving = arm.savings[_METRIC]
        value = saving.saved.value or 0.0
        low, high = saving.saved.low, saving.saved.high
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color=_colour(arm), linewidth=dot(2.2), solid_capstyle="butt")
        axes.plot(value, row, marker="o", color=_colour(arm), markersize=dot(6))
        if arm.promised_ms:
            promised = sum(arm.promised_ms.values())
            axes.plot(promised, row, marker="D", markerfacecolor="none", markeredgecolor=INK, markersize=dot(6))
        inside = span(low, high)
        share = percent(value / saving.baseline_ms) if saving.baseline_ms else ""
        axes.annotate(
            f"{digits(value)} ms, {share}" + (f" ({inside})" if inside else ""),
            (1, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=pt(8),
            color=INK,
            annotation_clip=False,
        )
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set(title="Saved of generate()", xlabel="Saved (ms)")
    axes.grid(visible=False, axis="y")

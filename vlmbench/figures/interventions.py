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
from vlmbench.figures.theme import INK, caption, new_figure, theme
from vlmbench.text import digits, percent, span

BASELINE, METHOD, CONTROL = "#9A9A9A", "#00704F", "#7CCBA9"
_METRIC = "T_total"


def interventions_figure(arms: Sequence[ArmResult], provenance: Mapping[str, Any]) -> Figure | None:
    """One bar an arm: the time of ``generate()`` with the interval of what it saves, and where FLOPs promised its end.

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
    common = _common(shown)
    note = "bars: the baseline's median less the median of paired differences, with its 95 % interval; diamonds: less "
    note += f"what FLOPs promised\n{', '.join(f'{name}={value}' for name, value in common.items())}"
    baseline = shown[0].savings[_METRIC].baseline_ms
    with theme():
        figure = new_figure(
            "What does the method save?",
            caption(provenance, n=pairs, unit="pairs an arm", note=note),
            width=5.2,
            height=0.7 + 0.45 * (len(shown) + 1),
            columns=1,
        )
        axes = figure.subplots()
        _bar(axes, 0, baseline, BASELINE, f"baseline: {digits(baseline)} ms")
        for row, arm in enumerate(shown, start=1):
            _arm(axes, row, arm, common)
        axes.axvline(baseline, color=BASELINE, linewidth=dot(1), zorder=0)
        axes.set(xlabel="Time of generate() (ms)", yticks=[], ylim=(len(shown) + 0.5, -0.8))
        longest = axes.get_xlim()[1]
        axes.set_xlim(0, longest if longest > 0 else 1.0)  # somewhere above 0 where all times are 0
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        kinds = [("method", Patch(facecolor=METHOD)), ("control", Patch(facecolor=CONTROL))]
        diamond = Line2D([], [], marker="D", markerfacecolor="white", markeredgecolor=INK, linestyle="none")
        seen = [*kinds[: 1 + any(arm.role == "control" for arm in shown)], ("promised by FLOPs", diamond)]
        axes.legend(
            handles=[handle for _, handle in seen],
            labels=[name for name, _ in seen],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.1,
            ncols=3,
            handlelength=1.2,
            fontsize=pt(8),
        )
    return figure


def _common(arms: Sequence[ArmResult]) -> dict[str, str]:
    """What all arms of the method have alike, its name first: a label need not say it."""
    methods = [{"method": arm.name, **_arguments(arm)} for arm in arms if arm.role == "method"]
    return {k: v for k, v in methods[0].items() if all(one.get(k) == v for one in methods)} if methods else {}


def _arguments(arm: ArmResult) -> dict[str, str]:
    return dict(part.split("=", 1) for part in arm.arguments.split(",") if "=" in part)


def _name(arm: ArmResult, common: Mapping[str, str]) -> str:
    """What tells an arm from the others: ``keep=0.5``, ``keep=0.5 selector=random``, ``downsample keep=0.5``."""
    own = [f"{name}={value}" for name, value in _arguments(arm).items() if name != "seed" and common.get(name) != value]
    return " ".join([*([] if arm.name == common.get("method") and own else [arm.name]), *own])


def _bar(axes: Axes, row: int, time: float, colour: str, words: str) -> None:
    axes.barh(row, time, height=0.36, color=colour)
    axes.text(0, row - 0.2, words, va="bottom", fontsize=pt(8), color=INK)


def _arm(axes: Axes, row: int, arm: ArmResult, common: Mapping[str, str]) -> None:
    saving = arm.savings[_METRIC]
    saved, low, high = saving.saved.value or 0.0, saving.saved.low, saving.saved.high
    inside = span(low, high) or "too few pairs to tell"
    share = f", {percent(saved / saving.baseline_ms)}" if saving.baseline_ms else ""
    words = f"{_name(arm, common)}: " + f"saves {digits(saved)} ms{share} ({inside})".replace("-", "−")
    kernels = "; kernel + tokens" if arm.unlike_kernels else ""
    _bar(axes, row, _time(saving), METHOD if arm.role == "method" else CONTROL, words + kernels)
    if low is not None and high is not None:
        ends = [saving.baseline_ms - high, saving.baseline_ms - low]
        axes.plot(ends, [row, row], color=INK, linewidth=dot(1.2), solid_capstyle="butt")
    if arm.promised_ms:
        end = saving.baseline_ms - sum(arm.promised_ms.values())
        axes.plot(
            end, row, marker="D", markerfacecolor="white", markeredgecolor=INK, markersize=dot(4.5),
            markeredgewidth=dot(1), linestyle="none",
        )  # fmt: skip


def _time(saving: Saving) -> float:
    return saving.baseline_ms - (saving.saved.value or 0.0)

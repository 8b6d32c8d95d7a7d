"""Two runs against each other: each time of the candidate over the baseline's, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmbench.analysis.compare import Change, StageChange
from vlmbench.figures.interventions import BASELINE, METHOD
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import INK, caption, new_figure, theme
from vlmbench.text import factor


def comparison_figure(
    changes: Sequence[StageChange], provenance: Mapping[str, Any], *, threshold: float, requests: int
) -> Figure:
    """One row a time: the ratio with its 95 % interval in green, the baseline as a grey line at 1.

    Args:
        changes: at least one.
        threshold: share by which a time may be longer; a dotted line.
    """
    note = "filled: a difference (95 %, corrected for the number of times); hollow: none told; dotted: the threshold"
    with theme():
        figure = new_figure(
            "Candidate over baseline",
            caption(provenance, n=requests, unit="requests of both", note=note),
            width=5.2,
            height=0.75 + 0.26 * len(changes),
            columns=1,
        )
        axes = figure.subplots()
        axes.axvline(1, color=BASELINE, linewidth=dot(2))
        axes.axvline(1 + threshold, color=BASELINE, linewidth=dot(1), linestyle=":")
        for row, change in enumerate(changes):
            _draw(axes, row, change)
        axes.set_yticks(range(len(changes)), [change.metric for change in changes])
        axes.set_ylim(len(changes) - 0.5, -0.5)
        axes.set_xlabel("Ratio of times (below 1: faster)")
        axes.grid(visible=False, axis="y")
    return figure


def _draw(axes: Axes, row: int, change: StageChange) -> None:
    ratio = change.ratio
    if ratio.value is None:
        return
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [row, row], color=METHOD, linewidth=dot(2), solid_capstyle="butt")
    face = METHOD if change.change in (Change.FASTER, Change.SLOWER) else "white"
    axes.plot(ratio.value, row, "o", color=METHOD, markerfacecolor=face, markersize=dot(5), markeredgewidth=dot(1.2))
    axes.annotate(
        factor(ratio.value) if ratio.low is not None else f"{factor(ratio.value)}, no interval",
        (1, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=pt(8),
        color=INK,
        annotation_clip=False,
    )

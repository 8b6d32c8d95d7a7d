"""Boxes of quartiles that claim no more than n allows: whiskers to the widest percentile, or the runs themselves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vlmbench.analysis.quantiles import needed
from vlmbench.figures.theme import INK
from vlmbench.text import count

_PERCENTILES = (0.99, 0.95, 0.90)
_MOST_POINTS = 500  # runs beyond the whiskers that one box shows


def widest(n: int) -> float | None:
    """The highest of P99, P95 and P90 that so many independent observations allow (95 %, two-sided); None below 36."""
    return next((q for q in _PERCENTILES if n >= needed(q)), None)


def box_words(n: int) -> str:
    """How to read boxes of so many independent requests."""
    q = widest(n)
    if q is not None:
        low, high = f"P{100 - 100 * q:.0f}", f"P{100 * q:.0f}"
        return (
            f"Box: quartiles. Ring: median. Whiskers: {low} and {high}, the widest percentiles that "
            f"{count(n, 'request')} allow. Points: runs beyond them."
        )
    if n >= needed(0.75):
        return f"Box: quartiles. Ring: median. Points: all runs ({count(n, 'request')}: too few for P10 and P90)."
    return f"Ring: median. Points: all runs ({count(n, 'request')}: too few for quartiles)."


def draw_box(axes: Axes, row: int, time: NDArray[np.float64], colour: str, n: int) -> None:
    """One horizontal box (seaborn 0.13's own warns on matplotlib 3.11).

    Args:
        axes: with rows of height 1, downwards.
        row: where.
        time: all runs, ms.
        colour: of the box.
        n: independent requests behind the runs: they decide what is drawn.
    """
    q = widest(n)
    beside = time
    if q is not None:
        low, high = np.quantile(time, (1 - q, q))
        axes.plot([low, high], [row, row], color=colour, linewidth=1.4, zorder=2)
        axes.vlines([low, high], row - 0.14, row + 0.14, color=colour, linewidth=1.4)
        beside = time[(time < low) | (time > high)]
    if n >= needed(0.75):
        first, third = np.quantile(time, (0.25, 0.75))
        height = 0.56 if q is not None else 0.36
        # The edge keeps a box visible that is narrower than a line.
        axes.barh(row, third - first, left=first, height=height, color=colour, edgecolor=colour, linewidth=2, zorder=3)
    axes.plot(np.median(time), row, "o", color="white", markeredgecolor=INK, markersize=5, zorder=4)
    ordered = np.sort(beside)  # thinned where they are many, the extremes always kept
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_POINTS)).astype(int))
    level = row if q is not None else row + 0.36
    axes.plot(
        ordered[picked], np.full(len(picked), level), ".", color=colour, markersize=4, alpha=0.6, markeredgewidth=0,
        rasterized=True,
    )  # fmt: skip

"""Distributions as step lines of what takes longer, with the percentiles that n allows, and as boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vlmbench.analysis.distribution import QUANTILES, quantile_name
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.quantiles import needed
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import INK, plain_log_ticks, plain_ticks
from vlmbench.text import count, digits

_MOST_STEPS = 2000  # points of a step line; more cannot be seen
_WIDE = 3.0  # data that span more than this factor get a logarithmic axis


def is_wide(data: NDArray[np.float64]) -> bool:
    """Whether data need a logarithmic axis to be told apart."""
    return float(data.max()) > _WIDE * float(data.min()) > 0


def draw_longer(
    axes: Axes,
    data: NDArray[np.float64],
    estimates: Sequence[Estimate],
    colour: str,
    mark: str,
    *,
    label: str | None = None,
) -> None:
    """The share of runs that take longer than a time, as a step line; a mark with its interval at each percentile that
    n allows. Every run is a step: the slowest one lies at 1/n.
    """
    ordered = np.sort(data)
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_STEPS)).astype(int))
    # The last percent is kept whole, it is what the figure is about.
    tail = min(len(ordered) // 100, _MOST_STEPS)
    picked = np.unique(np.concatenate([picked, np.arange(len(ordered) - tail, len(ordered))]))
    share = 1 - picked / len(ordered)  # of runs that take at least as long
    axes.step(ordered[picked], share, where="pre", color=colour, label=label)
    for q, estimate in zip(QUANTILES, estimates, strict=True):
        if estimate.value is None:
            continue
        if estimate.low is not None and estimate.high is not None:
            axes.plot(
                [estimate.low, estimate.high], [1 - q] * 2, color=colour, linewidth=dot(3.5), alpha=0.45, zorder=2
            )
        axes.plot(estimate.value, 1 - q, mark, color=colour, markersize=dot(4.5), markeredgecolor="white", zorder=3)


def finish_longer(axes: Axes, data: NDArray[np.float64]) -> None:
    """Scales and ticks of a panel of such lines: time logarithmic where it spans a factor of three."""
    axes.set_yscale("log")
    axes.set_ylim(0.6 / max(len(data), 10), 1.25)
    if is_wide(data):
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        plain_ticks(axes.xaxis)
    plain_log_ticks(axes.yaxis, lambda share: f"{100 * share:.3g} %")
    axes.set_ylabel("Share that takes longer")


def label_quantiles(axes: Axes, estimates: Sequence[Estimate], colour: str) -> None:
    """``P95 779 ms`` right of each interval: above the line there is always room."""
    for q, estimate in zip(QUANTILES, estimates, strict=True):
        if estimate.value is None:
            continue
        end = max(estimate.value, estimate.high or 0.0)
        axes.annotate(
            f"{quantile_name(q).upper()} {digits(estimate.value)} ms", (end, 1 - q), xytext=(dot(7), dot(1)),
            textcoords="offset points", va="bottom" if q in (0.5, 0.99) else "center", fontsize=pt(8), color=colour,
        )  # fmt: skip


# Boxes of quartiles that claim no more than n allows: whiskers to the widest percentile, or the runs themselves.

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
    axes.plot(np.median(time), row, "o", color="white", markeredgecolor=INK, markersize=dot(5), zorder=4)
    ordered = np.sort(beside)  # thinned where they are many, the extremes always kept
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_POINTS)).astype(int))
    level = row if q is not None else row + 0.36
    axes.plot(
        ordered[picked], np.full(len(picked), level), ".", color=colour, markersize=dot(4), alpha=0.6,
        markeredgewidth=0, rasterized=True,
    )  # fmt: skip

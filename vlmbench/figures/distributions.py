"""Distributions as step lines, with the quantiles that n allows: on the lines, and as a table below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from vlmbench.analysis.distribution import QUANTILES, quantile_name
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.quantiles import needed
from vlmbench.figures.style import pt
from vlmbench.figures.theme import INK, MUTED
from vlmbench.text import count, ms, plain, span

_MOST_STEPS = 2000  # points of an ECDF's line; more cannot be seen
_NAME_WIDTH = 0.24  # of a table's width, for the names of its rows


def draw_ecdf(axes: Axes, data: NDArray[np.float64], estimates: list[Estimate], colour: str, label: str) -> None:
    """A step line through all values, a marker with its interval at each quantile that n allows."""
    ordered = np.sort(data)
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_STEPS)).astype(int))
    # The first and last percent are kept whole, they are what the figure is about.
    edge = min(len(ordered) // 100, _MOST_STEPS)
    picked = np.unique(np.concatenate([picked, np.arange(edge), np.arange(len(ordered) - edge, len(ordered))]))
    axes.step(ordered[picked], (picked + 1) / len(ordered), where="post", color=colour, label=label)
    for q, estimate in zip(QUANTILES, estimates, strict=True):
        if estimate.value is None:
            continue
        axes.plot(estimate.value, q, "o", color=colour, markersize=pt(4.5), markeredgecolor="white", zorder=3)
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [q, q], color=colour, linewidth=3.5, alpha=0.55, zorder=2)


def finish_ecdf(axes: Axes, data: NDArray[np.float64], what: str) -> None:
    """Ticks, scale (log where the data span a factor of four), labels and legend of a panel of step lines."""
    axes.set_yticks([0, 0.25, *QUANTILES], ["0", "25 %", *(f"{q * 100:g} %" for q in QUANTILES)])
    _spread_labels(axes)
    spread = float(data.max()) > 4 * float(data.min()) > 0
    if spread:
        axes.set_xscale("log")
    plain_ticks(axes, log=spread)
    axes.set(
        title="Share of runs that took no longer", xlabel=f"{what} (ms{', log scale' if spread else ''})", ylabel=""
    )
    axes.legend(loc="lower right" if not spread else "upper left")
    axes.set_ylim(0, 1.03)


def _spread_labels(axes: Axes) -> None:
    """P95's and P99's labels would lie on each other: move P99's up, P90's down a little."""
    p90, _, p99 = axes.get_yticklabels()[-3:]
    p90.set_verticalalignment("top")
    p99.set_verticalalignment("bottom")


def plain_ticks(axes: Axes, *, log: bool = False) -> None:
    """Ticks of the x axis without powers of ten."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain(x)))
    if log:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def quantile_table(axes: Axes, rows: Sequence[tuple[str, str, Sequence[Estimate]]]) -> None:
    """Quantiles with their intervals as a table that fills an otherwise empty panel.

    Args:
        axes: the panel; its axis is switched off.
        rows: (name, colour, estimates of :data:`QUANTILES`) of each line.
    """
    axes.axis("off")
    names = [quantile_name(q).upper() for q in QUANTILES]
    width = (1 - _NAME_WIDTH) / len(names)
    table = axes.table(
        cellText=[[name, *map(_cell, estimates)] for name, _, estimates in rows],
        colLabels=["ms, with 95 % intervals", *names],
        colWidths=[_NAME_WIDTH, *[width] * len(names)],
        cellLoc="center",
        bbox=Bbox.unit(),
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(pt(8))
    for (line, column), cell in table.get_celld().items():
        cell.set_edgecolor("#DDDDDD")
        colour = rows[line - 1][1] if line else MUTED
        cell.set_text_props(color=colour if column == 0 or not line else INK)
        if column == 0:
            cell.set_text_props(ha="left")
            cell.PAD = 0.01


def _cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "n too small"
    inside = span(estimate.low, estimate.high).removesuffix(" ms")
    return f"{ms(estimate.value).removesuffix(' ms')}\n({inside})" if inside else ms(estimate.value)


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
    axes.plot(np.median(time), row, "o", color="white", markeredgecolor=INK, markersize=pt(5), zorder=4)
    ordered = np.sort(beside)  # thinned where they are many, the extremes always kept
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_POINTS)).astype(int))
    level = row if q is not None else row + 0.36
    axes.plot(
        ordered[picked], np.full(len(picked), level), ".", color=colour, markersize=pt(4), alpha=0.6, markeredgewidth=0,
        rasterized=True,
    )  # fmt: skip

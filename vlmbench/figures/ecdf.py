"""Distributions as step lines, with the quantiles that n allows: on the lines, and as a table below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from vlmbench.analysis.distribution import QUANTILES, quantile_name
from vlmbench.analysis.quantiles import Estimate
from vlmbench.figures.theme import INK, MUTED
from vlmbench.text import ms, plain, span

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
        axes.plot(estimate.value, q, "o", color=colour, markersize=4.5, markeredgecolor="white", zorder=3)
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
    table.set_fontsize(8)
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

"""What a fresh process pays, arm by arm: the first time at each shape above the later ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vlmbench.analysis.first_steps import PREFILL, STEP, VISION
from vlmbench.figures.style import dot
from vlmbench.figures.theme import caption, new_figure, plain_log_ticks, theme
from vlmbench.text import count

_PANELS = {STEP: "Tokens in the cache", VISION: "Patches of the image", PREFILL: "Positions of the input"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def first_steps_figure(tables: Mapping[str, pd.DataFrame], provenance: Mapping[str, Any]) -> Figure | None:
    """One panel a kind of first time that several shapes have; an arm's first times as points, later ones as dashes.

    Args:
        tables: arm to its table, of :func:`vlmbench.analysis.first_steps.first_times`.

    Returns:
        The figure; None where no shape was met twice, or none took more than 0 ms.
    """
    every = sum(map(len, tables.values()))
    tables = {arm: table[(table["first_ms"] > 0) & (table["later_ms"] > 0)] for arm, table in tables.items()}
    left_out = every - sum(map(len, tables.values()))
    kinds = [kind for kind in _PANELS if any((table["what"] == kind).any() for table in tables.values())]
    if not kinds:
        return None
    shapes = {kind: max(int((table["what"] == kind).sum()) for table in tables.values()) for kind in kinds}
    kinds = [kind for kind in kinds if shapes[kind] > 1] or kinds  # one shape is a number, which the table has
    with theme():
        figure = new_figure(
            "What a fresh process pays for each new shape",
            caption(
                provenance,
                n=shapes[kinds[0]],
                unit=f"shapes of a {kinds[0]} an arm",
                note="Points: the first time at a shape (open: in the first run of the process). "
                "Dashes: the median of later times."
                + (f" Not drawn, for 0 has no place on a log scale: {count(left_out, 'shape')}." if left_out else ""),
            ),
            width=5.2 if len(kinds) == 1 else 4.2 * len(kinds),
            height=3.5,
        )
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for colour, (arm, table) in zip(_COLOURS, tables.items(), strict=False):
                rows = table[table["what"] == kind].sort_values("at")
                began = rows["began"].astype(bool)
                axes.plot(rows["at"], rows["later_ms"], color=colour, linestyle="none", marker="_", markersize=dot(7))
                axes.scatter(
                    rows["at"][~began],
                    rows["first_ms"][~began],
                    color=colour,
                    s=dot(3.7) ** 2,
                    label=arm.replace("_", " "),
                )
                axes.scatter(
                    rows["at"][began], rows["first_ms"][began], edgecolors=colour, facecolors="none", s=dot(3.7) ** 2
                )
            axes.set(title=kind.capitalize(), xlabel=_PANELS[kind], ylabel="Time (ms, log scale)")
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis)
        handles, labels = panels[0].get_legend_handles_labels()
        if len(kinds) == 1:  # no room beside the title, but between first times and later ones
            panels[0].legend(handles, labels, loc="center right")
        else:
            figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure

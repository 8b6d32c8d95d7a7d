"""Every row of a run in the order of time, coloured by what marks it: what the machine did while it measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlmbench.analysis.frames import is_cause, values
from vlmbench.figures.panels import sentences
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import MUTED, SERIES, caption, new_figure, theme
from vlmbench.text import count

_MOST_FLAGS = 5
_OTHER = "other flags"
_PALETTE = (SERIES[1], SERIES[3], SERIES[2], SERIES[4], SERIES[5])


def lane_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Each row of a run that has a time of day: ``lane`` (what kind of row), ``at`` (s since the first one), ``flag``.

    The flag of a row is the rarest one that it carries and that may have made it slow; empty without one.
    """
    at = values(frame, "started_unix_s")
    carried = [
        [flag for flag in str(text).split() if is_cause(flag)]
        for text in frame["flags"].astype(object).where(frame["flags"].notna(), "")
    ]
    often = Counter(flag for flags in carried for flag in flags)
    shown = {flag for flag, _ in often.most_common(_MOST_FLAGS)}
    chosen = [min(flags, key=lambda flag: often[flag]) if flags else "" for flags in carried]
    status, mode = frame["status"].astype(str).to_numpy(), frame["mode"].astype(str).to_numpy()
    repeated = (frame["point_id"].astype(str) == "reference").to_numpy()
    lane = np.select(
        [
            np.isin(status, ("error", "oom", "skipped")), np.isin(status, ("cold", "warmup")), mode == "trace",
            mode == "bare", repeated,
        ],
        ["failed", "cold, warm-up", "traced", "bare", "one request repeated"],
        "workload",
    )  # fmt: skip
    table = pd.DataFrame({"lane": lane, "at": at, "flag": [f if f in shown or not f else _OTHER for f in chosen]})
    table = table[np.isfinite(at)]
    return table.assign(at=table["at"] - table["at"].min())


def run_lane_figure(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """One lane a kind of row, a stroke a row at the moment it began; flagged rows in the colour of their flag.

    Returns:
        The figure; None where no row has a time of day.
    """
    if "started_unix_s" not in frame:
        return None
    table = lane_rows(frame)
    if table.empty:
        return None
    order = ["workload", "one request repeated", "bare", "traced", "cold, warm-up", "failed"]
    lanes = [lane for lane in order if (table["lane"] == lane).any()]
    flags = Counter(flag for flag in table["flag"] if flag)
    colours = dict(zip([f for f, _ in flags.most_common()], (*_PALETTE, "#000000"), strict=False))
    scale, unit = (60.0, "min") if table["at"].max() > 300 else (1.0, "s")
    with theme():
        note = sentences(
            "a stroke: a row of the records at the moment it began; colour: the rarest flag that it carries and that "
            "may have made it slow",
            "only workload and repeated request are counted as latencies",
        )
        figure = new_figure(
            "The whole run, row by row",
            caption(provenance, n=len(table), unit="rows", note=note),
            width=6.6,
            height=0.75 + 0.5 * len(lanes) + 0.2 * -(-(len(colours) + 1) // 2),
            columns=1,
        )
        axes = figure.subplots()
        for place, lane in enumerate(lanes):
            rows = table[table["lane"] == lane]
            for flag in ("", *colours):  # flagged ones on top
                part = rows.loc[rows["flag"] == flag, "at"] / scale
                axes.vlines(
                    part, place - 0.22, place + 0.22, color=colours.get(flag, "#9A9A9A"), rasterized=True,
                    linewidth=dot(0.6 if not flag else 1.0),
                )  # fmt: skip
            axes.text(
                0, place - 0.27, f"{lane} ({len(rows):,})", transform=axes.get_yaxis_transform(), va="bottom",
                fontsize=pt(8),
            )  # fmt: skip
        axes.set(ylim=(len(lanes) - 0.6, -0.75), yticks=[], xlabel=f"Time since the first row ({unit})")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        handles = [Line2D([], [], color="#9A9A9A", label=f"not flagged ({(table['flag'] == '').sum():,})")]
        handles += [Line2D([], [], color=c, label=f"{f.replace('_', ' ')} ({flags[f]:,})") for f, c in colours.items()]
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.2, columnspacing=1.0,
            borderaxespad=0.1, labelcolor=MUTED, title=None if flags else count(len(table), "row"),
        )  # fmt: skip
    return figure

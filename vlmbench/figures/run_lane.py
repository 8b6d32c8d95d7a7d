"""Every row of a run in the order of time, coloured by what marks it: what the machine did while it measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlmbench.analysis.frames import is_cause, values
from vlmbench.figures.panels import sentences
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import MUTED, SERIES, caption, new_figure, theme

_MOST_FLAGS = 5
_STROKES = 20_000  # ten times the pixels of the axis
_OTHER = "other flags"
_PALETTE = (SERIES[1], SERIES[3], SERIES[2], SERIES[4], SERIES[5])


def lane_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Each row of a run that has a time of day: ``lane`` (what kind of row), ``at`` (s since the first one), ``flag``.

    The flag of a row is the rarest one that it carries and that may have made it slow; empty without one.
    """
    at = values(frame, "started_unix_s")
    codes, texts = pd.factorize(frame["flags"].astype(object).where(frame["flags"].notna(), ""))
    carried = [[flag for flag in str(text).split() if is_cause(flag)] for text in texts]
    often: Counter[str] = Counter()
    for flags, rows in zip(carried, np.bincount(codes, minlength=len(texts)).tolist(), strict=True):
        often.update(dict.fromkeys(flags, rows) if len(set(flags)) == len(flags) else Counter(flags * rows))
    shown = {flag for flag, _ in often.most_common(_MOST_FLAGS)}
    rarest = [min(flags, key=lambda flag: often[flag]) if flags else "" for flags in carried]
    named = np.array([flag if flag in shown or not flag else _OTHER for flag in rarest], dtype=object)
    status, mode = frame["status"], frame["mode"]
    lane = np.select(
        [
            status.isin(("error", "oom", "skipped")), status.isin(("cold", "warmup")), mode.eq("trace"),
            mode.eq("bare"), frame["point_id"].eq("reference"),
        ],
        ["failed", "cold, warm-up", "traced", "bare", "one request repeated"],
        "workload",
    )  # fmt: skip
    table = pd.DataFrame({"lane": lane, "at": at, "flag": named[codes]})
    table = table[np.isfinite(at)]
    return table.assign(at=table["at"] - table["at"].min())


def _strokes(at: pd.Series, end: float) -> pd.Series:
    """Where to draw: of very many rows, those less than a tenth of a pixel apart share a stroke."""
    if len(at) <= _STROKES:
        return at
    step = end / _STROKES
    return (at / step).round().drop_duplicates() * step


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
    flags = Counter(table.loc[table["flag"] != "", "flag"])
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
                part = _strokes(rows.loc[rows["flag"] == flag, "at"] / scale, table["at"].max() / scale)
                ends = np.broadcast_to([place - 0.22, place + 0.22], (len(part), 2))
                strokes = np.stack([np.repeat(part.to_numpy()[:, None], 2, axis=1), ends], axis=-1)
                colour, width = colours.get(flag, "#9A9A9A"), dot(0.6 if not flag else 1.0)
                axes.add_collection(LineCollection(list(strokes), color=colour, rasterized=True, linewidth=width))
            axes.text(
                0, place - 0.27, f"{lane} ({len(rows):,})", transform=axes.get_yaxis_transform(), va="bottom",
                fontsize=pt(8),
            )  # fmt: skip
        axes.set(ylim=(len(lanes) - 0.6, -0.75), yticks=[], xlabel=f"Time since the first row ({unit})")
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        handles = [Line2D([], [], color="#9A9A9A", label=f"no flag that slows ({(table['flag'] == '').sum():,})")]
        handles += [Line2D([], [], color=c, label=f"{f.replace('_', ' ')} ({flags[f]:,})") for f, c in colours.items()]
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.2, columnspacing=1.0,
            borderaxespad=0.1, labelcolor=MUTED,
        )  # fmt: skip
    return figure

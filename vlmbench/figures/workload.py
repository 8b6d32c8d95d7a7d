"""Why requests of a workload differ: token counts, the split of the variance, the moment they ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from vlmbench.analysis.frames import reference, values, workload
from vlmbench.analysis.quantiles import finite
from vlmbench.analysis.tail import PREDICTORS, variance_split
from vlmbench.figures.latency import WORDS, say
from vlmbench.figures.panels import sentences
from vlmbench.figures.style import pt
from vlmbench.figures.theme import DATASET_COLOUR, INK, MUTED, REFERENCE_COLOUR, SERIES, caption, new_figure, theme
from vlmbench.text import percent, plain, tokens

_REPEATED = "One request, repeated"
_MOST_POINTS = 3000  # a scatter of more is drawn as density
_WINDOW = 25  # runs in a running median, of a run that has many


def latency_vs_tokens(frame: pd.DataFrame, provenance: Mapping[str, Any], metric: str = "T_total") -> Figure | None:
    """A latency against vision, prompt and output tokens; flagged runs marked; density where points are many.

    Returns:
        The figure; None if no measured run has the metric.
    """
    work = workload(frame)
    time = values(work, metric)
    if not len(finite(time)):
        return None
    with theme():
        note = "r: linear correlation."
        if len(work) > _MOST_POINTS:
            note += " Shade: number of runs, log scale; crosses: flagged runs."
        shown = _varying(work)
        note += "".join(
            f" {tokens(n).capitalize()}{_relation(values(work, n), time)}." for n in PREDICTORS if n not in shown
        )
        figure = new_figure(
            f"{WORDS.get(metric, metric).partition(' (')[0]} against token counts",
            caption(provenance, n=len(finite(time)), unit="runs", note=note),
            width=10.0 if len(shown) > 1 else 6.0,
            height=4.2,
        )
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        flagged = (work["flags"].astype(object).fillna("") != "").to_numpy(dtype=bool)
        for axes, name in zip(panels, shown, strict=True):
            number = values(work, name)
            axes.set_xlabel(tokens(name).capitalize() + " per request")
            axes.set_title(f"{tokens(name).capitalize()}{_relation(number, time)}")
            _tokens_panel(axes, number, time, flagged)
        panels[0].set_ylabel(f"{metric} (ms)")
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain(y)))
        handles, labels = panels[-1].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper")
    return figure


def _varying(work: pd.DataFrame) -> list[str]:
    """The counts that differ between requests; all of them where none does, or where there are too few requests."""
    found = [name for name in PREDICTORS if len(np.unique(finite(values(work, name)))) > 1]
    return found or list(PREDICTORS)


def _relation(number: NDArray[np.float64], time: NDArray[np.float64]) -> str:
    """What a panel's title adds: the correlation, or that there is nothing to correlate."""
    good = ~np.isnan(number) & ~np.isnan(time)
    if not good.any():
        return ""
    if np.ptp(number[good]) == 0:
        return f" (always {number[good][0]:,.0f})"
    if np.ptp(time[good]) == 0:
        return ""
    return f" (r = {np.corrcoef(number[good], time[good])[0, 1]:.2f})"


def _tokens_panel(
    axes: Axes, number: NDArray[np.float64], time: NDArray[np.float64], flagged: NDArray[np.bool_]
) -> None:
    good = ~np.isnan(number) & ~np.isnan(time)
    marked = flagged & good
    if not good.any():
        say(axes, "Not counted for this model")
        return
    if good.sum() > _MOST_POINTS:
        axes.hexbin(number[good], time[good], gridsize=40, bins="log", cmap="Blues", mincnt=1, linewidths=0.1)
    else:
        plain_ones = good & ~marked
        axes.scatter(
            number[plain_ones], time[plain_ones], s=14, color=DATASET_COLOUR, alpha=0.45, linewidths=0, label="run"
        )
    if marked.any():
        shown = np.flatnonzero(marked)[:_MOST_POINTS]
        axes.scatter(number[shown], time[shown], s=26, color=SERIES[1], marker="x", linewidths=1, label="flagged run")
    if np.ptp(number[good]) == 0:
        axes.set_xlim(number[good][0] - 1, number[good][0] + 1)
        axes.set_xticks([number[good][0]])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def variance_bars(frame: pd.DataFrame, provenance: Mapping[str, Any], metric: str = "T_total") -> Figure | None:
    """What explains the variance of a latency: token counts, the rest, and the jitter of a repeated request beside it.

    Returns:
        The figure; None if there are too few runs or the latency never varied.
    """
    split = variance_split(frame, metric)
    if split.empty:
        return None
    names = {"rest": "Not explained", "reference_jitter": _REPEATED}
    colours = {"rest": "#8C8C8C", "reference_jitter": REFERENCE_COLOUR}
    with theme():
        note = sentences(
            "Shares of R² of least squares on token counts, by Shapley's value; lines: 95 % intervals, bootstrap",
            _jitter_words(split),
        )
        figure = new_figure(
            f"What explains the variance of {metric}",
            caption(provenance, n=len(finite(values(workload(frame), metric))), unit="runs", note=note),
            width=8.0,
            height=1.9 + 0.42 * len(split),
        )
        axes = figure.subplots()
        for place, row in enumerate(split.to_dict("records")):
            colour = colours.get(row["source"], DATASET_COLOUR)
            axes.barh(place, row["share"], color=colour, height=0.6, alpha=0.85)
            ends = [end for end in (row["low"], row["high"]) if pd.notna(end)]
            if ends:
                axes.plot(ends, [place] * 2, color=INK, linewidth=2)
            constant = row["source"] in PREDICTORS and pd.isna(row["low"])
            words = row["note"] if constant else percent(row["share"])
            edge = max([row["share"], *ends])
            axes.annotate(
                words, (edge, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=pt(8.5)
            )
        axes.set_yticks(range(len(split)), [names.get(s, tokens(s).capitalize()) for s in split["source"]])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, max(1.12, 1.15 * float(split["share"].max())))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
        axes.set_xlabel(f"Share of the variance of {metric}")
    return figure


def _jitter_words(split: pd.DataFrame) -> str:
    """What a reader must know of the repeated request's bar; empty where there is none."""
    bar = split[split["source"] == "reference_jitter"]
    if bar.empty:
        return ""
    bare = "" if bar["low"].notna().all() else " (no interval)"
    return (
        f"the repeated request's variance{bare} is not a part of the sum: it is what the unexplained rest compares with"
    )


def _cut_pauses(tables: list[pd.DataFrame]) -> list[float]:
    """Move later sessions up to the end of those before, in place; returns the moments where two of them meet."""
    spans = pd.concat(tables).groupby("session")["at"].agg(["min", "max"]).sort_values("min")
    borders: list[float] = []
    for before, after in zip(spans.index[:-1], spans.index[1:], strict=True):
        pause = float(spans.loc[after, "min"] - spans.loc[before, "max"])
        later = spans["min"] >= spans.loc[after, "min"]
        spans[later] -= pause
        for table in tables:
            table.loc[table["session"].isin(spans.index[later]), "at"] -= pause
        borders.append(float(spans.loc[before, "max"]))
    return borders


def _window(runs: int) -> int:
    """Runs in a running median: 25, or an odd quarter of them where they are few, but 5 at least."""
    return min(max(runs // 4 | 1, 5), _WINDOW)


def _line_words(series: list[tuple[str, pd.DataFrame, str]], window: int) -> list[str]:
    """How to read dots and lines, of what is drawn alone."""
    longest = max(int(part.groupby("session")["ms"].count().max()) for _, part, _ in series)
    lines = f"; lines: running medians of {window} runs, of fewer towards the ends" if longest > window // 2 else ""
    words = [f"dots: runs{lines}"]
    if any(name == _REPEATED for name, _, _ in series):
        return [*words, "a slope or step of the repeated request is drift"]
    return [*words, "no single request was repeated, so a slope or step may be drift or the order of the requests"]


def over_time(frame: pd.DataFrame, provenance: Mapping[str, Any], metric: str = "T_total") -> Figure | None:
    """A latency against the moment it was measured, with running medians: drift shows as a slope or a step.

    Pauses between the sessions of a continued run are cut out; a dotted line stands where one was.

    Returns:
        The figure; None if no measured run has the metric and a time.
    """
    parts = [
        ("Workload", workload(frame), DATASET_COLOUR),
        (_REPEATED, reference(frame), REFERENCE_COLOUR),
    ]
    series = []
    for name, rows, colour in parts:
        session = rows["session"].to_numpy() if "session" in rows else 0
        table = pd.DataFrame(
            {"at": values(rows, "started_unix_s"), "ms": values(rows, metric), "session": session}
        ).dropna()
        if len(table):
            series.append((name, table.sort_values("at", kind="stable"), colour))
    if not series:
        return None
    borders = _cut_pauses([table for _, table, _ in series])
    start = min(float(table["at"].iloc[0]) for _, table, _ in series)
    longest = max(float(table["at"].iloc[-1]) for _, table, _ in series) - start
    window = _window(max(len(table) for _, table, _ in series))
    scale, unit = (60.0, "min") if longest > 300 else (1.0, "s")
    with theme():
        figure = new_figure(
            f"{metric} while measuring",
            caption(
                provenance, n=sum(len(table) for _, table, _ in series), unit="runs",
                note=sentences(
                    *_line_words(series, window), "dotted: a pause between sessions, cut out" if borders else ""
                ),
            ),
            width=9.0,
            height=4.2,
        )  # fmt: skip
        axes = figure.subplots()
        for name, table, colour in series:
            shown = table.iloc[:: max(1, len(table) // _MOST_POINTS)]
            axes.plot(
                (shown["at"] - start) / scale, shown["ms"], ".", color=colour, markersize=pt(5),
                alpha=0.35 if len(table) > _WINDOW * 20 else 0.6,
                markeredgewidth=0, rasterized=True,
            )  # fmt: skip
            label: str | None = f"{name} (n = {len(table):,})"
            for _, part in table.groupby("session", sort=False):
                middle = part["ms"].rolling(window, center=True, min_periods=window // 2 + 1).median()
                some = part.index.intersection(shown.index, sort=False)
                axes.plot((part["at"].loc[some] - start) / scale, middle.loc[some], color=colour, label=label)
                label = None
        for border in borders:
            axes.axvline((border - start) / scale, color=MUTED, linewidth=0.9, linestyle=":")
        axes.set(xlabel=f"Time since the first run ({unit})", ylabel=f"{metric} (ms)")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plain(y)))
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.1), ncols=2)
    return figure

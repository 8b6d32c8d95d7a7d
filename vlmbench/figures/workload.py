"""Why requests of a workload differ: token counts, the split of the variance, the moment they ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vlmbench.analysis.frames import is_cause, reference, values, workload
from vlmbench.analysis.quantiles import finite
from vlmbench.analysis.tail import LEAST_RUNS, PREDICTORS, variance_split
from vlmbench.figures.latency import WORDS
from vlmbench.figures.panels import sentences
from vlmbench.figures.style import dot, pt, style
from vlmbench.figures.theme import (
    DATASET_COLOUR,
    INK,
    MUTED,
    REFERENCE_COLOUR,
    SERIES,
    caption,
    new_figure,
    plain_ticks,
    theme,
)
from vlmbench.schema import label_of
from vlmbench.text import count, digits, not_measurable, percent, span, tokens

_REPEATED = "One request, repeated"
_MOST_POINTS = 3000  # a scatter of more is drawn as density
_WINDOW = 25  # runs in a running median, of a run that has many
_HALF = 0.4
_LEAST_FOR_MEDIAN = 5  # runs at a count
_PAGE_IN = 8.0
_BEYOND = 1.25  # the axis reaches up to so many times P95; runs above are triangles at its end


def latency_vs_tokens(frame: pd.DataFrame, provenance: Mapping[str, Any], metric: str = "T_total") -> Figure | None:
    """A latency against each count of tokens that differs between requests; flagged runs marked; density where points
    are many. Counts that never differ are named in the caption.

    Returns:
        The figure; None if no measured run has the metric, or no count differs.
    """
    work = workload(frame)
    time = values(work, metric)
    shown = _varying(work)
    if not len(finite(time)) or not shown:
        return None
    with theme():
        many = len(work) > _MOST_POINTS
        flagged, said = _marked(work)
        note = sentences(
            "shade: number of runs, log scale" if many else "dots: runs",
            said,
            "line: median at each count" if not many else "",
            "r: linear correlation, with its 95 % interval (Fisher)",
            *(f"{tokens(name)}: {said}" for name in PREDICTORS if (said := _relation(values(work, name), time))),
        )
        side_by_side = 1 if style().narrow(_PAGE_IN, 1) else min(len(shown), 3)
        rows = -(-len(shown) // side_by_side)
        figure = new_figure(
            f"{WORDS.get(metric, metric).partition(' (')[0]} against token counts",
            caption(provenance, n=len(finite(time)), unit="runs", note=note),
            width=_PAGE_IN if len(shown) > 1 else 6.0,
            height=0.3 + 2.9 * rows,
            columns=1,
        )
        panels = figure.subplots(rows, side_by_side, sharey=True, squeeze=False).flat
        for axes, name in zip(panels, shown, strict=False):
            _tokens_panel(axes, values(work, name), time, flagged)
            axes.set_xlabel(tokens(name).capitalize() + " per request")
            axes.set_ylim(0, _above(float(np.nanmax(time))))
            plain_ticks(axes.yaxis)
        for axes in list(panels)[len(shown) :]:
            axes.set_visible(False)
        for axes in figure.axes[::side_by_side]:
            axes.set_ylabel(f"{_words(metric)} (ms)")
        if flagged.any() or not many:
            figure.axes[0].legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=3,
                handletextpad=0.3,
                columnspacing=1.0,
                borderaxespad=0.1,
            )
    return figure


def _above(longest: float) -> float:
    """Where an axis of times ends, ms: a little above the longest; somewhere above 0 where all are 0."""
    return 1.05 * longest if longest > 0 else 1.0


def _words(metric: str, *, first: bool = True) -> str:
    """The time in words: ``Whole request``, ``generate()``; ``whole request`` within a sentence."""
    words = label_of(metric)
    return words[:1].upper() + words[1:] if first and not words.startswith("generate()") else words


def _marked(work: pd.DataFrame) -> tuple[NDArray[np.bool_], str]:
    """Which runs carry a flag that may make them slow, and how they are marked: not at all where most do."""
    texts = work["flags"].astype(object)
    marked = texts.isin([text for text in texts.dropna().unique() if any(map(is_cause, str(text).split()))]).to_numpy()
    share = f"{marked.sum():,} of {count(len(work), 'run')} carry a flag that may make them slow"
    if marked.sum() > len(work) / 2:
        return np.zeros(len(work), dtype=bool), f"{share}: they are not marked"
    return marked, f"crosses: {share}" if marked.any() else ""


def _varying(work: pd.DataFrame) -> list[str]:
    """The counts that differ between requests."""
    return [name for name in PREDICTORS if len(pd.unique(finite(values(work, name)))) > 1]


def _relation(number: NDArray[np.float64], time: NDArray[np.float64]) -> str:
    """How a count and the time go together, in words: the correlation where there are enough runs for one."""
    good = ~np.isnan(number) & ~np.isnan(time)
    if not good.any():
        return ""
    if np.ptp(number[good]) == 0:
        return f"always {number[good][0]:,.0f}"
    if good.sum() < LEAST_RUNS or np.ptp(time[good]) == 0:
        return f"too few runs for a correlation ({good.sum()} of {LEAST_RUNS})" if good.sum() < LEAST_RUNS else ""
    r = float(np.corrcoef(number[good], time[good])[0, 1])
    reach = 1.96 / np.sqrt(good.sum() - 3)
    low, high = np.tanh(np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)) + np.array([-reach, reach]))
    return f"r = {r:.2f} ({low:.2f} to {high:.2f})"


def _tokens_panel(
    axes: Axes, number: NDArray[np.float64], time: NDArray[np.float64], flagged: NDArray[np.bool_]
) -> None:
    good = ~np.isnan(number) & ~np.isnan(time)
    marked = flagged & good
    if good.sum() > _MOST_POINTS:
        axes.hexbin(number[good], time[good], gridsize=40, bins="log", cmap="Blues", mincnt=1, linewidths=0.1)
    else:
        plain_ones = good & ~marked
        axes.plot(
            number[plain_ones], time[plain_ones], ".", color=DATASET_COLOUR, alpha=0.4, markersize=dot(6),
            markeredgewidth=0, label="run", rasterized=True,
        )  # fmt: skip
        middles = pd.Series(time[good]).groupby(number[good]).agg(["median", "size"])
        middles = middles[middles["size"] >= _LEAST_FOR_MEDIAN]
        if len(middles) > 1:
            axes.plot(middles.index, middles["median"], "-", color=INK, linewidth=dot(1.3), label="median")
    if marked.any():
        shown = np.flatnonzero(marked)[:_MOST_POINTS]
        axes.plot(
            number[shown], time[shown], "x", color=SERIES[1], markersize=dot(5), markeredgewidth=dot(1.2),
            label="flagged run",
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    plain_ticks(axes.xaxis)


def variance_bars(frame: pd.DataFrame, provenance: Mapping[str, Any], metric: str = "T_total") -> Figure | None:
    """What explains the variance of a latency: the counts that differ and the rest, which a repeated request's own
    variance is drawn into.

    Returns:
        The figure; None if there are too few runs or the latency never varied.
    """
    split = variance_split(frame, metric)
    if split.empty:
        return None
    again = split[split["source"] == "reference_jitter"]
    jitter = float(again["share"].iloc[0]) if len(again) else None
    never = split["source"].isin(PREDICTORS) & split["low"].isna()
    constant = [tokens(s) for s in split["source"][never]]
    rows = split[(split["source"] != "reference_jitter") & ~never]
    with theme():
        note = sentences(
            "shares of R² of least squares on token counts, by Shapley's value; lines: 95 % intervals, "
            "within 0 and 100 %",
            f"the same in every request: {', '.join(constant)}" if constant else "",
            ""
            if jitter is None
            else "hatched: variance of one request repeated, which no token explains (no interval)",
        )
        figure = new_figure(
            f"What explains the variance of {_words(metric, first=False)}",
            caption(provenance, n=len(finite(values(workload(frame), metric))), unit="runs", note=note),
            width=_PAGE_IN,
            height=0.75 + 0.55 * len(rows),
            columns=1,
        )
        axes = figure.subplots()
        for place, row in enumerate(rows.to_dict("records")):
            _variance_row(axes, place, row, jitter if row["source"] == "rest" else None)
        axes.set(
            xlim=(0, 1), ylim=(len(rows) - 0.6, -0.75), yticks=[],
            xlabel=f"Share of the variance of {_words(metric, first=False)}",
        )  # fmt: skip
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    return figure


def _variance_row(axes: Axes, place: int, row: Mapping[Any, Any], jitter: float | None) -> None:
    """One share from 0 to 100 % with its interval, its name and number above it; the repeated request inside."""
    rest = row["source"] == "rest"
    share, low, high = (float(np.clip(row[name], 0, 1)) for name in ("share", "low", "high"))
    axes.barh(place, share, color="#B5B5B5" if rest else DATASET_COLOUR, height=0.42)
    name = "Not explained by tokens" if rest else tokens(row["source"]).capitalize()
    number = f"{percent(share)} ({span(low, high, '%')})" if low > 0 or rest else not_measurable(float(row["high"]))
    words = f"{name}: {number}"
    if jitter is not None:
        length = min(jitter, 1.0)
        axes.barh(place, length, facecolor="none", edgecolor=REFERENCE_COLOUR, hatch="////", height=0.42, linewidth=0)
        right = length < _HALF  # of the hatching, or on it
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        axes.text(
            length + 0.01 if right else 0.01, place, f"one request repeated: {percent(jitter)}", ha="left", va="center",
            fontsize=pt(8), bbox=None if right else paper,
        )  # fmt: skip
    axes.plot([low, high], [place] * 2, color=INK, linewidth=dot(2), solid_capstyle="butt")
    axes.text(0.0, place - 0.27, words, ha="left", va="bottom", fontsize=pt(8))


def _cut_pauses(tables: list[pd.DataFrame]) -> list[float]:
    """Move later sessions up to the end of those before, in place; returns the moments where two of them meet."""
    spans = pd.concat(tables).groupby("session")["at"].agg(["min", "max"])
    borders: list[float] = []
    for before, after in zip(spans.index[:-1], spans.index[1:], strict=True):
        pause = float(spans.loc[after, "min"] - spans.loc[before, "max"])
        later = spans.index >= after
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
            series.append((name, table.sort_values(["session", "at"], kind="stable"), colour))
    if not series:
        return None
    borders = _cut_pauses([table for _, table, _ in series])
    start = min(float(table["at"].iloc[0]) for _, table, _ in series)
    longest = max(float(table["at"].iloc[-1]) for _, table, _ in series) - start
    window = _window(max(len(table) for _, table, _ in series))
    scale, unit = (60.0, "min") if longest > 300 else (1.0, "s")
    every = np.concatenate([table["ms"].to_numpy(dtype=float) for _, table, _ in series])
    limit = max(_BEYOND * float(np.quantile(every, 0.95)), 1.05 * float(np.median(every)))
    limit = _above(float(every.max())) if every.max() <= 1.1 * limit else limit
    above = every[every > limit]
    with theme():
        figure = new_figure(
            f"{_words(metric)} while measuring",
            caption(
                provenance, n=sum(len(table) for _, table, _ in series), unit="runs",
                note=sentences(
                    *_line_words(series, window), "dotted: a pause between sessions, cut out" if borders else "",
                    f"triangles: {count(len(above), 'run')} above the axis, up to {digits(float(above.max()))} ms"
                    if len(above) else "",
                ),
            ),
            width=_PAGE_IN,
            height=3.2,
            columns=1,
        )  # fmt: skip
        axes = figure.subplots()
        for name, table, colour in series:
            shown = table.iloc[:: max(1, len(table) // _MOST_POINTS)]
            axes.plot(
                (shown["at"] - start) / scale, shown["ms"], ".", color=colour, markersize=dot(5),
                alpha=0.35 if len(table) > _WINDOW * 20 else 0.6,
                markeredgewidth=0, rasterized=True,
            )  # fmt: skip
            out = table[table["ms"] > limit]
            if len(out):
                axes.plot(
                    (out["at"] - start) / scale, np.full(len(out), 0.98), "^", color=colour, markersize=dot(5),
                    markeredgewidth=0, transform=axes.get_xaxis_transform(), clip_on=False,
                )  # fmt: skip
            label: str | None = f"{name} (n = {len(table):,})"
            for _, part in table.groupby("session", sort=False):
                middle = part["ms"].rolling(window, center=True, min_periods=window // 2 + 1).median()
                some = part.index.intersection(shown.index, sort=False)
                axes.plot((part["at"].loc[some] - start) / scale, middle.loc[some], color=colour, label=label)
                label = None
        for border in borders:
            axes.axvline((border - start) / scale, color=MUTED, linewidth=0.9, linestyle=":")
        axes.set(xlabel=f"Time since the first run ({unit})", ylabel=f"{_words(metric)} (ms)")
        plain_ticks(axes.yaxis)
        axes.set_ylim(min(0.96 * float(every.min()), limit), limit)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=1 if style().narrow(_PAGE_IN, 1) else 2, handlelength=1.4,
            columnspacing=1, borderaxespad=0.1,
        )  # fmt: skip
    return figure

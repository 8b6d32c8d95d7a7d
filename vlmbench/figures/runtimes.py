"""One model under several runtimes: the stages of a request, how far its tail reaches, and what a token costs; and
several models under one runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vlmbench.analysis.ratios import NO_MEDIAN
from vlmbench.figures.stage_bars import readable
from vlmbench.figures.style import dot, pt
from vlmbench.figures.theme import (
    DATASET_COLOUR,
    INK,
    MUTED,
    SERIES,
    component_colour,
    component_label,
    new_figure,
    plain_log_ticks,
    plain_ticks,
    theme,
)
from vlmbench.schema import HOST_PARTS, TOTAL_PARTS
from vlmbench.text import digits, percent, span

_ORDER = (*HOST_PARTS[:-1], *TOTAL_PARTS, HOST_PARTS[-1])
_NAMED_FROM = 0.09  # of a bar: a share that has room for its number
_SEEN_FROM = 0.001  # of a bar: a share that is wider than a dot
_ABOVE: Mapping[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1, "handlelength": 1.0}
_KINDS = {"output": ("output token", SERIES[2], "s"), "vision": ("vision token", SERIES[0], "o")}
"""Kind of token to its words, colour and marker: the two colours are one grey in print."""
_WHOLES = (("T_request", "request", DATASET_COLOUR, "o"), ("T_total", "generate()", SERIES[2], "s"))
"""Time to its words, colour and marker."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A model under one runtime.

    Args:
        label: of the runtime, or of the model where models are compared.
        summary: of phase 1; empty where no data set was measured.
        tails: quantiles over the median, rows of :func:`vlmbench.analysis.distribution.tail_ratios`, by the time that
            they are of (``T_request``, ``T_total``).
        costs: kind of token to ms a token with both ends of its interval.
    """

    label: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    tails: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    costs: Mapping[str, tuple[float, float | None, float | None]] = field(default_factory=dict)

    @property
    def stages(self) -> dict[str, float]:
        """Median of each stage of a request, ms, in the order of the request."""
        rows = {row["component"]: row["median"] for row in self.summary.get("components") or []}
        return {name: float(rows[name]) for name in _ORDER if rows.get(name) is not None and rows[name] > 0}

    @property
    def has_stages(self) -> bool:
        """Whether there are stages and a whole request to draw."""
        return bool(self.stages and self.quantile("p50"))

    def quantile(self, name: str) -> Mapping[str, Any]:
        """A quantile of the whole request with its interval; empty where n does not carry it."""
        whole = (self.summary.get("distribution") or {}).get("T_request") or {}
        found: Mapping[str, Any] = (whole.get("workload") or {}).get(name) or {}
        return found if found.get("value") is not None else {}


def stages_figure(runtimes: Sequence[Runtime], caption: str) -> Figure | None:
    """Stacked stages of a request, a bar a runtime: above in ms with the whole's interval, below as shares.

    Returns:
        The figure; None unless two runtimes have stages.
    """
    shown = [one for one in runtimes if one.has_stages]
    if len(shown) < 2:
        return None
    with theme():
        told = "bars: medians of the stages; line: median of the request with its 95 % interval"
        if any(one.quantile("p95") for one in shown):
            told += "; diamond: its P95 with its interval, where n carries one"
        told += _lacking(runtimes)
        figure = _figure("Where a request's time goes, by runtime", f"{caption}\n{told}", 1.5 + 0.95 * len(shown))
        times, shares = figure.subplots(2, 1)
        _times(times, shown)
        _shares(shares, shown)
        _stage_legend(times, shown)
    return figure


def models_figure(models: Sequence[Runtime], caption: str) -> Figure | None:
    """Stages of a request as shares, a bar a model, in the order of their medians, which stand above the bars.

    Args:
        models: under one runtime, labelled by the model.

    Returns:
        The figure; None unless two models have stages.
    """
    shown = [one for one in models if one.has_stages]
    if len(shown) < 2:
        return None
    shown.sort(key=lambda one: float(one.quantile("p50")["value"]))
    named = [replace(one, label=_with_median(one)) for one in shown]
    with theme():
        told = f"{caption}\nbars: medians of the stages over their sum; names: median of the request (95 % interval)"
        told += _lacking(models)
        figure = _figure("Where a request's time goes, by model", told, 0.9 + 0.44 * len(named))
        axes = figure.subplots()
        _shares(axes, named)
        _stage_legend(axes, named)
    return figure


def _lacking(runtimes: Sequence[Runtime]) -> str:
    """Why medians that are shown have no interval, and what is not shown, for the caption; empty where all is there."""
    said = ""
    if any(one.has_stages and one.quantile("p50").get("low") is None for one in runtimes):
        said += "; no interval: the requests are worth too few independent ones"
    if missing := [one.label for one in runtimes if one.summary and not one.has_stages]:
        said += f"\nnot drawn, without stages above 0 ms or a whole request: {', '.join(missing)}"
    return said


def _with_median(one: Runtime) -> str:
    middle = one.quantile("p50")
    inside = span(middle.get("low"), middle.get("high"))
    return f"{one.label}: {digits(middle['value'])} ms" + (f" ({inside})" if inside else "")


def _stage_legend(axes: Axes, shown: Sequence[Runtime]) -> None:
    names = [name for name in _ORDER if any(name in one.stages for one in shown)]
    seen = [n for n in names if any(one.stages.get(n, 0) / sum(one.stages.values()) > _SEEN_FROM for one in shown)]
    axes.legend(
        handles=[Patch(facecolor=component_colour(name)) for name in seen],
        labels=[component_label(name).partition(" (")[0] for name in seen],
        ncols=3,
        columnspacing=1.0,
        fontsize=pt(8),
        **_ABOVE,
    )


def _figure(title: str, caption: str, height: float) -> Figure:
    return new_figure(title, caption, width=5.2, height=height, columns=1)


def _bars(axes: Axes, shown: Sequence[Runtime], scale: Sequence[float]) -> None:
    for row, (one, unit) in enumerate(zip(shown, scale, strict=True)):
        left = 0.0
        for name, time in one.stages.items():
            axes.barh(
                row, time * unit, left=left, height=0.4, color=component_colour(name), edgecolor="white",
                linewidth=0.4,
            )  # fmt: skip
            left += time * unit
    _rows(axes, len(shown) - 0.7, -0.7)


def _rows(axes: Axes, low: float, high: float, label: str = "") -> None:
    """An axis of rows whose names stand above them."""
    axes.set(ylim=(low, high), yticks=[], xlabel=label)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


def _named(axes: Axes, place: float, words: str, size: float) -> None:
    """The name of a row, above it; no line runs through it."""
    behind = {"facecolor": "white", "edgecolor": "none", "pad": dot(1)}
    place_of = axes.get_yaxis_transform()
    axes.text(0, place, words, transform=place_of, va="bottom", fontsize=pt(size), color=INK, bbox=behind)


def _legend(axes: Axes, kinds: Iterable[tuple[str, str, str]]) -> None:
    """Names of kinds with their colours and markers, above the axis."""
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=dot(1.6), markersize=dot(4.5), label=label)
        for label, colour, marker in kinds
    ]
    axes.legend(handles=handles, ncols=2, fontsize=pt(8), **{**_ABOVE, "handlelength": 1.6})


def _times(axes: Axes, shown: Sequence[Runtime]) -> None:
    _bars(axes, shown, [1.0] * len(shown))
    for row, one in enumerate(shown):
        middle, slow = one.quantile("p50"), one.quantile("p95")
        for found, marker in ((middle, "|"), (slow, "D")):
            if not found:
                continue
            if found.get("low") is not None and found.get("high") is not None:
                axes.plot([found["low"], found["high"]], [row, row], color=INK, linewidth=dot(1.2))
            axes.plot(
                found["value"], row, marker=marker, color=INK, markerfacecolor="white", markersize=dot(5),
                markeredgewidth=dot(1),
            )  # fmt: skip
        p95 = f"; P95 {digits(slow['value'])} ms" if slow else ""
        axes.text(0, row - 0.23, _with_median(one) + p95, va="bottom", fontsize=pt(8), color=INK)
    axes.set(xlabel="Time (ms)", xlim=(0, None))
    plain_ticks(axes.xaxis)


def _shares(axes: Axes, shown: Sequence[Runtime]) -> None:
    _bars(axes, shown, [100 / sum(one.stages.values()) for one in shown])
    for row, one in enumerate(shown):
        left, whole = 0.0, sum(one.stages.values())
        for name, time in one.stages.items():
            if time / whole >= _NAMED_FROM:
                axes.text(
                    100 * (left + time / 2) / whole, row, percent(time / whole, 2), ha="center", va="center",
                    fontsize=pt(8), color=readable(component_colour(name)),
                )  # fmt: skip
            left += time
        axes.text(0, row - 0.23, one.label, va="bottom", fontsize=pt(8), color=INK)
    axes.set(xlabel="Share of a request (%)", xlim=(0, 100))


def tail_figure(runtimes: Sequence[Runtime], caption: str) -> Figure | None:
    """P90, P95 and P99 over the median with intervals, of whole requests and of ``generate()``, by runtime.

    Returns:
        The figure; None unless two runtimes have any.
    """
    shown = [one for one in runtimes if one.tails]
    if sum(any(len(_told(table)) for table in one.tails.values()) for one in shown) < 2:
        return None
    with theme():
        told = "lines: 95 % intervals; a percentile that n does not carry is not drawn"
        drawn = sum(any(len(_told(table)) for table in one.tails.values()) for one in shown)
        height = 0.7 + 0.9 * drawn + 0.35 * (len(shown) - drawn)
        figure = _figure("How far the tail reaches, by runtime", f"{caption}\n{told}", height)
        axes = figure.subplots()
        place, ends = 0.0, []
        for one in shown:
            if not any(len(_told(table)) for table in one.tails.values()):
                _named(axes, place - 0.35, f"{one.label}: {_why_no_ratio(one)}", 8.5)
                place += 0.55
                continue
            _named(axes, place - 0.35, one.label, 8.5)
            for column, _, colour, marker in _WHOLES:
                rows = _told(one.tails[column]) if column in one.tails else []
                for at, row in enumerate(rows):
                    y = place + 0.24 * at
                    low, high = row["workload_low"], row["workload_high"]
                    axes.plot([low, high], [y, y], color=colour, linewidth=dot(1.6))
                    axes.plot(row["workload"], y, marker, color=colour, markersize=dot(3.5))
                    axes.annotate(
                        str(row["quantile"]).upper(), (high, y), xytext=(2.5, 0), textcoords="offset points",
                        va="center", fontsize=pt(6.5), color=MUTED,
                    )  # fmt: skip
                    ends.append(high)
                place += 0.24 * max(len(rows), 1) + 0.1
            place += 0.55
        axes.axvline(1, color=MUTED, linewidth=dot(1))
        _rows(axes, place - 0.5, -0.75, "Quantile over the median (×)")
        axes.set_xlim(right=1 + 1.12 * (max(ends) - 1))
        _legend(axes, ((name, colour, marker) for _, name, colour, marker in _WHOLES))
    return figure


def _why_no_ratio(one: Runtime) -> str:
    """Why a runtime has no percentile over its median."""
    notes = {str(note) for table in one.tails.values() if "workload_note" in table for note in table["workload_note"]}
    return "a median of 0 has no multiples" if NO_MEDIAN in notes else "worth too few independent runs"


def _told(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The quantiles that n carries, with both ends."""
    return [
        {str(name): value for name, value in row.items()}
        for row in table.dropna(subset=["workload", "workload_low", "workload_high"]).to_dict("records")
    ]


def tokens_figure(runtimes: Sequence[Runtime], caption: str) -> Figure | None:
    """What one more output token and one more vision token take under each runtime, on one logarithmic axis.

    Returns:
        The figure; None unless two runtimes have a cost that may be above 0.
    """
    shown = [(one, rows) for one in runtimes if (rows := _costs(one))]
    if len(shown) < 2:
        return None
    with theme():
        told = "slopes of time over tokens; lines: 95 % intervals; arrows: upper ends of those that hold 0"
        measured = [(one, kind) for one in runtimes for kind in _KINDS if kind in one.costs]
        if missing := [f"{kind} of {one.label}" for one, kind in measured if kind not in _costs(one)]:
            told += f"\nnot drawn, without an interval or not above 0: {', '.join(missing)}"
        figure = _figure("What one more token takes, by runtime", f"{caption}\n{told}", 0.7 + 0.62 * len(shown))
        axes = figure.subplots()
        for place, (one, rows) in enumerate(shown):
            words = [one.label]
            for kind, (value, low, high) in rows.items():
                unit, colour, marker = _KINDS[kind]
                kind_of = unit.removesuffix(" token")
                if low <= 0:  # a logarithmic axis has no place for 0: the upper end, pointing to it
                    axes.plot(high, place, marker="<", color=colour, markersize=dot(5))
                    words.append(f"{kind_of} at most {digits(high)}")
                    continue
                axes.plot([low, high], [place, place], color=colour, linewidth=dot(2))
                axes.plot(value, place, marker, color=colour, markersize=dot(4.5))
                words.append(f"{kind_of} {digits(value)} ({span(low, high).removesuffix(' ms')})")
            _named(axes, place - 0.22, f"{words[0]}: {', '.join(words[1:])}", 7.5)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.3, high)  # a label below the first tick has room
        plain_log_ticks(axes.xaxis)
        _rows(axes, len(shown) - 0.5, -0.85, "Time a token (ms, log scale)")
        _legend(axes, ((f"one more {unit}", colour, marker) for unit, colour, marker in _KINDS.values()))
    return figure


def _costs(one: Runtime) -> dict[str, tuple[float, float, float]]:
    """Kind of token to (ms, low, high), of the kinds that may cost something: the upper end is above 0."""
    found = {}
    for kind in _KINDS:
        value, low, high = one.costs.get(kind, (0.0, None, None))
        if low is not None and high is not None and high > 0:
            found[kind] = (value, low, high)
    return found

"""The parts of a request as one bar, what comes before the first token enlarged, and slow requests beneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from scipy.optimize import isotonic_regression

from vlmbench.analysis.breakdown import component_table
from vlmbench.analysis.frames import reference, values, workload
from vlmbench.analysis.quantiles import needed
from vlmbench.figures.panels import output_tokens, sentences
from vlmbench.figures.style import pt, style
from vlmbench.figures.theme import (
    INK,
    MUTED,
    caption,
    component_colour,
    component_label,
    luminance,
    new_figure,
    plain_ticks,
    theme,
)
from vlmbench.schema import HOST_PARTS, TOTAL_PARTS
from vlmbench.text import count, digits, percent

Parts = Sequence[tuple[str, float]]
"""(component, ms) in the order of the request."""

BAR = 0.62
_PAGE_IN = 8.0
_LETTER = 0.6  # width of a letter, of its height
_LAST = "T_LLM_decode"


def component_bars(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """One bar for the mean request with each part named, the parts before the first token enlarged below it, then
    bars of usual, slow and repeated requests on the same axis.

    Returns:
        The figure; None if no measured run has stage times.
    """
    if not len(component_table(frame)):
        return None
    (_, first), *others = groups_in_ms(frame)
    if not any(time > 0 for _, time in first):
        return None
    work = workload(frame)
    before = first_token_parts(first)
    with theme():
        room = style().room(_PAGE_IN, 1)
        rows = 1.6 + (4.1 if before else 0.0) + 1.55 * len(others)
        figure = new_figure(
            "Which part eats the time",
            caption(
                provenance, n=len(work), unit="runs", note=sentences(_words(first, bool(before)), output_tokens(work))
            ),
            width=_PAGE_IN,
            height=0.3 + rows * 0.27,
            columns=1,
        )
        axes = figure.subplots()
        longest = max(_total(parts) for _, parts in (("", first), *others))
        unit = longest * _LETTER * pt(8) / 72 / (room * style().scale)  # ms that a letter is wide
        place = _stacked(axes, 0.0, "Mean of " + count(len(work), "run"), first, unit, share=True)
        if before:
            place = _enlarged(axes, place, before, longest, unit)
        for name, parts in others:
            place = _stacked(axes, place + 0.2, name, parts, unit)
        axes.set(xlim=(0, longest), ylim=(place - 0.75, -0.75), xlabel="Time (ms)", yticks=[])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        plain_ticks(axes.xaxis)
    return figure


def groups_in_ms(frame: pd.DataFrame) -> list[tuple[str, Parts]]:
    """Mean parts of all requests, of those around the median, of the slowest 5 %, and of the repeated request."""
    work = workload(frame)
    total = values(work, "T_total")
    low, high, slow = np.nanquantile(total, (0.4, 0.6, 0.95))
    groups = [(f"All ({len(work):,})", work)]
    if len(work) >= 20:
        middle, slowest = work[(total >= low) & (total <= high)], work[total >= slow]
        # Of few runs the slowest ones are no twentieth of anything but themselves.
        name = "Slowest 5 %" if len(work) >= needed(0.95) else "Slowest"
        groups += [(f"Middle fifth ({len(middle):,})", middle), (f"{name} ({len(slowest):,})", slowest)]
    again = reference(frame)
    if len(again):
        groups.append((f"One request, repeated ({len(again):,})", again))
    return [(name, _mean_parts(rows)) for name, rows in groups]


def _mean_parts(rows: pd.DataFrame) -> Parts:
    found = []
    for name in (*HOST_PARTS[:-1], *TOTAL_PARTS, HOST_PARTS[-1]):
        time = values(rows, name)
        if not np.isnan(time).all():
            found.append((name, float(np.nansum(time) / len(rows))))
    return found


def first_token_parts(parts: Parts) -> Parts:
    """What comes before the first token; empty where decoding is not the largest part: then all have room."""
    drawn = [(name, time) for name, time in parts if time > 0]
    names = [name for name, _ in drawn]
    if _LAST not in names or max(drawn, key=lambda part: part[1])[0] != _LAST:
        return []
    return drawn[: names.index(_LAST)]


def _total(parts: Parts) -> float:
    return sum(time for _, time in parts if time > 0)


def _words(parts: Parts, enlarged: bool) -> str:
    """What the bars show, and what is too small to be seen in them."""
    drawn = dict(parts)
    last = [name for name in ("T_residual", HOST_PARTS[-1]) if name in drawn]
    rest = ", ".join(
        f"{component_label(name).removesuffix(' (host)').lower()} {digits(drawn[name])} ms" for name in last
    )
    lens = "the bar below shows the part before the first token at its own scale" if enlarged else ""
    return "; ".join(filter(None, ["means from raw image to text", lens, f"not labelled: {rest}" if rest else ""]))


def _stacked(axes: Axes, row: float, name: str, parts: Parts, unit: float, *, share: bool = False) -> float:
    """A bar with its name and whole above it; parts with room are labelled inside. Returns where the next may begin."""
    left, whole = 0.0, _total(parts)
    for part, time in parts:
        if time <= 0:  # a signed residual: too small to see, and a bar cannot run backwards
            continue
        colour = component_colour(part)
        axes.barh(row, time, left=left, height=BAR, color=colour, edgecolor="white", linewidth=0.5)
        number = f"{digits(time)} ms" + (f" ({percent(time / whole)})" if share else "")
        label = component_label(part).partition(" (")[0]
        for words in (f"{label}, {number}", number, f"{digits(time)} ms"):
            if len(words) * unit < 0.94 * time:
                axes.text(left + time / 2, row, words, ha="center", va="center", fontsize=pt(8), color=readable(colour))
                break
        left += time
    axes.text(0, row - 0.42, f"{name}: {digits(left)} ms", ha="left", va="bottom", fontsize=pt(8))
    return row + 1.35


def _enlarged(axes: Axes, row: float, parts: Parts, width: float, unit: float) -> float:
    """The parts before the first token at the width of the axis, each with its name below it."""
    whole = _total(parts)
    above, below = row - 1.35 + BAR / 2, row + 0.1 - BAR / 2
    axes.add_patch(
        Polygon(
            [(0, above), (whole, above), (width, below), (0, below)], facecolor="#EEEEEA", edgecolor="none", zorder=0
        )
    )
    axes.text(
        0.02 * width, (above + below) / 2, f"up to the first token, {digits(whole)} ms", va="center", fontsize=pt(8),
    )  # fmt: skip
    scale, left, bar = width / whole, 0.0, row + 0.1
    for part, time in parts:
        axes.barh(
            bar, time * scale, left=left, height=BAR, color=component_colour(part), edgecolor="white", linewidth=0.5
        )
        left += time * scale
    name_parts(axes, bar + BAR / 2, parts, width, unit)
    return bar + 2.75


def name_parts(axes: Axes, edge: float, parts: Parts, width: float, unit: float) -> None:
    """Write the name and the ms of each part below a bar that is as wide as the axis.

    Args:
        edge: where the bar ends.
        unit: width of a letter on it.
    """
    scale = width / sum(time for _, time in parts)
    ends = np.cumsum([time * scale for _, time in parts])
    middles = [float(end - time * scale / 2) for end, (_, time) in zip(ends, parts, strict=True)]
    words = [f"{short_name(part)}\n{digits(time)} ms" for part, time in parts]
    widths = [(max(map(len, text.split("\n"))) + 0.6) * unit for text in words]
    for middle, at, text in zip(middles, spread(middles, widths, 0.0, width), words, strict=True):
        axes.plot([middle, at], [edge, edge + 0.35], color=MUTED, linewidth=0.5, clip_on=False)
        axes.text(at, edge + 0.39, text, ha="center", va="top", fontsize=pt(8), linespacing=1.05, color=INK)


def short_name(part: str) -> str:
    """A name of at most two short lines."""
    label = component_label(part).partition(" (")[0].removesuffix(" to device")
    return label.replace(" ", "\n")


def spread(centres: Sequence[float], widths: Sequence[float], low: float, high: float) -> list[float]:
    """Move labels of given widths along a line as little as it needs, so that none lies on another or leaves it.

    Args:
        centres: where they would stand, rising.
        widths: of each.
    """
    beside = np.array([(a + b) / 2 for a, b in pairwise(widths)])
    steps = np.concatenate([[0.0], np.cumsum(beside)])
    # Least squares on places that must rise by their widths is isotonic regression of what is left without them.
    free = isotonic_regression(np.asarray(centres, dtype=float) - steps).x
    first, last = low + widths[0] / 2, high - widths[-1] / 2 - steps[-1]
    return [float(x) for x in np.clip(free, first, max(first, last)) + steps]


def readable(colour: str) -> str:
    """Black or white, whichever stands out from the colour."""
    return "black" if luminance(colour) > 0.18 else "white"

"""Which settings fit into a budget: latency against what one gets for it, the front as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlmbench.analysis.budget import AMOUNTS, Budget, Check, Fit, Setting
from vlmbench.figures.interventions import BASELINE, METHOD
from vlmbench.figures.style import dot
from vlmbench.figures.theme import INK, SERIES, caption, new_figure, plain_ticks, theme
from vlmbench.text import count, ms, plain

_COLOURS: Mapping[Fit, str] = {Fit.FITS: METHOD, Fit.OVER: BASELINE, Fit.UNTOLD: SERIES[4]}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


def budget_figure(found: Budget, provenance: Mapping[str, Any]) -> Figure:
    """Each setting by its latency and the amount that differs most; the other amounts by markers.

    Args:
        found: as solved; what was measured again is drawn beside its setting.
        provenance: of the runs, for the caption.
    """
    x, others = _axes(found)
    kinds = list(dict.fromkeys(_kind(one, others) for one in found.settings))
    again = {check.setting.key: check for check in found.checks}
    inside = "" if any(one.predicted for one in found.settings) else "bars: 95 % intervals; "
    beside = "; side by side: of one amount" if x and len(kinds) > 1 else ""
    note = f"{inside}line: the front{beside}; ringed: chosen; crosses: measured again; dashed: the budget"
    if without := sum(one.latency.value is None for one in found.settings):
        note += f"\nnot drawn: {count(without, 'setting')} with too few independent runs for the {found.name}"
    with theme():
        figure = new_figure(
            f"What fits into {ms(found.limit_ms)}?", caption(provenance, note=note), width=6.4, height=3.8, columns=1
        )
        axes = figure.subplots()
        axes.axhline(found.limit_ms, color=INK, linewidth=dot(1.2), linestyle="--")
        places = [one.amounts[x] for one in found.settings if x in one.amounts]
        room = 0.06 * (max(places) - min(places)) or 1.0 if places else 0.0  # also where a setting is not drawn
        for number, kind in enumerate(kinds):
            part = [one for one in found.settings if _kind(one, others) == kind and one.latency.value is not None]
            aside = room * (number - (len(kinds) - 1) / 2) / max(len(kinds), 2)
            _draw(axes, part, x, _MARKERS[number % len(_MARKERS)], again, aside=aside)
        if places:
            axes.set_xlim(min(places) - room, max(places) + room)
        axes.set(xlabel=x.capitalize() if x else "Setting", ylabel=f"{found.name} (ms)", ylim=(0, None))
        plain_ticks(axes.xaxis, axes.yaxis)
        axes.legend(handles=_legend(kinds), loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _axes(found: Budget) -> tuple[str, list[str]]:
    """The amount with most values, and what else differs by itself: not what goes with that amount."""
    differs = [name for name in found.differs if name in AMOUNTS]
    if not differs:
        return "", list(found.differs)
    x = max(differs, key=lambda name: len({one.amounts.get(name) for one in found.settings}))

    def goes_with(name: str) -> bool:
        pairs = {(one.amounts.get(x), one.amounts.get(name)) for one in found.settings}
        return name in AMOUNTS and len(pairs) == len({value for value, _ in pairs})

    return x, [name for name in found.differs if name != x and not goes_with(name)]


def _kind(one: Setting, others: Sequence[str]) -> str:
    values = (getattr(one, name) if name not in AMOUNTS else plain(one.amounts.get(name, 0)) for name in others)
    return ", ".join(f"{name} {value}" for name, value in zip(others, values, strict=True))


def _draw(
    axes: Axes, part: Sequence[Setting], x: str, marker: str, again: Mapping[tuple[str, str], Check], *, aside: float
) -> None:
    def place(one: Setting) -> float:
        return one.amounts.get(x, 0.0) + aside

    front = sorted((one for one in part if one.front), key=place)
    axes.plot([place(o) for o in front], [o.latency.value or 0 for o in front], color=INK, linewidth=dot(0.9), zorder=1)
    for one in part:
        value, colour = one.latency.value or 0.0, _COLOURS[one.fit]
        if one.latency.low is not None and one.latency.high is not None:
            axes.plot([place(one)] * 2, [one.latency.low, one.latency.high], color=colour, linewidth=dot(2), zorder=2)
        edge = INK if one.chosen else colour
        axes.plot(
            place(one), value, marker=marker, color=colour, markeredgecolor=edge, markersize=dot(7), zorder=3,
            markeredgewidth=dot(1.6),
        )  # fmt: skip
        check = again.get(one.key)
        if check is not None and check.measured.value is not None:
            axes.plot(place(one), check.measured.value, marker="x", color=INK, markersize=dot(7), zorder=4)


def _legend(kinds: Sequence[str]) -> list[Line2D]:
    colours = [Line2D([], [], marker="o", color=c, linestyle="none", label=str(fit)) for fit, c in _COLOURS.items()]
    markers = [
        Line2D(
            [], [], marker=_MARKERS[n % len(_MARKERS)], color=INK, linestyle="none", markerfacecolor="none", label=kind
        )
        for n, kind in enumerate(kinds)
        if kind
    ]
    return [*colours, *markers]

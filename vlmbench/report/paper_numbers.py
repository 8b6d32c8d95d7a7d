"""The headline numbers of a summary as LaTeX macros, each with the ends of its interval and its n.

``vbTTotalWorkloadMedian`` is a value, with ``Low`` and ``High`` behind its name the ends of its 95 % interval, and
``vbTTotalWorkloadN`` counts the runs: a paper that inputs ``numbers.tex`` follows the data when they are measured anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmbench.text import digits

Summary = Mapping[str, Any]
Macro = tuple[str, str]
"""(name without its backslash, what it stands for)."""

PREFIX = "vb"
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_QUANTILES = {"p50": "Median", "p90": "PNinety", "p95": "PNinetyFive", "p99": "PNinetyNine"}


def safe(text: str) -> str:
    """A name that TeX takes: letters alone, a capital after what was cut out, digits as words."""
    words = re.split(r"[^A-Za-z0-9]+", text)
    joined = "".join(word[:1].upper() + word[1:] for word in words)
    return re.sub(r"\d", lambda digit: _DIGITS[int(digit.group())], joined)


def number(value: float) -> str:
    """Three significant digits, thousands with a comma that TeX sets without a blank behind it."""
    return digits(value).replace(",", "{,}")


def macros(summary: Summary, part: str = "") -> list[Macro]:
    """All macros of a summary; empty where it has no numbers.

    Args:
        summary: content of a ``summary.json``.
        part: which part of a study it is, for the names; empty for a run of its own.
    """
    found = [*_latencies(summary), *_shares(summary), *_slopes(summary), *_costs(summary)]
    return [(f"{PREFIX}{safe(part)}{name}", value) for name, value in found]


def tex_macros(found: Sequence[Macro]) -> str:
    """``numbers.tex``.

    Raises:
        ValueError: a name comes twice.
    """
    names = [name for name, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"macros of one name: {', '.join(sorted(twice))}")
    head = "% times in ms, shares in percent; Low and High: ends of the 95 % interval; N: runs\n"
    return head + "".join(f"\\newcommand{{\\{name}}}{{{value}}}\n" for name, value in found)


def _with_interval(name: str, value: float | None, low: float | None, high: float | None) -> Iterator[Macro]:
    """A value and its ends; nothing where there is no value, no ends where there is no interval."""
    if value is None:
        return
    yield name, number(value)
    if low is not None and high is not None:
        yield f"{name}Low", number(low)
        yield f"{name}High", number(high)


def _latencies(summary: Summary) -> Iterator[Macro]:
    for metric, groups in (summary.get("distribution") or {}).items():
        for group, entry in groups.items():
            name = f"{safe(metric)}{safe(group)}"
            yield f"{name}N", f"{entry['n']:,}".replace(",", "{,}")
            for key, word in _QUANTILES.items():
                found = entry.get(key) or {}
                yield from _with_interval(f"{name}{word}", found.get("value"), found.get("low"), found.get("high"))


def _shares(summary: Summary) -> Iterator[Macro]:
    for row in summary.get("components") or []:
        if row.get("share") is None or row["component"] == "T_residual":
            continue
        ends = [None if end is None else 100 * end for end in (row.get("share_low"), row.get("share_high"))]
        yield from _with_interval(f"Share{safe(row['component'])}", 100 * row["share"], *ends)


def _slopes(summary: Summary) -> Iterator[Macro]:
    headline = summary.get("headline")
    if not isinstance(headline, Mapping):
        return
    for kind, row in headline.items():
        if not isinstance(row, Mapping) or "slope_ms" not in row:
            continue
        yield from _with_interval(
            f"MsPer{safe(kind)}Token", row["slope_ms"], row.get("slope_low"), row.get("slope_high")
        )
        without = [row.get(f"slope_unflagged_{end}") for end in ("ms", "low", "high")]
        yield from _with_interval(f"MsPer{safe(kind)}TokenWithoutFirstTimes", *without)


def _costs(summary: Summary) -> Iterator[Macro]:
    rows = summary.get("comparisons") or []
    for place, row in enumerate(rows):
        which = safe(f"model {place + 1}") if len(rows) > 1 else ""
        for kind, cost in row["token_costs"].items():
            yield from _with_interval(f"{which}CostOf{safe(kind)}Token", cost["cost_ms"], cost["low"], cost["high"])
        for name, ratio in row["ratios"].items():
            yield from _with_interval(
                f"{which}Ratio{safe(name)}", ratio.get("value"), ratio.get("low"), ratio.get("high")
            )

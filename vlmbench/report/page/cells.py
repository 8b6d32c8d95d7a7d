"""What stands on the page, as plain data: sentences made of pieces, and tables made of cells.

The template writes the first run's, the script writes those of a run that the reader chooses; both read the same data,
so every number is formatted once, here. Texts are never markup: the template escapes them, the script sets them as
text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from vlmbench.report.narrative.tail import lacks_short
from vlmbench.report.table_cells import Grid
from vlmbench.schema import STAGES, label_of
from vlmbench.text import DASH, digits, span, tight_interval

STAGE_CODES: Mapping[str, str] = {stage.column: stage.code for stage in STAGES if stage.code}
"""Time to the short name that styles and script use for its colour, in the order in which a request passes."""


def heading(name: str, *, unit: bool = False) -> str:
    """A column's words as a heading or at the begin of a cell: ``Time to first token, ms``."""
    words = label_of(name, unit=unit)
    return words if words.startswith("generate()") else words[:1].upper() + words[1:]


Number = float | int | None


def known(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ms(value: Number) -> str:
    """Milliseconds without the unit, never in seconds: a table keeps one unit."""
    return signed(digits(float(value))) if value is not None and known(value) else DASH


def ms_span(low: Number, high: Number) -> str:
    """The ends of an interval in ms without the unit; empty where one is missing."""
    if low is None or high is None or not (known(low) and known(high)):
        return ""
    return signed(tight_interval(float(low), float(high)))


def share_span(low: Number, high: Number) -> str:
    """The ends of an interval of a share, in percent without the sign."""
    return signed(span(low, high, "%").removesuffix(" %"))


def signed(text: str) -> str:
    """Numbers with a minus that looks like one."""
    return text.replace("-", "−")


def cell(text: str, **more: Any) -> dict[str, Any]:
    """A cell.

    Args:
        more: ``sub`` (a second line), ``sw`` (stage whose colour stands before it), ``bar`` ((stage, share from 0 to
            1)), ``busy`` (share of the time that the device works), ``v`` (verdict: good, warn, bad or open),
            ``pick`` (index of a request that a click chooses).
    """
    return {"t": text, **{name: value for name, value in more.items() if value not in (None, "")}}


def quantile_cell(entry: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """A percentile with its interval, or how many requests it needs."""
    if not entry or entry.get("value") is None:
        return cell(DASH, sub=lacks_short(entry, name) if entry and entry.get("note") else "")
    return cell(ms(entry["value"]), sub=ms_span(entry.get("low"), entry.get("high")))


def table(
    name: str,
    caption: str,
    columns: Sequence[tuple[str, bool]],
    rows: Sequence[Sequence[dict[str, Any] | str]],
    *,
    note: str = "",
    look: str = "stack",
) -> dict[str, Any]:
    """A table; the first cell of each row is its heading.

    Args:
        name: where the page puts it.
        caption: above it.
        columns: (heading, whether its cells are numbers).
        rows: cells; a text is a cell without anything else.
        look: ``stack`` (cards on a phone) or ``tight`` (stays a table).
    """
    return {
        "name": name,
        "caption": caption,
        "cols": [[heading, right] for heading, right in columns],
        "rows": [[{"t": c} if isinstance(c, str) else c for c in row] for row in rows],
        "note": note,
        "look": look,
    }


_AS_THEY_ARE = ("n", "ms")


def of_grid(grid: Grid) -> dict[str, Any]:
    """A table that the terminal and papers show too."""
    columns = [(name if name in _AS_THEY_ARE else name[:1].upper() + name[1:], right) for name, right in grid.columns]
    return table(grid.name, grid.title, columns, [[text.strip() for text in row] for row in grid.rows])


def rounded(value: Any, significant: int = 4) -> float | int | None:
    """A number as short as it may be in the data: so many significant digits; None for what is no number."""
    if value is None or not known(float(value)):
        return None
    short = float(f"{float(value):.{significant}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def rounded_list(values: Iterable[Any], significant: int = 4) -> list[float | int | None]:
    """:func:`rounded` of each."""
    return [rounded(value, significant) for value in values]


def point_key(name: str) -> list[tuple[int, float, str]]:
    """Orders points by their numbers, not by their digits."""
    key: list[tuple[int, float, str]] = []
    for piece in name.replace(",", "=").split("="):
        try:
            key.append((0, float(piece), ""))
        except ValueError:
            key.append((1, 0.0, piece))
    return key

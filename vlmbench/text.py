"""How numbers are written for people: as many digits as they deserve, units always."""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

DASH = "–"


_NOTHING = 1e-10
_COLUMNS, _FEWEST_COLUMNS = 120, 40


def digits(value: float, significant: int = 3) -> str:
    """A number with so many significant digits and thousands commas, never in powers of ten.

    What is smaller than 1e-10 is 0: no quantity here is measured that finely.
    """
    if not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < _NOTHING:
        return "0"
    rounded = float(f"{value:.{significant - 1}e}")  # first, because rounding can add a digit: 9.996 to 10.0
    places = significant - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(places, 0)}f}"


def whole(value: float) -> str:
    """A count as it is, with thousands commas: ``1,048,576``, ``0.5``."""
    return f"{value:,.0f}" if float(value).is_integer() else digits(value)


def interval(low: float, high: float, significant: int = 3) -> str:
    """Two ends in words: ``19.0 to 21.4``."""
    return f"{digits(low, significant)} to {digits(high, significant)}"


def ms(value: float | None, significant: int = 3) -> str:
    """Milliseconds as text: ``0.42 ms``, ``181 ms``, ``12.3 s`` from ten seconds on; a dash for None."""
    if value is None or math.isnan(value):
        return DASH
    return f"{digits(value / 1e3, significant)} s" if abs(value) >= 1e4 else f"{digits(value, significant)} ms"


def percent(share: float | None, significant: int = 3) -> str:
    """A share as text: 0.845 is ``84.5 %``; a dash for None."""
    if share is None or math.isnan(share):
        return DASH
    return f"{_fixed(share * 100, significant)} %"


def not_measurable(high: float) -> str:
    """A share that may be none, by the upper end of its interval; an end outside of 0 to 100 % bounds nothing."""
    return f"not measurable, at most {percent(high)}" if 0 < high < 1 else "not measurable"


def _fixed(value: float, significant: int) -> str:
    """Significant digits, but no more than two decimals: a percentage of a percentage point says nothing."""
    if abs(value) < 0.005:
        return "0.00"
    rounded = float(f"{value:.{significant - 1}e}")
    places = min(max(significant - 1 - math.floor(math.log10(abs(rounded))), 0), 2)
    return f"{rounded:.{places}f}"


def factor(value: float | None) -> str:
    """A factor as text: ``3.76×``, near 1 with three decimals; a dash for None."""
    return DASH if value is None or math.isnan(value) else f"{_near_one(value)}×"


def _near_one(value: float) -> str:
    return f"{value:.3f}" if 0.5 < value < 2 else digits(value)


def plain(value: float) -> str:
    """For ticks: four significant digits at most, no zeros at the end."""
    text = digits(value, 4)
    return text.rstrip("0").rstrip(".") if "." in text else text


def span(low: float | None, high: float | None, unit: str = "ms") -> str:
    """An interval: ``165–187 ms``, ``84.0–85.0 %``; empty where it has no two ends.

    Args:
        low, high: ends, in ms, as shares (``%``) or as factors (``×``).
        unit: ``ms``, ``%`` or ``×``.
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    if unit == "%":
        ends = _apart(lambda end, significant: _fixed(end * 100, significant), low, high)
    elif unit == "ms" and abs(high) >= 1e4:
        ends, unit = _apart(digits, low / 1e3, high / 1e3), "s"
    elif unit == "×":
        ends = [_near_one(end) for end in (low, high)]
    else:
        ends = _apart(digits, low, high)
    joint = " to " if low < 0 or high < 0 else "–"
    return joint.join(ends) + ("×" if unit == "×" else f" {unit}")


_MOST_DIGITS = 5


def _apart(write: Callable[[float, int], str], low: float, high: float) -> list[str]:
    """Two ends with as many digits as tell them apart, three at least and five at most."""
    ends = [write(low, 3), write(high, 3)]
    for significant in range(4, _MOST_DIGITS + 1):
        if ends[0] != ends[1] or low == high:
            break
        ends = [write(low, significant), write(high, significant)]
    return ends


def tight_interval(low: float, high: float) -> str:
    """The ends of an interval without a unit: ``6.818–6.824``; one number where both are the same."""
    ends = _apart(digits, low, high)
    return ends[0] if ends[0] == ends[1] else ("–" if low >= 0 else " to ").join(ends)


def quantile_cell(entry: Mapping[str, Any] | None) -> str:
    """A quantile of the summary for a table: value and interval, or why there is none."""
    if not entry:
        return DASH
    if entry.get("value") is None:
        return "n too small" if entry.get("note") else DASH
    low, high = entry.get("low"), entry.get("high")
    inside = "" if low is None or high is None else f" [{digits(low)}–{digits(high)}]"
    return f"{digits(entry['value'])}{inside}"  # always ms: a table has one unit


def count(number: int | float, one: str, many: str | None = None) -> str:
    """``1 request``, ``2,000 requests``."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"


def lasting(seconds: float) -> str:
    """A duration as people say it: ``40 seconds``, ``14 minutes``, ``2.5 hours``, ``3.1 days``."""
    for unit, scale in (("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 1.5 * scale:
            shown = f"{seconds / scale:.1f}".removesuffix(".0") if seconds < 10 * scale else f"{seconds / scale:,.0f}"
            return f"{shown} {unit}{'' if shown == '1' else 's'}"
    return count(round(seconds) or 1, "second")


def worth(n: int, effective: float | None) -> str:
    """`` worth 44`` for runs that are not independent: to put behind ``200 runs,``; empty where n says it all.

    Args:
        n: runs.
        effective: independent ones that they are worth; None where that is not known.
    """
    if effective is None or math.floor(effective) >= n:
        return ""
    return f", worth {whole_ones(effective)}"


def whole_ones(effective: float, none: str = "less than one") -> str:
    """Independent runs in whole ones: rounded down, for 35.9 of the 36 that are needed are not enough.

    Args:
        effective: independent ones that some runs are worth.
        none: what stands for less than one.
    """
    return f"{math.floor(effective):,}" if effective >= 1 else none


def amount(number: int) -> str:
    """A large count, such as of parameters: ``6.95 B``, ``303 M``, ``88.2 k``."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{digits(number / scale)} {unit}"
    return f"{number:,}"


def tokens(name: str) -> str:
    """``num_vision_tokens`` as ``vision tokens``."""
    return name.removeprefix("num_").replace("_", " ")


def nearest(given: str, allowed: Sequence[str], most: int = 3) -> str:
    """List the allowed names that are most like what was given; the first ones where none is like it."""
    near = difflib.get_close_matches(given, allowed, n=most, cutoff=0.4) or list(allowed)[:most]
    return ", ".join(near)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, with one kind of error for all that can be wrong with it.

    Raises:
        ValueError: it is no JSON, not UTF-8, nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class Level(IntEnum):
    """How much is said beside results: ``-q``, nothing, ``-v`` on the command line."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


LEVEL_VARIABLE = "VLMBENCH_LEVEL"
"""Environment variable that carries the level to processes that this one starts: a number of :class:`Level`."""


def level() -> Level:
    """How much is said now."""
    given = os.environ.get(LEVEL_VARIABLE, "")
    return Level(int(given)) if given in ("0", "1", "2") else Level.NORMAL


def say(message: str) -> None:
    """Write a line for the user on the error output, at once: the process may be about to end.

    For what must be known: errors, warnings, how a run ended and where its results are.
    """
    _said.append(message)
    if sys.stderr is not None:  # a process of a desktop has none
        sys.stderr.write(f"vlmbench: {message}\n")
        sys.stderr.flush()


_said: deque[str] = deque(maxlen=1)


def said_last() -> str | None:
    """What this process told its user last; None where it said nothing yet."""
    return _said[-1] if _said else None


def note(message: str) -> None:
    """Say what is good to know while waiting; left out with ``-q``."""
    if level() >= Level.NORMAL:
        say(message)


def detail(message: str) -> None:
    """Say what is of use for finding a fault; with ``-v`` only."""
    if level() >= Level.VERBOSE:
        say(message)


def terminal_width() -> int:
    """Columns of the terminal that standard output is; 120 where it is none (``COLUMNS`` says otherwise)."""
    return min(max(shutil.get_terminal_size((_COLUMNS, 24)).columns, _FEWEST_COLUMNS), _COLUMNS)


def show(text: str) -> None:
    """Write results to standard output; long lines are broken between words where it is a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(_broken(line, terminal_width()) for line in text.split("\n"))
    sys.stdout.write(f"{text}\n")


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    blanks = " " * (len(line) - len(line.lstrip(" ")))
    return textwrap.fill(
        line.strip(),
        width,
        initial_indent=blanks,
        subsequent_indent=blanks,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shown(path: Path) -> str:
    """A path as the user would write it: relative where it lies below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):  # OSError: the working directory was removed
        return str(path)


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "–": "--", "²": "$^2$", "µ": r"$\mu$",
    }
)  # fmt: skip


def latex(text: str) -> str:
    """Text as LaTeX shows it: special characters escaped."""
    return text.translate(_LATEX)

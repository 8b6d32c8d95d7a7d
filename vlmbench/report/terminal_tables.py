"""Tables for the terminal, made with rich; without colours they are plain text."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlmbench.figures.theme import caption, component_colour
from vlmbench.report import table_cells
from vlmbench.report.narrative.latency import answers, flag_sentence
from vlmbench.text import DASH, amount, digits, percent, terminal_width

if TYPE_CHECKING:
    from vlmbench.models.anatomy.find import AnatomyRow

_BAR_CELLS = 9  # more would cut the table of components at 120 columns
# Columns that a narrow terminal goes without, the least needed first.
_LEAST = ("lag-1", "of peak", "mean, ms", "mean", "P99", "of", "worth", "95 % interval", "P90", "to ±1 %, s")


class Fitted:
    """A grid for the terminal, with bars where it has shares. Where it does not fit into the width, some columns are
    left out aloud, and words stand in several lines; no cell is cut.

    Args:
        grid: the table.
        elsewhere: where what is left out can be read.
    """

    def __init__(self, grid: table_cells.Grid, elsewhere: str = "report.html holds them.") -> None:
        self._grid, self._elsewhere = grid, elsewhere

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table within the width that there is."""
        width, grid = options.max_width, self._grid
        left_out: list[str] = []
        bars = bool(grid.colours) and _natural(grid) + _BAR_CELLS + 2 <= width
        for name in _LEAST:
            if _natural(grid) <= width:
                break
            if (shorter := _without(grid, name)) is not grid:
                grid, left_out = shorter, [*left_out, name]
        yield _as_table(grid, bars=bars, width=width)
        if left_out:
            yield Text(f"Left out, for the width: {'; '.join(left_out)}. {self._elsewhere}", style="dim")


def _widths(grid: table_cells.Grid, width: int) -> dict[int, int]:
    """Characters that each column of a grid gets where not all fit: numbers stay whole, under headings in several
    lines; of words the longest are broken, between two of them as long as that helps. Empty where all fit.
    """
    if (too_wide := _natural(grid) - width) <= 0:
        return {}
    texts = [[name, *(row[i] for row in grid.rows)] for i, (name, _) in enumerate(grid.columns)]
    given = [max(map(len, column)) for column in texts]
    least = [max(len(word) for text in column for word in text.split() or [""]) for column in texts]
    for i, (_, right) in enumerate(grid.columns):
        if right:
            narrow = max(least[i], *(len(row[i]) for row in grid.rows))
            too_wide, given[i] = too_wide - given[i] + narrow, narrow
    words = [i for i, (_, right) in enumerate(grid.columns) if not right]
    for _ in range(too_wide):
        most = max(words, key=lambda i: (given[i] > least[i], given[i]), default=None)
        if most is not None and given[most] > 1:
            given[most] -= 1
    return dict(enumerate(given))


def _natural(grid: table_cells.Grid) -> int:
    """Columns that a grid takes where no cell is cut: cells, two blanks between them, one at each end."""
    widths = [max([len(name), *(len(row[i]) for row in grid.rows)]) for i, (name, _) in enumerate(grid.columns)]
    return sum(widths) + 3 * (len(widths) - 1) + 2


def _without(grid: table_cells.Grid, name: str) -> table_cells.Grid:
    """The grid without a column; itself where it has none of this name."""
    places = [i for i, (one, _) in enumerate(grid.columns) if one == name]
    if not places:
        return grid
    kept = [i for i in range(len(grid.columns)) if i not in places]
    rows = tuple(tuple(row[i] for i in kept) for row in grid.rows)
    return replace(grid, columns=tuple(grid.columns[i] for i in kept), rows=rows)


def _as_table(grid: table_cells.Grid, *, bars: bool, width: int) -> Table:
    table, widths = _table(grid.title), _widths(grid, width)
    for i, (name, right) in enumerate(grid.columns):
        heading = "\n".join(textwrap.wrap(name, widths[i])) if i in widths and right else name
        whole = right if widths else not name.startswith("P")
        table.add_column(
            heading, justify="right" if right else "left", no_wrap=whole, overflow="fold", width=widths.get(i)
        )
    if not bars:
        for row in grid.rows:
            table.add_row(*row)
        return table
    table.add_column("", no_wrap=True)
    for row, (component, share) in zip(grid.rows, grid.colours, strict=True):
        table.add_row(*row, _bar(share, component))
    return table


def memory(summary: Mapping[str, Any]) -> str:
    """Peak memory in one line; empty if it was not watched."""
    names = {
        "allocated": "allocated on the device",
        "reserved": "reserved on the device",
        "rss": "resident on the host",
    }
    parts = [
        f"{digits(entry['max'] / 2**30)} GiB {words}"
        for key, words in names.items()
        for name, entry in summary["memory"].items()
        if entry and key in name
    ]
    return f"Peak memory: {', '.join(parts)}." if parts else ""


def anatomy(title: str, rows: Iterable[AnatomyRow], notes: Sequence[str] = ()) -> RenderableType:
    """Which module is which stage, and by which rule it was found."""
    table = _table(f"Anatomy of {title}")
    for name in ("stage", "module", "class"):
        table.add_column(name, no_wrap=name == "stage", overflow="fold")
    for name in ("parameters", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("found by")
    for row in rows:
        stage = Text(row.stage, style=component_colour(row.stage))
        table.add_row(stage, row.path or DASH, row.module_class, amount(row.parameters), percent(row.share), row.rule)
    return Group(table, *(Text(f"Note: {note}") for note in notes))


def phase1(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> RenderableType:
    """The whole report for a terminal: the answers in words, then the tables."""
    parts: list[RenderableType] = [Text(caption(provenance), style="dim")]
    shown: list[table_cells.Grid] = []
    for question, sentences in answers(summary, provenance):
        parts += [
            Text(""),
            Text(question, style="bold"),
            *(Padding(Text(sentence), (0, 0, 0, 2)) for sentence in sentences),
        ]
    if summary["distribution"]:
        if (latency := table_cells.latency(summary)).rows:
            parts += [Text(""), Fitted(latency)]
        shown = [table_cells.components(summary), table_cells.parameters(summary)]
    shown += [table_cells.memory(summary), table_cells.energy(summary), table_cells.kernels(summary)]
    parts += [Fitted(grid) for grid in shown if grid.rows]
    parts += [Text(line) for line in (memory(summary), *flag_sentence(summary["flags"])) if line]
    return Group(*parts)


def as_text(content: RenderableType, width: int | None = None) -> str:
    """Rendered as plain text.

    Args:
        width: columns; those of the terminal, or 120 where there is none, if None.
    """
    width = width or terminal_width()
    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True, force_terminal=False, markup=False, emoji=False).print(content)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)


def _bar(share: float | None, component: str) -> Text:
    cells = 0 if share is None else round(min(abs(share), 1.0) * _BAR_CELLS)
    return Text("█" * cells, style=component_colour(component))

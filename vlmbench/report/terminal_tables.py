"""Tables for the terminal, made with rich; without colours they are plain text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlmbench.figures.theme import caption, component_colour
from vlmbench.report import table_cells
from vlmbench.report.narrative.latency import answers, flag_sentence
from vlmbench.text import DASH, amount, digits, percent

_BAR_CELLS = 9  # more would cut the table of components at 120 columns


def latency(summary: Mapping[str, Any]) -> Table:
    """Latencies: median and upper quantiles with intervals; the repeated request below the workload."""
    return table_of(table_cells.latency(summary))


def components(summary: Mapping[str, Any]) -> Table:
    """Time and share of each part, with its colour as a bar; time over floor where it is known."""
    return table_of(table_cells.components(summary))


def parameters(summary: Mapping[str, Any]) -> Table | None:
    """Parameters of each part; None if they were not counted."""
    grid = table_cells.parameters(summary)
    return table_of(grid) if grid.rows else None


def table_of(grid: table_cells.Grid) -> Table:
    """A grid for the terminal, with bars where it has shares."""
    table = _table(grid.title)
    for name, right in grid.columns:
        table.add_column(name, justify="right" if right else "left", no_wrap=not name.startswith("P"))
    if not grid.colours:
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


class AnatomyRow(Protocol):
    """What a row of the anatomy table needs."""

    @property
    def stage(self) -> str:
        """``vision_encoder``, ``projector``, ``language_model`` or ``head``."""

    @property
    def path(self) -> str:
        """Dotted path of the module."""

    @property
    def module_class(self) -> str:
        """Its class."""

    @property
    def parameters(self) -> int:
        """How many it holds."""

    @property
    def share(self) -> float:
        """Of the parameters of all stages."""

    @property
    def rule(self) -> str:
        """How it was found."""


def phase1(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> RenderableType:
    """The whole report for a terminal: the answers in words, then the tables."""
    parts: list[RenderableType] = [Text(caption(provenance), style="dim")]
    for question, sentences in answers(summary, provenance):
        parts += [
            Text(""),
            Text(question, style="bold"),
            *(Padding(Text(sentence), (0, 0, 0, 2)) for sentence in sentences),
        ]
    if summary["distribution"]:
        parts += [Text(""), latency(summary)]
        if summary["components"]:
            parts.append(components(summary))
        if sizes := parameters(summary):
            parts.append(sizes)
    shown = (table_cells.memory(summary), table_cells.energy(summary), table_cells.kernels(summary))
    parts += [table_of(grid) for grid in shown if grid.rows]
    parts += [Text(line) for line in (memory(summary), *flag_sentence(summary["flags"])) if line]
    return Group(*parts)


def as_text(content: RenderableType, width: int = 120) -> str:
    """Rendered as plain text of so many columns."""
    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True, force_terminal=False, markup=False, emoji=False).print(content)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)


def _bar(share: float | None, component: str) -> Text:
    cells = 0 if share is None else round(min(abs(share), 1.0) * _BAR_CELLS)
    return Text("█" * cells, style=component_colour(component))

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

from vlmbench.analysis.numbers import DASH, digits, factor, ms, percent, quantile_cell, span
from vlmbench.figures.theme import caption, component_colour, component_label
from vlmbench.report.words import answers, flag_sentence

_BAR_CELLS = 20


def latency(summary: Mapping[str, Any]) -> Table:
    """Latencies: median and upper quantiles with intervals; the repeated request below the workload."""
    table = _table("Latency, ms [95 % interval]")
    for name in ("", "runs", "n"):
        table.add_column(name, justify="right" if name == "n" else "left", no_wrap=True)
    for name in ("P50", "P90", "P95", "P99", "mean"):
        table.add_column(name, justify="right")
    for metric, groups in summary["distribution"].items():
        for group, entry in groups.items():
            cells = [quantile_cell(entry[name]) for name in ("p50", "p90", "p95", "p99")]
            runs = "workload" if group == "workload" else "repeated"
            label = metric if group == next(iter(groups)) else ""
            table.add_row(label, runs, f"{entry['n']:,}", *cells, ms(entry["mean"]).removesuffix(" ms"))
    return table


def components(summary: Mapping[str, Any]) -> Table:
    """Time and share of each part, with its colour as a bar; parameters beside it."""
    table = _table("Where the time goes")
    table.add_column("", no_wrap=True)
    for name in ("median, ms", "mean, ms", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("of", no_wrap=True)
    floors = {row["component"]: row["over_floor"] for row in summary["cost"]["stages"]}
    has_floors = any(value is not None for value in floors.values())
    if has_floors:
        table.add_column("time / floor", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in summary["components"]:
        share = row["share"]
        nested = row["part_of"] == "T_LLM_decode"
        table.add_row(
            ("  " if nested else "") + component_label(row["component"]),
            ms(row["median"]).removesuffix(" ms"),
            ms(row["mean"]).removesuffix(" ms"),
            percent(share),
            span(row["share_low"], row["share_high"], "%"),
            row["part_of"],
            *([factor(floors.get(row["component"]))] if has_floors else []),
            _bar(share, row["component"]),
        )
    return table


def parameters(summary: Mapping[str, Any]) -> Table | None:
    """Parameters of each part; None if they were not counted."""
    if not summary["parameters"]:
        return None
    table = _table("Where the parameters are")
    table.add_column("", no_wrap=True)
    for name in ("parameters", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in summary["parameters"]:
        share = row["share"]
        table.add_row(
            component_label(row["component"]), _size(row["parameters"]), percent(share), _bar(share, row["component"])
        )
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
        table.add_row(stage, row.path or DASH, row.module_class, _size(row.parameters), percent(row.share), row.rule)
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
        parts += [Text(""), Text(question, style="bold"), *(Padding(sentence, (0, 0, 0, 2)) for sentence in sentences)]
    if summary["distribution"]:
        parts += [Text(""), latency(summary), components(summary)]
        if sizes := parameters(summary):
            parts.append(sizes)
    parts += [Text(line) for line in (memory(summary), *flag_sentence(summary["flags"])) if line]
    return Group(*parts)


def as_text(content: RenderableType, width: int = 120) -> str:
    """Rendered as plain text of so many columns."""
    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True, force_terminal=False).print(content)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)


def _bar(share: float | None, component: str) -> Text:
    cells = 0 if share is None else round(min(abs(share), 1.0) * _BAR_CELLS)
    return Text("█" * cells, style=component_colour(component))


def _size(parameters: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= scale:
            return f"{digits(parameters / scale)} {unit}"
    return f"{parameters:,}"

"""The first steps of fresh processes: table, figure and file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vlmbench.analysis.first_steps import first_time_summary, first_times
from vlmbench.errors import InputError
from vlmbench.figures.first_steps import first_steps_figure
from vlmbench.figures.theme import save
from vlmbench.records.files import write_json
from vlmbench.records.reading import iter_rows
from vlmbench.report.phase1_summary import provenance_of
from vlmbench.report.terminal_tables import as_text
from vlmbench.schema import SCHEMA_VERSION
from vlmbench.text import factor, ms, note

FILE = "first_steps.json"


def write_first_steps(directory: Path, arms: Mapping[str, Path]) -> str:
    """Write ``first_steps.json`` and ``figures/first_steps.*``.

    Args:
        directory: where they go.
        arms: name of each arm to its run directory, measured by a process of its own without warm-up.

    Returns:
        The table as plain text.

    Raises:
        InputError: no arm met any shape twice.
    """
    tables = {arm: first_times(_first_session(path)) for arm, path in arms.items()}
    if not any(len(table) for table in tables.values()):
        raise InputError(
            f"'{directory}' holds no shape that was met twice in one process.\n"
            "Let each point run at least twice: measurement.stopping.min_samples=5"
        )
    provenances = {arm: provenance_of(path) for arm, path in arms.items()}
    summaries = {arm: first_time_summary(table) for arm, table in tables.items()}
    content = {
        "schema_version": SCHEMA_VERSION,
        "arms": {
            arm: {
                "sdpa_backends": (provenances[arm].get("runtime") or {}).get("sdpa_backends"),
                "summary": summaries[arm],
                "times": tables[arm].to_dict("records"),
            }
            for arm in arms
        },
    }
    write_json(directory / FILE, content)
    figure = first_steps_figure(tables, next(iter(provenances.values())))
    if figure is None:
        note("all first times are 0, which have no place on a log scale; not drawn: first_steps.")
    else:
        save(figure, directory / "figures", "first_steps")
    return as_text(_table(summaries))


def _first_session(path: Path) -> list[dict[str, Any]]:
    """The measured rows of the first process that wrote to a run directory; a later one starts afresh."""
    rows = [row for row in iter_rows(path) if row["status"] == "ok" and row["mode"] == "instrumented"]
    first = min((row["session"] for row in rows), default=0)
    return sorted((row for row in rows if row["session"] == first), key=lambda row: float(row["started_unix_s"]))


def _table(summaries: Mapping[str, list[dict[str, Any]]]) -> Table:
    table = Table(title="What a fresh process pays", box=SIMPLE_HEAD, title_justify="left")
    for name in ("arm", "what"):
        table.add_column(name)
    for name in (
        "new shapes",
        "first time",
        "later",
        "ratio, shape by shape",
        "all first times, beyond later",
        "first run, beyond later",
    ):
        table.add_column(name, justify="right")
    for arm, rows in summaries.items():
        for row in rows:
            if row["shapes"] or row["process_ms"] is not None:
                table.add_row(
                    arm, row["what"], f"{row['shapes']:,}", ms(row["first_ms"]), ms(row["later_ms"]),
                    factor(row["ratio"]), ms(row["extra_ms"]), ms(row["process_ms"]),
                )  # fmt: skip
    return table

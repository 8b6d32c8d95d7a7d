"""Phase 1: from a run directory to summary, phase file, figures and words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vlmbench.analysis.load import iter_lines
from vlmbench.figures import components, latency, workload
from vlmbench.figures.theme import save
from vlmbench.records.record import SCHEMA_VERSION, Mode, Status
from vlmbench.records.whole import strict, write_json, write_whole
from vlmbench.report import tables
from vlmbench.report.summary import EXPERIMENT, Run, read_run, summarise_run

PHASE_FILE = f"{EXPERIMENT}.json"
_MEASURED = (Status.OK, Status.ERROR, Status.OOM, Status.SKIPPED)


@dataclass(frozen=True, kw_only=True)
class Phase1Report:
    """What was written.

    Args:
        summary: content of ``summary.json``.
        files: everything written, in order.
        text: the answer in words and tables, plain text.
    """

    summary: Mapping[str, Any]
    files: tuple[Path, ...]
    text: str


def write_phase1(directory: Path | str) -> Phase1Report:
    """Write ``summary.json``, ``phase1_dataset_profiling.json`` and ``figures/`` of a run directory.

    Each file is written whole, then renamed. Figures that a run has no data for are left out.

    Raises:
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    run = read_run(directory)
    summary = summarise_run(run)
    files = [
        write_json(run.directory / "summary.json", summary),
        write_phase_file(run.directory, run.provenance, summary),
    ]
    for name, figure in figures(run):
        files += save(figure, run.directory / "figures", name)
    return Phase1Report(
        summary=summary, files=tuple(files), text=tables.as_text(tables.phase1(summary, run.provenance))
    )


def write_phase_file(directory: Path, provenance: Mapping[str, Any], summary: Mapping[str, Any]) -> Path:
    """Stream the phase file: provenance, summary and one row for each instrumented run, as recorded.

    Rows are those of status ``ok``, ``error``, ``oom`` or ``skipped``. Warm-up, cold, bare and trace rows are
    in ``records.jsonl`` only: their times are not those of a watched request.
    """
    head = {
        "schema_version": SCHEMA_VERSION,
        "experiment_name": EXPERIMENT,
        "provenance": dict(provenance),
        "summary": dict(summary),
    }
    return write_whole(directory / PHASE_FILE, lambda file: _stream(file, head, directory))


def _stream(file: BinaryIO, head: Mapping[str, Any], directory: Path) -> None:
    file.write(b"{\n")
    for name, value in head.items():
        text = json.dumps(strict(value), ensure_ascii=False, allow_nan=False)
        file.write(f"{json.dumps(name)}: {text},\n".encode())
    file.write(b'"results": [')
    separator = b"\n"
    for line in iter_lines(directory, statuses=_MEASURED, modes=(Mode.INSTRUMENTED,)):
        file.write(separator + line)
        separator = b",\n"
    file.write(b"\n]\n}\n")


def figures(run: Run) -> list[tuple[str, Any]]:
    """(file name, figure) of all figures that the run has data for."""
    frame, provenance = run.frame, run.provenance
    made = [
        ("latency_distribution", latency.latency_distribution(frame, provenance)),
        ("request_distribution", latency.latency_distribution(frame, provenance, metric="T_request")),
        ("ttft_itl", latency.ttft_and_itl(frame, run.gaps, provenance)),
        ("latency_vs_tokens", workload.latency_vs_tokens(frame, provenance)),
        ("variance_split", workload.variance_bars(frame, provenance)),
        ("over_time", workload.over_time(frame, provenance)),
        ("components_pie", components.component_pies(frame, provenance)),
        ("components_bars", components.component_bars(frame, provenance)),
        ("stage_distributions", components.stage_distributions(frame, provenance)),
    ]
    return [(name, figure) for name, figure in made if figure is not None]

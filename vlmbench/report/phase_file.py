"""Phase files, streamed: ``{"schema_version", "experiment_name", "provenance", "summary", "results": [row…]}``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vlmbench.records.reading import iter_lines
from vlmbench.records.record import SCHEMA_VERSION, Mode, Status
from vlmbench.records.whole import strict, write_whole

_REPORTED = (Status.OK, Status.ERROR, Status.OOM, Status.SKIPPED)


def write_phase_file(
    path: Path, *, experiment: str, provenance: Mapping[str, Any], summary: Mapping[str, Any], results: Iterable[bytes]
) -> Path:
    """Write a phase file whole, in constant memory.

    Args:
        path: the file.
        experiment: ``experiment_name``.
        provenance, summary: plain data.
        results: rows, each as one line of JSON (see :func:`run_rows`).

    Raises:
        MeasurementError: the file cannot be written; what stood there is intact.
    """
    head = {
        "schema_version": SCHEMA_VERSION,
        "experiment_name": experiment,
        "provenance": dict(provenance),
        "summary": dict(summary),
    }
    return write_whole(path, lambda file: _stream(file, head, results))


def run_rows(directory: Path) -> Iterator[bytes]:
    """The instrumented runs of a run directory as recorded, with status ``ok``, ``error``, ``oom`` or ``skipped``.

    Warm-up, cold, bare and trace rows stay in ``records.jsonl``: their times are not those of a watched request.
    """
    for line, row in iter_lines(directory):
        if row["status"] in _REPORTED and row["mode"] == Mode.INSTRUMENTED:
            yield line


def json_row(value: Any) -> bytes:
    """A row as one line of strict JSON."""
    return json.dumps(strict(value), ensure_ascii=False, allow_nan=False).encode()


def _stream(file: BinaryIO, head: Mapping[str, Any], results: Iterable[bytes]) -> None:
    file.write(b"{\n")
    for name, value in head.items():
        file.write(json_row(name) + b": " + json_row(value) + b",\n")
    file.write(b'"results": [')
    separator = b"\n"
    for line in results:
        file.write(separator + line)
        separator = b",\n"
    file.write(b"\n]\n}\n")

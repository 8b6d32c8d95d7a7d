"""Phase files, streamed: ``{"schema_version", "experiment_name", "provenance", "summary", "results": [row…]}``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vlmbench.analysis.frames import BASELINE
from vlmbench.analysis.row_file import RowFile, row_file
from vlmbench.hiding import without_secret_texts
from vlmbench.records.files import strict, write_whole
from vlmbench.schema import SCHEMA_VERSION, Mode, Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAILED = (Status.ERROR, Status.OOM, Status.SKIPPED)
_Key = tuple[str, str, int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the rows of a run say, before any of it is written.

    Args:
        summary: content of ``summary.json``.
        draw: yields (file name, figure) of all figures that the run has data for, one at a time.
        words: the answer in words and tables, plain text, at most so many columns wide where it has tables; those of
            the terminal if None.
    """

    summary: Mapping[str, Any]
    draw: Callable[[], Iterator[tuple[str, Figure]]]
    words: Callable[[int | None], str]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the report of an experiment is.

    Args:
        summary: content of ``summary.json``.
        files: everything written, in order.
        text: the answer in words and tables, plain text.
    """

    summary: Mapping[str, Any]
    files: tuple[Path, ...]
    text: str


def write_phase_file(
    path: Path, *, experiment: str, provenance: Mapping[str, Any], summary: Mapping[str, Any], results: Iterable[bytes]
) -> Path:
    """Write a phase file whole, in constant memory.

    Args:
        experiment: ``experiment_name``.
        results: rows, each as one line of JSON (see :func:`run_rows`).

    Raises:
        MeasurementError: the file cannot be written; what stood there is intact.
    """
    head = {
        "schema_version": SCHEMA_VERSION,
        "experiment_name": experiment,
        "provenance": without_secret_texts(strict(provenance)),
        "summary": without_secret_texts(strict(summary)),
    }
    return write_whole(path, lambda file: _stream(file, head, results))


def run_rows(directory: Path, *, arms: bool = False) -> Iterator[bytes]:
    """The results of a run directory as recorded: its measured requests, and what became of those that failed.

    Measured are the instrumented runs with status ``ok``. Warm-up, cold, bare and trace rows stay in
    ``records.jsonl``: their times are not those of a watched request. A failure (``error``, ``oom``, ``skipped``) is
    reported whatever the mode of the run that failed, because a bare run may come first and take the failure; but not
    one of a trace, whose request was measured all the same. There is one failure (the last) for each point, sample
    and repeat, and none that a later row made good (a run that was continued may have measured it).

    Args:
        arms: whether the arms of a comparison of methods count; without, only its baseline does.
    """
    rows = row_file(directory)
    shown = rows.equals("status", Status.OK) & rows.equals("mode", Mode.INSTRUMENTED)
    shown[_failures_that_stand(rows)] = True
    if not arms and "intervention" in rows.columns:
        shown &= rows.equals("intervention", BASELINE) | np.asarray(rows.columns["intervention"].isna())
    yield from rows.lines(np.flatnonzero(shown))


def _failures_that_stand(rows: RowFile) -> list[int]:
    """Numbers (from 0) of the rows that are reported failures."""
    failed = rows.equals("status", *_FAILED) & ~rows.equals("mode", Mode.TRACE)
    if not failed.any():
        return []
    points, samples = rows.columns["point_id"].codes, rows.columns["sample_id"].codes
    pairs = points.astype(np.int64) * (int(samples.max()) + 1) + samples
    good = rows.equals("status", Status.OK) & ~rows.equals("mode", Mode.TRACE)
    # a point that was skipped as a whole has a row without a sample, which any measured row makes good
    whole = failed & rows.equals("sample_id", "")
    good &= np.isin(pairs, pairs[failed]) | np.isin(points, points[whole])
    found: dict[_Key, tuple[int, str]] = {}
    for number in np.flatnonzero(failed | good).tolist():
        point, mode = rows.text("point_id", number), rows.text("mode", number)
        key = (point, rows.text("sample_id", number), int(rows.columns["repeat"][number]))
        if failed[number]:
            found[key] = (number, mode)
            continue
        if key in found and mode in (Mode.INSTRUMENTED, found[key][1]):
            del found[key]
        if mode == Mode.INSTRUMENTED:
            found.pop((point, "", 0), None)
    return [number for number, _ in found.values()]


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

"""Reading rows, one at a time, with one rule for all readers: a line that is no row is left out, and that is said.

Such lines are what a crash, a full disk or a network disk leaves half-written. They are rare and cost one run each;
refusing the file would cost the night.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vlmbench.errors import InputError
from vlmbench.schema import SCHEMA_VERSION

RECORDS_NAME = "records.jsonl"
PACKED = ".gz"  # published rows are compressed
IDENTITY = ("point_id", "sample_id", "repeat", "mode", "status", "session")

# A quote inside a JSON string is escaped, so `"ITL":` is always the key itself. The list holds numbers and nulls: one
# with anything else in it is damaged, is not taken out, and spoils its line.
_ITL = re.compile(rb'"ITL"\s*:\s*(\[[-+.,\deEnul\s]*\])')

_log = logging.getLogger(__name__)


def records_path(path: Path | str) -> Path:
    """Find the records file of a run directory: ``records.jsonl``, or ``records.jsonl.gz``; or the file itself.

    Raises:
        InputError: neither is there.
    """
    path = Path(path)
    file = path / RECORDS_NAME if path.is_dir() else path
    if not file.is_file() and (packed := file.with_name(file.name + PACKED)).is_file():
        return packed
    if not file.is_file():
        raise InputError(f"no records at '{file}'; give a run directory that holds {RECORDS_NAME}, or such a file")
    return file


def iter_rows(path: Path | str, *, itl: bool = True, left_out: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a records file in the order of writing, in constant memory; also while a process appends to it.

    Args:
        path: run directory or records file.
        itl: keep the lists of token gaps; without them reading is faster and ``ITL`` is None.
        left_out: gets the numbers (from 1) of the lines that are no rows.

    Raises:
        InputError: no file, it cannot be read, or it has rows of another schema version.
    """
    for line, row in iter_lines(path, left_out=left_out):
        if itl and "ITL" in row:
            row["ITL"] = token_gaps(line)
        yield row


def iter_lines(path: Path | str, *, left_out: list[int] | None = None) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """As :func:`iter_rows`, each row as it stands in the file (without the line end), and parsed without ``ITL``."""
    file = records_path(path)
    try:
        with gzip.open(file) if file.suffix == PACKED else file.open("rb") as stream:
            yield from _lines(stream, file, [] if left_out is None else left_out)
    except (OSError, EOFError) as error:  # gzip raises OSError for a damaged file, EOFError for one that is cut off
        raise InputError(
            f"cannot read records '{file}': {getattr(error, 'strerror', None) or error}.\n"
            f"Name a run directory that holds a {RECORDS_NAME}, or such a file."
        ) from error


def _lines(stream: Iterable[bytes], file: Path, left_out: list[int]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    told = 0  # a bad last line may be one that is being written: it is told once a whole row follows it
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        row = parse_row(line)
        if row is None:
            left_out.append(number)
            continue
        if row["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"'{file}' line {number} has schema_version {row['schema_version']}, this vlmbench reads "
                f"{SCHEMA_VERSION}; use the version that wrote it, or measure again"
            )
        if len(left_out) > told:
            _log.warning("%s: %d damaged line(s) before line %d are left out", file, len(left_out) - told, number)
            told = len(left_out)
        yield line.strip(), row


def token_gaps(line: bytes) -> list[float | None] | None:
    """The list ``ITL`` of a row's line, None if it has none."""
    found = _ITL.search(line)
    return None if found is None else json.loads(found.group(1))


def without_token_gaps(lines: bytes, *, count: int = 0) -> bytes:
    """Lines with null for the first ``count`` lists of token gaps (0: all of them)."""
    return _ITL.sub(b'"ITL":null', lines, count=count)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line, its ``ITL`` (the bulk of it) as None; or None when the line is unfinished or no row."""
    try:
        row = json.loads(without_token_gaps(line, count=1))
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not row.keys() >= {*IDENTITY, "schema_version"}:
        return None
    return row if isinstance(row["session"], int) and isinstance(row["schema_version"], int) else None

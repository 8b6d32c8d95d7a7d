"""The append-only file of rows: one JSON line a run, safe against crashes at any moment.

A row counts as stored when :meth:`RecordStore.append` returns: it has then left the process with one ``write()``, so
that a killed process loses nothing; against a power cut the file is also synced every few seconds. A line that a crash
or a full disk left half-written is cut off when the file is next opened, and kept in ``records.torn.jsonl``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vlmbench.errors import DirectoryConflictError, InputError, MeasurementError, StoreError
from vlmbench.records.files import strict, sync_folder
from vlmbench.records.reading import IDENTITY, RECORDS_NAME, iter_rows, parse_row
from vlmbench.schema import Record, Status

# A set of row keys in 8 bytes each.

_RECENT = 65536


class KeySet:
    """Keys (tuples of strings and whole numbers) as 64-bit hashes: a sorted array, and a set of the newest ones.

    Adding merges the newest into the array once in 65,536 additions, which takes well under 0.1 s at a million keys.
    """

    def __init__(self) -> None:
        self._sorted: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._recent: set[int] = set()

    def add(self, key: tuple[object, ...]) -> None:
        """Add a key; one that is there already changes nothing."""
        if key in self:
            return
        self._recent.add(_digest(key))
        if len(self._recent) >= _RECENT:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            self._sorted = np.union1d(self._sorted, recent)
            self._recent.clear()

    def __contains__(self, key: tuple[object, ...]) -> bool:
        """Whether the key was added."""
        digest = _digest(key)
        if digest in self._recent:
            return True
        place = int(np.searchsorted(self._sorted, np.uint64(digest)))
        return place < len(self._sorted) and int(self._sorted[place]) == digest

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._sorted) + len(self._recent)


def _digest(key: tuple[object, ...]) -> int:
    # Python's own hash() differs between processes by design; NUL cannot be part of a name
    text = "\0".join(map(str, key))
    return int.from_bytes(blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


TORN_NAME = "records.torn.jsonl"
_OWN_NAMES = frozenset({"schema_version", "started_unix_s", "flags", "reason", *IDENTITY})
_KEPT_OF_TORN_BYTES = 65536
_GROWS_WITHIN_S = 0.05  # a line that a living process is writing is whole long before

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What opening a records file found wrong with it.

    Args:
        cut_bytes: length of the unfinished tail that was cut off (0: none).
        offset: where the tail began, in bytes.
        damaged_lines: numbers (from 1) of lines before the tail that are no rows; they stay where they are.
    """

    cut_bytes: int
    offset: int
    damaged_lines: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.cut_bytes:
            parts.append(f"an unfinished last line ({self.cut_bytes} bytes) was moved to {TORN_NAME}")
        if self.damaged_lines:
            shown = ", ".join(map(str, self.damaged_lines[:5])) + (" …" if len(self.damaged_lines) > 5 else "")
            parts.append(f"{len(self.damaged_lines)} damaged line(s) are ignored ({shown})")
        return "; ".join(parts)


class RecordStore:
    """Rows of one run directory, appended; use as a context manager, while holding the directory's ``RunLock``.

    Rows with the status ``ok`` are measured rows: a second one with the same key is refused. Other rows (``cold``,
    ``warmup``, ``oom``, ``error``, ``skipped``) may come again, so a resumed run can repeat what failed.

    Memory: about 8 bytes a measured row (keys are kept as 64-bit hashes; among a million rows, the chance that any two
    share one is 3e-8).

    Args:
        directory: the run directory; made when missing.
        fsync_every_s: the longest time that stored rows may be missing after a power cut; None leaves it to the system.
            A killed process loses nothing either way.

    Attributes:
        session: number of this session: one above the highest in the file.
        repair: what opening found wrong, None if nothing.
        counts: (point_id, mode, status) to the number of stored rows, kept up to date.
    """

    def __init__(self, directory: Path, *, fsync_every_s: float | None = 5.0) -> None:
        self.directory = Path(directory)
        self.path = self.directory / RECORDS_NAME
        self.fsync_every_s = fsync_every_s
        self.session = 0
        self.repair: Repair | None = None
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._measured = KeySet()
        self._descriptor = -1
        self._synced_s = 0.0
        self._good_size: int | None = None  # set while a half-written line could not be cut off

    def __enter__(self) -> Self:
        """Open, repair and index the file.

        Raises:
            InputError: the directory or the file cannot be read or written.
            DirectoryConflictError: another process is writing to the file (a lock was not held); nothing is cut then.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o666)
            try:
                self._index()
            except BaseException:
                with suppress(MeasurementError):
                    self.close()
                raise
        except OSError as error:
            raise InputError(
                f"cannot write records to '{self.directory}': {error.strerror or error}.\n"
                "Make it writable, free space, or choose another directory with output_dir=DIR."
            ) from error
        sync_folder(self.directory)
        self._synced_s = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        with suppress(MeasurementError):  # the error under way tells more
            self.close()

    def close(self) -> None:
        """Sync and close; a second call does nothing.

        Raises:
            StoreError: the file system reports only now that it could not keep rows (network disks do so).
        """
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(self._cannot_append(error)) from error

    def __contains__(self, key: object) -> bool:
        """Whether the row with this key (``Record.key``) was measured, in this session or an earlier one."""
        return isinstance(key, tuple) and key in self._measured

    def __len__(self) -> int:
        """Number of measured rows."""
        return len(self._measured)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All stored rows, one at a time, in the order of writing."""
        return iter_rows(self.path)

    def append(self, record: Record) -> None:
        """Store one row; it survives a kill of the process as soon as this returns.

        Values that are NaN or infinite are stored as null, with the flag ``not_finite:<name>``.

        Raises:
            StoreError: the row was measured before, or the disk is full or gone; stored rows are intact then.
            ValueError: a metric bears the name of one of the row's own fields.
        """
        measured = record.status == Status.OK
        if measured and record.key in self._measured:
            raise StoreError(
                f"row {record.key} was measured before in '{self.directory}'; a row is measured once.\n"
                "Ask `key in store` before measuring."
            )
        if taken := _OWN_NAMES & record.values.keys():
            raise ValueError(f"metrics must not be named like the row's own fields (got {sorted(taken)})")
        self._write(_to_line(record.to_row()))
        if measured:
            self._measured.add(record.key)
        self.counts[record.point_id, str(record.mode), str(record.status)] += 1

    def _write(self, line: bytes) -> None:
        if self._descriptor < 0:
            raise ValueError("the store is not open: use `with RecordStore(directory) as store:`")
        try:
            if self._good_size is not None:
                self._cut(self._good_size)
            start = os.fstat(self._descriptor).st_size
            try:
                done = os.write(self._descriptor, line)
                while done < len(line):  # a disk about to be full takes a part, then reports why
                    done += os.write(self._descriptor, line[done:])
            except BaseException:
                self._cut(start)
                raise
            now = time.monotonic()
            if self.fsync_every_s is not None and now - self._synced_s >= self.fsync_every_s:
                os.fsync(self._descriptor)
                self._synced_s = now
        except OSError as error:
            raise StoreError(self._cannot_append(error)) from error

    def _cannot_append(self, error: OSError) -> str:
        return (
            f"cannot append to '{self.path}': {error.strerror or error}; the rows stored before are intact.\n"
            "Free space or allow writing there, then run the same command again: it continues."
        )

    def _cut(self, size: int) -> None:
        self._good_size = size
        if os.fstat(self._descriptor).st_size > size:
            os.ftruncate(self._descriptor, size)
        self._good_size = None

    def _index(self) -> None:
        """Read all rows once: keys, counts, the session number; then cut off what follows the last whole row."""
        position = good_end = 0
        bad: list[int] = []  # numbers of lines that are no rows
        damaged: tuple[int, ...] = ()  # those of them that a row follows
        ended = True
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                position += len(line)
                row = parse_row(line)
                if row is None:
                    bad.append(number)
                    continue
                good_end, damaged, ended = position, tuple(bad), line.endswith(b"\n")
                self._note(row)
        if position > good_end or not ended:
            self._refuse_if_it_grows(position)
        if position > good_end:
            self._move_tail(good_end, position - good_end)
        if not ended:  # killed between a row and its line end
            os.write(self._descriptor, b"\n")
        if position > good_end or damaged:
            self.repair = Repair(cut_bytes=position - good_end, offset=good_end, damaged_lines=damaged)
            _log.warning("%s: %s", self.path, self.repair)

    def _note(self, row: Mapping[str, Any]) -> None:
        self.session = max(self.session, int(row["session"]) + 1)
        self.counts[row["point_id"], row["mode"], row["status"]] += 1
        if row["status"] == Status.OK:
            self._measured.add((row["point_id"], row["sample_id"], row["repeat"], row["mode"]))

    def _refuse_if_it_grows(self, size: int) -> None:
        """Cutting off a line that another process is still writing would take its next rows along."""
        time.sleep(_GROWS_WITHIN_S)
        if os.fstat(self._descriptor).st_size != size:
            raise DirectoryConflictError(
                f"another process is writing to '{self.path}'; nothing was changed.\n"
                "Wait for it or stop it, or choose another directory with output_dir=DIR."
            )

    def _move_tail(self, offset: int, length: int) -> None:
        # Copied first, cut second: a crash between the two leaves the tail in both files, never in none.
        text = os.pread(self._descriptor, min(length, _KEPT_OF_TORN_BYTES), offset).decode("utf-8", "backslashreplace")
        torn = {"cut_unix_s": time.time(), "offset": offset, "length": length, "text": text}
        with (self.directory / TORN_NAME).open("ab") as file:
            file.write(json.dumps(torn).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(self._descriptor, offset)
        os.fsync(self._descriptor)


def _to_line(row: dict[str, Any]) -> bytes:
    try:  # nearly every row is plain: one pass of the C encoder
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    except (TypeError, ValueError):
        pass
    odd = [f"not_finite:{name}" for name, value in row.items() if _has_not_finite(value)]
    row = {**row, "flags": [*row["flags"], *odd]}
    return json.dumps(strict(row), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def _has_not_finite(value: Any) -> bool:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return any(_has_not_finite(item) for item in value)
    if isinstance(value, Mapping):
        return any(_has_not_finite(item) for item in value.values())
    return isinstance(value, float) and not math.isfinite(value)

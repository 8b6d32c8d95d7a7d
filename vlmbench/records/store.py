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
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlmbench.errors import DirectoryConflictError, InputError, MeasurementError, RowsLostError, StoreError
from vlmbench.hiding import without_secret_texts
from vlmbench.records.files import NO_LINK, is_link_error, strict, sync_folder
from vlmbench.records.reading import IDENTITY, RECORDS_NAME, KeySet, check_schema, iter_rows, parse_row, row_key
from vlmbench.records.redact import shareable
from vlmbench.schema import Record, Status

TORN_NAME = "records.torn.jsonl"
_OWN_NAMES = frozenset({"schema_version", "started_unix_s", "flags", "reason", *IDENTITY})
_KEPT_OF_TORN_BYTES = 65536
_COPIED_BYTES = 1 << 20
_GROWS_WITHIN_S = 0.05  # a line that a living process is writing is whole long before

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What opening a records file found wrong with it.

    Args:
        cut_bytes: length of the unfinished tail that was cut off (0: none).
        offset: where the tail began, in bytes.
        damaged_lines: numbers (from 1) of lines before the tail that are no rows; they stay where they are.
        twice: measured rows that stand in the file a second time; the first of each counts.
    """

    cut_bytes: int
    offset: int
    damaged_lines: tuple[int, ...] = ()
    twice: int = 0

    def __str__(self) -> str:
        parts = []
        if self.cut_bytes:
            parts.append(f"an unfinished last line ({self.cut_bytes} bytes) was moved to {TORN_NAME}")
        if self.damaged_lines:
            shown = ", ".join(map(str, self.damaged_lines[:5])) + (" …" if len(self.damaged_lines) > 5 else "")
            parts.append(f"{len(self.damaged_lines)} damaged line(s) are ignored ({shown})")
        if self.twice:
            parts.append(f"{self.twice} row(s) stand there twice, the first of each counts")
        return "; ".join(parts)


class RecordStore:
    """Rows of one run directory, appended; use as a context manager, while holding the directory's ``RunLock``.

    Rows with the status ``ok`` are measured rows: a second one with the same key is refused. Other rows (``cold``,
    ``warmup``, ``oom``, ``error``, ``skipped``) may come again, so a resumed run can repeat what failed. A ``skipped``
    row that an earlier session stored for the same request and reason is not stored again: it says nothing new.

    Before each row is written, the file must still be the one that was opened, with all that was left in it:
    where somebody removed, renamed, replaced or cut it, or moved its directory, rows would be lost without a word, and
    :class:`vlmbench.errors.RowsLostError` says so instead.

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
        self._requests = KeySet()
        self._skipped = KeySet()  # by earlier sessions
        self._descriptor = -1
        self._size = 0  # of the file, as this store left it
        self._synced_s = 0.0
        self._lost: RowsLostError | None = None
        self._good_size: int | None = None  # set while a half-written line could not be cut off

    def __enter__(self) -> Self:
        """Open, repair and index the file.

        Raises:
            InputError: the directory or the file cannot be read or written.
            DirectoryConflictError: another process is writing to the file (a lock was not held); nothing is cut then.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags, 0o666)
            try:
                self._index()
            except BaseException:
                with suppress(MeasurementError):
                    self.close()
                raise
        except OSError as error:
            if is_link_error(error):
                raise InputError(f"'{self.path}' {NO_LINK}") from error
            raise InputError(
                f"cannot write records to '{self.directory}': {error.strerror or error}.\n"
                "Make it writable, free space, or choose another directory with output_dir=DIR."
            ) from error
        sync_folder(self.directory)
        self._size = os.fstat(self._descriptor).st_size
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
            RowsLostError: the file is no longer in its place.
        """
        if self._descriptor < 0:
            return
        try:
            try:
                self._check_place()
                os.fsync(self._descriptor)
            finally:
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)
        except OSError as error:
            raise StoreError(self._cannot_append(error)) from error

    def __contains__(self, key: object) -> bool:
        """Whether the row with this key (``Record.key``) was measured, in this session or an earlier one."""
        return isinstance(key, tuple) and key in self._measured

    def has_run_of(self, point_id: str, sample_id: str) -> bool:
        """Whether any run of this request was measured, in this session or an earlier one, however it was watched."""
        return (point_id, sample_id) in self._requests

    def __len__(self) -> int:
        """Number of measured rows."""
        return len(self._measured)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All stored rows, one at a time, in the order of writing."""
        return iter_rows(self.path)

    def append(self, record: Record) -> None:
        """Store one row, unless it repeats why something is skipped; from then on a kill of the process leaves it.

        Values that are NaN or infinite are stored as null, with the flag ``not_finite:<name>``. A reason is stored
        without secrets and with its paths shortened.

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
        if record.reason is not None:
            record = replace(
                record, reason=str(shareable(record.reason)), values=without_secret_texts(dict(record.values))
            )
        if record.status == Status.SKIPPED and (record.point_id, record.sample_id, record.reason) in self._skipped:
            return
        self._write(_to_line(record.to_row()))
        if measured:
            self._measured.add(record.key)
            self._requests.add((record.point_id, record.sample_id))
        self.counts[record.point_id, str(record.mode), str(record.status)] += 1

    def _write(self, line: bytes) -> None:
        if self._descriptor < 0:
            raise ValueError("the store is not open: use `with RecordStore(directory) as store:`")
        try:
            if self._good_size is not None:
                self._cut(self._good_size)
            self._check_place()
            try:
                done = os.write(self._descriptor, line)
                while done < len(line):  # a disk about to be full takes a part, then reports why
                    done += os.write(self._descriptor, line[done:])
            except BaseException:
                self._cut(self._size)
                raise
            self._size += len(line)
            now = time.monotonic()
            if self.fsync_every_s is not None and now - self._synced_s >= self.fsync_every_s:
                os.fsync(self._descriptor)
                self._synced_s = now
        except OSError as error:
            raise StoreError(self._cannot_append(error)) from error

    def _check_place(self) -> None:
        """Refuse to go on where the open file does not stand where it was opened, or is not as it was left.

        Raises:
            RowsLostError: rows that no name leads to any more are written into a new file first.
        """
        if self._lost is not None:
            raise self._lost
        mine = os.fstat(self._descriptor)
        try:
            there = self.path.stat(follow_symlinks=False)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            self._lost = self._save(mine, replaced=there is not None)
        elif mine.st_size < self._size:
            self._lost = RowsLostError(
                f"'{self.path}' was cut while rows were written to it: it has {mine.st_size} bytes and was left "
                f"with {self._size}.\nDo not edit a run directory while it is measured; run the same command again: it "
                "measures again what is missing.",
                moved_to=self.directory,
            )
        if self._lost is not None:
            raise self._lost
        if mine.st_size > self._size and os.pread(self._descriptor, 1, mine.st_size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # somebody else's half line; a row of ours would be lost with it
            mine = os.fstat(self._descriptor)
        self._size = mine.st_size

    def _save(self, mine: os.stat_result, *, replaced: bool) -> RowsLostError:
        what = f"'{self.path}' was {'replaced' if replaced else 'removed or moved'} while rows were written to it"
        rest = "Do not move a run directory while it is measured; run the same command again to continue."
        if mine.st_nlink:
            place = _place_of(self._descriptor)
            where = f"its rows are in '{place}'" if place else "its rows are where it was moved to"
            return RowsLostError(f"{what}: {where}.\n{rest}", moved_to=place.parent if place else None)
        saved = self.path.with_name(f"records.saved-{time.time_ns()}.jsonl") if replaced else self.path
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(saved, "wb", opener=lambda path, _: os.open(path, flags, 0o666)) as file:
                with os.fdopen(os.dup(self._descriptor), "rb") as lost:  # one pread() ends at 2 GiB
                    lost.seek(0)
                    shutil.copyfileobj(lost, file, _COPIED_BYTES)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return RowsLostError(
                f"{what}, and its {mine.st_size} bytes could not be saved: {error.strerror or error}.\n{rest}",
                moved_to=self.directory if self.directory.is_dir() else None,
            )
        return RowsLostError(f"{what}; its rows were saved as '{saved}'.\n{rest}", moved_to=self.directory)

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
        twice = 0
        damaged: tuple[int, ...] = ()  # those of them that a row follows
        ended = True
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                position += len(line)
                row = parse_row(line)
                if row is None:
                    if line.strip():
                        bad.append(number)
                    continue
                check_schema(row, self.path, number)
                good_end, damaged, ended = position, tuple(bad), line.endswith(b"\n")
                if not self._note(row):
                    twice += 1
        if position > good_end or not ended:
            self._refuse_if_it_grows(position)
        if position > good_end:
            self._move_tail(good_end, position - good_end)
        if not ended:  # killed between a row and its line end
            os.write(self._descriptor, b"\n")
        if position > good_end or damaged or twice:
            self.repair = Repair(cut_bytes=position - good_end, offset=good_end, damaged_lines=damaged, twice=twice)
            _log.warning("%s: %s", self.path, self.repair)

    def _note(self, row: Mapping[str, Any]) -> bool:
        """Count a stored row; False for one that was measured before."""
        self.session = max(self.session, int(row["session"]) + 1)
        if row["status"] == Status.OK:
            if (key := row_key(row)) in self._measured:
                return False
            self._measured.add(key)
            self._requests.add((row["point_id"], row["sample_id"]))
        elif row["status"] == Status.SKIPPED:
            self._skipped.add((row["point_id"], row["sample_id"], row.get("reason")))
        self.counts[row["point_id"], row["mode"], row["status"]] += 1
        return True

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
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(self.directory / TORN_NAME, "ab", opener=lambda path, _: os.open(path, flags, 0o666)) as file:
            file.write(json.dumps(torn).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(self._descriptor, offset)
        os.fsync(self._descriptor)


def _place_of(descriptor: int) -> Path | None:
    """The path that an open file has now; None where the system does not say (Linux does)."""
    try:
        found = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return None
    return found if found.is_absolute() and found.exists() else None


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

"""Reading rows, one at a time, with one rule for all readers: a line that is no row is left out, and that is said.

Such lines are what a crash, a full disk or a network disk leaves half-written. They are rare and cost one run each;
refusing the file would cost the night.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

from vlmbench.errors import InputError
from vlmbench.records.files import BUFFER
from vlmbench.schema import SCHEMA_VERSION, Mode, Status

RECORDS_NAME = "records.jsonl"
XZ, GZIP = ".xz", ".gz"
PACKED = (XZ, GZIP)  # published rows are compressed; gzip is what baselines are, and what earlier sets were
PACKED_NAMES = tuple(f"{RECORDS_NAME}{suffix}" for suffix in PACKED)
RECORDS_NAMES = (RECORDS_NAME, *PACKED_NAMES)
"""Names that the rows of a directory may have, in the order in which they are looked for."""
IDENTITY = ("point_id", "sample_id", "repeat", "mode", "status", "session")

# A quote inside a JSON string is escaped, so `"ITL":` is always the key itself. The list holds numbers that a clock can
# give, and nulls: one with anything else in it is damaged, is not taken out, and spoils its line.
_NUMBER = rb"-?(?:0|[1-9]\d{0,20})(?:\.\d+)?(?:[eE](?:-\d{1,3}|\+?[0-2]?\d))?"
_ITEM = rb"(?>" + _NUMBER + rb"|null)"
_ITL = re.compile(rb'"ITL"\s*:\s*(\[\s*(?:' + _ITEM + rb"(?:\s*,\s*" + _ITEM + rb")*+)?\s*\]|null)")
TEXTS = ("point_id", "sample_id", "mode", "status")
MODES, STATUSES = frozenset(map(str, Mode)), frozenset(map(str, Status))
COUNTS = ("repeat", "session", "schema_version")
NUMBERS = ("T_", "TTFT", "num_")  # columns that hold a number or null
LARGEST = 1e30  # beyond what any column holds: FLOPs of a run stay below 1e20
LARGEST_COUNT = 2**53

_log = logging.getLogger(__name__)


class KeySet:
    """Keys of rows (tuples of texts and whole numbers) as 64-bit hashes: 60 to 90 bytes each, whatever their texts.

    Among a million keys, the chance that any two share a hash is 3e-8.
    """

    def __init__(self) -> None:
        self._digests: set[int] = set()

    def add(self, key: tuple[object, ...]) -> None:
        """Add a key; one that is there already changes nothing."""
        self._digests.add(_digest(key))

    def __contains__(self, key: tuple[object, ...]) -> bool:
        """Whether the key was added."""
        return _digest(key) in self._digests

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._digests)


def _digest(key: tuple[object, ...]) -> int:
    # Python's own hash() differs between processes by design; NUL cannot be part of a name
    text = "\0".join(map(str, key))
    return int.from_bytes(blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


def records_in(directory: Path) -> Path | None:
    """Find the records file of a directory, by the first of :data:`RECORDS_NAMES` that is there; None without one."""
    return _plain_or_packed(directory / RECORDS_NAME)


def records_path(path: Path | str) -> Path:
    """Find the records file of a run directory, packed or not; or the file itself, or what is packed in its place.

    Raises:
        InputError: none is there.
    """
    path = Path(path)
    file = path / RECORDS_NAME if path.is_dir() else path
    if (found := _plain_or_packed(file)) is None:
        raise InputError(f"no records at '{file}'; give a run directory that holds {RECORDS_NAME}, or such a file")
    return found


def _plain_or_packed(file: Path) -> Path | None:
    names = (file.name, *(f"{file.name}{suffix}" for suffix in PACKED))
    return next((place for name in names if (place := file.with_name(name)).is_file()), None)


def iter_rows(path: Path | str, *, itl: bool = True, left_out: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a records file in the order of writing, in constant memory; also while a process appends to it.

    Args:
        itl: keep the lists of token gaps; without them reading is faster and ``ITL`` is None.
        left_out: gets the numbers (from 1) of the lines that are no rows.

    Raises:
        InputError: no file, it cannot be read, or it has rows of another schema version.
    """
    for line, row in iter_lines(path, left_out=left_out):
        if itl and "ITL" in row:
            row["ITL"] = token_gaps(line)
        yield row


def row_key(row: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """What makes a measured row unique in a run directory: :attr:`vlmbench.schema.Record.key` of a stored row."""
    return row["point_id"], row["sample_id"], row["repeat"], row["mode"]


def check_schema(row: Mapping[str, Any], file: Path, number: int) -> None:
    """Refuse a row of another schema.

    Raises:
        InputError: names the file, the line and both versions.
    """
    if row["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"'{file}' line {number} has schema_version {row['schema_version']}, this vlmbench reads "
            f"{SCHEMA_VERSION}; use the version that wrote it, or measure again"
        )


def iter_lines(path: Path | str, *, left_out: list[int] | None = None) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """As :func:`iter_rows`, each row as it stands in the file (without the line end), and parsed without ``ITL``."""
    file = records_path(path)
    with opened(file) as stream:
        yield from _lines(stream, file, [] if left_out is None else left_out)


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Open a records file, packed or not.

    Raises:
        InputError: the file cannot be read, then or within the context; or this Python cannot unpack it.
    """
    lzma = _lzma(file) if file.suffix == XZ else None
    # What a packed file raises that is damaged or cut off.
    damage = (OSError, EOFError, zlib.error if lzma is None else lzma.LZMAError)
    try:
        with _unpacked(file, lzma) as stream:
            yield stream
    except damage as error:
        raise InputError(
            f"cannot read records '{file}': {getattr(error, 'strerror', None) or error}.\n"
            f"Name a run directory that holds a {RECORDS_NAME}, or such a file."
        ) from error


def _unpacked(file: Path, lzma: ModuleType | None) -> BinaryIO:
    if lzma is not None:
        return cast(BinaryIO, lzma.open(file, format=lzma.FORMAT_XZ))
    return cast(BinaryIO, gzip.open(file)) if file.suffix == GZIP else file.open("rb", BUFFER)


def _lzma(file: Path) -> ModuleType:
    try:
        import lzma  # some builds of Python lack it, and run directories do not need it
    except ImportError as error:
        raise InputError(
            f"cannot read records '{file}': this Python was built without the module lzma.\n"
            "Unpack the file (xz --decompress --keep), or use another Python."
        ) from error
    return lzma


def _lines(stream: Iterable[bytes], file: Path, left_out: list[int]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    told = 0  # a bad last line may be one that is being written: it is told once a whole row follows it
    measured, twice = KeySet(), 0
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        row = parse_row(line)
        if row is None:
            left_out.append(number)
            continue
        check_schema(row, file, number)
        if row["status"] == Status.OK:
            if (key := row_key(row)) in measured:  # a row is measured once: a second makes intervals too narrow
                twice += 1
                left_out.append(number)
                continue
            measured.add(key)
        told = warn_of_damage(file, number, told, len(left_out))
        yield line.strip(), row
    warn_of_repeats(file, twice)


def warn_of_damage(file: Path, number: int, told: int, left_out: int) -> int:
    """Say how many lines were left out before a line, beyond those that were told; returns how many are told."""
    if left_out > told:
        warn_once(f"{file}: {left_out - told} damaged line(s) before line {number} are left out")
    return left_out


def warn_of_repeats(file: Path, twice: int) -> None:
    """Say how many rows were left out because they stand in the file already, if any."""
    if twice:
        warn_once(f"{file}: {twice} row(s) stand in it twice; the first of each counts")


@cache
def warn_once(words: str) -> None:
    """Say a warning once: a report reads the same rows for each of its parts."""
    _log.warning("%s", words)


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
    return row if _is_row(row) else None


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether names have the types and the values the range that every row of vlmbench has."""
    if not all(isinstance(row[name], str) for name in TEXTS) or not all(_is_count(row[name]) for name in COUNTS):
        return False
    if row["mode"] not in MODES or row["status"] not in STATUSES or row.get("ITL") is not None:
        return False
    flags = row.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(text, str | None) for text in (*flags, row.get("reason"))):
        return False
    for name, value in row.items():
        kind = type(value)
        if kind is float or kind is int:
            if not -LARGEST < value < LARGEST:  # NaN and infinity, too
                return False
        elif value is not None and name.startswith(NUMBERS):
            return False
    return True


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT

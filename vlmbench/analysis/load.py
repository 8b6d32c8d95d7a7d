"""Records into a compact DataFrame, read line by line: memory grows by the columns asked for and nothing else.

Times and counts are kept as float32 (seven digits: a clock has fewer), all other numbers as float64, texts as
categoricals. The lists of token gaps (``ITL``) stay out of the frame; :func:`load_token_gaps` reads them on their own.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.errors import InputError
from vlmbench.records.record import SCHEMA_VERSION

RECORDS_FILE = "records.jsonl"

_CHUNK_ROWS = 1000
# A quote inside a JSON string is escaped, so `"ITL":` is always the key itself.
_ITL = re.compile(rb'"ITL"\s*:\s*\[([^\]]*)\]')
_NOT_COLUMNS = frozenset({"schema_version", "ITL"})
_TEXT_COLUMNS = frozenset({"point_id", "sample_id", "mode", "status", "reason", "flags"})
_PLAIN = frozenset({int, float, bool, str, type(None)})
_FLOAT32 = re.compile(r"^(T_|TTFT|num_|axis_)")


def records_path(path: Path | str) -> Path:
    """The records file of a run directory, or the file itself.

    Raises:
        InputError: neither is there.
    """
    path = Path(path)
    file = path / RECORDS_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no records at '{file}'; give a run directory that holds {RECORDS_FILE}, or such a file")
    return file


def _lines(file: Path, torn: list[int]) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line); a last line that was cut off in writing goes to ``torn`` instead."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n") and not _parses(line):
                torn.append(number)
                return
            if line.strip():
                yield number, line


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def iter_rows(path: Path | str, *, itl: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a records file, one after another, in constant memory; a torn last line is passed over.

    Args:
        path: run directory or records file.
        itl: keep the lists of token gaps; without them reading is faster and ``ITL`` is None.

    Raises:
        InputError: no file, a line that is not a row, or a row of another schema version.
    """
    file = records_path(path)
    yield from _rows(file, [], itl=itl)


def _rows(file: Path, torn: list[int], *, itl: bool) -> Iterator[dict[str, Any]]:
    for number, line in _lines(file, torn):
        try:
            row = json.loads(line if itl else _ITL.sub(b'"ITL":null', line, count=1))
        except ValueError as error:
            raise InputError(f"'{file}' line {number} is not JSON ({error}); the file was changed by hand") from None
        version = row.get("schema_version") if isinstance(row, dict) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"'{file}' line {number} has schema_version {version}, this vlmbench reads {SCHEMA_VERSION}; "
                "use the version that wrote it, or measure again"
            )
        yield row


@dataclass
class _Column:
    """One column in the making: numbers, or codes into a table of texts."""

    name: str
    text: bool | None = None  # None until the first value is seen
    cells: array[Any] = field(default_factory=lambda: array("b"))  # grows in place; its type is set with ``text``
    codes: dict[str, int] = field(default_factory=dict)
    length: int = 0

    def add(self, values: list[Any]) -> None:
        kinds = set(map(type, values))
        if not kinds <= _PLAIN:
            values = [_cell(self.name, value) for value in values]
            kinds = set(map(type, values))
        if self.text is None:
            if kinds <= {type(None)}:
                self.length += len(values)  # still unknown: filled in when a value comes
                return
            self.text = str in kinds
            self.cells = array("i" if self.text else self._dtype.char, self._empty(self.length).tobytes())
        if (str in kinds and not self.text) or (self.text and kinds & {int, float}):
            raise InputError(f"column '{self.name}' holds numbers in some rows and texts in others")
        # None becomes NaN
        added = self._encode(values) if self.text else np.array(values, dtype=self._dtype)
        self.cells.frombytes(added.tobytes())
        self.length += len(values)

    def _empty(self, count: int) -> NDArray[Any]:
        return np.full(count, -1, np.int32) if self.text else np.full(count, np.nan, self._dtype)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32 if _FLOAT32.match(self.name) else np.float64)

    def _encode(self, values: list[Any]) -> NDArray[Any]:
        codes = self.codes
        return np.array(
            [-1 if v is None else codes.setdefault(v if isinstance(v, str) else str(v), len(codes)) for v in values],
            dtype=np.int32,
        )

    def finish(self) -> Any:
        if self.text is None:
            return np.full(self.length, np.nan, np.float32)
        if self.text:
            return _categorical(np.frombuffer(self.cells, np.int32), list(self.codes))
        return np.frombuffer(self.cells, self._dtype)


def _categorical(codes: NDArray[Any], texts: list[str]) -> Any:
    return pd.Categorical.from_codes(codes, categories=pd.Index(texts, dtype="str"))


def _cell(name: str, value: Any) -> Any:
    """One value as a column holds it: flags joined by spaces, other nested values left out."""
    if isinstance(value, list):
        return " ".join(map(str, value)) if name == "flags" else None
    return None if isinstance(value, dict) else value


def load_runs(path: Path | str, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """All rows of a run as a DataFrame, one row a run, in the order written.

    Args:
        path: run directory or records file.
        columns: which columns to keep (identity columns point_id, sample_id, repeat, mode, status, flags come always;
            one that no row has is all NaN); all but nested ones if None.

    Returns:
        ``T_*``, ``TTFT*`` in ms and counts as float32, other numbers float64, texts categorical, ``flags`` as one
        text of names joined by spaces. ``attrs["torn_last_line"]`` says whether a cut-off last line was left out.

    Raises:
        InputError: no file, no rows, a broken line, or rows of another schema version.
    """
    file = records_path(path)
    identity = ["point_id", "sample_id", "repeat", "mode", "status", "flags"]
    wanted = None if columns is None else list(dict.fromkeys([*identity, *columns]))
    made: dict[str, _Column] = {name: _Column(name) for name in wanted or identity}
    torn: list[int] = []
    rows = _rows(file, torn, itl=False)
    total = 0
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        if wanted is None:
            for name in sorted(set().union(*chunk) - made.keys() - _NOT_COLUMNS):
                made[name] = _Column(name, length=total)
        for name, column in made.items():
            column.add([row.get(name) for row in chunk])
        total += len(chunk)
    if not total:
        raise InputError(f"'{file}' holds no rows; nothing was measured there yet")
    frame = pd.DataFrame({name: _text_or_number(name, column) for name, column in made.items()}, copy=False)
    frame.attrs["torn_last_line"] = bool(torn)
    return frame


def _text_or_number(name: str, column: _Column) -> Any:
    if column.text is None and name in _TEXT_COLUMNS:
        return _categorical(np.full(column.length, -1, np.int32), [])
    return column.finish()


@dataclass(frozen=True, kw_only=True)
class TokenGaps:
    """Times between tokens, with the request that each belongs to.

    Args:
        values: gaps in ms, float32, shape (gaps,).
        clusters: code of the sample (or run) that each gap is of, shape (gaps,): gaps of one code are not independent.
        requests: how many requests ``values`` come from.
        requests_total, gaps_total: how many there were; more than were kept when a random sample of requests was taken.
    """

    values: NDArray[np.float32]
    clusters: NDArray[np.int32]
    requests: int
    requests_total: int
    gaps_total: int


def iter_lines(path: Path | str, *, statuses: Iterable[str], modes: Iterable[str] | None = None) -> Iterator[bytes]:
    """The lines of the rows with these statuses (and modes) as they stand in the file, without the line end."""
    wanted, watched = set(statuses), None if modes is None else set(modes)
    for _, line in _lines(records_path(path), []):
        if _field(_STATUS, line) in wanted and (watched is None or _field(_MODE, line) in watched):
            yield line.strip()


def _text_field(name: str) -> re.Pattern[bytes]:
    return re.compile(rb'"' + name.encode() + rb'"\s*:\s*("(?:[^"\\]|\\.)*")')


_STATUS, _MODE, _POINT, _SAMPLE = (_text_field(name) for name in ("status", "mode", "point_id", "sample_id"))


def _field(pattern: re.Pattern[bytes], line: bytes) -> str | None:
    found = pattern.search(line)
    return None if found is None else str(json.loads(found.group(1)))


def load_token_gaps(
    path: Path | str,
    *,
    point_ids: Iterable[str] | None = None,
    mode: str = "instrumented",
    cluster: Literal["sample", "run"] = "sample",
    max_gaps: int = 1_000_000,
    seed: int = 0,
) -> TokenGaps:
    """The token gaps of all measured (``ok``) runs of some points.

    More than ``max_gaps`` are not held: then whole requests are drawn at random (seeded, each with equal chance), so
    that memory stays bounded and quantiles stay unbiased.

    Args:
        path: run directory or records file.
        point_ids: the points; all if None.
        mode: of the runs.
        cluster: what gaps that are not independent have in common: the sample, or only the run.
        max_gaps: the most gaps to hold.
        seed: of the draw.
    """
    file = records_path(path)
    points = None if point_ids is None else set(point_ids)
    random = np.random.default_rng(seed)
    values, lengths, samples, tickets = array("f"), array("i"), array("q"), array("d")
    threshold, gaps_total, requests_total = 1.0, 0, 0
    for _, line in _lines(file, []):
        found = _ITL.search(line)
        if found is None or _field(_STATUS, line) != "ok" or _field(_MODE, line) != mode:
            continue
        if points is not None and _field(_POINT, line) not in points:
            continue
        gaps = json.loads(b"[" + found.group(1) + b"]")
        requests_total += 1
        gaps_total += len(gaps)
        ticket = random.random()
        if ticket >= threshold:
            continue
        values.extend(gaps)
        lengths.append(len(gaps))
        tickets.append(ticket)
        name = (_field(_SAMPLE, line) or "").encode() if cluster == "sample" else str(requests_total).encode()
        samples.append(int.from_bytes(blake2b(name, digest_size=8).digest(), signed=True))
        while len(values) > max_gaps and len(lengths) > 1:
            threshold /= 2
            stay = np.frombuffer(tickets) < threshold
            values = array("f", np.frombuffer(values, np.float32)[np.repeat(stay, lengths)].tobytes())
            lengths, samples = (array(a.typecode, np.array(a)[stay].tobytes()) for a in (lengths, samples))
            tickets = array("d", np.array(tickets)[stay].tobytes())
    codes = np.unique(np.array(samples, dtype=np.int64), return_inverse=True)[1].astype(np.int32)
    return TokenGaps(
        values=np.array(values, dtype=np.float32),
        clusters=np.repeat(codes, np.array(lengths, dtype=np.int64)),
        requests=len(lengths),
        requests_total=requests_total,
        gaps_total=gaps_total,
    )

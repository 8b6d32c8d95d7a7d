"""A records file read once: its columns, and where its lines lie for what is in no column."""

from __future__ import annotations

import re
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.errors import InputError
from vlmbench.records.blocks import Block, only, read_blocks
from vlmbench.records.reading import opened, records_path, warn_of_repeats
from vlmbench.schema import Status

if TYPE_CHECKING:
    import pyarrow as pa

P = ParamSpec("P")
_Table = Callable[Concatenate[pd.DataFrame, P], pd.DataFrame]
IDENTITY = ("point_id", "sample_id", "repeat", "mode", "status", "flags")
_NOT_COLUMNS = frozenset({"schema_version", "ITL"})
_TEXT_COLUMNS = frozenset({"point_id", "sample_id", "mode", "status", "reason", "flags"})
_PLAIN = frozenset({int, float, bool, str, type(None)})
_FLOAT32 = re.compile(r"^(T_|TTFT|num_|axis_)")


@dataclass
class _Column:
    """One column in the making: numbers, or codes into a table of texts."""

    name: str
    text: bool | None = None  # None until the first value is seen
    cells: array[Any] = field(default_factory=lambda: array("b"))  # grows in place; its type is set with ``text``
    codes: dict[str, int] = field(default_factory=dict)
    length: int = 0
    mixed: bool = False

    def add(self, values: list[Any]) -> None:
        """Append values of rows that were read one by one."""
        kinds = set(map(type, values))
        if not kinds <= _PLAIN:
            values = [_cell(self.name, value) for value in values]
            kinds = set(map(type, values))
        if kinds <= {type(None)}:
            self.add_nothing(len(values))
        elif self._takes(text=str in kinds, number=bool(kinds & {int, float})):
            self._append(self._encode(values) if self.text else np.array(values, dtype=self._dtype))  # None: NaN

    def add_array(self, values: pa.Array) -> None:
        """Append values of a block."""
        import pyarrow as pa
        import pyarrow.compute

        types, kind = pa.types, values.type
        if self.name == "flags":
            joined = pa.compute.binary_join(values.cast(pa.list_(pa.string())), " ")
            self._add_texts(joined)
        elif types.is_null(kind) or types.is_nested(kind):
            self.add_nothing(len(values))
        elif types.is_boolean(kind):
            self.add(values.to_pylist())
        elif types.is_string(kind):
            self._add_texts(values)
        elif self._takes(text=False, number=True):
            self._append(values.to_numpy(zero_copy_only=False).astype(np.float64).astype(self._dtype))

    def add_nothing(self, count: int) -> None:
        """Append so many empty cells."""
        if self.text is None:
            self.length += count  # still unknown: filled in when a value comes
        else:
            self._append(self._empty(count))

    def _takes(self, *, text: bool, number: bool) -> bool:
        """Set the kind of the column by its first values; whether these fit it."""
        if self.text is None:
            self.text = text
            self.cells = array("i" if self.text else self._dtype.char, self._empty(self.length).tobytes())
        self.mixed |= number if self.text else text
        return not self.mixed

    def _append(self, added: NDArray[Any]) -> None:
        self.cells.frombytes(added.tobytes())
        self.length += len(added)

    def _add_texts(self, values: pa.Array) -> None:
        if self._takes(text=True, number=False):
            encoded = values.dictionary_encode()
            places = self._encode(encoded.dictionary.to_pylist())
            self._append(np.append(places, np.int32(-1))[encoded.indices.fill_null(-1).to_numpy()])

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
        """The column as a DataFrame holds it."""
        if self.text is None:
            return _absent(self.name, self.length)
        if self.text:
            return _categorical(np.frombuffer(self.cells, np.int32), list(self.codes))
        return np.frombuffer(self.cells, self._dtype)


def _categorical(codes: NDArray[Any], texts: list[str]) -> Any:
    return pd.Categorical.from_codes(codes, categories=pd.Index(texts, dtype="str"))


def _absent(name: str, length: int) -> Any:
    """A column that no row has."""
    if name in _TEXT_COLUMNS:
        return _categorical(np.full(length, -1, np.int32), [])
    return np.full(length, np.nan, np.float32)


def _read_only(column: Any) -> Any:
    if isinstance(column, np.ndarray):
        column.flags.writeable = False
    return column


def _cell(name: str, value: Any) -> Any:
    """One value as a column holds it: flags joined by spaces, other nested values left out."""
    if isinstance(value, list):
        return " ".join(map(str, value)) if name == "flags" else None
    return None if isinstance(value, dict) else value


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """The rows of a records file that has been read.

    Args:
        path: of the file.
        columns: name → values, shape (rows,), in the order in which they came.
        mixed: names of columns that hold numbers in some rows and texts in others; not among ``columns``.
        starts: where the line of each row starts in the (unpacked) file, bytes, shape (rows,).
        gaps: how many token gaps each row holds, -1 without a list, shape (rows,).
        lines_left_out: how many lines are no rows, or rows that stand in the file already.
        shared: whether frames share their memory, which cannot be written to.
    """

    path: Path
    columns: Mapping[str, Any]
    mixed: frozenset[str]
    starts: NDArray[np.int64]
    gaps: NDArray[np.int32]
    lines_left_out: int
    shared: bool = False

    def frame(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """Return columns as a DataFrame, as :func:`vlmbench.analysis.frames.load_runs` describes it.

        Raises:
            InputError: no rows, or a column of numbers and texts.
        """
        rows = len(self.starts)
        if not rows:
            left_out = self.lines_left_out
            why = f"none of its {left_out} lines is a row" if left_out else "nothing was measured there yet"
            raise InputError(f"'{self.path}' holds no rows; {why}")
        every = (*self.columns, *self.mixed)
        names = list(every if columns is None else dict.fromkeys([*IDENTITY, *columns]))
        if both := sorted(self.mixed.intersection(names)):
            raise InputError(f"column '{both[0]}' holds numbers in some rows and texts in others")
        found = {name: self.columns.get(name) for name in names}
        nothing = _read_only(_absent("", rows)) if self.shared else None
        for name in (name for name in names if name not in self.columns):
            found[name] = _absent(name, rows) if nothing is None or name in _TEXT_COLUMNS else nothing
        frame = pd.DataFrame(found, copy=False)
        frame.attrs["lines_left_out"] = self.lines_left_out
        return frame

    def equals(self, name: str, *texts: str) -> NDArray[np.bool_]:
        """Whether a column of texts holds one of some in each row, shape (rows,)."""
        return np.asarray(self.columns[name].isin(texts))

    def text(self, name: str, number: int) -> str:
        """The text that a column holds in a row."""
        return str(self.columns[name][number])

    def lines(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """Rows as they stand in the file, without the line end, by their numbers (from 0) in rising order.

        Raises:
            InputError: the file cannot be read.
        """
        with opened(self.path) as stream:
            for start in self.starts[np.asarray(numbers, dtype=np.int64)].tolist():
                stream.seek(start)
                yield stream.readline().strip()


@dataclass
class _Held:
    """What parts of a report share: the file that was read last, and what was made of a frame."""

    stamp: object = None
    file: RowFile | None = None
    made: dict[tuple[object, ...], tuple[weakref.ref[pd.DataFrame], pd.Index, pd.DataFrame]] = field(
        default_factory=dict
    )


_held: ContextVar[_Held | None] = ContextVar("_held", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Keep the records file that was read last until the context ends, and what :func:`once` marks.

    So each part of a report reads the rows no more. A file that has changed since is read anew. Frames of one file
    share their memory within the context, and their cells cannot be written to.
    """
    if _held.get() is not None:
        yield
        return
    token = _held.set(_Held())
    try:
        yield
    finally:
        _held.reset(token)


def row_file(path: Path | str, columns: Iterable[str] | None = None) -> RowFile:
    """Read a records file, or give what :func:`read_once` keeps of it.

    Args:
        columns: which to keep at least, beside those of the identity; all if None.

    Raises:
        InputError: no file, it cannot be read, or it has rows of another schema version.
    """
    file = records_path(path)
    held = _held.get()
    if held is None:
        return _read(file, None if columns is None else [*IDENTITY, *columns])
    state = file.stat()
    stamp = (file, state.st_ino, state.st_size, state.st_mtime_ns)
    if held.file is None or held.stamp != stamp:
        held.file = None  # its memory, before more is taken
        read = _read(file, None)
        columns = {name: _read_only(column) for name, column in read.columns.items()}
        held.file, held.stamp = replace(read, columns=columns, shared=True), stamp
    return held.file


def once(
    make: Callable[Concatenate[pd.DataFrame, P], pd.DataFrame],
) -> Callable[Concatenate[pd.DataFrame, P], pd.DataFrame]:
    """Make a table of a frame once within :func:`read_once`, as long as the frame is there with the same columns."""

    @wraps(make)
    def made(frame: pd.DataFrame, /, *args: P.args, **named: P.kwargs) -> pd.DataFrame:
        held = _held.get()
        if held is None or args or named:  # what is asked for now and then is not worth its memory
            return make(frame, *args, **named)
        key = (make.__qualname__, id(frame))
        known = held.made.get(key)
        if known is None or known[0]() is not frame or known[1] is not frame.columns:
            gone = weakref.ref(frame, lambda _: held.made.pop(key, None))
            known = held.made[key] = (gone, frame.columns, make(frame, *args, **named))
        return known[2].copy(deep=False)

    return made


def _read(file: Path, wanted: Sequence[str] | None) -> RowFile:
    made: dict[str, _Column] = {name: _Column(name) for name in wanted or IDENTITY}
    starts, gaps, left_out = array("q"), array("i"), list[int]()
    for block in read_blocks(file, left_out):
        _add(made, block, len(starts), every=wanted is None)
        starts.extend(block.starts)
        gaps.frombytes(np.asarray(block.gaps, np.int32).tobytes())
    columns = {}
    mixed = frozenset(name for name, column in made.items() if column.mixed)
    for name in list(made):
        column = made.pop(name)  # its table of texts goes as soon as the column is made
        if name not in mixed:
            columns[name] = column.finish()
    places, counts = np.array(starts, np.int64), np.array(gaps, np.int32)
    again = _repeats(columns)
    if again.any():
        columns = {name: _without(column, again) for name, column in columns.items()}
        places, counts = places[~again], counts[~again]
        warn_of_repeats(file, int(again.sum()))
    return RowFile(
        path=file, columns=columns, mixed=mixed, starts=places, gaps=counts,
        lines_left_out=len(left_out) + int(again.sum()),
    )  # fmt: skip


def _add(made: dict[str, _Column], block: Block, length: int, *, every: bool) -> None:
    """Append the rows of a block to the columns; with ``every``, also begin columns that it is the first to hold."""
    table, rows = block.table, block.rows
    names = set(table.column_names) if table is not None else set().union(*rows)
    if every:
        for name in sorted(names - made.keys() - _NOT_COLUMNS):
            made[name] = _Column(name, length=length)
    for name, column in made.items():
        if name not in names or name == "ITL":
            column.add_nothing(len(block.starts))
        elif table is not None:
            column.add_array(only(table, name))
        else:
            column.add([row.get(name) for row in rows])


def _repeats(columns: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which rows are a second one of a measurement: one is measured once, a second makes intervals too narrow."""
    good = np.asarray(columns["status"].isin([Status.OK]))
    names = ("point_id", "sample_id", "mode")
    keys = {name: columns[name].codes[good] for name in names} | {"repeat": columns["repeat"][good]}
    again = np.zeros(len(good), bool)
    again[good] = pd.DataFrame(keys, copy=False).duplicated().to_numpy()
    return again


def _without(column: Any, rows: NDArray[np.bool_]) -> Any:
    kept = column[~rows]
    return kept if isinstance(kept, np.ndarray) else kept.remove_unused_categories()

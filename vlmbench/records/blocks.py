"""Blocks of lines as tables: the quick way past :func:`vlmbench.records.reading.parse_row`, with the same answer.

pyarrow reads a block column by column, at a quarter of what line by line takes. A block in which any line could be no
row, or whose values it would give otherwise than Python, is not read: such a block goes line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlmbench.records.reading import (
    COUNTS,
    LARGEST,
    LARGEST_COUNT,
    MODES,
    NUMBERS,
    STATUSES,
    TEXTS,
    check_schema,
    opened,
    parse_row,
    token_gaps,
    warn_of_damage,
)
from vlmbench.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

_LINES = 1000
_TWO_ROWS = re.compile(rb"\}[ \t\r]*\{")
_ODD_ZERO = re.compile(rb"(?<=\d)[eE](?:\+?\d\d|-\d{4})")  # a zero of no clock: 0e99, 1e-9999
_GAPS = "ITL"
_MOST_MS, _LEAST_MS = 1e9, 1e-99  # other token gaps but zero may be numbers that no clock gives


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows that follow each other.

    Args:
        table: the rows as :func:`read_block` gives them; None where they were read one by one.
        rows: the rows one by one, without ``ITL``; empty beside a table.
        starts: where the line of each row starts in the (unpacked) file, bytes.
        gaps: how many token gaps each row holds, -1 without a list.
    """

    table: pa.Table | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    starts: Sequence[int]
    gaps: Sequence[int] | NDArray[np.int32]


def read_blocks(file: Path, left_out: list[int]) -> Iterator[Block]:
    """The rows of a records file, a thousand lines at a time; rows that stand in it twice come twice.

    Args:
        left_out: gets the numbers (from 1) of the lines that are no rows.

    Raises:
        InputError: the file cannot be read, or has rows of another schema version.
    """
    told = number = start = 0
    with opened(file) as stream:
        while lines := list(islice(stream, _LINES)):
            starts = list(accumulate(map(len, lines), initial=start))
            numbers, number, start = range(number + 1, number + len(lines) + 1), number + len(lines), starts.pop()
            table = read_block(lines)
            if table is not None:
                told = warn_of_damage(file, numbers[0], told, len(left_out))
                yield Block(table=table, starts=starts, gaps=gap_counts(table))
                continue
            rows, kept, gaps = [], [], []
            for at, place, line in zip(numbers, starts, lines, strict=True):
                if not line.strip():
                    continue
                row = parse_row(line)
                if row is None:
                    left_out.append(at)
                    continue
                check_schema(row, file, at)
                told = warn_of_damage(file, at, told, len(left_out))
                stored = token_gaps(line) if "ITL" in row else None
                rows.append(row)
                kept.append(place)
                gaps.append(-1 if stored is None else sum(gap is not None for gap in stored))
            yield Block(rows=rows, starts=kept, gaps=gaps)


def read_block(lines: Sequence[bytes]) -> pa.Table | None:
    """The rows in some lines, none of them blank, column by column; None where they must be read one by one.

    Returns:
        A table with as many rows as lines, in which each line is a row by the rule of ``parse_row``, of the schema
        version of this vlmbench. A column that only some rows have is null in the others; what a row holds twice, or a
        text that looks like a date, is never in it.
    """
    try:
        import pyarrow as pa
        from pyarrow import json
    except ImportError:
        return None
    block = b"".join(lines)
    if not all(line[:1] == b"{" for line in lines) or _TWO_ROWS.search(block):
        return None  # else each line is one row, if there are as many rows as lines
    try:
        block.decode()
        table = json.read_json(
            pa.BufferReader(block),
            read_options=json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in TEXTS])),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    if len(table) != len(lines) or not {*COUNTS, *TEXTS} <= set(table.column_names):
        return None
    return table if all(_is_good(name, only(table, name), block) for name in table.column_names) else None


def only(table: pa.Table, name: str) -> Any:
    """A column of a block as one array."""
    chunks = table.column(name).chunks
    if len(chunks) == 1:
        return chunks[0]
    return table.column(name).combine_chunks()


def gap_counts(table: pa.Table) -> Any:
    """How many token gaps each row of a block holds (nulls in a list are none), -1 without a list, shape (rows,)."""
    import pyarrow as pa

    if _GAPS not in table.column_names or pa.types.is_null(only(table, _GAPS).type):
        return np.full(len(table), -1, np.int32)
    column = only(table, _GAPS)
    whole = np.asarray(column.is_valid())
    offsets = np.asarray(column.offsets)
    held = np.concatenate([[0], np.cumsum(np.asarray(column.values.is_valid()), dtype=np.int64)])
    return np.where(whole, held[offsets[1:]] - held[offsets[:-1]], -1).astype(np.int32)


def _is_good(name: str, column: Any, block: bytes) -> bool:
    """Whether a column holds what every row of vlmbench may hold there."""
    import pyarrow as pa

    kind, types = column.type, pa.types
    if name in TEXTS:
        allowed = {"mode": MODES, "status": STATUSES}.get(name)
        good = not column.null_count and (allowed is None or set(column.unique().to_pylist()) <= allowed)
    elif name in COUNTS:
        good = types.is_int64(kind) and not column.null_count and _are_counts(name, np.asarray(column))
    elif name == _GAPS:
        good = _are_gaps(column, block)
    elif name == "flags":
        good = types.is_list(kind) and (types.is_string(kind.value_type) or types.is_null(kind.value_type))
        good = good and not column.null_count and not column.flatten().null_count
    elif types.is_null(kind):
        good = True
    elif types.is_int64(kind) or types.is_float64(kind):
        good = name != "reason" and _within(column, LARGEST)
    elif types.is_string(kind):
        good = not name.startswith(NUMBERS)
    elif types.is_boolean(kind) or types.is_nested(kind):
        good = not name.startswith(NUMBERS) and name != "reason" and _GAPS not in str(kind)
    else:
        good = False  # a text that looks like a date
    return bool(good)


def _are_counts(name: str, values: NDArray[np.int64]) -> bool:
    if name == "schema_version":
        return bool((values == SCHEMA_VERSION).all())
    return bool(((values >= 0) & (values < LARGEST_COUNT)).all())


def _within(column: Any, limit: float) -> bool:
    """Whether all numbers are finite and below a limit."""
    values = column.to_numpy(zero_copy_only=False)
    return bool((np.abs(values) < limit).sum() + column.null_count == len(column))


def _are_gaps(column: Any, block: bytes) -> bool:
    """Whether all lists are of numbers that a clock gives, and of nulls."""
    import pyarrow as pa

    types, kind = pa.types, column.type
    if types.is_null(kind):
        return True
    if not types.is_list(kind) or not (types.is_int64(kind.value_type) or types.is_float64(kind.value_type)):
        return bool(types.is_list(kind) and types.is_null(kind.value_type))
    size = np.abs(column.values.to_numpy(zero_copy_only=False))
    usual, zero = int(((size < _MOST_MS) & (size > _LEAST_MS)).sum()), int((size == 0.0).sum())
    known = usual + zero + column.values.null_count == len(size)
    return bool(known and not (zero and _ODD_ZERO.search(block)))

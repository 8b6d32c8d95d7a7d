"""Records as Parquet. Rows are streamed; memory does not grow with their number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from vlmbench.errors import ConfigError, InputError
from vlmbench.records.files import strict, write_whole
from vlmbench.records.reading import RECORDS_NAME, iter_rows

_CHUNK_ROWS = 5000


def records_to_parquet(directory: Path, path: Path | None = None) -> Path:
    """The rows of a run directory as ``records.parquet`` beside them (or at ``path``).

    Columns are all that occur in any row. The file is gone through twice, for the columns' types and for the values.

    Raises:
        ConfigError: pyarrow is not installed.
        InputError: there are no rows.
    """
    pyarrow, parquet = _pyarrow()
    source = Path(directory) / RECORDS_NAME
    kinds = _kinds(iter_rows(source))
    if not kinds:
        raise InputError(f"'{source}' has no rows.")
    target = path or source.with_suffix(".parquet")
    return _write_chunks(target, iter_rows(source), _schema(pyarrow, kinds), pyarrow, parquet)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'vlmbench-latency[experiments]'.") from error
    return pyarrow, pyarrow.parquet


def _write_chunks(path: Path, rows: Iterable[Mapping[str, Any]], schema: Any, pyarrow: Any, parquet: Any) -> Path:
    def write(file: BinaryIO) -> None:
        stream = iter(rows)
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            while chunk := list(islice(stream, _CHUNK_ROWS)):
                try:
                    table = pyarrow.Table.from_pylist([_fit(row, schema) for row in chunk], schema=schema)
                    writer.write_table(table)
                except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
                    raise InputError(f"a column of '{path.name}' holds values of two kinds: {error}") from error

    return write_whole(path, write)


# kinds in the order in which a wider one may take a narrower one's place
_WIDER = {("bool", "bool"): "bool", ("int", "float"): "float", ("float", "int"): "float"}


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        inner = {k for item in value if (k := _kind(item))}
        return "list_float" if inner and inner <= {"int", "float"} else "list_str" if inner else "list"
    if isinstance(value, dict):
        return "str"  # stored as JSON text
    return {bool: "bool", int: "int", float: "float", str: "str"}.get(type(value), "str")


def _kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, str | None]:
    kinds: dict[str, str | None] = {}
    for row in rows:
        for name, value in row.items():
            old, new = kinds.get(name), _kind(value)
            if old is None or new is None or old == new:
                kinds[name] = new or old
            elif "list" in (old, new) and old.startswith("list") and new.startswith("list"):
                kinds[name] = max(old, new, key=len)
            else:
                kinds[name] = _WIDER.get((old, new), "str")
    return kinds


def _schema(pyarrow: Any, kinds: Mapping[str, str | None]) -> Any:
    types = {
        "bool": pyarrow.bool_(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "str": pyarrow.string(),
        "list": pyarrow.list_(pyarrow.string()),
        "list_str": pyarrow.list_(pyarrow.string()),
        "list_float": pyarrow.list_(pyarrow.float64()),
        None: pyarrow.float64(),  # a column without a value: a number nobody could measure
    }
    return pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])


def _fit(row: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """Values as their column wants them: text for a column of mixed kinds, JSON for mappings."""
    kinds = {field.name: str(field.type) for field in schema}
    return {name: _fit_value(value, kinds[name]) for name, value in row.items() if name in kinds}


def _fit_value(value: Any, kind: str) -> Any:
    if kind == "string" and value is not None and not isinstance(value, str):
        return json.dumps(strict(value), ensure_ascii=False)
    if kind == "double" and isinstance(value, int):
        return float(value)
    if kind == "list<element: string>" and value is not None:
        return [item if isinstance(item, str) else json.dumps(strict(item)) for item in value]
    return value

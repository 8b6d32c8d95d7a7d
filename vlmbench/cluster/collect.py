"""All finished runs of a grid as one tidy table, also while others still run.

Files are read by pyarrow's JSON reader, column by column; a file it cannot read (a damaged line, a column of mixed
kinds) is read line by line instead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vlmbench.cluster.states import OVER, RunState, RunStatus, counts, table, without_studies
from vlmbench.cluster.status import status
from vlmbench.errors import ConfigError, InputError
from vlmbench.records.comparable import COLUMNS, apart, identity, unlike_runs, with_mixture_named
from vlmbench.records.files import write_json, write_whole
from vlmbench.records.provenance import read_provenance
from vlmbench.records.reading import (
    LARGEST,
    MODES,
    NUMBERS,
    STATUSES,
    iter_rows,
    opened,
    parse_row,
    records_in,
    without_token_gaps,
)
from vlmbench.schema import SCHEMA_VERSION, Mode, Status
from vlmbench.text import detail

if TYPE_CHECKING:
    import pyarrow as pa


_log = logging.getLogger(__name__)
TABLE_NAME, CSV_NAME, SUMMARY_NAME = "collected.parquet", "collected.csv", "collected.json"
_LEFT_OUT = ("schema_version", "ITL")  # lists of token gaps stay in the runs' own files
_MEASURED = (Status.OK, Status.OOM, Status.ERROR, Status.SKIPPED)
_TEXTS, _COUNTS = ("point_id", "sample_id", "mode", "status"), ("repeat", "session", "schema_version")
_DICTIONARY = ("point_id", "sample_id", "mode", "status", "reason", "flags")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was collected.

    Args:
        table_path: Parquet: one row a measured, failed or skipped run of a request; ``run`` names its run directory
            and further columns say model, weights, dataset, sweep, runtime, dtype, device, gpu, and ``settings`` what
            else sets a run apart from those that are called the same.
        csv_path: the same rows as text, for programs that read no Parquet.
        summary_path: JSON: what every run is doing, and why those that are missing are.
        rows: number of rows.
        runs: every run and its state.
        unlike: what the runs differ in that no comparison of latencies may pass over, with the values.
        figures: PNG and PDF files.
    """

    table_path: Path
    csv_path: Path
    summary_path: Path
    rows: int
    runs: tuple[RunStatus, ...]
    unlike: Mapping[str, list[str]] = field(default_factory=dict)
    figures: tuple[Path, ...] = ()


def collect(runs: Path, output_dir: Path | None = None, *, figures: bool = True) -> Collected:
    """Write the table, the summary and figures of all runs at and below ``runs`` that are over.

    Args:
        runs: a sweep directory, or one that holds some.
        output_dir: where the files go; ``runs`` itself if None.
        figures: whether to draw.

    Raises:
        InputError: there are no runs, or none of them has a finished row.
        ConfigError: pyarrow is not installed.
        MeasurementError: the files cannot be written.
    """
    pa, parquet = _pyarrow()
    root, target = Path(runs), Path(output_dir or runs)
    found = status(root)
    measured = list(_tables(found))
    tables, identities = _with_facts(measured, root)
    rows = sum(t.num_rows for t in tables)
    if not rows:
        raise InputError(
            f"no run below '{root}' has finished rows yet ({_words(found)}).\nAsk experiment=status runs=DIR when."
        )
    whole = pa.concat_tables(tables, promote_options="permissive")
    path = write_whole(target / TABLE_NAME, lambda file: parquet.write_table(whole, file, compression="zstd"))
    as_text = write_whole(target / CSV_NAME, lambda file: _write_csv(whole, file))
    summary: dict[str, Any] = {
        "schema_version": 1,
        "rows": rows,
        "states": dict(counts(without_studies(found))),
        "runs_in_table": len(tables),
        "failed_rows": rows - _count(whole, "status", Status.OK),
        "unlike": unlike_runs(identities),
        "runs": table(found, root),
    }
    drawn: tuple[Path, ...] = ()
    if figures:
        from vlmbench.figures.grid_overview import draw_overview

        drawn = draw_overview(path, target / "figures", note=_words(found))
    return Collected(
        table_path=path,
        csv_path=as_text,
        summary_path=write_json(target / SUMMARY_NAME, summary),
        rows=rows,
        runs=tuple(found),
        unlike=summary["unlike"],
        figures=drawn,
    )


def _write_csv(whole: pa.Table, file: BinaryIO) -> None:
    """The table as CSV; a list or mapping within a row as its JSON."""
    import pyarrow as pa
    from pyarrow import csv

    def plain(column: Any) -> Any:
        if pa.types.is_dictionary(column.type):
            return column.cast(column.type.value_type)
        if pa.types.is_nested(column.type):
            return pa.array([None if v is None else json.dumps(v) for v in column.to_pylist()], pa.string())
        return column

    columns = dict(zip(whole.column_names, map(plain, whole.columns), strict=True))
    csv.write_csv(pa.table(columns), file)


def _words(found: Sequence[RunStatus]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(counts(without_studies(found)).items()))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.json
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("collecting needs pyarrow: pip install 'vlmbench-latency[experiments]'.") from error
    return pa, parquet


def _tables(found: Sequence[RunStatus]) -> Iterator[tuple[RunStatus, pa.Table]]:
    for one in found:
        file = records_in(one.run.directory)
        if one.state not in OVER or file is None:
            continue
        rows = _measured(read_table(file))
        if rows.num_rows:
            yield one, rows


def read_table(file: Path) -> pa.Table:
    """The rows of a records file as an Arrow table; an unfinished last line is passed over, ``ITL`` is left out."""
    pa, _ = _pyarrow()
    with opened(file) as stream:
        content = stream.read()
    end = content.rfind(b"\n") + 1
    if parse_row(content[end:]) is not None:  # whole but for its line end
        end = len(content)
    whole = without_token_gaps(content[:end])  # reads in half the time
    if not whole:
        return pa.table({})
    options = pa.json.ReadOptions(block_size=min(max(len(whole), 1 << 16), 1 << 26))
    try:
        if not whole.isascii():
            whole.decode()  # Arrow takes what is not UTF-8, and fails where it is asked for
        rows = pa.json.read_json(pa.BufferReader(whole), read_options=options)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        detail(f"{file} is read line by line: {error}")
        rows = _line_by_line(file, pa)
    if not (_has_row_types(rows, pa) and _has_row_values(rows, pa)):  # one rule for all readers: the slow one decides
        rows = _line_by_line(file, pa)
    return rows.drop_columns([name for name in _LEFT_OUT if name in rows.column_names])


def _has_row_types(rows: pa.Table, pa: Any) -> bool:
    """Whether columns have the types that every row of vlmbench has (:func:`vlmbench.records.reading.parse_row`)."""
    types = {field.name: field.type for field in rows.schema}
    numbers = [kind for name, kind in types.items() if name.startswith(NUMBERS)]
    flags, texts = types.get("flags", pa.null()), [types.get("reason", pa.null())]
    texts += [flags.value_type] if pa.types.is_list(flags) else []
    return (
        types.keys() >= {*_TEXTS, *_COUNTS}
        and all(pa.types.is_string(types[name]) for name in _TEXTS)
        and all(pa.types.is_int64(types[name]) for name in _COUNTS)
        and all(pa.types.is_integer(k) or pa.types.is_floating(k) or pa.types.is_null(k) for k in numbers)
        and (pa.types.is_list(flags) or pa.types.is_null(flags))
        and all(pa.types.is_string(k) or pa.types.is_null(k) for k in texts)
    )


def _has_row_values(rows: pa.Table, pa: Any) -> bool:
    """Whether all values are within their range, of this schema, and no measured row stands there twice."""
    import pyarrow.compute as pc

    def ends(name: str) -> list[Any]:
        return [end for end in pc.min_max(rows[name]).as_py().values() if end is not None]

    floats = [field.name for field in rows.schema if pa.types.is_floating(field.type)]
    measured = rows.filter(pc.equal(rows["status"], str(Status.OK)))
    once = measured.group_by(["point_id", "sample_id", "repeat", "mode"]).aggregate([])
    return bool(
        not any(rows[name].null_count for name in (*_TEXTS, *_COUNTS))
        and min(ends("repeat"), default=0) >= 0
        and set(ends("schema_version")) <= {SCHEMA_VERSION}
        and set(rows["mode"].unique().to_pylist()) <= MODES
        and set(rows["status"].unique().to_pylist()) <= STATUSES
        and all(-LARGEST < end < LARGEST for name in floats for end in ends(name))
        and not any(pc.any(pc.is_nan(rows[name])).as_py() for name in floats)
        and once.num_rows == measured.num_rows
    )


def _line_by_line(file: Path, pa: Any) -> pa.Table:
    rows = [
        {k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items() if k not in _LEFT_OUT}
        for row in iter_rows(file, itl=False)
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([None if v is None else json.dumps(v) for v in values])
    return pa.table(columns)


def _measured(rows: pa.Table) -> pa.Table:
    """Without warm-ups and kernel traces; texts as dictionaries, flags as one text of names joined by spaces."""
    pa, _ = _pyarrow()
    import pyarrow.compute as pc

    if not rows.num_rows:
        return rows
    wanted = pc.and_(
        pc.is_in(rows["status"], pa.array([str(s) for s in _MEASURED])), pc.not_equal(rows["mode"], str(Mode.TRACE))
    )
    rows = rows.filter(wanted)
    for name in _DICTIONARY:
        if name not in rows.column_names:
            continue
        column = rows[name]
        if name == "flags":
            column = pc.binary_join(column.cast(pa.list_(pa.string())), " ")
        position = rows.column_names.index(name)
        rows = rows.set_column(position, name, column.cast(pa.string()).dictionary_encode())
    return rows


def _with_facts(
    measured: Sequence[tuple[RunStatus, pa.Table]], root: Path
) -> tuple[list[pa.Table], list[dict[str, Any]]]:
    """The tables with columns that say which run each is, and what makes the runs alike or not."""
    provenances = [_provenance(one.run.directory) for one, _ in measured]
    facts = [_facts(found) for found in provenances]
    identities = [identity(found) for found in provenances]
    labels = [tuple(told[name] for name in ("runtime", *COLUMNS)) for told in facts]
    texts = apart(labels, identities)
    made = [
        _told(rows, one, {**told, "settings": text}, root)
        for (one, rows), told, text in zip(measured, facts, texts, strict=True)
    ]
    return made, identities


def _told(rows: pa.Table, one: RunStatus, facts: Mapping[str, str | None], root: Path) -> pa.Table:
    pa, _ = _pyarrow()
    told = {"run": _name(one.run.directory, root), "run_state": str(one.state), **facts}
    if one.run.task is not None or one.run.study is not None:
        told["overrides"] = " ".join(one.run.overrides)
    for position, (name, value) in enumerate(told.items()):
        if name in rows.column_names:  # rows name their runtime themselves; the provenance speaks for the whole run
            rows = rows.drop_columns([name])
        column = pa.repeat(pa.scalar(value, pa.string()), rows.num_rows).dictionary_encode()
        rows = rows.add_column(position, name, column)
    return rows


def _provenance(directory: Path) -> dict[str, Any]:
    try:
        return with_mixture_named(read_provenance(directory) or {})
    except InputError as error:
        _log.warning("%s", error)
        return {}


def _facts(found: Mapping[str, Any]) -> dict[str, str | None]:
    def at(*path: str) -> str | None:
        node: Any = found
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return None if node is None else str(node)

    return {
        "model": at("model", "name"),
        "weights": at("model", "weights"),
        "dataset": at("dataset", "name"),
        "sweep": at("sweep", "name"),
        "runtime": at("runtime", "name"),
        "dtype": at("runtime", "dtype"),
        "device": at("device", "name") or at("device", "type"),
        "gpu": at("device", "uuid"),
        "fingerprint": at("fingerprint"),
    }


def _name(directory: Path, root: Path) -> str:
    try:
        return str(directory.resolve().relative_to(root.resolve()))
    except ValueError:
        return directory.name


def _count(whole: pa.Table, column: str, value: str) -> int:
    import pyarrow.compute as pc

    counted = {
        str(item["values"]): int(item["counts"]) for item in pc.value_counts(whole[column].cast("string")).to_pylist()
    }
    return counted.get(str(value), 0)


def is_complete(found: Sequence[RunStatus]) -> bool:
    """Whether every run is done."""
    return all(one.state == RunState.DONE for one in found)

"""The request at the median and the one at P95 as traces that Perfetto and chrome://tracing open.

Stages stand one after the other as they ran, decode steps inside the decode. Times are those of the row, nothing is
traced anew; what kernels did is in the traces of the kernel probe (``traces/``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import values, workload
from vlmbench.analysis.row_file import row_file
from vlmbench.records.files import write_whole
from vlmbench.records.reading import parse_row, token_gaps
from vlmbench.schema import STAGES, TOTAL
from vlmbench.schema.stage_table import DECODE

Summary = Mapping[str, Any]

_METRIC = "T_request"
_PLACES = ("p50", "p95")
_INNER = {stage.column for stage in STAGES if stage.parent == DECODE}


def write_request_traces(directory: Path, to: Path, frame: pd.DataFrame, summary: Summary) -> list[Path]:
    """Write ``exports/request_p50.trace.json`` and, where n allows a P95, ``exports/request_p95.trace.json``.

    Args:
        to: where ``exports/`` goes.
        frame: rows of :func:`vlmbench.analysis.frames.load_runs`, whose index numbers them.
        summary: of phase 1, whose percentiles of the whole request are looked for.

    Raises:
        MeasurementError: a file cannot be written.
    """
    percentiles = summary["distribution"].get(_METRIC, {}).get("workload") or {}
    wanted = {name: value for name in _PLACES if (value := (percentiles.get(name) or {}).get("value")) is not None}
    chosen = _nearest(workload(frame), wanted)
    files = []
    numbers = [number for number, _ in chosen.values()]
    for (name, (_, time)), line in zip(chosen.items(), row_file(directory, ()).lines(numbers), strict=True):
        row = {**(parse_row(line) or {}), "ITL": token_gaps(line), _METRIC: time}
        made = {"traceEvents": list(_events(row)), "displayTimeUnit": "ms", "otherData": {"request": row["sample_id"]}}
        file = to / "exports" / f"request_{name}.trace.json"
        files.append(write_whole(file, json.dumps(made, allow_nan=False) + "\n"))
    return files


def _nearest(rows: pd.DataFrame, wanted: Mapping[str, float]) -> dict[str, tuple[int, float]]:
    """For each percentile, the run whose time is nearest to it: its number in the file, and that time, ms."""
    times = values(rows, _METRIC)
    if np.isnan(times).all():
        return {}
    places = {name: int(np.nanargmin(np.abs(times - value))) for name, value in wanted.items()}
    return {name: (int(rows.index[at]), times[at]) for name, at in places.items()}


def _events(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Complete events in µs, one lane: the request, its stages, its decode steps."""
    stages = [stage for stage in STAGES if stage.column in row and stage.column not in _INNER]
    yield _event("request", 0.0, row[_METRIC], {name: row[name] for name in row if name.startswith("num_")})
    at = 0.0
    for stage in stages:
        if stage.column == "T_residual" or row[stage.column] is None:
            continue
        if stage.column == "T_setup" and TOTAL in row:
            yield _event("generate()", at, row[TOTAL], {"T_residual_ms": row.get("T_residual")})
        yield _event(stage.label, at, row[stage.column], {})
        if stage.column == DECODE:
            yield from _steps(at, row.get("ITL"))
        at += row[stage.column]


def _steps(at: float, gaps: Any) -> Iterator[dict[str, Any]]:
    for number, gap in enumerate([] if gaps is None else gaps, start=2):
        yield _event(f"token {number}", at, float(gap), {})
        at += float(gap)


def _event(name: str, at_ms: float, took_ms: float, args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name, "ph": "X", "ts": at_ms * 1e3, "dur": took_ms * 1e3, "pid": 1, "tid": 1, "args": dict(args),
    }  # fmt: skip

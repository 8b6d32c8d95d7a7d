"""What a run against a server found beyond latency, as plain data: ``serving`` in ``summary.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmbench.analysis.frames import REFERENCE, load_runs
from vlmbench.analysis.quantiles import median
from vlmbench.analysis.serving import (
    COLUMNS,
    Limits,
    client_in_the_way,
    paired_differences,
    requests_of,
    saturated,
    served,
    serving_table,
)
from vlmbench.engines.endpoint.dialects import IN_PROCESS, definitions
from vlmbench.engines.endpoint.pairs import CONTRASTS
from vlmbench.errors import InputError
from vlmbench.figures import serving
from vlmbench.records.files import read_json, strict
from vlmbench.report.narrative.serving import why_doubtful
from vlmbench.sweep import axis_names

_LOADS = "loads.json"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A run against a server, read once for numbers and figures.

    Args:
        frame: its rows, with the columns of an endpoint.
        table: one row a load.
        loads: what ``loads.json`` holds.
        provenance: of the run.
    """

    frame: pd.DataFrame
    table: pd.DataFrame
    loads: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]

    @property
    def in_process(self) -> bool:
        """The engine ran in the run's own process: there is no client beside it."""
        return (served(self.provenance) or {}).get("dialect") == IN_PROCESS


def read_serving(directory: Path, provenance: Mapping[str, Any]) -> Serving | None:
    """Read a run against a server or under a load; None for one request after the other in this process.

    Args:
        provenance: content of its ``provenance.json``.

    Raises:
        InputError: no records, or files that cannot be read.
    """
    server = served(provenance)
    if server is None:
        return None
    config = provenance.get("config") or {}
    load, runtime = config.get("load") or {}, config.get("runtime") or {}
    figures = tuple(definitions(str(server.get("dialect"))))
    axes = (f"axis_{name}" for name in axis_names((config.get("sweep") or {}).get("axes") or {}))
    frame = load_runs(directory, tuple(dict.fromkeys((*COLUMNS, *figures, *axes))))
    path = directory / _LOADS
    loads = (read_json(path) or {}).get("loads", [])
    if not isinstance(loads, list) or not all(isinstance(load, Mapping) for load in loads):
        raise InputError(f"'{path}' must hold a list 'loads' of mappings; restore it or measure again")
    limits = Limits(
        ttft_ms=load.get("ttft_limit_ms"), tpot_ms=load.get("tpot_limit_ms"), request_ms=load.get("request_limit_ms")
    )
    closed = load.get("name") == "closed"
    table = serving_table(frame, closed=closed, limits=limits, devices=int(runtime.get("devices") or 1))
    return Serving(frame=frame, table=table, loads=loads, provenance=provenance)


def summarise_serving(found: Serving) -> dict[str, Any]:
    """Say what a server gave.

    Returns:
        ``server`` (dialect, version), ``load``, ``limits``, ``points`` (one a load: rates, goodput, errors, flags,
        whether the client was in its own way, whether the server kept up), ``server_figures`` (name → median with
        interval, unit and meaning there), ``pairs`` (differences of runs, never stages).
    """
    config = found.provenance.get("config") or {}
    load = config.get("load") or {}
    server = served(found.provenance) or {}
    summary = {
        "server": {name: server.get(name) for name in ("dialect", "version", "connection", "cache", "through_proxy")},
        "load": {name: load.get(name) for name in ("name", "concurrency", "rate_per_s", "arrivals")}
        | ({"rate_per_s": None} if load.get("arrivals") == "trace" else {}),  # that of the file is not the setting's
        "limits": {name: load.get(f"{name}_limit_ms") for name in ("ttft", "tpot", "request")},
        "devices": (config.get("runtime") or {}).get("devices"),
        "points": [_point(found, row) for row in found.table.astype(object).to_dict("records")],
        "server_figures": _server_figures(found),
        "pairs": _pairs(found.frame),
    }
    plain: dict[str, Any] = strict(summary)
    return plain


def _point(found: Serving, row: Mapping[Any, Any]) -> dict[str, Any]:
    point = str(row["point_id"])
    rows = requests_of(found.frame)
    rows = rows[rows["point_id"].astype(str) == point]
    loads = [load for load in found.loads if load.get("point_id") == point]
    errors: dict[str, int] = {}
    if "error_class" in rows:
        failed = rows[rows["status"] == "error"]["error_class"].astype(object).dropna()
        errors = {str(kind): int(count) for kind, count in failed.value_counts().items()}
    open_loop = any((load.get("load") or {}).get("kind") == "open" for load in loads)
    return {
        **{str(name): None if value is None or value != value else value for name, value in row.items()},  # noqa: PLR0124  NaN
        "errors_by_class": errors,
        "client_in_the_way": [] if found.in_process else client_in_the_way(rows, loads),
        "saturated": saturated(found.frame, point) if open_loop else None,
        "flags": sorted({flag for load in loads for flag in load.get("flags", [])}),
        "client_cpu_share": _share(loads),
        "sent_late_p99_ms": _upper(rows, "T_late"),
    }


def _share(loads: Sequence[Mapping[str, Any]]) -> float | None:
    wall = sum(float(load.get("wall_s") or 0) for load in loads)
    return sum(float(load.get("cpu_s") or 0) for load in loads) / wall if wall else None


def _upper(rows: pd.DataFrame, name: str) -> float | None:
    values = rows[name].to_numpy(dtype=np.float64, na_value=np.nan)
    values = values[~np.isnan(values)]
    return float(np.quantile(values, 0.99)) if len(values) else None


def _server_figures(found: Serving) -> dict[str, Any]:
    """Medians of the server's own figures, beside what it means by them."""
    rows = requests_of(found.frame)
    rows = rows[rows["status"] == "ok"]
    dialect = str((served(found.provenance) or {}).get("dialect"))
    made: dict[str, Any] = {}
    meanings = {**definitions(dialect), "T_unattributed": "ms: TTFT minus what the server says it spent until then"}
    for name, meaning in meanings.items():
        if name not in rows or rows[name].isna().all():
            continue
        unit, _, words = meaning.partition(": ")
        values = rows[name].to_numpy(dtype=np.float64, na_value=np.nan)
        made[name] = {**median(values).as_dict(), "unit": unit, "meaning": words}
    return made


def _pairs(frame: pd.DataFrame) -> list[dict[str, Any]]:
    questions = {c.name: c.question for c in CONTRASTS}
    table = paired_differences(frame, {c.name: (*c.arms, c.metric) for c in CONTRASTS})
    return [
        {**{str(k): v for k, v in row.items()}, "question": questions[str(row["contrast"])]}
        for row in table.astype(object).to_dict("records")
    ]


def serving_figures(server: Serving) -> Iterator[tuple[str, Figure]]:
    """(file name, figure) of what a server gave under its loads; none with fewer than two loads."""
    drawings = {"pareto": serving.pareto_figure, "ttft_throughput": serving.ttft_figure}
    table = server.table[~server.table["point_id"].astype(str).str.startswith(REFERENCE)]
    points = [_point(server, row) for row in table.astype(object).to_dict("records")]
    table = table.assign(doubt=["; ".join(why_doubtful(point)) for point in points])
    for name, draw in drawings.items():
        figure = draw(table, server.provenance)
        if figure is not None:
            yield name, figure

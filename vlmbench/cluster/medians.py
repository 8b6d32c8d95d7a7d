"""Medians of a collected grid, one line a run and point: points of unlike work are never summed up in one number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.frames import sample_codes
from vlmbench.analysis.quantiles import median
from vlmbench.schema import Mode, Status
from vlmbench.text import digits, plain

TIMES = ("T_total", "TTFT")
_MOST_POINTS = 3
_AXIS = "axis_"
_NEEDED = ("run", "point_id", "sample_id", "mode", "status")


@dataclass(frozen=True, kw_only=True)
class Line:
    """The medians of one point of one run.

    Args:
        run: its directory, below what was collected.
        point: the value of each axis of its sweep; empty for a data set.
        left_out: how many points of the run between this one and the one before have no line here.
        medians: of each of :data:`TIMES`, ms.
    """

    run: str
    point: str
    left_out: int
    medians: tuple[Estimate, ...]


def medians(table: Path) -> list[Line]:
    """The lines of a collected table: of a run with many points its smallest, its middle and its largest one.

    Args:
        table: ``collected.parquet``.
    """
    from pyarrow import parquet

    names = parquet.read_schema(table).names
    axes = [name for name in names if name.startswith(_AXIS)]
    frame = pd.read_parquet(table, columns=[name for name in (*_NEEDED, *TIMES) if name in names] + axes)
    measured = (frame["status"] == Status.OK) & (frame["mode"] == Mode.INSTRUMENTED)
    frame = frame[measured & (frame["point_id"] != "reference")]  # which is there for its own spread
    return [
        line for run, rows in frame.groupby("run", sort=False, observed=True) for line in _of_run(str(run), rows, axes)
    ]


def _of_run(run: str, rows: pd.DataFrame, axes: list[str]) -> Iterator[Line]:
    varied = [name for name in axes if rows[name].notna().any()]
    points = [part for _, part in rows.groupby("point_id", sort=False, observed=True)]
    points.sort(key=lambda part: [_value(part, name) for name in varied])
    places = list(range(len(points)))
    if len(points) > _MOST_POINTS:
        places = sorted({0, len(points) // 2, len(points) - 1})
    before = -1
    for place in places:
        part = points[place]
        named = ", ".join(f"{name.removeprefix(_AXIS)} {plain(_value(part, name))}" for name in varied)
        codes = sample_codes(part) if part["sample_id"].nunique() > 1 else None  # of one request dependence tells
        found = tuple(
            median(part[name].to_numpy(dtype=float), clusters=codes) if name in part else Estimate(value=None)
            for name in TIMES
        )
        yield Line(run=run, point=named, left_out=place - before - 1, medians=found)
        before = place


def _value(part: pd.DataFrame, name: str) -> float:
    """Where a point stands on an axis; before all others where it has none."""
    value = part[name].iloc[0]
    return float(value) if pd.notna(value) else -1.0


def rows(lines: list[Line]) -> list[list[str]]:
    """The lines as text: run, point, n, and a median with its 95 % interval for each time; ms throughout."""
    return [[line.run, line.point, f"{line.medians[0].n:,}", *(_cell(one) for one in line.medians)] for line in lines]


def _cell(one: Estimate) -> str:
    if one.value is None:
        return ""
    if one.low is None or one.high is None:
        return f"{digits(one.value)} (no interval: {one.note})" if one.note else digits(one.value)
    return f"{digits(one.value)} [{digits(one.low)} to {digits(one.high)}]"

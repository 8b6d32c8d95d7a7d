"""The row: one run of one request. Standard library only.

A row is flat: identity, status, then one value per metric. Names and units of metrics are those of docs/method.md.
Statistics are never stored in rows; they are derived offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1


class Status(StrEnum):
    """What became of a run."""

    OK = "ok"
    COLD = "cold"  # the true first run of the process
    WARMUP = "warmup"  # kept, never in statistics
    OOM = "oom"
    ERROR = "error"
    SKIPPED = "skipped"


class Mode(StrEnum):
    """How a run was watched."""

    INSTRUMENTED = "instrumented"  # timeline marks set
    BARE = "bare"  # nothing but the clock around generate(): the control for the instrument's own cost
    TRACE = "trace"  # kernel trace or memory pass: its times are not latencies


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric that a probe writes: unit and meaning, for tables, figures and ``docs/method.md``."""

    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run.

    Args:
        point_id: the sweep cell, ``dataset`` or ``reference``.
        sample_id: the sample's.
        repeat: counts the runs of one (point, sample, mode) from 0.
        mode: how it was watched.
        status: what became of it.
        session: counts the processes that wrote to this run directory, from 0 (resumed runs have several).
        started_unix_s: wall clock at the start, s since the epoch.
        axes: the sweep's target values at this point; a row holds them as ``axis_<name>``.
        values: metric name to value; None or absent means the metric does not exist for this run.
        flags: known causes of an odd value (``gc_pause``, ``first_seen_shape``, ``residual_above_goal`` …).
        reason: why the status is not ok.
    """

    point_id: str
    sample_id: str
    repeat: int
    mode: Mode
    status: Status
    session: int = 0
    started_unix_s: float = 0.0
    axes: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes a measured row unique in a run directory."""
        return (self.point_id, self.sample_id, self.repeat, str(self.mode))

    def to_row(self) -> dict[str, Any]:
        """The flat mapping that is stored as one JSON line."""
        row: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "point_id": self.point_id,
            "sample_id": self.sample_id,
            "repeat": self.repeat,
            "mode": str(self.mode),
            "status": str(self.status),
            "session": self.session,
            "started_unix_s": self.started_unix_s,
        }
        row.update({f"axis_{name}": value for name, value in self.axes.items()})
        row.update(self.values)
        row["flags"] = list(self.flags)
        row["reason"] = self.reason
        return row

"""The row: one run of one request. Standard library only.

A row is flat: identity, status, then one value per column of :mod:`vlmbench.schema.columns`. What can be computed from
other columns (shares of a peak, distance to a floor, any statistic) is not stored; it is computed when rows are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# History of the schema. A new version is a column whose unit or meaning changes; then readers refuse the file. A column
# that is new, or that leaves because it follows from others, is no new version: readers take a missing one for unknown.
#   1, release 0.1: first.
#   1, release 0.2: intensity_*, mfu_*, mbu_*, over_floor_* and verdict_* leave; they follow from flops_*, bytes_*, T_*
#      and the device's peaks (provenance.json). Rows that hold them are still read.
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
class Record:
    """One run of one request, as it is stored.

    Args:
        point_id: the sweep cell, ``dataset`` or ``reference``.
        sample_id: the sample's.
        repeat: counts the runs of one (point, sample, mode) from 0.
        mode: how it was watched.
        status: what became of it.
        session: counts the processes that wrote to this run directory, from 0 (resumed runs have several).
        started_unix_s: wall clock at the start, s since the epoch.
        axes: the sweep's target values at this point; a row holds them as ``axis_<name>``.
        values: column name to value; None or absent where the run has no such value.
        flags: known causes of an odd value (``gc_pause``, ``first_seen_length``, ``residual_above_goal`` …).
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

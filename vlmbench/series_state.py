"""How far each series of a run is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vlmbench.stopping import Verdict, judge
from vlmbench.workload import Series


@dataclass(kw_only=True)
class SeriesState:
    """How far a series is.

    Args:
        series: which.
        jobs: (request, repeat) that are still to come.
        times_ms: T_total of its instrumented runs, where a stopping rule asks for them.
        measured: instrumented runs that are in the store.
        failed: runs that left a row with a reason instead.
        errors_in_a_row: failures since the last run that was measured.
        verdict: what the stopping rule said last.
        ended: by what; None while it goes on.
        reason: of the last failure.
    """

    series: Series
    jobs: Iterator[tuple[int, int]]
    times_ms: list[float] = field(default_factory=list)
    measured: int = 0
    failed: int = 0
    errors_in_a_row: int = 0
    verdict: Verdict | None = None
    ended: str | None = None
    reason: str | None = None

    def finished(self) -> bool:
        """Whether this series is over; asks its stopping rule, where it has one."""
        if self.ended is None and self.series.stopping is not None:
            self.verdict = judge(self.times_ms, self.series.stopping)
            self.ended = self.verdict.criterion
        return self.ended is not None

    def report(self) -> dict[str, Any]:
        """For ``points.json``: what ended this series and what was not met."""
        return {
            "point_id": self.series.point_id,
            "axes": dict(self.series.axes),
            "measured": self.measured,
            "failed": self.failed,
            "ended_by": self.ended,
            "unmet": list(self.verdict.unmet) if self.verdict else [],
            "reason": self.reason,
        }

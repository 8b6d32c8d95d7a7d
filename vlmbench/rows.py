"""The rows of a run: written as soon as there is something to say, and found again when the run continues."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmbench.execution import Outcome
from vlmbench.records.store import RecordStore
from vlmbench.request import Request
from vlmbench.schema import Mode, Record, Status
from vlmbench.series_state import SeriesState
from vlmbench.workload import Series


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the measurement loop writes into the store and reads back from it.

    Args:
        store: open.
        stamp: values that every row carries.
    """

    store: RecordStore
    stamp: Mapping[str, Any]

    def write(
        self,
        series: Series,
        sample_id: str,
        repeat: int,
        *,
        mode: Mode,
        status: Status,
        outcome: Outcome | None = None,
        reason: str | None = None,
    ) -> None:
        """Append the row of one run.

        Args:
            series: that the run belongs to.
            sample_id: of its request; empty where it stands for a whole point.
            repeat: counts the runs of one request.
            mode: how it was watched.
            status: what became of it.
            outcome: what it gave; None where it gave nothing.
            reason: why it gave nothing.
        """
        self.store.append(
            Record(
                point_id=series.point_id,
                sample_id=sample_id,
                repeat=repeat,
                mode=mode,
                status=status,
                session=self.store.session,
                started_unix_s=time.time(),
                axes=series.axes,
                values={**(outcome.values if outcome else {}), **self.stamp},
                flags=outcome.flags if outcome else (),
                reason=reason,
            )
        )

    def recall(self, states: Sequence[SeriesState]) -> None:
        """What earlier sessions measured: its count, and its times where a stopping rule asks for them."""
        for state in states:
            state.measured = self.store.counts[state.series.point_id, str(Mode.INSTRUMENTED), str(Status.OK)]
        wanted = {s.series.point_id: s for s in states if s.series.stopping}
        if not wanted or not len(self.store):
            return
        for row in self.store.rows():
            found = wanted.get(row["point_id"])
            if found and row["status"] == Status.OK and row["mode"] == Mode.INSTRUMENTED:
                found.times_ms.append(row["T_total"])

    def missing_modes(self, series: Series, request: Request, index: int, repeat: int) -> list[Mode]:
        """The modes of a run that are not stored yet, in the order to run them (alternating which goes first)."""
        modes = [Mode.INSTRUMENTED]
        turn = index + repeat
        if series.bare_every and turn % series.bare_every == 0:
            modes.insert((turn // series.bare_every) % 2, Mode.BARE)
        key = (series.point_id, request.sample.sample_id, repeat)
        return [mode for mode in modes if (*key, str(mode)) not in self.store]

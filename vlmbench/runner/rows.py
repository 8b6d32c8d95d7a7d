"""The rows of a run: written as soon as there is something to say, and found again when the run continues."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmbench.errors import (
    ConfigError,
    DeviceError,
    SampleError,
    StoreError,
    UnfitModelError,
    UnreachablePointError,
    UnrestoredModelError,
    first_line,
)
from vlmbench.machine.wall_clock import unix_s
from vlmbench.models.protocol import Target
from vlmbench.records.store import RecordStore
from vlmbench.request import Request
from vlmbench.runner.execution import Outcome
from vlmbench.runner.plan import Series, SeriesState, at_least
from vlmbench.schema import Mode, Record, Status


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
            sample_id: of its request; empty where it stands for a whole point.
            repeat: counts the runs of one request.
            outcome: what it gave; None where it gave nothing.
        """
        self.store.append(
            Record(
                point_id=series.point_id,
                sample_id=sample_id,
                repeat=repeat,
                mode=mode,
                status=status,
                session=self.store.session,
                started_unix_s=unix_s()
                if outcome is None or outcome.started_unix_s is None
                else outcome.started_unix_s,
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


# What a run that failed becomes: a row with its reason, and the end of its series where that is the sense of it.

_log = logging.getLogger(__name__)
# What torch's allocator, its operators and the C++ library say on the host; none of them has a class of its own.
_NO_HOST_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
_OOM_POINTS = 2  # larger points of the same axes are skipped after this many


@dataclass(kw_only=True)
class Failures:
    """Writes failures down, and remembers which points ran out of memory.

    Args:
        model: whose memory is given back after it ran out.
        rows: where they go.
        max_in_a_row: after this many a series ends.
    """

    model: Target
    rows: Rows
    max_in_a_row: int
    _oom: list[dict[str, Any]] = field(default_factory=list)

    def caught(self, error: Exception, state: SeriesState, sample_id: str, repeat: int, mode: Mode) -> None:
        """Write a failure down as a row, or raise it again where it would fail every run alike."""
        _raise_what_fails_every_run(error)
        if isinstance(error, SampleError):
            self._write(state, sample_id, repeat, status=Status.ERROR, reason=str(error), mode=mode)
        elif isinstance(error, UnreachablePointError):
            self._write(state, sample_id, repeat, status=Status.SKIPPED, reason=str(error), mode=mode)
            if state.series.axes:
                state.ended, state.reason = "skipped", str(error)
        elif _is_out_of_memory(error):
            self._out_of_memory(state, sample_id, repeat, error, mode)
        else:
            _log.debug("a run failed", exc_info=error)
            self._write(state, sample_id, repeat, status=Status.ERROR, reason=_described(error), mode=mode)

    def caught_aside(self, error: Exception, state: SeriesState, sample_id: str, repeat: int, mode: Mode) -> None:
        """Write a failure down that says nothing about the series: it was measured, only a further look failed."""
        _raise_what_fails_every_run(error)
        memory = _is_out_of_memory(error)
        reason = f"{first_line(error)} ({self.model.release()})" if memory else _described(error)
        status = Status.OOM if memory else Status.ERROR
        self.rows.write(state.series, sample_id, repeat, mode=mode, status=status, reason=reason)

    def too_large(self, state: SeriesState) -> bool:
        """Whether points that need no more memory ran out of it; ends the series then, with its row."""
        axes = state.series.axes
        if not axes or sum(at_least(axes, smaller) for smaller in self._oom) < _OOM_POINTS:
            return False
        reason = f"{_OOM_POINTS} points that are no larger ran out of memory"
        self._write(state, "", 0, status=Status.SKIPPED, reason=reason, mode=Mode.INSTRUMENTED)
        state.ended, state.reason = "skipped", reason
        return True

    def _write(
        self, state: SeriesState, sample_id: str, repeat: int, *, status: Status, reason: str, mode: Mode
    ) -> None:
        state.fail(reason)
        self.rows.write(state.series, sample_id, repeat, mode=mode, status=status, reason=reason)
        if state.errors_in_a_row >= self.max_in_a_row:
            state.ended = "too_many_errors"

    def _out_of_memory(self, state: SeriesState, sample_id: str, repeat: int, error: Exception, mode: Mode) -> None:
        free = self.model.release()
        reason = f"{first_line(error)} ({free})"
        self._write(state, sample_id, repeat, status=Status.OOM, reason=reason, mode=mode)
        if state.series.axes:
            self._oom.append(dict(state.series.axes))
            state.ended, state.reason = "oom", reason


def _raise_what_fails_every_run(error: Exception) -> None:
    if isinstance(error, ConfigError | DeviceError | StoreError | UnfitModelError | UnrestoredModelError):
        raise error


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, SampleError) else f"{type(error).__name__}: {error}"


def _is_out_of_memory(error: Exception) -> bool:
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_HOST_MEMORY)

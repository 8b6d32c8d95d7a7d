"""The measurement loop: series × requests × repeats, interleaved; warm-up, stopping, failures, resume."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from vlmbench.errors import ConfigError, DeviceError, SampleError, StoreError, UnreachablePointError
from vlmbench.execution import Outcome, PreparedRun, collector_at_rest, complete, in_memory, prepare
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.protocol import Probe
from vlmbench.records.record import Mode, Record, Status
from vlmbench.records.store import RecordStore
from vlmbench.request import Request
from vlmbench.stopping import Verdict, judge
from vlmbench.sweep import shuffled
from vlmbench.workload import Series, at_least, with_output

_log = logging.getLogger(__name__)
Annotate = Callable[[PreparedRun, Mapping[str, Any]], Mapping[str, Any]]
_SAMPLES_FOR_LONGEST = 500  # of a data set: looking at all of a million would take hours
_OOM_POINTS = 2  # larger points of the same axes are skipped after this many


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """How a distinct input shape is warmed before it is measured.

    Args:
        max_runs: at most this many warm-up runs of one shape.
        agreement: two consecutive runs agree when their T_total differ by less than this share.
        output_tokens: answers are cut to this many tokens while warming; null for the full length (needed where shapes
            of the decode are compiled).
        longest_first: warm the longest request before anything is measured. A static cache keeps the length of the
            longest request so far, and every decode step attends over all of it: without this, what a request costs
            would depend on which ones came before.
    """

    max_runs: int = 5
    agreement: float = 0.05
    output_tokens: int | None = 8
    longest_first: bool = False

    def __post_init__(self) -> None:
        if self.max_runs < 0:
            raise ValueError(f"'max_runs' must be 0 or more (got {self.max_runs})")
        if not 0 < self.agreement < 1:
            raise ValueError(f"'agreement' must be between 0 and 1 (got {self.agreement})")


class Progress(Protocol):
    """Told what was done; shows it or not."""

    def expect(self, runs: int) -> None:
        """That many runs more are expected."""

    def advance(self, point_id: str, runs: int = 1) -> None:
        """Runs of a point are over."""

    def end(self, point_id: str) -> None:
        """A point is over."""


@dataclass(kw_only=True)
class SeriesState:
    """How far a series is."""

    series: Series
    jobs: Iterator[tuple[int, int]]
    times_ms: list[float] = field(default_factory=list)
    measured: int = 0
    failed: int = 0
    errors_in_a_row: int = 0
    verdict: Verdict | None = None
    ended: str | None = None
    reason: str | None = None

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


@dataclass(kw_only=True)
class Runner:
    """Measures series of requests on one loaded model, into one store.

    Args:
        model: loaded.
        probes: watching runs (``own_run`` ones get runs of their own after the timed ones).
        store: open; what is in it already is not measured again.
        warmup: how shapes are warmed.
        seed: of all orders.
        progress: told after every run.
        stop_requested: asked between runs; True ends the loop cleanly.
        trace_requests: requests of each series that the ``own_run`` probes watch.
        stamp: values that every row carries (the GPU's UUID).
        annotate: adds values to a measured run that follow from its inputs (FLOPs, bytes); called outside any clock.
        max_errors_in_a_row: after this many a series ends.
    """

    model: VisionLanguageModel
    probes: Sequence[Probe]
    store: RecordStore
    warmup: Warmup
    seed: int
    progress: Progress
    stop_requested: Callable[[], bool] = lambda: False
    trace_requests: int = 1
    stamp: Mapping[str, Any] = field(default_factory=dict)
    annotate: Annotate | None = None
    max_errors_in_a_row: int = 20
    deadline_s: float | None = None
    _warm: set[str] = field(default_factory=set)
    _lengths: set[int] = field(default_factory=set)
    _cold: bool = True
    _states: Sequence[SeriesState] = ()
    _oom: list[dict[str, Any]] = field(default_factory=list)
    _collected: list[int] = field(default_factory=list)

    def run(self, series: Sequence[Series]) -> list[SeriesState]:
        """Measure everything that is not in the store yet; returns how each series ended."""
        self._states = states = [SeriesState(series=s, jobs=s.jobs(self.seed)) for s in series]
        self._recall(states)
        self.progress.expect(sum(s.series.expected for s in states))
        with collector_at_rest() as self._collected:
            self._rounds(states)
            self._traces(states)
        for state in states:
            if state.ended is None:
                state.ended = "interrupted" if self.stop_requested() else "time_limit"
        return states

    def _recall(self, states: Sequence[SeriesState]) -> None:
        """Times of earlier sessions, for the stopping rules."""
        wanted = {s.series.point_id: s for s in states if s.series.stopping}
        if not wanted or not len(self.store):
            return
        for row in self.store.rows():
            state = wanted.get(row["point_id"])
            if state and row["status"] == Status.OK and row["mode"] == Mode.INSTRUMENTED:
                state.times_ms.append(row["T_total"])

    def _rounds(self, states: Sequence[SeriesState]) -> None:
        active = deque(states)
        round_index = 0
        while active and not self._must_stop():
            by_id = {s.series.point_id: s for s in active}
            for point_id in shuffled(list(by_id), seed=self.seed, round_index=round_index):
                state = by_id[point_id]
                if round_index % state.series.stride == 0 and not self._must_stop():
                    self._step(state)
                    if state.ended is not None:
                        self.progress.end(point_id)
            active = deque(s for s in active if s.ended is None)
            round_index += 1

    def _must_stop(self) -> bool:
        return self.stop_requested() or (self.deadline_s is not None and time.monotonic() > self.deadline_s)

    def _step(self, state: SeriesState) -> None:
        """Measure the next request of a series that is not measured yet, or end the series."""
        series = state.series
        if self._finished(state) or self._too_large(state):
            return
        for index, repeat in state.jobs:
            try:
                request = series.request(index)
            except SampleError as error:
                self._fail(state, f"{series.point_id}/{index}", repeat, status=Status.ERROR, reason=str(error))
                return
            modes = self._missing_modes(series, request, index, repeat)
            if not modes:
                state.measured += 1
                self.progress.advance(series.point_id)
                continue
            if self._cold and self.warmup.longest_first:
                self._warm_longest()
            self._attempt(state, request, repeat, modes)
            self.progress.advance(series.point_id)
            self._finished(state)
            return
        state.ended = state.ended or "all_measured"

    def _finished(self, state: SeriesState) -> bool:
        if state.ended is None and state.series.stopping is not None:
            state.verdict = judge(state.times_ms, state.series.stopping)
            state.ended = state.verdict.criterion
        return state.ended is not None

    def _too_large(self, state: SeriesState) -> bool:
        axes = state.series.axes
        if axes and sum(at_least(axes, smaller) for smaller in self._oom) >= _OOM_POINTS:
            reason = f"{_OOM_POINTS} points that are no larger ran out of memory"
            self._fail(state, "", 0, status=Status.SKIPPED, reason=reason)
            state.ended, state.reason = "skipped", reason
        return state.ended is not None

    def _missing_modes(self, series: Series, request: Request, index: int, repeat: int) -> list[Mode]:
        """The modes of this run that are not stored yet, in the order to run them (alternating which goes first)."""
        modes = [Mode.INSTRUMENTED]
        turn = index + repeat
        if series.bare_every and turn % series.bare_every == 0:
            modes.insert((turn // series.bare_every) % 2, Mode.BARE)
        key = (series.point_id, request.sample.sample_id, repeat)
        return [mode for mode in modes if (*key, str(mode)) not in self.store]

    def _attempt(self, state: SeriesState, request: Request, repeat: int, modes: Sequence[Mode]) -> None:
        """Run one request in the given modes; whatever goes wrong becomes a row."""
        sample_id = request.sample.sample_id
        mode = modes[0]
        try:
            request = in_memory(request)
            for mode in modes:
                self._measure(state, request, repeat, mode)
            state.measured += 1
            state.errors_in_a_row = 0
        except Exception as error:  # any failure of a model is a row, not the end of the night
            self._caught(error, state, sample_id, repeat, mode)

    def _caught(self, error: Exception, state: SeriesState, sample_id: str, repeat: int, mode: Mode) -> None:
        """Write a failure down as a row, or raise it again where it would fail every run alike."""
        if isinstance(error, ConfigError | DeviceError | StoreError):
            raise error
        if isinstance(error, SampleError):
            self._fail(state, sample_id, repeat, status=Status.ERROR, reason=str(error), mode=mode)
        elif isinstance(error, UnreachablePointError):
            self._fail(state, sample_id, repeat, status=Status.SKIPPED, reason=str(error), mode=mode)
            if state.series.axes:
                state.ended, state.reason = "skipped", str(error)
        elif _is_out_of_memory(error):
            self._out_of_memory(state, sample_id, repeat, error, mode)
        else:
            _log.debug("a run failed", exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            self._fail(state, sample_id, repeat, status=Status.ERROR, reason=reason, mode=mode)

    def _warm_up(self, state: SeriesState, request: Request) -> None:
        """Repeat this shape until two consecutive runs agree; every run is kept as a row."""
        short = with_output(request, self.warmup.output_tokens)
        last: float | None = None
        for repeat in range(self.warmup.max_runs):
            status = Status.COLD if self._cold else Status.WARMUP
            outcome = self._complete(prepare(self.model, short), Mode.INSTRUMENTED)
            self._cold = False
            self._store(state, request, outcome, repeat=repeat, mode=Mode.INSTRUMENTED, status=status)
            now = float(outcome.values["T_total"])
            if last is not None and abs(now - last) <= self.warmup.agreement * min(now, last):
                break
            last = now

    def _warm_longest(self) -> None:
        """Warm the request with the most input and output tokens; one that needs too much memory gets its row."""
        longest = [found for state in self._states if (found := self._longest(state)) is not None]
        for _, state, request in sorted(longest, key=lambda found: found[0], reverse=True):
            sample_id = request.sample.sample_id
            try:
                held = in_memory(request)
                key = prepare(self.model, held).shape_key
                self._warm_up(state, held)
            except Exception as error:
                self._caught(error, state, sample_id, 0, Mode.INSTRUMENTED)
                continue
            self._warm.add(key)
            return

    def _longest(self, state: SeriesState) -> tuple[int, SeriesState, Request] | None:
        """The longest of the first requests of a series; those that cannot be made get their rows when they come."""
        found: list[tuple[int, SeriesState, Request]] = []
        for index in range(min(state.series.size, _SAMPLES_FOR_LONGEST)):
            with suppress(SampleError, UnreachablePointError):
                request = state.series.request(index)
                counts = self.model.prepare(request).counts
                found.append((counts.num_input_tokens + request.output.max_new_tokens, state, request))
        return max(found, key=lambda one: one[0], default=None)

    def _measure(self, state: SeriesState, request: Request, repeat: int, mode: Mode) -> None:
        run = prepare(self.model, request)
        if run.shape_key not in self._warm:
            self._warm_up(state, request)
            self._warm.add(run.shape_key)
        outcome = self._complete(run, mode)
        if self.annotate is not None and mode is not Mode.TRACE:
            outcome = replace(outcome, values={**outcome.values, **self.annotate(run, outcome.values)})
        length = request.output.max_new_tokens
        if length not in self._lengths and not self._covered_by_warmup(request):
            outcome = replace(outcome, flags=(*outcome.flags, "first_seen_length"))
        self._lengths.add(length)
        self._store(state, request, outcome, repeat=repeat, mode=mode, status=Status.OK)
        if mode is Mode.INSTRUMENTED and state.series.stopping:
            state.times_ms.append(float(outcome.values["T_total"]))

    def _covered_by_warmup(self, request: Request) -> bool:
        limit = self.warmup.output_tokens
        return limit is None or request.output.max_new_tokens <= limit

    def _complete(self, run: PreparedRun, mode: Mode) -> Outcome:
        probes = [p for p in self.probes if p.own_run == (mode is Mode.TRACE)] if mode is not Mode.BARE else []
        return complete(self.model, run, probes, self._collected)

    def _traces(self, states: Sequence[SeriesState]) -> None:
        """The short pass of probes that need runs of their own."""
        if not any(p.own_run for p in self.probes):
            return
        for state in states:
            series = state.series
            if not self.store.counts[series.point_id, str(Mode.INSTRUMENTED), str(Status.OK)]:
                continue
            for index in range(min(self.trace_requests, series.size)):
                request = series.request(index)
                if self._must_stop() or (series.point_id, request.sample.sample_id, 0, str(Mode.TRACE)) in self.store:
                    continue
                measured = state.measured
                self._attempt(state, request, 0, [Mode.TRACE])
                state.measured = measured

    def _store(
        self, state: SeriesState, request: Request, outcome: Outcome, *, repeat: int, mode: Mode, status: Status
    ) -> None:
        self.store.append(
            Record(
                point_id=state.series.point_id,
                sample_id=request.sample.sample_id,
                repeat=repeat,
                mode=mode,
                status=status,
                session=self.store.session,
                started_unix_s=time.time(),
                axes=state.series.axes,
                values={**outcome.values, **self.stamp},
                flags=outcome.flags,
            )
        )

    def _fail(
        self,
        state: SeriesState,
        sample_id: str,
        repeat: int,
        *,
        status: Status,
        reason: str,
        mode: Mode = Mode.INSTRUMENTED,
    ) -> None:
        state.failed += 1
        state.errors_in_a_row += 1
        state.reason = reason
        self.store.append(
            Record(
                point_id=state.series.point_id,
                sample_id=sample_id,
                repeat=repeat,
                mode=mode,
                status=status,
                session=self.store.session,
                started_unix_s=time.time(),
                axes=state.series.axes,
                values=self.stamp,
                reason=reason,
            )
        )
        if state.errors_in_a_row >= self.max_errors_in_a_row:
            state.ended = "too_many_errors"

    def _out_of_memory(self, state: SeriesState, sample_id: str, repeat: int, error: Exception, mode: Mode) -> None:
        free = _release_memory(self.model)
        reason = f"{_first_line(error)} ({free})"
        self._fail(state, sample_id, repeat, status=Status.OOM, reason=reason, mode=mode)
        if state.series.axes:
            self._oom.append(dict(state.series.axes))
            state.ended, state.reason = "oom", reason


def _is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "not enough memory" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _release_memory(model: VisionLanguageModel) -> str:
    """Give cached blocks back after an out-of-memory error (never inside a measurement); says what was free."""
    import gc

    import torch

    gc.collect()
    # transformers makes every later static cache as long as the longest asked for, also one that did not fit
    vars(model.module).pop("_previous_max_cache_length", None)
    if model.device.type != "cuda":
        return "host memory"
    free, total = torch.cuda.mem_get_info(model.device)
    torch.cuda.empty_cache()
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB were free outside the allocator"

"""The measurement loop: series × requests × repeats, interleaved, until enough was measured or it is told to stop."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

from vlmbench.errors import SampleError
from vlmbench.machine.processors import Processors
from vlmbench.machine.randomness import seeded
from vlmbench.machine.suspension import Suspensions
from vlmbench.machine.turns import Turns
from vlmbench.machine.yardstick import Yardstick
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.protocol import Probe
from vlmbench.records.attempts import BEGUN_NAME, MOST_DEATHS, Attempts
from vlmbench.records.store import RecordStore
from vlmbench.request import Request
from vlmbench.runner.arms import Arms, settled
from vlmbench.runner.execution import Outcome, PreparedRun, collector_at_rest, complete, in_memory, prepare
from vlmbench.runner.guards import Outsized, check_inputs
from vlmbench.runner.plan import Series, SeriesState, with_output
from vlmbench.runner.rows import Failures, Rows
from vlmbench.runner.warmup import Warmer, Warmup  # configurations name it vlmbench.runner.Warmup
from vlmbench.schema import Mode, Status
from vlmbench.sweep import shuffled
from vlmbench.text import say

_log = logging.getLogger(__name__)

Annotate = Callable[[PreparedRun, Mapping[str, Any]], Mapping[str, Any]]


class Progress(Protocol):
    """Told what was done; shows it or not."""

    def expect(self, runs: int) -> None:
        """That many runs more are expected."""

    def advance(self, point_id: str, runs: int = 1, *, earlier: bool = False) -> None:
        """Runs of a point are over; ``earlier``: another session measured them."""

    def end(self, point_id: str) -> None:
        """A point is over."""


OF_A_TRACE = 6
"""A traced run takes so many times as long as one without, its trace read (on an H200 at 16 tokens: 5.0 to 6.4)."""


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
        does: told in words what is done once these runs are over: ``trace 3 of 12``.
        stop_requested: asked between runs; True ends the loop cleanly.
        trace_requests: runs of each series that the ``own_run`` probes watch, of different requests where it has as
            many.
        stamp: values that every row carries (the GPU's UUID).
        annotate: adds values to a measured run that follow from its inputs (FLOPs, bytes); called outside any clock.
        max_errors_in_a_row: after this many a series ends.
        yardstick: whether a fixed calculation stands beside the timed runs.
        processors: which of the host a run has.
        turns: taken with other processes of this machine.
        attempts: names the run under way on disk, and knows in which runs earlier processes died; None for neither.
        deadline_s: on the clock of ``time.monotonic()``; the loop ends cleanly after it, the timed runs so much earlier
            that the traces have their time. Waiting for a turn puts it off. None for no limit.
    """

    model: VisionLanguageModel
    probes: Sequence[Probe]
    store: RecordStore
    warmup: Warmup
    seed: int
    progress: Progress
    does: Callable[[str], None] = lambda _: None
    stop_requested: Callable[[], bool] = lambda: False
    trace_requests: int = 1
    stamp: Mapping[str, Any] = field(default_factory=dict)
    annotate: Annotate | None = None
    max_errors_in_a_row: int = 20
    deadline_s: float | None = None
    attempts: Attempts | None = None
    yardstick: bool = True
    processors: Processors = field(default_factory=Processors)
    turns: Turns = field(default_factory=Turns)
    arms: Arms = field(init=False)
    _rows: Rows = field(init=False)
    _failures: Failures = field(init=False)
    _warmer: Warmer = field(init=False)
    _costs_failed: bool = field(init=False, default=False)
    _last_shape: str | None = field(init=False, default=None)
    _collected: list[int] = field(init=False, default_factory=list)
    _tracing: list[Probe] = field(init=False, default_factory=list)
    _postponed: set[tuple[str, str, int]] = field(init=False, default_factory=set)
    _left_out: set[tuple[str, str]] = field(init=False, default_factory=set)
    _at: tuple[str, str] | None = field(init=False, default=None)
    _slowest_ms: dict[str, float] = field(init=False, default_factory=dict)
    _began_s: float = field(init=False)
    _waited_s: float = field(init=False)
    _suspensions: Suspensions = field(init=False, default_factory=Suspensions)
    _outsized: Outsized = field(init=False, default_factory=Outsized)
    _yardstick: Yardstick = field(init=False)

    def __post_init__(self) -> None:
        self._began_s, self._waited_s = time.monotonic(), self.turns.waited_s
        self.arms = Arms(model=self.model)
        self._yardstick = Yardstick(on=self.yardstick)
        self._rows = rows = Rows(store=self.store, stamp=self.stamp)
        self._failures = failures = Failures(model=self.model, rows=rows, max_in_a_row=self.max_errors_in_a_row)
        self._warmer = Warmer(
            model=self.model, warmup=self.warmup, rows=rows, failures=failures, complete=self._complete
        )

    def run(self, series: Sequence[Series]) -> list[SeriesState]:
        """Measure everything that is not in the store yet; returns how each series ended."""
        states = [SeriesState(series=s, jobs=s.jobs(self.seed)) for s in series]
        self._rows.recall(states)
        self.progress.expect(sum(s.series.expected for s in states))
        drawing = seeded(self.seed, self.model.devices)  # random caches, and methods of others
        with drawing, collector_at_rest() as self._collected, self._suspensions:
            suspects = [state for state in states if state.series.axes and self._deaths(state.series.point_id)]
            self._rounds([state for state in states if state not in suspects])
            self._rounds(suspects)
            self._traces(states)
        for state in states:
            if state.ended is None:
                state.ended = "interrupted" if self.stop_requested() else "time_limit"
        return states

    def _rounds(self, states: Sequence[SeriesState]) -> None:
        active = deque(states)
        round_index = 0
        while active and not self._must_stop(traces=True):
            by_id = {s.series.point_id: s for s in active}
            for point_id in shuffled(list(by_id), seed=self.seed, round_index=round_index):
                state = by_id[point_id]
                if state.series.takes_part(round_index) and not self._must_stop(traces=True):
                    self._step(state, states)
                    if state.ended is not None:
                        self.progress.end(point_id)
            active = deque(s for s in active if s.ended is None)
            round_index += 1

    def _must_stop(self, *, traces: bool = False) -> bool:
        """Whether to end now; ``traces``: whether those that are to come must still find time."""
        if self.deadline_s is None or self.stop_requested():
            return self.stop_requested()
        kept = self._for_traces_s() if traces else 0.0
        return time.monotonic() > self.deadline_s + self.turns.waited_s - self._waited_s - kept

    def _for_traces_s(self) -> float:
        """Time that the traces will take, by the slowest run of each series, s; a quarter of the limit at most."""
        each = self.trace_requests * sum(probe.own_run for probe in self.probes) * OF_A_TRACE
        limit = 0.0 if self.deadline_s is None else self.deadline_s - self._began_s
        return min(each * sum(self._slowest_ms.values()) / 1e3, limit / 4)

    def _step(self, state: SeriesState, states: Sequence[SeriesState]) -> None:
        """Measure the next request of a series (one of ``states``) that is not measured yet, or end the series."""
        series = state.series
        if state.finished() or self._failures.too_large(state):
            return
        for index, repeat in state.next_jobs():
            try:
                request = series.request(index)
            except SampleError as error:
                self._failures.caught(error, state, f"{series.point_id}/{index}", repeat, Mode.INSTRUMENTED)
                return
            modes = self._rows.missing_modes(series, request, index, repeat)
            if not modes:
                state.errors_in_a_row = 0  # failures of other sessions stand between these and the next
                self.progress.advance(series.point_id, earlier=True)
                continue
            sample_id = request.sample.sample_id
            if deaths := self._deaths(series.point_id, sample_id):
                if deaths >= MOST_DEATHS:
                    self._leave_out(state, sample_id, repeat, modes[0], _died(deaths))
                    if state.ended is not None:
                        return
                    continue
                if (job := (series.point_id, sample_id, repeat)) not in self._postponed:
                    self._postponed.add(job)
                    state.postponed.append((index, repeat))
                    continue
            if not self.turns.take(lambda: self._must_stop(traces=True)):
                return
            self._warmer.begin(states)
            before = state.measured
            self._attempt(state, request, repeat, modes)
            if state.measured > before:
                state.requests.add(index)
            self.progress.advance(series.point_id)
            state.finished()
            return
        state.ended = state.ended or "all_measured"

    def _leave_out(self, state: SeriesState, sample_id: str, repeat: int, mode: Mode, reason: str) -> None:
        """Pass over a run of a request in which processes died: one row a request; a series of one request ends."""
        series = state.series
        request = (series.point_id, sample_id)
        if request not in self._left_out:
            self._left_out.add(request)
            self._rows.write(series, sample_id, repeat, mode=mode, status=Status.SKIPPED, reason=reason)
        state.left_out += 1
        state.reason = reason
        if series.size == 1:
            state.ended = "skipped"
        self.progress.advance(series.point_id)

    def _attempt(self, state: SeriesState, request: Request, repeat: int, modes: Sequence[Mode]) -> None:
        """Run one request in the given modes; whatever goes wrong becomes a row."""
        sample_id = request.sample.sample_id
        mode = modes[0]
        self._at = (state.series.point_id, sample_id)
        self._begin("prepare")
        try:
            request = settled(self.model, in_memory(request))
            self.processors.take(sample_id, repeat)  # of all that follows: unstored, yardstick, bare, instrumented
            settled_in = not self.turns.returned or self._unstored(request, mode)
            # Before both: neither the bare run nor the other follows it more often.
            beside = self._yardstick.columns() if settled_in else {}
            for mode in modes:
                self._measure(state, request, repeat, mode, beside)
            state.errors_in_a_row = 0
        except Exception as error:  # any failure of a model is a row, not the end of the night
            self._failures.caught(error, state, sample_id, repeat, mode)
        finally:
            self._end()
            self._at = None

    def _unstored(self, request: Request, mode: Mode) -> bool:
        """Run a request that is not stored: the caches and clocks of the processor are those of another process, which
        had the turn before. False where its warm-up is yet to come, which does the same.
        """
        self.turns.returned = False
        run = prepare(self.model, request)
        if not self._warmer.is_warm(run):
            return False
        self._complete(run, mode)
        return True

    def _deaths(self, point_id: str, sample_id: str | None = None) -> int:
        return 0 if self.attempts is None else self.attempts.deaths(point_id, sample_id)

    def _begin(self, phase: str) -> None:
        if self.attempts is not None and self._at is not None:
            self.attempts.begin(*self._at, phase)

    def _end(self) -> None:
        if self.attempts is not None:
            self.attempts.end()

    def _measure(
        self, state: SeriesState, request: Request, repeat: int, mode: Mode, beside: Mapping[str, float] | None = None
    ) -> None:
        suspended = self._suspensions.count()
        run = prepare(self.model, request)
        flags = check_inputs(self.model, run, swept=bool(state.series.axes))
        if not state.series.axes and (large := self._outsized.words(request.sample.sample_id, run.prepared.counts)):
            say(f"warning: {large}")
        of_arm = self.arms.ready(state.series.point_id, request, run.prepared)
        if self._warmer.warm(state, request, run):
            suspended = self._suspensions.count()
            run = prepare(self.model, request)  # the host, too, takes longer for a shape's first time
        changed = self.model.compile and self._last_shape not in (None, run.shape_key)
        outcome = self._complete(run, mode)
        if self._suspensions.count() != suspended:  # the time in which the process was stopped is no latency
            outcome = replace(outcome, flags=(*outcome.flags, "suspended"))
        outcome = replace(outcome, flags=(*outcome.flags, *flags))
        if changed:  # the first compiled step after another shape costs more than all later ones
            outcome = replace(outcome, flags=(*outcome.flags, "shape_changed"))
        if "T_capture" in outcome.values:  # warming should have seen to it
            outcome = replace(outcome, flags=(*outcome.flags, "captured_again"))
        if self._warmer.saw(outcome.values, run.request):
            outcome = replace(outcome, flags=(*outcome.flags, "first_seen_length"))
        if extra := {**of_arm, **(beside or {}), **self.turns.columns()}:
            outcome = replace(outcome, values={**outcome.values, **extra})
        if mode is not Mode.TRACE:
            outcome = self._annotated(run, outcome)
        sample_id = request.sample.sample_id
        self._rows.write(state.series, sample_id, repeat, mode=mode, status=Status.OK, outcome=outcome)
        if mode is Mode.INSTRUMENTED:
            state.measured += 1
            name, taken = state.series.point_id, float(outcome.values["T_total"])
            self._slowest_ms[name] = max(taken, self._slowest_ms.get(name, 0.0))
            if state.series.stopping:
                state.times_ms.append(float(outcome.values["T_total"]))

    def _annotated(self, run: PreparedRun, outcome: Outcome) -> Outcome:
        """With the values that follow from the inputs; a measured run is kept without them where they cannot be had."""
        if self.annotate is None:
            return outcome
        try:
            values = self.annotate(run, outcome.values)
        except Exception:
            if not self._costs_failed:
                _log.exception("the costs of a run cannot be told; rows are kept without them, flagged 'no_costs'")
            self._costs_failed = True
            return replace(outcome, flags=(*outcome.flags, "no_costs"))
        return replace(outcome, values={**outcome.values, **values})

    def _complete(self, run: PreparedRun, mode: Mode) -> Outcome:
        self._last_shape = run.shape_key
        timed = [p for p in self.probes if not p.own_run]
        probes = {Mode.INSTRUMENTED: timed, Mode.TRACE: self._tracing}.get(mode, [])
        self._end()  # of preparing
        self._begin(f"{mode} of {run.request.output.max_new_tokens} tokens")  # warm-up may ask for fewer
        outcome = complete(self.model, run, probes, self._collected)
        self._end()
        return outcome

    def _traces(self, states: Sequence[SeriesState]) -> None:
        """The short pass of probes that need runs of their own, over requests that were measured: one of each series,
        then another of each.
        """
        probes = [probe for probe in self.probes if probe.own_run]
        if not probes:
            return
        turns = [(state, self._measured_requests(state)) for state in states if state.measured]
        traced = count(1)
        of = self.trace_requests * sum(bool(requests) for _, requests in turns)
        for number in range(self.trace_requests):
            for state, requests in turns:
                if self._must_stop():
                    return
                if requests:
                    self.does(f"trace {next(traced)} of {of}, of {state.series.point_id}")
                    first = number // len(requests) * len(probes)
                    if not self._trace(state, requests[number % len(requests)], first, probes):
                        requests.clear()  # others of the series would fail alike

    def _measured_requests(self, state: SeriesState) -> list[Request]:
        """The first requests of a series that were measured, as many as are traced at most."""
        found: list[Request] = []
        # Which ones an earlier session measured is found by asking for one after the other.
        here = state.measured == len(state.requests) or state.series.stopping is not None
        for index in sorted(state.requests) if here and state.requests else range(state.series.size):
            if len(found) == self.trace_requests:
                break
            try:
                request = state.series.request(index)
            except SampleError:
                continue
            if (state.series.point_id, request.sample.sample_id, 0, str(Mode.INSTRUMENTED)) in self.store:
                found.append(request)
        return found

    def _trace(self, state: SeriesState, request: Request, first: int, probes: Sequence[Probe]) -> bool:
        """Trace a request, a run for each probe, numbered from ``first``; what was done before is not done again.

        Returns:
            False where a run failed.
        """
        point_id, sample_id = state.series.point_id, request.sample.sample_id
        for repeat, probe in enumerate(probes, start=first):
            if self._must_stop() or (point_id, sample_id, repeat, str(Mode.TRACE)) in self.store:
                continue
            if not self.turns.take(self._must_stop):
                return True
            self._tracing = [probe]
            try:
                # Cut before it is prepared: the other processes of a team must be asked for as many tokens.
                self.processors.take(sample_id, repeat)
                asked = with_output(settled(self.model, in_memory(request)), probe.max_output_tokens)
                self._measure(state, asked, repeat, Mode.TRACE)
            except Exception as error:
                self._failures.caught_aside(error, state, sample_id, repeat, Mode.TRACE)
                return False
        return True


def _died(deaths: int) -> str:
    return (
        f"{deaths} processes in a row died in this run without a word (out of host memory, perhaps), so it is skipped; "
        f"remove {BEGUN_NAME} from the run directory to try it again"
    )

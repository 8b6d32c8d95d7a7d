"""Warm-up: every shape is run until its times agree, before it is measured; where it matters, the longest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vlmbench.errors import SampleError, UnreachablePointError
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.request import Request
from vlmbench.runner.arms import settled
from vlmbench.runner.execution import Outcome, PreparedRun, in_memory, prepare
from vlmbench.runner.plan import SeriesState, with_output
from vlmbench.runner.rows import Failures, Rows
from vlmbench.schema import Mode, Status

_SAMPLES_FOR_LONGEST = 500  # of a data set: looking at all of a million would take hours


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """How a distinct input shape is warmed before it is measured.

    Args:
        max_runs: at most this many warm-up runs of one shape.
        agreement: two consecutive runs agree when their T_total differ by less than this share.
        output_tokens: answers are cut to this many tokens while warming; null for the full length (needed where shapes
            of the decode are compiled). A longer answer whose decode steps meet a length of the cache that has not
            run yet gets one warm-up run in full: kernels are chosen, and some compiled, for each length.
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


@dataclass(kw_only=True)
class Warmer:
    """Warms shapes on one loaded model, and knows which are warm.

    Args:
        model: loaded.
        warmup: how.
        rows: where every warm-up run is kept.
        failures: what becomes of a longest request that fails.
        complete: one run of prepared inputs in a mode.
    """

    model: VisionLanguageModel
    warmup: Warmup
    rows: Rows
    failures: Failures
    complete: Callable[[PreparedRun, Mode], Outcome]
    _cold: bool = True
    _warm: set[str] = field(default_factory=set)
    _whole: set[tuple[str, int]] = field(default_factory=set)
    _steps: set[tuple[str, int, int]] = field(default_factory=set)

    def warm(self, state: SeriesState, request: Request, run: PreparedRun) -> bool:
        """Warm the shapes of a request that are not warm yet; whether there were any.

        Args:
            request: with its images in memory.
        """
        ran = False
        if run.shape_key not in self._warm:
            ran = self._repeat(state, request) > 0
            self._warm.add(run.shape_key)
        longest = request.output.max_new_tokens
        whole = (run.shape_key, longest)
        arm = "" if request.intervention is None else request.intervention.label
        asked = _steps(run.prepared.counts.num_input_tokens, longest, request.batch_size, arm)
        if self.warmup.max_runs and whole not in self._whole and not asked <= self._steps:
            self._once(state, request, self.warmup.max_runs)
            ran = True
        self._whole.add(whole)  # an answer that ended early leaves steps that this request never takes
        return ran

    def is_warm(self, run: PreparedRun) -> bool:
        """Whether the shapes of a run have run."""
        return run.shape_key in self._warm

    def saw(self, values: Mapping[str, Any], request: Request) -> bool:
        """Take note of a run's decode steps; whether a length of the cache among them ran for the first time."""
        arm = "" if request.intervention is None else request.intervention.label
        steps = _steps(values["num_input_tokens"], values["num_output_tokens"], values["batch_size"], arm)
        new = not steps <= self._steps
        self._steps |= steps
        return new

    def begin(self, states: Sequence[SeriesState]) -> None:
        """Where the longest comes first and nothing has run yet: warm the request with the most input and output
        tokens; one that fails (for want of memory, say) gets its row, and the next longest is taken.
        """
        if not self._cold or not self.warmup.longest_first:
            return
        longest = [found for state in states if (found := self._longest(state)) is not None]
        for _, state, request in sorted(longest, key=lambda found: found[0], reverse=True):
            sample_id = request.sample.sample_id
            try:
                held = in_memory(request)
                settings = settled(self.model, held)
                self.warm(state, settings, prepare(self.model, settings))
            except Exception as error:
                self.failures.caught(error, state, sample_id, 0, Mode.INSTRUMENTED)
                continue
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

    def _repeat(self, state: SeriesState, request: Request) -> int:
        """Repeat this shape until two consecutive runs agree; how many it took."""
        short = with_output(request, self.warmup.output_tokens)
        last: float | None = None
        for repeat in range(self.warmup.max_runs):
            now = self._once(state, short, repeat)
            if last is not None and abs(now - last) <= self.warmup.agreement * min(now, last):
                return repeat + 1
            last = now
        return self.warmup.max_runs

    def _once(self, state: SeriesState, request: Request, repeat: int) -> float:
        """One warm-up run, kept as a row; its T_total in ms."""
        status = Status.COLD if self._cold else Status.WARMUP
        outcome = self.complete(prepare(self.model, request), Mode.INSTRUMENTED)
        self._cold = False
        self.saw(outcome.values, request)
        sample_id = request.sample.sample_id
        self.rows.write(state.series, sample_id, repeat, mode=Mode.INSTRUMENTED, status=status, outcome=outcome)
        return float(outcome.values["T_total"])


def _steps(input_tokens: int, output_tokens: int, batch_size: int, arm: str) -> set[tuple[str, int, int]]:
    """(arm, requests, tokens in the cache) of each decode step of an answer: those after the first token.

    Under a method that drops tokens the cache is shorter than the prompt, by as much in each run of its arm.
    """
    return {(arm, batch_size, input_tokens + step) for step in range(1, output_tokens)}

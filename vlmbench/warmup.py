"""Warm-up: every shape is run until its times agree, before it is measured; where it matters, the longest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vlmbench.errors import SampleError, UnreachablePointError
from vlmbench.execution import Outcome, PreparedRun, in_memory, prepare
from vlmbench.failures import Failures
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.records.record import Mode, Status
from vlmbench.request import Request
from vlmbench.rows import Rows
from vlmbench.series_state import SeriesState
from vlmbench.workload import with_output

_SAMPLES_FOR_LONGEST = 500  # of a data set: looking at all of a million would take hours


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

    def covers(self, output_tokens: int) -> bool:
        """Whether an answer of that length is warmed to its end."""
        return self.output_tokens is None or output_tokens <= self.output_tokens


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

    def warm(self, state: SeriesState, request: Request, shape_key: str) -> None:
        """Warm a shape, unless it is warm already. The request's images must be in memory."""
        if shape_key not in self._warm:
            self._repeat(state, request)
            self._warm.add(shape_key)

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
                key = prepare(self.model, held).shape_key
                self._repeat(state, held)
            except Exception as error:
                self.failures.caught(error, state, sample_id, 0, Mode.INSTRUMENTED)
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

    def _repeat(self, state: SeriesState, request: Request) -> None:
        """Repeat this shape until two consecutive runs agree; every run is kept as a row."""
        short = with_output(request, self.warmup.output_tokens)
        sample_id = request.sample.sample_id
        last: float | None = None
        for repeat in range(self.warmup.max_runs):
            status = Status.COLD if self._cold else Status.WARMUP
            outcome = self.complete(prepare(self.model, short), Mode.INSTRUMENTED)
            self._cold = False
            self.rows.write(state.series, sample_id, repeat, mode=Mode.INSTRUMENTED, status=status, outcome=outcome)
            now = float(outcome.values["T_total"])
            if last is not None and abs(now - last) <= self.warmup.agreement * min(now, last):
                break
            last = now

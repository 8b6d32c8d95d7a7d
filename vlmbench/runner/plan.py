"""What is measured: series of requests, from a data set, from one repeated request, or from the points of a sweep."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from vlmbench.data.protocol import Samples
from vlmbench.errors import ConfigError, DeviceError, first_line
from vlmbench.hiding import hidden_name
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.records.attempts import Attempts
from vlmbench.request import Output, Request, Sample
from vlmbench.runner.reasons import Reasons
from vlmbench.stopping import Stopping, Verdict, judge
from vlmbench.sweep import Sweep, turns_vision

DATASET = "dataset"
REFERENCE = "reference"
_REFERENCE_SAMPLES = 400  # enough for an interval of p99 (368) with some to spare


class Cell(Protocol):
    """What a series is made of: a point of a sweep, or an arm of a comparison at one."""

    @property
    def id(self) -> str:
        """Stable name."""

    @property
    def target(self) -> Mapping[str, Any]:
        """Axis name to the value aimed at; empty for the request as it is."""

    def apply(self, request: Request) -> Request:
        """The request that it makes of a base request."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Runs that are reported together: one point of a sweep, the data set, or one request repeated.

    Args:
        point_id: names it in every row.
        axes: what the sweep aimed at here.
        size: number of distinct requests.
        request: the i-th of them, made when asked for.
        repeats: runs of each request, where ``stopping`` is None.
        stopping: instead: repeat the one request until the rule is met.
        rounds: its runs are spread evenly over this many rounds; None for one a round.
        bare_every: each ``bare_every``-th run has a bare run beside it; 0 for none.
        beside: stands beside what was asked for (baseline or control of a method), and answers nothing by itself.
    """

    point_id: str
    size: int
    request: Callable[[int], Request]
    axes: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    stopping: Stopping | None = None
    rounds: int | None = None
    bare_every: int = 1
    beside: bool = False

    def jobs(self, seed: int) -> Iterator[tuple[int, int]]:
        """(request, repeat) in the order of measurement: shuffled within each pass over the requests, from the seed."""
        passes = self.stopping.max_samples if self.stopping else self.repeats
        for repeat in range(passes):
            order = list(range(self.size))
            random.Random(f"{seed}/{self.point_id}/{repeat}").shuffle(order)
            for index in order:
                yield index, repeat

    def takes_part(self, round_index: int) -> bool:
        """Whether it has a run in this round (from 0); after the last one always."""
        if self.rounds is None or round_index >= self.rounds:
            return True
        return (round_index + 1) * self.expected // self.rounds > round_index * self.expected // self.rounds

    @property
    def expected(self) -> int:
        """Runs to expect, for the progress bar."""
        return self.stopping.min_samples if self.stopping else self.size * self.repeats


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What every request of a run has in common, before a sweep turns it.

    Args:
        output: how long answers may be.
        prompt_tokens: length of a random text instead of the sample's question; None keeps the question.
        image_size: (width, height) all images are resized to; None keeps them.
        seed: of random text.
        batch: ``different``: a batch is of a sample and those after it; ``copies``: of one sample.
    """

    output: Output
    prompt_tokens: int | None = None
    image_size: tuple[int, int] | None = None
    seed: int = 0
    batch: str = "different"

    def request(self, sample: Sample) -> Request:
        """The base request of a sample; a name that holds a secret (a signed web address) is stored without it."""
        return Request(
            sample=replace(sample, sample_id=hidden_name(sample.sample_id)),
            output=self.output,
            prompt_tokens=self.prompt_tokens,
            image_size=self.image_size,
            seed=self.seed,
        )


def filled(request: Request, samples: Samples, index: int, batch: str) -> Request:
    """The request with the other requests of its batch: the samples after its own, the first after the last.

    Args:
        request: of the sample ``index``.
        batch: ``different`` or ``copies``.

    Raises:
        ConfigError: the data set has fewer samples than the batch has requests, or a method is to be measured.
    """
    if request.batch_size == 1 or batch == "copies" or request.over_cache:
        return request
    if request.frames is not None:
        raise ConfigError("a batch of clips is of copies of one: measurement.batch=copies")
    if request.intervention is not None:
        raise ConfigError("a method is measured on single requests or on copies of one: measurement.batch=copies")
    if len(samples) < request.batch_size:
        raise ConfigError(
            f"a batch of {request.batch_size} different requests needs as many samples, and the data set has "
            f"{len(samples)}; use more samples, or measurement.batch=copies"
        )
    companions = tuple(samples[(index + row) % len(samples)] for row in range(1, request.batch_size))
    return replace(request, companions=companions)


def dataset_series(
    samples: Samples, knobs: Knobs, *, repeats: int, bare_every: int, reference: int | None, point: Cell | None = None
) -> list[Series]:
    """Each sample of the data set, and beside it one identical request repeated as often (at most 400 times).

    The reference tells what the system's own jitter does to a request that never changes: a tail of nothing.

    Args:
        knobs: what all requests have in common.
        repeats: runs of each sample.
        bare_every: each n-th run has a bare run beside it.
        reference: index of the sample that is repeated; None for no reference.
        point: what a sweep turns on every request.
    """

    def turned(index: int) -> Request:
        request = knobs.request(samples[index])
        return filled(point.apply(request), samples, index, knobs.batch) if point else request

    suffix = f",{point.id}" if point and point.target else ""
    axes = point.target if point else {}
    total = len(samples) * repeats
    series = [
        Series(
            point_id=DATASET + suffix,
            axes=axes,
            size=len(samples),
            request=turned,
            repeats=repeats,
            bare_every=bare_every,
        )
    ]
    if reference is not None:
        runs = min(total, _REFERENCE_SAMPLES)
        series.append(
            Series(
                point_id=REFERENCE + suffix,
                axes=axes,
                size=1,
                request=lambda _: turned(reference),
                repeats=runs,
                rounds=total,
                bare_every=bare_every,
            )
        )
    return series


def sweep_series(
    samples: Samples,
    base: int,
    knobs: Knobs,
    sweep: Sweep,
    *,
    stopping: Stopping,
    bare_every: int,
    points: Iterable[Cell] | None = None,
) -> list[Series]:
    """One series a point: always the same sample, with the point's knobs turned, repeated until the rule is met.

    Args:
        base: index of the sample that is turned.
        knobs: what all requests have in common.
        sweep: names itself where it has no points.
        bare_every: each n-th run has a bare run beside it.
        points: instead of the sweep's own (its points in all arms of a comparison).

    Raises:
        ConfigError: the sweep has no points, or a batch needs more samples than there are.
    """
    series = []
    sample = samples[base]
    for point in sweep.points() if points is None else points:
        request = filled(point.apply(knobs.request(sample)), samples, base, knobs.batch)
        series.append(
            Series(
                point_id=point.id,
                axes=point.target,
                size=1,
                request=_always(request),
                stopping=stopping,
                bare_every=bare_every,
                beside=request.intervention is not None and request.intervention.role != "method",
            )
        )
    if not series:
        raise ConfigError(f"sweep '{sweep.name}' has no points; give its axes values")
    return series


def _always(request: Request) -> Callable[[int], Request]:
    return lambda _: request


def at_least(larger: Mapping[str, Any], smaller: Mapping[str, Any]) -> bool:
    """Whether a point asks for no less than another on every axis (numbers only): it needs no less memory."""
    return all(
        isinstance(value, int | float) and isinstance(larger.get(name), int | float) and larger[name] >= value
        for name, value in smaller.items()
    )


def with_output(request: Request, tokens: int | None) -> Request:
    """The request with its answer cut to ``tokens``, for warm-up; None leaves it."""
    if tokens is None or tokens >= request.output.max_new_tokens:
        return request
    return replace(request, output=replace(request.output, max_new_tokens=tokens))


# What can be known before anything is measured: whether the points of a sweep will make a slope.

SLOPE = 3
"""Counts that a slope needs."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """How far the model can follow a sweep of what it sees.

    Args:
        counts: observed counts of vision tokens (cross-attention: keys), ascending; no more than were looked for.
        asked: distinct settings of image size, number of images, processor and target that the sweep asks for.
        unreachable: point id to reason, of those that were looked at.
        passed_over: settings that were not looked at, because a process died in them: they may make further counts.
    """

    counts: tuple[int, ...]
    asked: int
    unreachable: dict[str, str]
    passed_over: int = 0


def vision_counts(model: VisionLanguageModel, series: Sequence[Series], attempts: Attempts | None = None) -> Foreseen:
    """The counts of vision tokens that the points make; prepares one request a setting, until three counts are seen.

    Args:
        series: the points of a controlled sweep.
        attempts: names what is looked at on disk; a point in which a process died is not looked at again.
    """
    attempts = attempts or Attempts(Path())  # not open: it names nothing
    settings: dict[str, tuple[str, Request]] = {}
    for one in series:
        request = one.request(0)
        alone = replace(request.rows[0], prompt_tokens=None, output=Output(max_new_tokens=1, forced=True))
        settings.setdefault(repr(replace(alone, sample=replace(alone.sample, images=()))), (one.point_id, alone))
    counts: set[int] = set()
    unreachable: dict[str, str] = {}
    passed_over = 0
    for point, request in settings.values():
        if len(counts) >= SLOPE:
            break
        if attempts.deaths(point):
            unreachable[point] = "a process died in it without a word"
            passed_over += 1
            continue
        try:
            with attempts.foresight(point, request.sample.sample_id):
                seen = model.prepare(request).counts
        except (ConfigError, DeviceError):
            raise
        except Exception as error:  # too little memory, say: the point gets its row when it comes, others are measured
            unreachable[point] = first_line(error)
            continue
        counts.add(seen.num_vision_tokens or seen.num_cross_attention_tokens or 0)
    return Foreseen(counts=tuple(sorted(counts)), asked=len(settings), unreachable=unreachable, passed_over=passed_over)


def no_slope(model: VisionLanguageModel, series: Sequence[Series], attempts: Attempts | None = None) -> str | None:
    """Why a sweep of what the model sees will make no slope, in words; None where it will, or was not meant to.

    Args:
        series: the points of a controlled sweep.
        attempts: see :func:`vision_counts`.
    """
    swept = [one for one in series if any(turns_vision(name) for name in one.axes)]
    if not swept:
        return None
    found = vision_counts(model, swept, attempts)
    if len(found.counts) >= min(found.asked, SLOPE):
        return None
    made = ", ".join(map(str, found.counts)) or "none"
    all_reasons = list(dict.fromkeys(found.unreachable.values()))
    left = len(all_reasons) - _SHOWN
    reasons = "\n  ".join(all_reasons[:_SHOWN]) + (f"\n  and {left} more" if left > 0 else "")
    return (
        f"no slope over vision tokens can be fitted: it needs {SLOPE} counts, and the {found.asked} settings of this "
        f"sweep make {len(found.counts)} ({made}); sweep=vision_tokens finds what this model reaches"
        + (f"\n  {reasons}" if reasons else "")
    )


def output_counts(series: Sequence[Series]) -> set[int]:
    """The forced numbers of output tokens that the points ask for."""
    return {one.axes["output_tokens"] for one in series if "output_tokens" in one.axes}


# How far each series of a run is.


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
        reason: of the last failure. reasons: of all of them, by kind.
        postponed: jobs that come after all others of the series.
        left_out: runs that were not tried, because processes died in their request.
        requests: those that were measured in this session.
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
    postponed: list[tuple[int, int]] = field(default_factory=list)
    left_out: int = 0
    reasons: Reasons = field(default_factory=Reasons)
    requests: set[int] = field(default_factory=set)

    def fail(self, reason: str) -> None:
        """Count a run that left a row with its reason instead of times."""
        self.failed += 1
        self.errors_in_a_row += 1
        self.reason = reason
        self.reasons.add(reason)

    def next_jobs(self) -> Iterator[tuple[int, int]]:
        """The jobs that are still to come, those that were postponed last."""
        while (job := next(self.jobs, None)) is not None:  # not `yield from`: whoever stops asking would end the jobs
            yield job
        while self.postponed:
            yield self.postponed.pop(0)

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
            "median_reach": self.verdict.reach if self.verdict else None,
            "lag1": self.verdict.lag1 if self.verdict else None,
            "effective_n": self.verdict.effective_n if self.verdict else None,
            "missing_s": self.verdict.missing_s if self.verdict else None,
            "reason": self.reason,
        }

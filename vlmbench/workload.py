"""What is measured: series of requests, from a data set, from one repeated request, or from the points of a sweep."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlmbench.data.protocol import Samples
from vlmbench.errors import ConfigError
from vlmbench.request import Output, Request, Sample
from vlmbench.stopping import Stopping
from vlmbench.sweep import Point, Sweep

DATASET = "dataset"
REFERENCE = "reference"
_REFERENCE_SAMPLES = 400  # enough for an interval of p99 (368) with some to spare


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
    """

    point_id: str
    size: int
    request: Callable[[int], Request]
    axes: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    stopping: Stopping | None = None
    rounds: int | None = None
    bare_every: int = 1

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
    """

    output: Output
    prompt_tokens: int | None = None
    image_size: tuple[int, int] | None = None
    seed: int = 0

    def request(self, sample: Sample) -> Request:
        """The base request of a sample."""
        return Request(
            sample=sample,
            output=self.output,
            prompt_tokens=self.prompt_tokens,
            image_size=self.image_size,
            seed=self.seed,
        )


def dataset_series(
    samples: Samples, knobs: Knobs, *, repeats: int, bare_every: int, reference: int | None, point: Point | None = None
) -> list[Series]:
    """Each sample of the data set, and beside it one identical request repeated as often (at most 400 times).

    The reference tells what the system's own jitter does to a request that never changes: a tail of nothing.

    Args:
        samples: the data set.
        knobs: what all requests have in common.
        repeats: runs of each sample.
        bare_every: each n-th run has a bare run beside it.
        reference: index of the sample that is repeated; None for no reference.
        point: what a sweep turns on every request.
    """

    def turned(sample: Sample) -> Request:
        request = knobs.request(sample)
        return point.apply(request) if point else request

    suffix = f",{point.id}" if point and point.axes else ""
    axes = point.target if point else {}
    total = len(samples) * repeats
    series = [
        Series(
            point_id=DATASET + suffix,
            axes=axes,
            size=len(samples),
            request=lambda index: turned(samples[index]),
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
                request=lambda _: turned(samples[reference]),
                repeats=runs,
                rounds=total,
                bare_every=bare_every,
            )
        )
    return series


def sweep_series(sample: Sample, knobs: Knobs, sweep: Sweep, *, stopping: Stopping, bare_every: int) -> list[Series]:
    """One series a point: always the same sample, with the point's knobs turned, repeated until the rule is met.

    Raises:
        ConfigError: the sweep has no points.
    """
    series = []
    for point in sweep.points():
        request = point.apply(knobs.request(sample))
        series.append(
            Series(
                point_id=point.id,
                axes=point.target,
                size=1,
                request=_always(request),
                stopping=stopping,
                bare_every=bare_every,
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

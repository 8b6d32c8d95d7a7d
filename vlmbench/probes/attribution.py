"""Which stage a kernel belongs to, and how long the device was busy in each stage. Standard library only.

A kernel runs some time after the host launched it, so where it lies in time does not tell whose it is. What tells is
the host: the call that launched a kernel lies between two of the host's marks, and the stage between these marks is
the kernel's. Everything here is a pure function of times, so that it can be checked with planted ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vlmbench.probes.stages import Segment

TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Work:
    """Something that ran: a kernel or copy on a device, or an operator on the host.

    Args:
        name: of the kernel or operator.
        begin, end: when it ran.
        launched: when the host asked for it; for an operator, its begin.
        call: number of the launching call (a CUDA graph launches many kernels in one call); None where unknown.
        is_kernel: False for copies and fills, which keep a device busy but are no kernels.
    """

    name: str
    begin: float
    end: float
    launched: float
    call: int | None = None
    is_kernel: bool = True


@dataclass(frozen=True, slots=True)
class Busy:
    """What a device did for one stage.

    Args:
        busy: length of the union of all work: what overlaps counts once.
        kernels: kernels that ran.
        launches: calls of the host that launched them.
    """

    busy: float
    kernels: int
    launches: int


def stage_at(launched: float, pieces: Sequence[Segment]) -> str | None:
    """The stage whose piece holds a moment of the host; None outside the run."""
    index = bisect_right(pieces, launched, key=lambda piece: piece.begin) - 1
    return pieces[index].stage if index >= 0 and launched <= pieces[-1].end else None


def by_stage(work: Iterable[Work], pieces: Sequence[Segment]) -> dict[str, list[Work]]:
    """Work sorted to the stage in which the host asked for it; what was asked for outside the run is left out."""
    found: dict[str, list[Work]] = defaultdict(list)
    for item in work:
        stage = stage_at(item.launched, pieces)
        if stage is not None:
            found[stage].append(item)
    return dict(found)


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (begin, end) intervals: what overlaps counts once."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        if end > reached:
            length += end - max(begin, reached)
            reached = end
    return length


def busy_by_stage(work: Iterable[Work], pieces: Sequence[Segment]) -> dict[str, Busy]:
    """How long the device was busy for each stage of ``pieces``, and ``total`` for the whole run.

    Streams and devices are put together: busy means that at least one of them works. Work of two stages that overlaps
    counts once in ``total``, so the stages may add up to more.
    """
    sorted_work = by_stage(work, pieces)
    found = {piece.stage: _busy(sorted_work.get(piece.stage, [])) for piece in pieces}
    found[TOTAL] = _busy([item for items in sorted_work.values() for item in items])
    return found


def _busy(items: Sequence[Work]) -> Busy:
    kernels = [item for item in items if item.is_kernel]
    calls = {item.call for item in kernels if item.call is not None}
    unknown = sum(item.call is None for item in kernels)
    return Busy(
        busy=union((item.begin, item.end) for item in items), kernels=len(kernels), launches=len(calls) + unknown
    )


def top(items: Iterable[tuple[str, float]], count: int) -> list[tuple[str, int, float]]:
    """(name, calls, summed time) of the ``count`` names with the largest sums, largest first."""
    calls: dict[str, int] = defaultdict(int)
    times: dict[str, float] = defaultdict(float)
    for name, time in items:
        calls[name] += 1
        times[name] += time
    order = sorted(times, key=lambda name: (-times[name], name))
    return [(name, calls[name], times[name]) for name in order[:count]]


def self_times(operators: Iterable[Work]) -> Iterator[tuple[Work, float]]:
    """(operator, its time without the operators it called) of one thread's operators, which nest."""
    stack: list[tuple[Work, float]] = []  # an operator and the time of those directly inside it
    for item in sorted(operators, key=lambda op: (op.begin, -op.end)):
        while stack and stack[-1][0].end <= item.begin:
            yield _closed(stack)
        stack.append((item, 0.0))
    while stack:
        yield _closed(stack)


def _closed(stack: list[tuple[Work, float]]) -> tuple[Work, float]:
    item, inside = stack.pop()
    length = item.end - item.begin
    if stack:
        outer, sofar = stack[-1]
        stack[-1] = (outer, sofar + length)
    return item, length - inside

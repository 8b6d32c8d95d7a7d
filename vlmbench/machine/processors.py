"""Which processor of the host a run has: left to the kernel, or drawn anew before each request.

A kernel leaves a thread on the processor on which it slept. On a shared machine one processor is slow for seconds,
because a neighbour computes on the same core, while the others are not: all runs of these seconds are slow, resemble
each other, and are worth few independent ones. Put on another processor before each request, runs meet a fast and a
slow one by turns, so that as many of them tell more of the machine.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

from vlmbench.errors import DeviceError
from vlmbench.machine.host import started_by_torchrun

_log = logging.getLogger(__name__)

_STAT = Path("/proc/thread-self/stat")
_PROCESSOR = 36  # field of it, counted from behind the name in brackets


@dataclass(kw_only=True)
class Processors:
    """Puts the calling thread on a processor that is drawn for each request.

    Drawn by seed, request and repeat: the same request has the same processor in other arms, at other points, and in
    other processes that take turns, so that what is compared request by request ran on the same one. The thread is put
    there and set free at once: threads that it starts may run everywhere, and the kernel may move it, which a row's
    ``processor`` shows. It is free for what it was free for before, also where its cpuset gave it less meanwhile. One
    of several processes of torchrun says once what becomes of the others.

    Args:
        on: whether they are changed at all.
        seed: of the draws.

    Raises:
        DeviceError: the system cannot move a thread, or forbids it, or lets it run on one processor only.
    """

    on: bool = False
    seed: int = 0
    _free: set[int] = field(init=False, default_factory=set)  # what the thread may have, as far as its cpuset goes

    def __post_init__(self) -> None:
        if not self.on:
            return
        if not hasattr(os, "sched_setaffinity"):
            raise DeviceError(
                f"measurement.change_processor needs Linux, which moves a thread when asked (got {sys.platform})\n"
                "leave it out: the system then chooses the processor"
            )
        self._free = os.sched_getaffinity(0)
        if len(self._free) < 2:
            raise DeviceError(
                "measurement.change_processor needs two processors to choose from (this process may use one)\n"
                "leave it out, or give the process more: taskset, cpusets, --cpus-per-task"
            )
        try:
            os.sched_setaffinity(0, self._free)
        except OSError as error:
            raise DeviceError(
                f"measurement.change_processor must move a thread, and the system forbids it ({error.strerror})\n"
                "leave it out, or allow the process sched_setaffinity: a container's seccomp profile, SystemCallFilter="
            ) from None
        if started_by_torchrun():
            _warn_of_the_others()

    def take(self, request: str, repeat: int) -> None:
        """Move the calling thread to the processor of a request; call it when no clock runs (some 10 µs)."""
        if not self.on:
            return
        allowed = os.sched_getaffinity(0)
        if allowed != self._free:
            # A cpuset still holds it to these when it asks for more, and may be widened again; else it was told so.
            os.sched_setaffinity(0, wide := self._free | allowed)
            self._free = wide if os.sched_getaffinity(0) == allowed else allowed
        drawn = Random(f"{self.seed} {request} {repeat}").choice(sorted(allowed))
        try:
            os.sched_setaffinity(0, {drawn})
        finally:
            os.sched_setaffinity(0, self._free)


@cache  # the check before a model is loaded and the loop have one each
def _warn_of_the_others() -> None:
    _log.warning(
        "of several processes of torchrun measurement.change_processor moves those that measure, a request to the same "
        "processor in each; the others stay where the system puts them, and `processor` of a row is its writer's"
    )


def processor() -> int | None:
    """The number of the processor that the calling thread has; None where that is not told."""
    with suppress(OSError, ValueError, IndexError):
        return int(_STAT.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[_PROCESSOR])
    return None

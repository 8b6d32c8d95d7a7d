"""What the host gave a run: processor time of the launching thread, waiting, context switches, page faults, steal.

A latency that is longer than another's has a cause. The thread that launches the work either computed for longer (its
processor ran slower, or it had more to do) or was not on a processor (it was preempted, or waited). Both are counted by
the kernel and cost microseconds to read, so every run stores them.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from vlmbench.machine.processors import processor

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BUSY_SHARE = 0.05
"""A thread that waited longer than this share of a run for a processor ran on a busy host."""
_STAT = "/proc/stat"
_SCHEDSTAT = "/proc/thread-self/schedstat"
_STEAL = 8  # field of the line ``cpu`` in /proc/stat, counted from its name


@dataclass(frozen=True, kw_only=True)
class ThreadUse:
    """What the calling thread used so far; cheap (about 1 µs), so it is read right at the ends of a clocked region.

    Args:
        cpu_ns: processor time.
        voluntary: context switches because it waited for something.
        involuntary: context switches because another thread got the processor.
        minor: page faults served from memory.
        major: page faults that had to read a disk.
    """

    cpu_ns: int
    voluntary: int | None = None
    involuntary: int | None = None
    minor: int | None = None
    major: int | None = None

    @classmethod
    def now(cls) -> Self:
        """Read the counters of the calling thread."""
        cpu = time.thread_time_ns()
        if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
            return cls(cpu_ns=cpu)
        use = resource.getrusage(resource.RUSAGE_THREAD)
        return cls(
            cpu_ns=cpu, voluntary=use.ru_nvcsw, involuntary=use.ru_nivcsw, minor=use.ru_minflt, major=use.ru_majflt
        )


@dataclass(frozen=True, kw_only=True)
class MachineUse:
    """What the kernel's files say; read outside every clock, for opening a file takes tens of µs.

    Args:
        waited_ns: time that the calling thread was ready and waited for a processor; None where it is not told.
        steal_ms: time that the hypervisor gave to others, summed over all processors; None where it is not told.
    """

    waited_ns: int | None
    steal_ms: float | None

    @classmethod
    def now(cls) -> Self:
        """Read the files."""
        return cls(waited_ns=_waited_ns(), steal_ms=_steal_ms())

    def until_now(self) -> dict[str, float | None]:
        """Columns of what came since; what cannot be known here is None."""
        now = MachineUse.now()
        waited = _difference(self.waited_ns, now.waited_ns)
        return {
            "thread_waited_ms": None if waited is None else waited / 1e6,
            "steal_ms": _difference(self.steal_ms, now.steal_ms),
        }


def _waited_ns() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(_beginning_of(_SCHEDSTAT).split()[1])
    return None


def _steal_ms() -> float | None:
    with suppress(OSError, ValueError, IndexError):
        return int(_beginning_of(_STAT).split()[_STEAL]) * 1e3 / os.sysconf("SC_CLK_TCK")
    return None


def _beginning_of(file: str) -> bytes:
    """What a file of the kernel begins with; by system calls alone, which take a third of what a file object takes."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.read(descriptor, 256)
    finally:
        os.close(descriptor)


@dataclass(kw_only=True)
class HostUse:
    """The host's counters around one run.

    Made before the run; :meth:`enter` and :meth:`leave` stand right at the ends of the clocked region, :meth:`columns`
    is asked afterwards.
    """

    _machine: MachineUse
    _entered: ThreadUse | None = None
    _left: ThreadUse | None = None

    @classmethod
    def begin(cls) -> Self:
        """Read what takes long to read, before any clock runs."""
        return cls(_machine=MachineUse.now())

    def enter(self) -> None:
        """Note the thread's counters; call it right before the clock starts."""
        self._entered = ThreadUse.now()

    def leave(self) -> None:
        """Note the thread's counters; call it right after the clock stopped."""
        self._left = ThreadUse.now()

    def columns(self) -> dict[str, Any]:
        """What was used between :meth:`enter` and :meth:`leave`; what cannot be known here is None."""
        first, last = self._entered, self._left
        if first is None or last is None:
            return {}
        return {
            "thread_cpu_ms": (last.cpu_ns - first.cpu_ns) / 1e6,
            **self._machine.until_now(),
            "switches_voluntary": _difference(first.voluntary, last.voluntary),
            "switches_involuntary": _difference(first.involuntary, last.involuntary),
            "page_faults_minor": _difference(first.minor, last.minor),
            "page_faults_major": _difference(first.major, last.major),
            "processor": processor(),
        }


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def busy_flags(columns: dict[str, Any], T_total: float) -> list[str]:
    """Flag a run whose launching thread had to wait for a processor for more than 5 % of it: ``busy_host``.

    Args:
        columns: of :meth:`HostUse.columns`.
        T_total: ms.
    """
    waited = columns.get("thread_waited_ms")
    return ["busy_host"] if waited is not None and waited > BUSY_SHARE * T_total else []

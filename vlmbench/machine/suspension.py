"""Whether this process was stopped for a while: a shell's Ctrl-Z, ``scontrol suspend``, a laptop that slept."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

_SLEPT_S = 0.05  # the two clocks are read one after the other


class Suspensions:
    """Counts how often the process was stopped, while active; a context manager.

    A stopped process (SIGSTOP, SIGTSTP) is continued by SIGCONT, which is noted. While the whole machine sleeps,
    ``CLOCK_BOOTTIME`` goes on and ``CLOCK_MONOTONIC``, which latencies are read from, does not. What leaves neither
    trace (a frozen control group or virtual machine) is not noticed.
    """

    def __init__(self) -> None:
        self._continued = 0
        self._slept = 0
        self._offset_s = 0.0
        self._before: Any = None

    def __enter__(self) -> Self:
        self._offset_s = _offset_s()
        try:
            self._before = signal.signal(signal.SIGCONT, self._note)
        except ValueError:  # not the main thread
            self._before = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGCONT, self._before)

    def count(self) -> int:
        """How often it was stopped since it became active."""
        offset_s = _offset_s()
        if offset_s - self._offset_s > _SLEPT_S:
            self._slept += 1
            self._offset_s = offset_s
        return self._continued + self._slept

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._continued += 1


def _offset_s() -> float:
    """By how much the clock that runs while the machine sleeps is ahead; 0 where there is no such clock."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

"""Whether this process was stopped for a while: a shell's Ctrl-Z, ``scontrol suspend``, a laptop that slept."""

from __future__ import annotations

import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

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


def held_still_by(pid: int, groups: Path = Path("/sys/fs/cgroup")) -> str | None:
    """What holds a process of this host still now: ``SIGSTOP``, ``a frozen control group``; None where it may run.

    Args:
        pid: of the process.
        groups: where control groups are mounted.
    """
    with suppress(psutil.Error):
        if psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return "SIGSTOP"
    with suppress(OSError):
        text = Path(f"/proc/{pid}/cgroup").read_text()
        for controllers, place in re.findall(r"^\d+:([^:]*):/?(.*)$", text, re.MULTILINE):
            if _is_frozen(groups, controllers, place):
                return "a frozen control group"
    return None


def _is_frozen(groups: Path, controllers: str, place: str) -> bool:
    """Whether a control group is frozen: version 2 (no name of a controller), else the freezer of version 1."""
    if not controllers:
        files = [root / place / "cgroup.events" for root in (groups, groups / "unified")]
        return any(re.search(r"^frozen 1$", f.read_text(), re.MULTILINE) for f in files if f.is_file())
    file = groups / "freezer" / place / "freezer.state"
    return "freezer" in controllers.split(",") and file.is_file() and file.read_text().strip() == "FROZEN"


def _offset_s() -> float:
    """By how much the clock that runs while the machine sleeps is ahead; 0 where there is no such clock."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    # Who has to wait for a processor between the two readings gets too small a difference, never too large a one.
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC) for _ in range(3))

"""Whether this process was stopped for a while: a shell's Ctrl-Z, ``scontrol suspend``, a laptop that slept."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

_log = logging.getLogger(__name__)

_SLEPT_S = 0.05  # the two clocks are read one after the other
_BEAT_S = 0.5
_FROZEN_S = 1.0  # a beat that is later than this by no fault of a busy machine was held up
_IDLE_SHARE = 0.1  # of that time, at most, was worked or waited for a processor


class Suspensions:
    """Counts how often the process was stopped, while active; a context manager.

    A stopped process (SIGSTOP, SIGTSTP) is continued by SIGCONT, which is noted. While the whole machine sleeps,
    ``CLOCK_BOOTTIME`` goes on and ``CLOCK_MONOTONIC``, which latencies are read from, does not. A frozen control group
    (``docker pause``) leaves neither trace: a thread that wakes twice a second wakes more than a second late, and
    meanwhile the process neither worked nor waited for a processor. A virtual machine that is held is not noticed.
    """

    def __init__(self) -> None:
        self._continued = 0
        self._slept = 0
        self._frozen = 0
        self._offset_s = 0.0
        self._before: Any = None
        self._over = threading.Event()
        self._looking = threading.Lock()
        self._beats: Path | None = None
        self._last = (0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        self._offset_s = _offset_s()
        self._over.clear()
        try:
            threading.Thread(target=self._beat, daemon=True, name="vlmbench-beat").start()
        except RuntimeError as error:  # a limit of processes
            _log.warning("a frozen control group will not be noticed: %s", error)
        try:
            self._before = signal.signal(signal.SIGCONT, self._note)
        except ValueError:  # not the main thread
            self._before = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        if self._before is not None:
            signal.signal(signal.SIGCONT, self._before)

    def count(self) -> int:
        """How often it was stopped since it became active."""
        offset_s = _offset_s()
        if offset_s - self._offset_s > _SLEPT_S:
            self._slept += 1
            self._offset_s = offset_s
        self._look()
        return self._continued + self._slept + self._frozen

    def _beat(self) -> None:
        """Wake now and then, and look how late it is."""
        beats = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        if not beats.is_file():  # another system than Linux
            return
        with self._looking:
            self._beats, self._last = beats, (time.monotonic(), time.process_time(), _waited_s(beats))
        while not self._over.wait(_BEAT_S):
            self._look(beat=True)
        self._beats = None

    def _look(self, *, beat: bool = False) -> None:
        """Count a freeze if the thread that beats is late for no other reason; so that a run's end sees it as well."""
        with self._looking:
            before_s, worked_s, waited_s = self._last
            now_s = time.monotonic()
            if self._beats is None or not (beat or now_s - before_s > _BEAT_S + _FROZEN_S):
                return
            now = (now_s, time.process_time(), _waited_s(self._beats))
            late_s = now_s - before_s - _BEAT_S
            if late_s > _FROZEN_S and max(now[1] - worked_s, now[2] - waited_s) < _IDLE_SHARE * late_s:
                self._frozen += 1
            self._last = now

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._continued += 1


def _waited_s(schedstat: Path) -> float:
    """Seconds that a thread has waited for a processor; endless once it is over."""
    try:
        return float(schedstat.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return float("inf")


def held_still_by(pid: int, groups: Path = Path("/sys/fs/cgroup")) -> str | None:
    """What holds a process of this host still now: ``SIGSTOP``, ``a frozen control group``; None where it may run.

    Args:
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

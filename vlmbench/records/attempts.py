"""Which run of which point a process is at, on disk: a process that dies without a word has named what killed it.

A run that takes more memory than the host has ends its process (the kernel's SIGKILL leaves no time for a row). The
next session finds the name of the run that was begun and never ended: its point comes last, and once two processes in
a row have died in it, it is skipped with a row. A run that ends, however it ends, clears its name.

Whoever kills the process from outside leaves the same trace, so a run is blamed only where nothing speaks for it: no
run of its request was ever stored in this directory, or the kernel counted a kill for memory in this process's control
group since the run began.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlmbench.errors import InputError
from vlmbench.machine.host import OomKills, oom_kills
from vlmbench.records.files import NO_LINK, is_link_error
from vlmbench.text import parse_json

BEGUN_NAME = "begun.json"
MOST_DEATHS = 2
"""So many processes in a row may die in a run before it is skipped."""

FORESIGHT = "foresight"
"""The phase of a request that is looked at before anything is measured."""
Key = tuple[str, str, str]
"""Point, sample, and the phase of its run (``foresight``, ``prepare``, ``warmup``, ``instrumented`` …)."""


class Attempts:
    """The runs that were begun in a run directory; use while holding its ``RunLock``.

    Writing costs some microseconds a run, outside any clock, and is not synced: a kill loses nothing, and after a
    power cut no run is to blame.

    Args:
        directory: the run directory, which exists.
        memory_kills: tells how many processes were killed for memory so far; None where that cannot be known.
    """

    def __init__(self, directory: Path, *, memory_kills: Callable[[], OomKills | None] = oom_kills) -> None:
        self.path = Path(directory) / BEGUN_NAME
        self._memory_kills = memory_kills
        self._kills: OomKills | None = None
        self._now: Key | None = None
        self._deaths: Counter[Key] = Counter()
        self._descriptor = -1
        self._length = 0

    def open(self, measured: Callable[[str, str], bool] = lambda *_: False) -> None:
        """Read what earlier sessions left; a process died in the run that is named there as begun.

        Args:
            measured: whether a run of a request (point, sample) was ever stored in this directory.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags, 0o666)
            stored = _parse(os.pread(self._descriptor, 1 << 20, 0))
        except OSError as error:
            if is_link_error(error):
                raise InputError(f"'{self.path}' {NO_LINK}") from error
            raise InputError(f"cannot write '{self.path}': {error.strerror or error}.") from error
        self._deaths, died_in, before = stored
        if died_in is not None and (not measured(*died_in[:2]) or self._killed_for_memory_since(before)):
            self._deaths[died_in] += 1
        os.ftruncate(self._descriptor, 0)
        self._length = 0
        self._write()

    def close(self) -> None:
        """Remove the file where it says nothing; a second call does nothing."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        if not self._deaths and self._now is None:
            with suppress(OSError):
                self.path.unlink()

    def begin(self, point_id: str, sample_id: str, phase: str) -> None:
        """A run begins: should the process die now, this is what it was at."""
        self._now, self._kills = (point_id, sample_id, phase), self._memory_kills()
        self._write()

    @contextmanager
    def foresight(self, point_id: str, sample_id: str) -> Iterator[None]:
        """A request is looked at before anything is measured."""
        self.begin(point_id, sample_id, FORESIGHT)
        try:
            yield
        finally:
            self.end()

    def end(self) -> None:
        """The run that was begun last is over, and with it what was held against it."""
        if self._now is not None:
            self._deaths.pop(self._now, None)
            self._now = None
            self._write()

    def deaths(self, point_id: str, sample_id: str | None = None) -> int:
        """How many processes in a row died in a run of this point, or of one sample of it."""
        by_sample: Counter[str] = Counter()
        for (point, sample, _), count in self._deaths.items():
            if point == point_id and sample_id in (None, sample):
                by_sample[sample] += count
        return max(by_sample.values(), default=0)

    def _killed_for_memory_since(self, before: OomKills | None) -> bool:
        """Whether the kernel killed for memory since then; False where that was another group, or is not known."""
        now = self._memory_kills()
        return before is not None and now is not None and now.group == before.group and now.count > before.count

    def _write(self) -> None:
        if self._descriptor < 0:
            return
        content = {
            "now": self._now,
            "deaths": [[*key, count] for key, count in self._deaths.items()],
            "oom_kills": None if self._kills is None else [self._kills.group, self._kills.count],
        }
        text = json.dumps(content).encode()
        # one write of at least the length before: a kill leaves the old text or the new one
        os.pwrite(self._descriptor, text.ljust(self._length) + b"\n", 0)
        self._length = max(self._length, len(text))


def _parse(text: bytes) -> tuple[Counter[Key], Key | None, OomKills | None]:
    """Deaths so far, the run that was begun, and the kills for memory before it; damaged files blame nothing."""
    try:
        found = parse_json(text)
        deaths: Counter[Key] = Counter({_key(entry[:3]): int(entry[3]) for entry in found["deaths"]})
        now = None if found["now"] is None else _key(found["now"])
        kills = found.get("oom_kills")
        before = None if kills is None else OomKills(group=str(kills[0]), count=int(kills[1]))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return Counter(), None, None
    return deaths, now, before


def _key(entry: Any) -> Key:
    point, sample, phase = entry
    return str(point), str(sample), str(phase)

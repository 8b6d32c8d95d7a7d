"""An asyncio loop for measuring: fine timers, reads that are stamped first, and its own delays written down.

``asyncio``'s epoll selector rounds every timeout up to a whole millisecond, so a request would leave up to 1 ms late.
Here epoll waits whole milliseconds and a ``select()`` on its descriptor the rest of the last, which takes microseconds.

A *tap* reads a socket as soon as the selector says that it is ready, before any callback of the loop: all streams that
are ready at one moment are read and stamped before anything is parsed, and a token that arrives alone, after the
processor has slept, does not pay for the loop's own way to it through a cold cache.
"""

from __future__ import annotations

import asyncio
import math
import select
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
Tap = Callable[[], bool]
"""Reads a socket that is ready; False where the transport must do it: the stream has ended, or is broken."""
LONG_TURN_NS = 1_000_000
"""A turn of the loop (all callbacks between two waits) that takes longer is remembered, ns."""
_KEPT_TURNS = 10_000


class Turns:
    """Remembers the long turns of a loop: while one lasts, nothing that arrives is given a time.

    Attributes:
        longest_ns: the longest turn so far.
    """

    def __init__(self) -> None:
        self.longest_ns = 0
        self._long: deque[tuple[int, int]] = deque(maxlen=_KEPT_TURNS)
        self._began = 0

    def begin(self) -> None:
        """Note that the loop has waited and runs callbacks now."""
        self._began = time.monotonic_ns()

    def end(self) -> None:
        """Note that the loop is about to wait."""
        if not self._began:
            return
        took = time.monotonic_ns() - self._began
        self.longest_ns = max(self.longest_ns, took)
        if took > LONG_TURN_NS:
            self._long.append((self._began, took))

    def reset(self) -> None:
        """Forget all turns."""
        self.longest_ns = 0
        self._long.clear()

    def longest_between(self, begin_ns: int, end_ns: int) -> int:
        """The longest part of a turn inside a span of time, ns; 0 where all turns were below :data:`LONG_TURN_NS`."""
        longest = 0
        for began, took in reversed(self._long):
            if began + took < begin_ns:
                break
            if began <= end_ns:
                longest = max(longest, min(began + took, end_ns) - max(began, begin_ns))
        return longest


class _FineSelector(selectors.DefaultSelector):
    """The platform's selector, on Linux with waits that end within microseconds of their timeout; it serves taps there.

    Attributes:
        taps: what reads a socket, by its descriptor.
        later: what follows when all sockets that were ready are read.
    """

    _selector: Any  # of the standard library's class: epoll itself

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns
        self.taps: dict[int, Tap] = {}
        self.later: deque[Callable[[], None]] = deque()

    if sys.platform == "linux":

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait and read the tapped sockets, until there is something else for the loop to do."""
            end = None if timeout is None else time.monotonic() + timeout
            others = self._read(0 if self.later else timeout)
            while not others and not self.later:
                if end is not None and (timeout := end - time.monotonic()) <= 0:
                    break
                others = self._read(timeout)
            if self.later:  # one at a time, with what it leads to: the next comes when what arrived meanwhile is read
                self.later.popleft()()
            return super().select(0) if others else []  # what is read no longer shows, all else still does

        def _read(self, timeout: float | None) -> bool:
            """Wait once and read; False where taps took all there was."""
            self._turns.end()
            ready = self._wait(timeout)
            self._turns.begin()
            others = not ready
            for descriptor, events in ready:
                tap = self.taps.get(descriptor)
                if tap is None or events != select.EPOLLIN or not tap():
                    others = True
            return others

        def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
            poll: Callable[[float | None], list[tuple[int, int]]] = self._selector.poll
            if timeout is None or timeout <= 0:
                return poll(timeout)
            whole_ms = math.floor(timeout * 1e3)
            if whole_ms:
                return poll((whole_ms - 0.5) / 1e3)  # rounded up there; a wait that ends early is taken up again
            select.select([self.fileno()], [], [], timeout)
            return poll(0)

    else:

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait, with the turns of the loop noted."""
            self._turns.end()
            ready = super().select(timeout)
            self._turns.begin()
            return ready


class MeasuringLoop(asyncio.SelectorEventLoop):
    """A loop with fine timers and taps that writes its long turns down."""

    def __init__(self, turns: Turns) -> None:
        self._fine = _FineSelector(turns)
        super().__init__(self._fine)

    def tap(self, descriptor: int, read: Tap | None) -> None:
        """Let a callback read a socket before the loop does; None leaves it to the loop again."""
        if read is None:
            self._fine.taps.pop(descriptor, None)
        else:
            self._fine.taps[descriptor] = read

    def after_reads(self, callback: Callable[[], None]) -> None:
        """Call something when all sockets that are ready now are read; for taps only."""
        self._fine.later.append(callback)


def run(main: Coroutine[Any, Any, _T], turns: Turns | None = None) -> _T:
    """Run a coroutine to its end on a fresh loop with fine timers.

    Args:
        main: what to run.
        turns: where the loop's long turns are written down; None drops them.
    """
    with asyncio.Runner(loop_factory=lambda: new_loop(turns)) as runner:
        return runner.run(main)


def new_loop(turns: Turns | None = None) -> MeasuringLoop:
    """A loop with fine timers and taps that writes its long turns down."""
    return MeasuringLoop(turns or Turns())


async def sleep_until(due_ns: int) -> None:
    """Sleep until a moment of ``time.monotonic_ns()``."""
    left = due_ns - time.monotonic_ns()
    if left > 0:
        await asyncio.sleep(left / 1e9)

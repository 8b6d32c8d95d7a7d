"""An asyncio loop for measuring: timers as fine as the kernel's, and its own delays written down.

``asyncio``'s epoll selector rounds every timeout up to a whole millisecond, so a request would leave up to 1 ms late.
Here the wait for a timer is a ``select()`` on the epoll descriptor itself, which takes microseconds.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import sys
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
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


if sys.platform == "linux":

    class _FineSelector(selectors.EpollSelector):
        """epoll whose waits end within microseconds of their timeout."""

        def __init__(self, turns: Turns) -> None:
            super().__init__()
            self._turns = turns

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self._turns.end()
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            ready = super().select(timeout)
            self._turns.begin()
            return ready

else:

    class _FineSelector(selectors.DefaultSelector):
        """The platform's selector, with the turns of the loop noted."""

        def __init__(self, turns: Turns) -> None:
            super().__init__()
            self._turns = turns

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self._turns.end()
            ready = super().select(timeout)
            self._turns.begin()
            return ready


def run(main: Coroutine[Any, Any, _T], turns: Turns | None = None) -> _T:
    """Run a coroutine to its end on a fresh loop with fine timers.

    Args:
        main: what to run.
        turns: where the loop's long turns are written down; None drops them.
    """
    with asyncio.Runner(loop_factory=lambda: new_loop(turns)) as runner:
        return runner.run(main)


def new_loop(turns: Turns | None = None) -> asyncio.AbstractEventLoop:
    """A loop with fine timers that writes its long turns down."""
    return asyncio.SelectorEventLoop(_FineSelector(turns or Turns()))


async def sleep_until(due_ns: int) -> None:
    """Sleep until a moment of ``time.monotonic_ns()``."""
    left = due_ns - time.monotonic_ns()
    if left > 0:
        await asyncio.sleep(left / 1e9)

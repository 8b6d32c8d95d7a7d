"""An asyncio loop for measuring: fine timers, reads that are stamped first, and its own delays written down.

``asyncio``'s epoll selector rounds every timeout up to a whole millisecond, so a request would leave up to 1 ms late.
Here epoll waits whole milliseconds and a ``select()`` on its descriptor the rest of the last, which takes microseconds.

A *tap* reads a socket as soon as the selector says that it is ready, before any callback of the loop: all streams that
are ready at one moment are read and stamped before anything is parsed, and a token that arrives alone, after the
processor has slept, does not pay for the loop's own way to it through a cold cache. A stream that is all there is to
wait for is waited for in a blocking read, which saves the way through epoll: a tenth of what a token costs.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
LONG_TURN_NS = 1_000_000
"""A turn of the loop (all that it does between two waits) that takes longer is remembered, ns."""
_KEPT_TURNS = 10_000
_READ_BYTES = 65536
_KEPT_READS = 64  # of a stream, before they are looked at
_ALONE_S = 0.04
READ_TIMEOUT = struct.pack("ll", 0, round(_ALONE_S * 1e6))
"""``SO_RCVTIMEO`` of a tapped socket: a lone stream that is silent for so long is left to epoll."""


class Tap:
    """A socket that the loop reads by itself; its end and its errors are left to the transport.

    Args:
        look: called when the reads should be looked at: the stream may be complete, or there are many.

    Attributes:
        reads: what was read and is not looked at yet, each with its moment.
        last_ns: the last moment at which something was read.
        ending: a read of five bytes or more that does not end with this cannot complete the stream.
        looking: ``look`` is about to be called.
        error: that broke the stream.
    """

    __slots__ = ("ending", "error", "last_ns", "look", "looking", "reads")

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look
        self.reads: list[tuple[int, bytes]] = []
        self.last_ns = 0
        self.ending = b""
        self.looking = False
        self.error: OSError | None = None

    def took(self, stamp_ns: int, data: bytes) -> bool:
        """Keep what was read; True when ``look`` is to be called for it."""
        self.last_ns = stamp_ns
        self.reads.append((stamp_ns, data))
        if self.looking or not (data.endswith(self.ending) or len(data) < 5 or len(self.reads) > _KEPT_READS):
            return False
        self.looking = True
        return True


class LoopTurns:
    """Remembers the long turns of a loop: while one lasts, nothing that arrives is given a time.

    Attributes:
        longest_ns: the longest turn so far; those that only read count from :data:`LONG_TURN_NS` on.
    """

    def __init__(self) -> None:
        self.longest_ns = 0
        self._long: deque[tuple[int, int]] = deque(maxlen=_KEPT_TURNS)

    def note(self, began_ns: int, ended_ns: int) -> None:
        """Note a turn: when a wait had ended, and when the next began."""
        took = ended_ns - began_ns
        self.longest_ns = max(self.longest_ns, took)
        if took > LONG_TURN_NS:
            self._long.append((began_ns, took))

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

    def __init__(self, turns: LoopTurns) -> None:
        super().__init__()
        self._turns = turns
        self._woke_ns = time.monotonic_ns()
        self.taps: dict[int, Tap] = {}
        self.later: deque[Callable[[], None]] = deque()

    if sys.platform == "linux":

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait and read the tapped sockets, until there is something else for the loop to do.

            One frame, for it runs once a token, mostly on a processor that has slept: every call is dear there.
            """
            poll, taps, later, clock = self._selector.poll, self.taps, self.later, time.monotonic_ns
            now = clock()
            self._turns.note(self._woke_ns, now)
            due = None if timeout is None else now + timeout * 1e9
            others, may_be_alone = False, True
            while not others:
                left_s = 0.0 if later else None if due is None else (due - now) / 1e9
                if left_s is None or left_s > 0.001:
                    ready = poll(left_s and left_s - 0.001)  # it rounds up to whole ms
                else:
                    if left_s > 0:
                        select.select([self.fileno()], [], [], left_s)
                    ready = poll(0)
                woke = now = clock()
                for descriptor, events in ready:
                    tap = taps.get(descriptor)
                    if tap is None or events != select.EPOLLIN:
                        others = True
                        continue
                    try:
                        data = os.read(descriptor, _READ_BYTES)
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        tap.error, others = error, True
                        continue
                    now = clock()
                    if not data:
                        others = True
                        continue
                    if tap.took(now, data):
                        later.append(tap.look)
                    elif may_be_alone:
                        may_be_alone = False  # once a turn: a stream that fell silent is left to epoll
                        if self._is_alone(descriptor):
                            woke = now = self._read_alone(descriptor, tap, now, due)
                if later:  # one at a time, with what it leads to: the next when what came meanwhile is read
                    later.popleft()()
                    break
                if due is not None and now >= due:
                    break
                if now - woke > LONG_TURN_NS:
                    self._turns.note(woke, now)
            self._woke_ns = woke
            return super().select(0) if others else []  # what is read no longer shows, all else still does

        def _is_alone(self, descriptor: int) -> bool:
            """Whether this socket, with nothing to write, is all there is to wait for beside the loop's own pipe."""
            return (
                len(self.taps) == 1
                and len(self.get_map()) == 2
                and self.get_map()[descriptor].events == selectors.EVENT_READ
            )

        def _read_alone(self, descriptor: int, tap: Tap, now: int, due: float | None) -> int:
            """Wait in blocking reads until the stream may be complete, ends or is silent, a timer is near, or for 1 s.

            Returns:
                when it woke last.
            """
            read, clock, took = os.read, time.monotonic_ns, tap.took
            until = now + 1e9 if due is None else min(now + 1e9, due - 1.5e9 * _ALONE_S)
            os.set_blocking(descriptor, True)
            try:
                while now < until and (data := read(descriptor, _READ_BYTES)):
                    now = clock()
                    if took(now, data):
                        self.later.append(tap.look)
                        break
            except BlockingIOError:
                now = clock()
            except OSError as error:
                tap.error = error
            finally:
                os.set_blocking(descriptor, False)
            return now

    else:

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """Wait, with the turns of the loop noted."""
            self._turns.note(self._woke_ns, time.monotonic_ns())
            ready = super().select(timeout)
            self._woke_ns = time.monotonic_ns()
            return ready


class MeasuringLoop(asyncio.SelectorEventLoop):
    """A loop with fine timers and taps that writes its long turns down."""

    def __init__(self, turns: LoopTurns) -> None:
        self._fine = _FineSelector(turns)
        super().__init__(self._fine)

    def tap(self, descriptor: int, tap: Tap | None) -> None:
        """Read a socket before any callback; None leaves it to its transport again.

        The socket has :data:`READ_TIMEOUT`, for the loop may wait in a blocking read of it.
        """
        if tap is None:
            self._fine.taps.pop(descriptor, None)
        else:
            self._fine.taps[descriptor] = tap

    def look_again(self, tap: Tap) -> None:
        """Call ``look`` once more when all sockets that are ready now are read."""
        tap.looking = True
        self._fine.later.append(tap.look)


class PlainTransport(asyncio.Transport):
    """A connected socket's transport: asyncio's takes three turns of the loop to open and one to close, this none.

    Args:
        loop: that serves it.
        sock: connected, not blocking.
        protocol: is given what no tap has read, and the end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": sock})
        self._loop, self._sock, self._descriptor, self._unsent = loop, sock, sock.fileno(), memoryview(b"")
        self._protocol: asyncio.Protocol | None = protocol
        loop.add_reader(self._descriptor, self._read)  # by number: asyncio prints what is new to it, sockets at a cost
        protocol.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The protocol always learns when bytes wait and when all have left."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; the protocol is paused while the system does not take all."""
        if self._unsent:
            self._unsent = memoryview(b"".join((self._unsent, data)))
            return
        self._unsent = memoryview(data)
        self._send()
        if self._unsent and self._protocol is not None:
            self._loop.add_writer(self._descriptor, self._send_more)
            self._protocol.pause_writing()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(error)

    def _send_more(self) -> None:
        self._send()
        if not self._unsent and self._protocol is not None:
            self._loop.remove_writer(self._descriptor)
            self._protocol.resume_writing()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(None)
        elif self._protocol is not None:
            self._protocol.data_received(data)

    def _end(self, error: OSError | None) -> None:
        protocol, self._protocol, self._unsent = self._protocol, None, memoryview(b"")
        if protocol is not None:
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._sock.close()
            protocol.connection_lost(error)

    def abort(self) -> None:
        """Close at once."""
        self._end(None)

    close = abort


def run(main: Coroutine[Any, Any, _T], turns: LoopTurns | None = None) -> _T:
    """Run a coroutine to its end on a fresh loop with fine timers.

    Args:
        main: what to run.
        turns: where the loop's long turns are written down; None drops them.
    """
    with asyncio.Runner(loop_factory=lambda: new_loop(turns)) as runner:
        return runner.run(main)


def new_loop(turns: LoopTurns | None = None) -> MeasuringLoop:
    """A loop with fine timers and taps that writes its long turns down."""
    return MeasuringLoop(turns or LoopTurns())


async def sleep_until(due_ns: int) -> None:
    """Sleep until a moment of ``time.monotonic_ns()``."""
    left = due_ns - time.monotonic_ns()
    if left > 0:
        await asyncio.sleep(left / 1e9)

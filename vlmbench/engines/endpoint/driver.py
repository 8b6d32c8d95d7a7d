"""Load: closed loop and open loop, warm-up and steady state, and what the client itself cost.

Latency counts from the intended send time: in an open loop that is the arrival, whatever the server or this client was
doing then, so that a server that stalls makes every request late that would have come meanwhile (no coordinated
omission). In a closed loop a user's next request is due when the last answer has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from vlmbench.engines.endpoint.client import Connection, ExchangeError
from vlmbench.engines.endpoint.exchange import Exchanger, Order, Result
from vlmbench.engines.endpoint.loop import sleep_until
from vlmbench.engines.endpoint.settings import Load

_LOOK_EVERY_S = 1.0  # how often the wish to stop is looked for: each look wakes a loop that waits for a token
_LEAD_NS = 50_000_000  # connections of an open loop are opened this long before their request is due
START_NS = 100_000_000
"""From the start of an open loop to time 0 of its arrivals."""


class Role(StrEnum):
    """What a request is sent for."""

    WARMUP = "warmup"  # sent first, kept apart
    MEASURED = "measured"
    FILLER = "filler"  # keeps the load up until the last measured one has ended


@dataclass(frozen=True, kw_only=True)
class LoadFacts:
    """What a load was like and what it cost the client.

    Args:
        wall_s: from the first due time to the last answer.
        cpu_s: processor time of this process meanwhile.
        longest_turn_ms: the longest time in which the client's loop took no note of arrivals.
        sent: requests by role.
        failed: requests that gave no answer, by error class.
        window_s: from the first due time of a measured request to the end of the last.
        fillers_used_up: there were no more requests to keep the load up to the end.
    """

    wall_s: float
    cpu_s: float
    longest_turn_ms: float
    sent: dict[str, int]
    failed: dict[str, int]
    window_s: float
    fillers_used_up: bool


@dataclass(kw_only=True)
class Sending:
    """What is sent next, for what, and what became of it; how it travels is a subclass's matter.

    Args:
        load: how requests are sent.
        measured: what is measured, in order.
        spare: requests for warm-up first and for fillers then; each is sent once.
        arrivals: due times of an open loop, s.
        took: given each result with its role, as it comes.
        stop_requested: asked often; True ends the load without waiting for answers.
        now_ns: the clock.
    """

    load: Load
    measured: Sequence[Order]
    spare: Sequence[Order]
    arrivals: Iterator[float]
    took: Callable[[Result, Role], None]
    stop_requested: Callable[[], bool] = lambda: False
    now_ns: Callable[[], int] = time.monotonic_ns
    _spare: Iterator[Order] = field(init=False)
    _queue: Iterator[Order] = field(init=False)
    _warmups_left: int = field(init=False)
    _open: int = field(init=False, default=0)  # measured requests without a result
    _stopped: bool = field(init=False, default=False)
    _used_up: bool = field(init=False, default=False)
    _sent: dict[str, int] = field(init=False, default_factory=dict)
    _failed: dict[str, int] = field(init=False, default_factory=dict)
    _window: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._spare = iter(self.spare)
        self._queue = iter(self.measured)
        self._warmups_left = min(self.load.warmups, len(self.spare))
        self._open = len(self.measured)

    def _next(self) -> tuple[Role, Order] | None:
        """The next request and what it is sent for; None when the load may end."""
        if self._stopped:
            return None
        if self._warmups_left:
            self._warmups_left -= 1
            return Role.WARMUP, next(self._spare)
        order = next(self._queue, None)
        if order is not None:
            return Role.MEASURED, order
        if not self._open or not self.load.warmups:
            return None
        order = next(self._spare, None)
        self._used_up = self._used_up or order is None
        return None if order is None else (Role.FILLER, order)

    def _facts(self, begin_ns: int, cpu_s: float, longest_turn_ms: float) -> LoadFacts:
        """What the load was like, from when it began and the processor time that was spent before."""
        return LoadFacts(
            wall_s=(self.now_ns() - begin_ns) / 1e9,
            cpu_s=time.process_time() - cpu_s,
            longest_turn_ms=longest_turn_ms,
            sent=self._sent,
            failed=self._failed,
            window_s=(self._window[1] - self._window[0]) / 1e9 if self._window else 0.0,
            fillers_used_up=self._used_up,
        )

    def _note(self, role: Role, result: Result, due_ns: int, attempt: int, *, last: bool) -> None:
        """Count a result and pass it on; one that the stop cut off is dropped, and measured when the run goes on."""
        if self._stopped and not result.ok:
            return
        self._sent[role] = self._sent.get(role, 0) + 1
        if result.error_class is not None:
            self._failed[result.error_class] = self._failed.get(result.error_class, 0) + 1
        if role is Role.MEASURED:
            self._open -= last
            now = self.now_ns()
            self._window = [min([due_ns, *self._window[:1]]), now]
        flags = (*result.flags, "retry") if attempt else result.flags
        values = {**result.values, "attempt": attempt, "due_s": due_ns / 1e9}
        self.took(replace(result, values=values, flags=flags), role)


@dataclass(kw_only=True)
class Driver(Sending):
    """Sends the requests of one point to a server.

    Args:
        exchanger: sends one.
    """

    exchanger: Exchanger
    _in_flight: int = field(init=False, default=0)  # sent and not ended
    _outstanding: int = field(init=False, default=0)  # of an open loop: with those whose connection is being opened

    async def run(self) -> LoadFacts:
        """Send everything; returns what it cost."""
        self.exchanger.turns.reset()
        begin_ns, cpu = time.monotonic_ns(), time.process_time()
        work = asyncio.create_task(self._open_loop() if self.load.kind == "open" else self._closed_loop())
        self._look_for_stop(work)
        try:
            await asyncio.wait([work])
        finally:
            self.exchanger.abandon()
            work.cancel()
        if not work.cancelled():
            work.result()
        return self._facts(begin_ns, cpu, self.exchanger.turns.longest_ns / 1e6)

    def _look_for_stop(self, work: asyncio.Task[None]) -> None:
        """End the work when that is wished, else look again later; a callback costs half of a task's turn."""
        if work.done():
            return
        if self.stop_requested():
            self._stopped = True
            self.exchanger.abandon()
            work.cancel()
        else:
            asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look_for_stop, work)

    async def _closed_loop(self) -> None:
        users = self.load.concurrency if self.load.kind == "closed" else 1
        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(self._user())

    async def _user(self) -> None:
        while (found := self._next()) is not None:
            role, order = found
            payload = self.exchanger.payload(order.body)
            for attempt in range(self.load.retries + 1):
                due_ns = time.monotonic_ns()
                try:
                    connection = await self.exchanger.connection()
                except ExchangeError as error:
                    result = self.exchanger.not_sent(order, due_ns, error.kind, str(error))
                else:
                    due_ns = time.monotonic_ns()  # opening a connection is apart
                    result = await self._exchange(order, payload, connection, due_ns)
                last = result.ok or attempt == self.load.retries
                self._note(role, result, due_ns, attempt, last=last)
                if last or self._stopped:
                    break

    async def _open_loop(self) -> None:
        start_ns = time.monotonic_ns() + START_NS
        async with asyncio.TaskGroup() as group:
            for offset in self.arrivals:
                due_ns = start_ns + round(offset * 1e9)
                await sleep_until(due_ns - _LEAD_NS)
                found = self._next()
                if found is None:
                    break
                group.create_task(self._arrival(*found, due_ns))

    async def _arrival(self, role: Role, order: Order, due_ns: int) -> None:
        """A request of an open loop: connected ahead, sent when it is due."""
        for attempt in range(self.load.retries + 1):
            if self._outstanding >= self.load.max_outstanding:
                reason = f"{self._outstanding} requests were unanswered (load.max_outstanding)"
                await sleep_until(due_ns)
                result = self.exchanger.not_sent(order, due_ns, "not_sent", reason)
            else:
                self._outstanding += 1
                result = await self._when_due(order, due_ns)
                self._outstanding -= 1
            last = result.ok or attempt == self.load.retries
            self._note(role, result, due_ns, attempt, last=last)
            if last or self._stopped:
                break

    async def _when_due(self, order: Order, due_ns: int) -> Result:
        payload = self.exchanger.payload(order.body)
        try:
            connection = await self.exchanger.connection()
        except ExchangeError as error:
            await sleep_until(due_ns)
            return self.exchanger.not_sent(order, due_ns, error.kind, str(error))
        await sleep_until(due_ns)
        return await self._exchange(order, payload, connection, due_ns)

    async def _exchange(self, order: Order, payload: bytes, connection: Connection, due_ns: int) -> Result:
        before = self._in_flight
        self._in_flight += 1
        try:
            result = await self.exchanger.send(order, payload, connection, due_ns)
        finally:
            self._in_flight -= 1
        return replace(result, values={**result.values, "in_flight_at_start": before})

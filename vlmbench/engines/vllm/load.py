"""Load on the engine of this process: requests join it when they are due, between its steps.

Roles, arrivals and rows are those of a load on a server (:mod:`vlmbench.engines.endpoint.driver`). What differs is the
way: the engine and whoever asks it share one thread, so a request that falls due during a step joins after it, as at a
server, whose engine looks for new requests between steps, too. Steps serve several requests at once: none of their time
is split among requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vlmbench.engines.endpoint.answer import gaps_ms
from vlmbench.engines.endpoint.driver import START_NS, LoadFacts, Role, Sending
from vlmbench.engines.endpoint.exchange import Order, Result
from vlmbench.engines.vllm.marks import Call, wrapped

if TYPE_CHECKING:
    from vlmbench.engines.vllm.model import VllmModel

_NAP_S = 0.05  # the longest sleep between two looks for the wish to stop


@dataclass(frozen=True, kw_only=True)
class Ready(Order):
    """A request whose inputs are made.

    Args:
        prepared: as the engine takes it.
    """

    prepared: Any


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a step gave to a request.

    Args:
        name: of the request.
        tokens: that were handed out.
        ended: why the answer is over; None while it goes on.
        values: the engine's own statistics, once it is over.
    """

    name: str
    tokens: int
    ended: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


class Stepped(Protocol):
    """An engine that is stepped by whoever asks it."""

    def watched(self, ran: Callable[[Sequence[str]], None]) -> AbstractContextManager[None]:
        """Tell the names of the requests of every step, until left."""

    def add(self, order: Ready) -> str:
        """Let a request join; returns its name."""

    def step(self) -> Sequence[Given]:
        """Run one step of all requests."""

    def abort(self, names: Sequence[str]) -> None:
        """Let requests go without an answer."""


@dataclass(kw_only=True)
class _UnderWay:
    """A request that the engine has."""

    order: Order
    role: Role
    due_ns: int
    begun_ns: int
    before: int
    stamps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    shared: int = 0


@dataclass(kw_only=True)
class EngineDriver(Sending):
    """Sends the requests of one point into an engine, and steps it.

    Args:
        engine: that answers.
        sleep: waits some seconds, where the engine has nothing to do before the next arrival.
    """

    engine: Stepped
    sleep: Callable[[float], None] = time.sleep
    _under_way: dict[str, _UnderWay] = field(init=False, default_factory=dict)
    _due: int | None = field(init=False, default=None)  # of the next arrival of an open loop
    _start_ns: int = field(init=False, default=0)

    def run(self) -> LoadFacts:
        """Send everything; returns what the load was like."""
        begin_ns, cpu_s = self.now_ns(), time.process_time()
        self._start_ns = begin_ns + START_NS
        self._arrive()
        with self.engine.watched(self._ran):
            while not self._stopped:
                if self.stop_requested():
                    self._stopped = True
                    self.engine.abort(list(self._under_way))
                    break
                self._join()
                if self._under_way:
                    self._step()
                elif self._due is None:
                    break
                else:
                    self.sleep(min(max(self._due - self.now_ns(), 0) / 1e9, _NAP_S))
        return self._facts(begin_ns, cpu_s, 0.0)

    def _arrive(self) -> None:
        """Look when the next request of an open loop is due."""
        offset = next(self.arrivals, None) if self.load.kind == "open" else None
        self._due = None if offset is None else self._start_ns + round(offset * 1e9)

    def _join(self) -> None:
        """Let everything that is due join the engine."""
        if self.load.kind != "open":
            users = self.load.concurrency if self.load.kind == "closed" else 1
            while len(self._under_way) < users and (found := self._next()) is not None:
                self._add(*found, self.now_ns())
            return
        while self._due is not None and self._due <= self.now_ns():
            due_ns, found = self._due, self._next()
            if found is None:
                self._due = None
                return
            self._arrive()
            if len(self._under_way) < self.load.max_outstanding:
                self._add(*found, due_ns)
            else:
                self._refuse(*found, due_ns)

    def _add(self, role: Role, order: Order, due_ns: int) -> None:
        assert isinstance(order, Ready)
        begun_ns, before = self.now_ns(), len(self._under_way)
        name = self.engine.add(order)
        self._under_way[name] = _UnderWay(order=order, role=role, due_ns=due_ns, begun_ns=begun_ns, before=before)

    def _refuse(self, role: Role, order: Order, due_ns: int) -> None:
        reason = f"{len(self._under_way)} requests were unanswered (load.max_outstanding)"
        late = (self.now_ns() - due_ns) / 1e6
        values = {**order.values, "T_late": late, "error_class": "not_sent"}
        result = Result(order=order, ok=False, values=values, reason=reason, error_class="not_sent")
        self._note(role, result, due_ns, 0, last=True)

    def _ran(self, names: Sequence[str]) -> None:
        for name in names:
            if (one := self._under_way.get(name)) is not None:
                one.steps += 1
                one.shared += len(names) > 1

    def _step(self) -> None:
        given = self.engine.step()
        now_ns = self.now_ns()
        over = []
        for some in given:
            one = self._under_way[some.name]
            if some.tokens:
                one.stamps.append(now_ns)
                one.tokens.append(some.tokens)
            if some.ended is not None:
                del self._under_way[some.name]
                over.append((one, some))
        for one, some in over:
            self._note(one.role, _result(one, some, now_ns), one.due_ns, 0, last=True)


def _result(one: _UnderWay, some: Given, now_ns: int) -> Result:
    """The values of a request that is over."""

    def since_due(stamp_ns: int) -> float:
        return (stamp_ns - one.due_ns) / 1e6

    stamps, count = one.stamps, sum(one.tokens)
    values: dict[str, Any] = {
        **one.order.values,
        "T_late": since_due(one.begun_ns),
        "T_end": since_due(now_ns),
        "in_flight_at_start": one.before,
        "num_output_tokens": count,
        "output_forced": one.order.forced,
        "finish_reason": some.ended,
        "engine_steps": one.steps,
        "engine_steps_shared": one.shared,
        **some.values,
    }
    if not stamps:
        reason = "vLLM ended the request without a token"
        return Result(order=one.order, ok=False, values=values, reason=reason, error_class="no_tokens")
    values |= {"TTFT": since_due(stamps[0]), "T_request": since_due(stamps[-1])}
    values["ITL"] = [round(gap, 4) for gap in gaps_ms(stamps, tuple(one.tokens))]
    if after_first := sum(one.tokens[1:]):
        values["TPOT"] = (stamps[-1] - stamps[0]) / 1e6 / after_first
    flags = ("output_length_differs",) if one.order.forced and count != one.order.asked_tokens else ()
    return Result(order=one.order, ok=True, values=values, flags=flags)


@dataclass(kw_only=True)
class InVllm:
    """vLLM in this process, stepped.

    Args:
        model: loaded.
    """

    model: VllmModel
    _names: dict[str, str] = field(init=False, default_factory=dict)  # inside the engine to outside

    @contextmanager
    def watched(self, ran: Callable[[Sequence[str]], None]) -> Iterator[None]:
        """Tell the names of the requests of every step, until left."""

        def scheduling(call: Call) -> Call:
            def schedule(*args: Any, **kwargs: Any) -> Any:
                output = call(*args, **kwargs)
                ran([self._names[name] for name in output.num_scheduled_tokens])
                return output

            return schedule

        with wrapped(self.model.engine.engine_core.engine_core.scheduler, "schedule", scheduling):
            yield

    def add(self, order: Ready) -> str:
        """Let a request join; returns its name."""
        name, internal = self.model.add(order.prepared.requests[0])
        self._names[internal] = name
        return name

    def step(self) -> list[Given]:
        """Run one step of all requests."""
        from vlmbench.engines.vllm.model import statistics

        given = []
        for output in self.model.engine.step():
            answer = output.outputs[0]
            ended = str(answer.finish_reason) if output.finished else None
            values = statistics(output.metrics) if output.finished and output.metrics is not None else {}
            given.append(Given(name=output.request_id, tokens=len(answer.token_ids), ended=ended, values=values))
        return given

    def abort(self, names: Sequence[str]) -> None:
        """Let requests go without an answer."""
        self.model.engine.abort_request(list(names))

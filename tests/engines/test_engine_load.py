"""Load on an engine of this process, in planted time: who joins when, and what counts from the due moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from vlmbench.engines.endpoint.driver import START_NS, LoadFacts, Role
from vlmbench.engines.endpoint.exchange import Result
from vlmbench.engines.endpoint.settings import Load
from vlmbench.engines.vllm.load import EngineDriver, Given, Ready

MS = 1_000_000


class Planted:
    """An engine whose steps take planted times; every step gives every request one token."""

    def __init__(self, *, step_ms: int = 10, tokens: int = 4, stalls: dict[int, int] | None = None) -> None:
        self.now = 0
        self.step_ms, self.tokens, self.stalls = step_ms, tokens, stalls or {}
        self.left: dict[str, int] = {}
        self.ran: Callable[[Sequence[str]], None] = lambda _: None
        self.steps = self.most = 0
        self.aborted: list[str] = []

    @contextmanager
    def watched(self, ran: Callable[[Sequence[str]], None]) -> Iterator[None]:
        self.ran = ran
        yield

    def add(self, order: Ready) -> str:
        name = f"{order.sample_id}-{len(self.left)}-{self.now}"
        self.left[name] = self.tokens
        self.most = max(self.most, len(self.left))
        return name

    def step(self) -> list[Given]:
        self.ran(list(self.left))
        self.now += (self.step_ms + self.stalls.get(self.steps, 0)) * MS
        self.steps += 1
        given = []
        for name in list(self.left):
            self.left[name] -= 1
            over = not self.left[name]
            given.append(
                Given(name=name, tokens=1, ended="length" if over else None, values={"engine_queued_time": 0.0})
            )
            if over:
                del self.left[name]
        return given

    def abort(self, names: Sequence[str]) -> None:
        self.aborted += names

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def orders(count: int, name: str, tokens: int = 4) -> list[Ready]:
    return [
        Ready(sample_id=f"{name}{i}", repeat=0, body=b"", asked_tokens=tokens, forced=True, prepared=None)
        for i in range(count)
    ]


def send(
    engine: Planted,
    load: Load,
    count: int,
    *,
    arrivals: Sequence[float] = (),
    spare: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[tuple[Role, Result]], LoadFacts]:
    found: list[tuple[Role, Result]] = []
    driver = EngineDriver(
        engine=engine,
        load=load,
        measured=orders(count, "m"),
        spare=orders(spare, "s"),
        arrivals=iter(arrivals),
        took=lambda result, role: found.append((role, result)),
        stop_requested=stop,
        now_ns=lambda: engine.now,
        sleep=engine.sleep,
    )
    return found, driver.run()


def values(found: list[tuple[Role, Result]], name: str) -> list[Any]:
    return [result.values[name] for role, result in found if role is Role.MEASURED]


def test_users_of_a_closed_loop_ask_again_when_they_are_answered() -> None:
    engine = Planted()
    found, facts = send(engine, Load(kind="closed", concurrency=3, warmup_requests=0), 6)
    assert engine.most == 3
    assert engine.steps == 8, "two rounds of four tokens"
    assert values(found, "T_late") == [0.0] * 6
    assert values(found, "TTFT") == [10.0] * 6
    assert values(found, "T_request") == [40.0] * 6
    assert values(found, "ITL") == [[10.0] * 3] * 6
    assert values(found, "TPOT") == [10.0] * 6
    assert values(found, "due_s") == [0.0] * 3 + [0.04] * 3
    assert values(found, "in_flight_at_start") == [0, 1, 2] * 2
    assert values(found, "engine_steps") == values(found, "engine_steps_shared") == [4] * 6
    assert (facts.sent, facts.failed, facts.window_s) == ({"measured": 6}, {}, 0.08)


def test_alone_no_step_is_shared() -> None:
    found, _ = send(Planted(), Load(warmup_requests=0), 2)
    assert values(found, "engine_steps") == [4, 4]
    assert values(found, "engine_steps_shared") == [0, 0]


def test_warmups_come_first_and_fillers_keep_the_load_up() -> None:
    engine = Planted()
    found, facts = send(engine, Load(kind="closed", concurrency=2, warmup_requests=2), 3, spare=6)
    assert [role for role, _ in found][:2] == [Role.WARMUP] * 2
    assert facts.sent == {"warmup": 2, "measured": 3, "filler": 1}
    last = [result for role, result in found if role is Role.MEASURED][-1]
    assert last.values["engine_steps_shared"] == 4, "the last measured one is not alone"


def test_a_stall_is_in_the_latency_of_all_that_came_meanwhile() -> None:
    """Ten a second, one token each; the step of the fifth request takes 2 s longer."""
    engine = Planted(tokens=1, stalls={4: 2000})
    due = [i / 10 for i in range(40)]
    found, _ = send(
        engine, Load(kind="open", rate_per_s=10.0, arrivals="constant", warmup_requests=0), 40, arrivals=due
    )
    late = values(found, "T_late")
    assert late[:5] == [0.0] * 5
    # due 0.1, 0.2 … 2.0 s after the stalled request; all join when its step is over, 2.01 s after it was due
    assert late[5:25] == [2010.0 - 100.0 * i for i in range(1, 21)]
    assert late[25:] == [0.0] * 15
    assert values(found, "TTFT") == [x + 10 + (2000 if i == 4 else 0) for i, x in enumerate(late)]
    assert values(found, "due_s") == pytest.approx([START_NS / 1e9 + at for at in due])
    assert engine.most == 20


def test_what_cannot_be_sent_is_an_error_row() -> None:
    load = Load(kind="open", rate_per_s=1.0, arrivals="constant", warmup_requests=0, max_outstanding=2)
    found, facts = send(Planted(), load, 4, arrivals=[0.0] * 4)
    assert [result.error_class for _, result in found] == ["not_sent", "not_sent", None, None]
    assert found[0][1].reason == "2 requests were unanswered (load.max_outstanding)"
    assert (facts.sent, facts.failed) == ({"measured": 4}, {"not_sent": 2})


def test_a_stop_lets_requests_go_without_rows() -> None:
    engine = Planted()
    found, facts = send(
        engine, Load(kind="closed", concurrency=2, warmup_requests=0), 6, stop=lambda: engine.steps >= 6
    )
    assert len(found) == 2
    assert len(engine.aborted) == 2
    assert facts.sent == {"measured": 2}

"""Marks without synchronisation: device events by a fake CUDA with planted times, the real one where there is a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from tests.probes.fake_cuda import FakeCuda
from vlmbench.machine.clock import EventClock, HostClock, clock_for, synchronize

ONE, TWO = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def marked(clock: EventClock, cuda: FakeCuda, times: list[tuple[torch.device, float]]) -> list[float]:
    for device, now in times:
        cuda.now_ms[device.index or 0] = now
        clock.marker("", device)()
    return clock.read()


def test_marks_are_times_since_the_origin(cuda: FakeCuda) -> None:
    clock = EventClock([ONE])
    cuda.now_ms[0] = 1000.0
    clock.begin()
    assert marked(clock, cuda, [(ONE, 1000.5), (ONE, 1002.0), (ONE, 1007.25)]) == [0.5, 2.0, 7.25]


def test_each_device_has_an_origin_of_its_own(cuda: FakeCuda) -> None:
    clock = EventClock([ONE, TWO])
    cuda.now_ms = {0: 100.0, 1: 900.0}  # clocks of two devices have nothing in common
    clock.begin()
    assert marked(clock, cuda, [(ONE, 101.0), (TWO, 905.0), (ONE, 108.0)]) == [1.0, 5.0, 8.0]


def test_a_mark_without_a_known_device_is_the_main_ones(cuda: FakeCuda) -> None:
    clock = EventClock([TWO, ONE])
    clock.begin()
    cuda.now_ms[1] = 3.0
    clock.marker("none")()
    clock.marker("another", torch.device("cpu"))("whatever", a="hook is called with")
    assert clock.read() == [3.0, 3.0]
    assert clock.labels == ["none", "another"]


def test_nothing_synchronises_and_nothing_is_read_before_the_end(cuda: FakeCuda) -> None:
    clock = EventClock([ONE, TWO])
    one, two = clock.marker("one", ONE), clock.marker("two", TWO)
    clock.begin()
    cuda.log.clear()
    for _ in range(100):
        one()
        two()
    assert cuda.log == [("record", 0), ("record", 1)] * 100, "no stream is looked up, nothing is waited for"


def test_events_are_made_ahead_and_used_again(cuda: FakeCuda) -> None:
    clock = EventClock([ONE])
    mark = clock.marker("", ONE)
    ahead = cuda.created - 1  # without the origin
    assert cuda.count("record") == ahead, "an event is created when it is recorded first"
    for marks in (5, ahead, 3):
        clock.begin()
        for _ in range(marks):
            mark()
        assert len(clock.read()) == len(clock.read_host()) == len(clock.labels) == marks, "no mark of the run before"
    assert cuda.created == 1 + ahead, "none within a run"
    for _ in range(2):
        clock.begin()
        for _ in range(ahead + 2):
            mark()
    assert cuda.created == 1 + ahead + 2, "a longer run makes what it lacks, once"


def test_the_host_sets_marks_in_order_whatever_the_device_does(cuda: FakeCuda) -> None:
    clock = EventClock([ONE])
    mark = clock.marker("")
    clock.begin()
    for _ in range(4):
        mark()
    host = clock.read_host()
    assert host == sorted(host)
    assert host[0] >= 0


def test_synchronising_is_done_on_every_device_that_can(cuda: FakeCuda) -> None:
    synchronize([ONE, torch.device("cpu"), TWO])
    assert cuda.log == [("synchronize", 0), ("synchronize", 1)]


def test_which_clock_a_device_gets() -> None:
    assert isinstance(clock_for([torch.device("cpu")]), HostClock)
    assert isinstance(clock_for([ONE]), EventClock)


def test_the_host_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10_000_000, 11_500_000, 13_000_000, 20_000_000])
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(times))
    clock = HostClock()
    clock.begin()
    clock.marker("one")()
    clock.marker("two", torch.device("cpu"))()
    assert clock.labels == ["one", "two"]
    assert clock.read() == clock.read_host() == [1.5, 3.0]
    clock.begin()
    assert clock.read() == []


@pytest.mark.gpu
def test_events_of_a_gpu_tell_how_long_it_worked() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    clock = EventClock([torch.device("cuda", torch.cuda.current_device())])
    mark = clock.marker("")
    a = torch.randn(4096, 4096, device="cuda")
    for _ in range(2):
        _ = a @ a
        synchronize([a.device])
        began = time.perf_counter_ns()
        clock.begin()
        mark()
        for _ in range(20):
            _ = a @ a
        mark()
        synchronize([a.device])
        elapsed = (time.perf_counter_ns() - began) / 1e6
        first, last = clock.read()
        assert 0 <= first < last <= elapsed * 1.05
        assert clock.read_host()[1] < last, "the host is ahead of the device"

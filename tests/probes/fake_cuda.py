"""The part of ``torch.cuda`` that the clock uses, with planted times and a log of who asked for what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch

from vlmbench.machine.clock import Clock, EventClock
from vlmbench.testing.planted import PlantedModel


@dataclass
class FakeCuda:
    """Devices whose clocks stand where the test puts them.

    Attributes:
        now_ms: device index to the time on its own clock.
        log: (what, device index) in order.
        created: how many events were made.
    """

    now_ms: dict[int, float] = field(default_factory=lambda: {0: 0.0, 1: 0.0})
    log: list[tuple[str, int]] = field(default_factory=list)
    created: int = 0
    current: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("synchronize", "Event", "device", "current_stream", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"_{name}"))

    def count(self, what: str) -> int:
        return sum(name == what for name, _ in self.log)

    def _synchronize(self, device: torch.device | None = None) -> None:
        self.log.append(("synchronize", _index(device)))

    def _empty_cache(self) -> None:
        self.log.append(("empty_cache", self.current))

    def _current_stream(self, device: torch.device | None = None) -> int:
        self.log.append(("current_stream", _index(device)))
        return _index(device)

    @contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, _index(device)
        yield
        self.current = before

    def _Event(self, *, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        self.created += 1
        return FakeEvent(self, self.current)


class FakeEvent:
    def __init__(self, cuda: FakeCuda, device: int) -> None:
        self.cuda, self.device, self.at_ms = cuda, device, float("nan")

    def record(self, stream: int) -> None:
        assert stream == self.device, "an event is recorded on a stream of its own device"
        self.at_ms = self.cuda.now_ms[stream]
        self.cuda.log.append(("record", stream))

    def elapsed_time(self, other: FakeEvent) -> float:
        assert other.device == self.device, "events of two devices cannot be compared"
        self.cuda.log.append(("elapsed_time", self.device))
        return other.at_ms - self.at_ms


def _index(device: torch.device | None) -> int:
    return 0 if device is None or device.index is None else device.index


class OnFakeCuda(PlantedModel):
    """A planted model that says that it is on CUDA devices."""

    count = 1

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    @property
    def devices(self) -> list[torch.device]:
        return [torch.device("cuda", index) for index in range(self.count)]

    @cached_property
    def clock(self) -> Clock:
        return EventClock(self.devices)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**super().facts, "other_gpus": []}

"""Clocks that set marks without synchronising: device events on CUDA and MPS, ``perf_counter_ns`` on the CPU.

A mark costs about 11 µs on CUDA (recording an event), well under 1 µs on the CPU. Events come from a pool, because
creating one costs 2 µs more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Clock(Protocol):
    """Sets marks during a run; reads them afterwards."""

    def begin(self) -> None:
        """Forget all marks; the device is idle now."""

    def mark(self, device: torch.device | None = None) -> None:
        """Set the next mark, on the stream of ``device`` (the model's main device when None)."""

    def read(self) -> list[float]:
        """Times of all marks in ms since :meth:`begin`; the device must be idle."""

    def read_host(self) -> list[float]:
        """Times at which the host set the marks, ms since :meth:`begin`."""


class HostClock:
    """The CPU's own clock."""

    def __init__(self) -> None:
        self._marks: list[int] = []
        self._origin = 0

    def begin(self) -> None:
        """Forget all marks."""
        self._marks = []
        self._origin = time.perf_counter_ns()

    def mark(self, device: torch.device | None = None) -> None:  # noqa: ARG002 – one clock for all devices
        """Set the next mark."""
        self._marks.append(time.perf_counter_ns())

    def read(self) -> list[float]:
        """Times of all marks, ms."""
        return [(t - self._origin) / 1e6 for t in self._marks]

    def read_host(self) -> list[float]:
        """The same: the host is the device."""
        return self.read()


class EventClock:
    """Device events, on one or several devices of one kind.

    Events of different CUDA devices cannot be compared, so each device gets an origin of its own, recorded while all
    are idle; an offset of a few µs between the origins remains and shows up in ``T_residual``.

    Args:
        devices: every device that holds a part of the model; the first is the main one.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        self._devices = devices
        self._pool: dict[torch.device, list[Any]] = {d: [] for d in devices}
        self._marks: list[tuple[torch.device, Any, int]] = []
        self._origins: dict[torch.device, Any] = {}
        self._streams: dict[torch.device, tuple[Any, ...]] = {}
        self._origin_ns = 0

    def _event(self, device: torch.device) -> Any:
        import torch

        if self._pool[device]:
            return self._pool[device].pop()
        if device.type == "mps":  # untested: no such machine was at hand
            mps_event: Any = torch.mps.Event
            return mps_event(enable_timing=True)
        with torch.cuda.device(device):
            cuda_event: Any = torch.cuda.Event
            return cuda_event(enable_timing=True)

    def begin(self) -> None:
        """Give the events back to the pool and set each device's origin."""
        for device, event, _ in self._marks:
            self._pool[device].append(event)
        self._marks = []
        for device in self._devices:
            if device not in self._origins:
                self._origins[device] = self._event(device)
            self._streams[device] = _current_stream(device)
            self._origins[device].record(*self._streams[device])
        self._origin_ns = time.perf_counter_ns()

    def mark(self, device: torch.device | None = None) -> None:
        """Record an event on the device's current stream."""
        where = device if device in self._pool else self._devices[0]
        assert where is not None
        event = self._event(where)
        event.record(*self._streams[where])
        self._marks.append((where, event, time.perf_counter_ns()))

    def read(self) -> list[float]:
        """Times of all marks, ms, each since its device's origin."""
        return [self._origins[device].elapsed_time(event) for device, event, _ in self._marks]

    def read_host(self) -> list[float]:
        """When the host set the marks, ms: with work queued, earlier than the device reached them."""
        return [(t - self._origin_ns) / 1e6 for _, _, t in self._marks]


def _current_stream(device: torch.device) -> tuple[Any, ...]:
    """Arguments of ``record``: looked up once a run, because each look-up costs a few µs of the host."""
    import torch

    return (torch.cuda.current_stream(device),) if device.type == "cuda" else ()


def clock_for(devices: list[torch.device]) -> Clock:
    """Device events where the devices have them, the host clock elsewhere."""
    if devices[0].type in ("cuda", "mps"):
        return EventClock(devices)
    return HostClock()


def synchronize(devices: list[torch.device]) -> None:
    """Wait until the devices are idle; nothing to wait for on a CPU."""
    import torch

    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

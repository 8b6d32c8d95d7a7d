"""Clocks that set marks without synchronising: device events on CUDA and MPS, ``perf_counter_ns`` on the CPU.

A mark is one Python call. On CUDA nearly all of it is recording an event: 2 µs on an idle H200, up to 11 µs behind work
that is queued; on the CPU it is well under 1 µs. Events are made before a run, because creating one costs 2 µs more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Marker = Callable[..., None]
"""Sets a mark; takes whatever it is called with, so that it can stand where a hook is asked for."""

_AHEAD = 256  # events made before the first run: the marks of 80 tokens


class Clock(Protocol):
    """Sets marks during a run; reads them afterwards."""

    def begin(self) -> None:
        """Forget all marks; the device is idle now."""

    def marker(self, label: object, device: torch.device | None = None) -> Marker:
        """What sets a mark on the stream of ``device`` (the main one when None); asked for before a run."""

    @property
    def labels(self) -> list[Any]:
        """Labels of all marks since :meth:`begin`."""

    def read(self) -> list[float]:
        """Times of all marks in ms since :meth:`begin`; the device must be idle."""

    def read_host(self) -> list[float]:
        """Times at which the host set the marks, ms since :meth:`begin`."""


class HostClock:
    """The CPU's own clock."""

    def __init__(self) -> None:
        self._marks: list[tuple[object, int]] = []
        self._origin = 0

    def begin(self) -> None:
        """Forget all marks."""
        self._marks.clear()
        self._origin = time.perf_counter_ns()

    def marker(self, label: object, device: torch.device | None = None) -> Marker:  # noqa: ARG002 – one clock for all
        """What sets a mark."""
        note, now = self._marks.append, time.perf_counter_ns

        def mark(*_: Any, **__: Any) -> None:
            note((label, now()))

        return mark

    @property
    def labels(self) -> list[Any]:
        """Labels of all marks."""
        return [label for label, _ in self._marks]

    def read(self) -> list[float]:
        """Times of all marks, ms."""
        return [(t - self._origin) / 1e6 for _, t in self._marks]

    def read_host(self) -> list[float]:
        """The same: the host is the device."""
        return self.read()


class _Lane:
    """One device: its events, and those that this run has not recorded yet."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.origin: Any = None
        self.stream: tuple[Any, ...] = ()
        self.events: list[Any] = []
        self.coming: Iterator[Any] = iter(())

    def prepare(self) -> None:
        """Make events ahead. Recording one for the first time is what creates it."""
        if self.origin is None:
            self.stream = _current_stream(self.device)
            self.origin = self._event()
            while len(self.events) < _AHEAD:
                self.another().record(*self.stream)

    def begin(self) -> None:
        """Take all events for the next run, and set the origin."""
        self.prepare()
        self.stream = _current_stream(self.device)
        self.coming = iter(self.events)
        self.origin.record(*self.stream)

    def another(self) -> Any:
        """One event more than any run took so far."""
        self.events.append(self._event())
        return self.events[-1]

    def _event(self) -> Any:
        import torch

        if self.device.type == "mps":  # untested: no such machine was at hand
            mps_event: Any = torch.mps.Event
            return mps_event(enable_timing=True)
        with torch.cuda.device(self.device):
            cuda_event: Any = torch.cuda.Event
            return cuda_event(enable_timing=True)


class EventClock:
    """Device events, on one or several devices of one kind.

    Events of different CUDA devices cannot be compared, so each device gets an origin of its own, recorded while all
    are idle; an offset of a few µs between the origins remains and shows up in ``T_residual``.

    Args:
        devices: every device that holds a part of the model; the first is the main one.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        self._lanes: dict[torch.device | None, _Lane] = {device: _Lane(device) for device in devices}
        self._main = self._lanes[devices[0]]
        self._marks: list[tuple[object, _Lane, Any, int]] = []
        self._origin_ns = 0

    def begin(self) -> None:
        """Forget all marks, and set each device's origin."""
        self._marks.clear()
        for lane in self._lanes.values():
            lane.begin()
        self._origin_ns = time.perf_counter_ns()

    def marker(self, label: object, device: torch.device | None = None) -> Marker:
        """What records an event on the device's stream of the run."""
        for lane in self._lanes.values():
            lane.prepare()
        lane = self._lanes.get(device, self._main)
        note, now = self._marks.append, time.perf_counter_ns

        def mark(*_: Any, **__: Any) -> None:
            event = next(lane.coming, None)
            if event is None:
                event = lane.another()
            event.record(*lane.stream)
            note((label, lane, event, now()))

        return mark

    @property
    def labels(self) -> list[Any]:
        """Labels of all marks."""
        return [label for label, _, _, _ in self._marks]

    def read(self) -> list[float]:
        """Times of all marks, ms, each since its device's origin."""
        return [lane.origin.elapsed_time(event) for _, lane, event, _ in self._marks]

    def read_host(self) -> list[float]:
        """When the host set the marks, ms: with work queued, earlier than the device reached them."""
        return [(t - self._origin_ns) / 1e6 for _, _, _, t in self._marks]


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

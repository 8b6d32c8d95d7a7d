"""The profiler's trace of one run, read into marks, device work and host operators.

It is read from the Chrome-trace export, the one form of torch.profiler's result that is documented and stable: events
with ``cat`` (``kernel``, ``gpu_memcpy``, ``gpu_memset``, ``cuda_runtime``, ``cuda_driver``, ``cpu_op``,
``user_annotation``), ``ts`` and ``dur`` in µs on one clock for host and devices, and ``args.correlation``, which a
kernel shares with the call that launched it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbench.probes.attribution import Work, self_times
from vlmbench.probes.stages import Kind, Mark

MARK = "vlmbench.mark."
"""Names of the annotations that the kernel probe sets: this and the mark's kind."""

_DEVICE_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_US_PER_MS = 1e3


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run as the profiler saw it; times in ms on the profiler's clock.

    Args:
        marks: the timeline's marks, as the host set them.
        device_work: kernels, copies and fills on all devices.
        operators: (operator, self time) of the thread that set the marks.
        unlinked: work whose launching call is not in the trace; its own begin stands for the call's time.
        events: the raw events.
        device_events: those of ``device_work``, in its order.
    """

    marks: list[Mark]
    device_work: list[Work]
    operators: list[tuple[Work, float]]
    unlinked: int
    events: Sequence[Mapping[str, Any]]
    device_events: Sequence[Mapping[str, Any]]


def read_trace(events: Sequence[Mapping[str, Any]]) -> Trace:
    """Sort the events of a Chrome trace."""
    marks: list[tuple[float, str]] = []
    launches: dict[int, float] = {}
    device: list[Mapping[str, Any]] = []
    operators: dict[Any, list[Work]] = defaultdict(list)
    thread: Any = None
    for event in events:
        if event.get("ph") != "X":
            continue
        kind, name = str(event.get("cat", "")), event["name"]
        if kind == "user_annotation" and name.startswith(MARK):
            marks.append((_begin(event), name.removeprefix(MARK)))
            thread = event["tid"]
        elif kind == "cpu_op":
            begin = _begin(event)
            operators[event["tid"]].append(Work(name, begin, begin + _length(event), begin))
        elif kind.endswith(("_runtime", "_driver")) and "correlation" in event.get("args", {}):
            launches[event["args"]["correlation"]] = _begin(event)
        elif kind in _DEVICE_WORK:
            device.append(event)
    work = [_device_work(event, launches) for event in device]
    return Trace(
        marks=[(Kind[name], time) for time, name in sorted(marks, key=lambda mark: mark[0])],
        device_work=work,
        operators=list(self_times(operators.get(thread, []))),
        unlinked=sum(item.call is None for item in work),
        events=events,
        device_events=device,
    )


def _begin(event: Mapping[str, Any]) -> float:
    return float(event["ts"]) / _US_PER_MS


def _length(event: Mapping[str, Any]) -> float:
    return float(event.get("dur", 0.0)) / _US_PER_MS


def _device_work(event: Mapping[str, Any], launches: Mapping[int, float]) -> Work:
    begin, call = _begin(event), event.get("args", {}).get("correlation")
    launched = launches.get(call) if call is not None else None
    return Work(
        event["name"],
        begin,
        begin + _length(event),
        begin if launched is None else launched,
        None if launched is None else call,
        event["cat"] == "kernel",
    )


def exported_events(profiler: Any) -> list[dict[str, Any]]:
    """The events of a stopped ``torch.profiler.profile``."""
    with tempfile.TemporaryDirectory(prefix="vlmbench-trace-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_bytes())["traceEvents"]
    return events


@contextmanager
def without_profiler_chatter() -> Iterator[None]:
    """Drops what torch's profiler says of itself; all other lines and warnings pass.

    2.13 writes ``USDT:…`` lines to stderr whatever its log level. 2.11 warns that a second cycle forgets the first,
    which is what one trace a request means.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
        with _without_usdt_lines():
            yield


@contextmanager
def _without_usdt_lines() -> Iterator[None]:
    try:
        sys.stderr.flush()
        real = os.dup(2)
    except (OSError, ValueError):  # no stderr at all
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held:
                if not line.startswith(b"USDT:"):
                    os.write(2, line)

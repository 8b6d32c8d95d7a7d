"""The kernel probe: a short trace of one request says how long the device was busy in each stage.

Tracing slows the host down (each operator and each launch is recorded), so a traced run's times are no latencies and
its gaps are too wide. What tracing leaves as it is are the kernels' own durations. ``launch_bound_*`` of a trace row
therefore is an upper bound; :mod:`vlmbench.analysis.launch_bound` divides the busy time by the time that the same
request takes untraced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.attribution import Work, busy_by_stage, by_stage, top
from vlmbench.probes.perfetto import write_trace
from vlmbench.probes.protocol import RunFacts, Watch
from vlmbench.probes.stages import RESIDUAL, Kind, Segment, segments
from vlmbench.probes.timeline import TimelineProbe, TimelineWatch
from vlmbench.probes.trace import MARK, Trace, exported_events, read_trace, without_profiler_chatter

if TYPE_CHECKING:
    import torch

    from vlmbench.machine.clock import Marker

_NAME_CHARACTERS = 120  # kernels of templates have names of thousands


@dataclass(frozen=True, kw_only=True)
class KernelProbe:
    """Traces runs of their own (mode ``trace``) with torch.profiler.

    On a CPU there is no device to be idle: ``busy_*`` and ``launch_bound_*`` are absent, and ``top_kernels`` lists the
    host's operators by their own time.

    Args:
        max_tokens: a traced request asks for this many tokens at most, because a trace grows by a thousand kernels or
            more a token; null traces it whole.
        top: how many kernels of each stage are listed.
        cpu: on a CPU, list the longest operators (slow); otherwise this probe is left out there.
        trace_dir: folder for a Chrome trace of each traced request (https://ui.perfetto.dev opens it); null for none.
    """

    max_tokens: int | None = 16
    top: int = 8
    cpu: bool = False
    trace_dir: str | None = None

    name = "kernels"
    own_run = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"'max_tokens' must be 2 or more, so that there is a decode (got {self.max_tokens})")
        if self.top < 1:
            raise ValueError(f"'top' must be 1 or more (got {self.top})")

    @property
    def max_output_tokens(self) -> int | None:
        """``max_tokens``: the request is cut before it is made, so that all processes of a team generate as much."""
        return self.max_tokens

    def applies(self, model: VisionLanguageModel) -> bool:
        """Where there are kernels to trace, or operators of a CPU were asked for."""
        return self.cpu or model.device.type == "cuda"

    @contextmanager
    def watch(self, model: VisionLanguageModel) -> Iterator[Watch]:
        """Hooks and profiler for one run; the profiler stops once the device is idle, outside the timed region."""
        watch = _KernelWatch(model, self)
        try:
            yield watch
        finally:
            watch.detach()


class _KernelWatch(TimelineWatch):
    """The timeline's marks, each of them also an annotation in the profiler's trace."""

    def __init__(self, model: VisionLanguageModel, probe: KernelProbe) -> None:
        from torch.profiler import ProfilerActivity, profile, record_function

        self._annotate = record_function
        super().__init__(model, TimelineProbe())
        self._kernel_probe = probe
        self._on_gpu = any(device.type == "cuda" for device in model.devices)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._on_gpu else [])
        self._profiler = profile(activities=activities)
        self._running = False

    def _marker(self, kind: Kind, device: torch.device | None = None) -> Marker:
        mark, annotate = super()._marker(kind, device), self._annotate

        def both(*_: Any, **__: Any) -> None:
            with annotate(f"{MARK}{kind.name}"):
                mark()

        return both

    def start(self) -> None:
        with without_profiler_chatter():
            self._profiler.start()
        self._running = True
        with self._annotate("vlmbench.first"):  # the first annotation loads what the others use
            pass
        super().start()

    def detach(self) -> None:
        super().detach()
        if self._running:
            self._running = False
            with without_profiler_chatter():
                self._profiler.stop()

    def values(self, run: RunFacts) -> dict[str, Any]:
        values = super().values(run)
        # A trace's residual holds the profiler's own cost: no goal applies to it.
        values["flags"] = [flag for flag in values["flags"] if flag != "residual_above_goal"]
        trace = read_trace(exported_events(self._profiler))
        pieces = segments(trace.marks, num_output_tokens=run.token_marks, prefill=run.prefill)
        if self._on_gpu and trace.device_work:
            values |= device_values(trace, pieces, values | {"T_total": run.T_total})
        elif self._on_gpu:  # no right to use CUPTI, say: an idle device and an unseen one must not look alike
            values["flags"].append("no_kernels_traced")
        values |= top_values(trace, pieces, self._kernel_probe.top, on_gpu=self._on_gpu)
        if self._kernel_probe.trace_dir is not None:
            path = write_trace(_free_name(Path(self._kernel_probe.trace_dir)), trace, pieces)
            values["trace_file"] = f"{path.parent.name}/{path.name}"
        return values


def device_values(trace: Trace, pieces: Sequence[Segment], times: Mapping[str, float]) -> dict[str, Any]:
    """``busy_*``, ``kernels_*``, ``launches_*`` and the traced ``launch_bound_*``.

    Args:
        pieces: its stages on the host's clock.
        times: the ``T_*`` of the same run by the device's marks, ms.
    """
    values: dict[str, Any] = {"unlinked_kernels": trace.unlinked}
    for stage, found in busy_by_stage(trace.device_work, pieces).items():
        values[f"busy_{stage}"] = found.busy
        values[f"kernels_{stage}"] = found.kernels
        values[f"launches_{stage}"] = found.launches
        elapsed = times.get(f"T_{stage}")
        if elapsed and stage != RESIDUAL:
            values[f"launch_bound_{stage}"] = 1 - found.busy / elapsed
    return values


def top_values(trace: Trace, pieces: Sequence[Segment], count: int, *, on_gpu: bool) -> dict[str, Any]:
    """``top_kernels``: for each stage the kernels (on a CPU: the operators, by their own time) that take longest."""
    own: dict[int, float] = {id(op): time for op, time in trace.operators}
    work: Sequence[Work] = trace.device_work if on_gpu else [op for op, _ in trace.operators]
    table = {}
    for stage, items in by_stage(work, pieces).items():
        timed = ((item.name, item.end - item.begin if on_gpu else own[id(item)]) for item in items)
        table[stage] = [[_short(name), calls, round(ms, 6)] for name, calls, ms in top(timed, count)]
    return {"top_kernels": table, "top_kernels_of": "device kernels" if on_gpu else "host operators"}


def _short(name: str) -> str:
    name = name.removeprefix("void ")
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"


def _free_name(folder: Path) -> Path:
    """``trace_001.json.gz`` and so on: a resumed run leaves earlier traces alone."""
    number = 1
    while (path := folder / f"trace_{number:03d}.json.gz").exists():
        number += 1
    return path

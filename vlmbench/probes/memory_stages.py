"""Peak memory of each stage on CUDA: the allocator's peaks, read and reset at the timeline's marks.

Memory is handed out on the host, in the order in which the host asks, so the marks of the host cut it without any
synchronisation. Reading the allocator's counters takes a tenth of a millisecond, which is why these runs are runs of
their own (mode ``trace``) whose times are no latencies. On a CPU there is no such allocator; the resident set of the
whole process (``peak_rss_bytes``, :mod:`vlmbench.probes.memory`) is all that can be told there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.attribution import stage_at
from vlmbench.probes.protocol import RunFacts, Watch
from vlmbench.probes.stages import Kind, segments
from vlmbench.probes.timeline import TimelineProbe, TimelineWatch
from vlmbench.schema import TOTAL_STAGES

if TYPE_CHECKING:
    import torch

    from vlmbench.machine.clock import Marker


class Allocator(Protocol):
    """Counts the memory that was handed out."""

    def reset(self) -> None:
        """The peaks are what is handed out now."""

    def peaks(self) -> tuple[int, int]:
        """Most bytes since the last reset: (in tensors, held by the allocator)."""


@dataclass(frozen=True, slots=True)
class CudaAllocator:
    """PyTorch's caching allocator.

    Args:
        devices: CUDA devices, whose peaks are summed.
    """

    devices: Sequence[torch.device]

    def reset(self) -> None:
        """Reset the peaks of every device."""
        import torch

        for device in self.devices:
            torch.cuda.reset_peak_memory_stats(device)

    def peaks(self) -> tuple[int, int]:
        """Sums of the devices' peaks."""
        import torch

        allocated = sum(torch.cuda.max_memory_allocated(device) for device in self.devices)
        return allocated, sum(torch.cuda.max_memory_reserved(device) for device in self.devices)


@dataclass(frozen=True, kw_only=True)
class MemoryStagesProbe:
    """Peak memory in tensors and in the allocator for each stage; left out on a CPU."""

    name = "memory_stages"
    own_run = True
    max_output_tokens = None  # the cache grows with the answer

    def applies(self, model: VisionLanguageModel) -> bool:
        """Where PyTorch's CUDA allocator hands memory out."""
        return any(device.type == "cuda" for device in model.devices)

    def allocator(self, model: VisionLanguageModel) -> Allocator:
        """Of the devices that hold the model."""
        return CudaAllocator([device for device in model.devices if device.type == "cuda"])

    @contextmanager
    def watch(self, model: VisionLanguageModel) -> Iterator[Watch]:
        """Hooks on the model's stages for one run."""
        watch = _MemoryWatch(model, self.allocator(model))
        try:
            yield watch
        finally:
            watch.detach()


class _MemoryWatch(TimelineWatch):
    """At the timeline's marks, the peaks since the mark before; no clock is read."""

    def __init__(self, model: VisionLanguageModel, allocator: Allocator) -> None:
        self._allocator = allocator
        self._peaks: list[tuple[Kind, tuple[int, int]]] = []  # up to each mark
        super().__init__(model, TimelineProbe())

    def _marker(self, kind: Kind, device: torch.device | None = None) -> Marker:  # noqa: ARG002
        note, allocator = self._peaks.append, self._allocator

        def mark(*_: Any, **__: Any) -> None:
            note((kind, allocator.peaks()))
            allocator.reset()

        return mark

    def start(self) -> None:
        """The first mark: what was before it is forgotten."""
        self._peaks.clear()
        self._language_seen = self._in_forward = False
        self._first()

    def values(self, run: RunFacts) -> dict[str, Any]:
        """``peak_allocated_*_bytes`` and ``peak_reserved_*_bytes``.

        Raises:
            MeasurementError: marks are missing.
        """
        kinds, peaks = [kind for kind, _ in self._peaks], [peak for _, peak in self._peaks]
        return stage_peaks(kinds, peaks, num_output_tokens=run.token_marks, prefill=run.prefill)


def stage_peaks(
    kinds: Sequence[Kind], peaks: Sequence[tuple[int, int]], *, num_output_tokens: int, prefill: bool = True
) -> dict[str, Any]:
    """The largest peaks of each stage; a stage that a model lacks is absent.

    Args:
        kinds: marks in their order.
        peaks: (allocated, reserved) in bytes between each mark and the one before it; the first one's are not of the
            run.
        num_output_tokens: new tokens of one row.
        prefill: whether the run had one.

    Raises:
        MeasurementError: marks are missing.
    """
    # The marks' own numbers stand for times: the stages are cut as the timeline's and the trace's are.
    marks = [(kind, float(i)) for i, kind in enumerate(kinds)]
    pieces = segments(marks, num_output_tokens=num_output_tokens, prefill=prefill)
    found: dict[str, list[tuple[int, int]]] = {}
    for number, peak in enumerate(peaks[1:], start=1):
        stage = stage_at(number - 0.5, pieces)
        if stage in TOTAL_STAGES:
            found.setdefault(stage, []).append(peak)
    values: dict[str, Any] = {}
    for stage, of_stage in found.items():
        values[f"peak_allocated_{stage}_bytes"] = max(allocated for allocated, _ in of_stage)
        values[f"peak_reserved_{stage}_bytes"] = max(reserved for _, reserved in of_stage)
    return values

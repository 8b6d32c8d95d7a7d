"""Peak memory of a run: allocated and reserved on CUDA, the resident set on the host.

By stage: :mod:`vlmbench.probes.memory_stages`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.protocol import RunFacts, Watch


@dataclass(frozen=True, kw_only=True)
class MemoryProbe:
    """Reads the allocator's counters; its two calls lie outside the timed region."""

    name = "memory"
    own_run = False
    max_output_tokens = None

    def applies(self, model: VisionLanguageModel) -> bool:  # noqa: ARG002
        """To every model."""
        return True

    @contextmanager
    def watch(self, model: VisionLanguageModel) -> Iterator[Watch]:
        """Reset the peaks before, read them after."""
        yield _MemoryWatch(model)


class _MemoryWatch(Watch):
    def __init__(self, model: VisionLanguageModel) -> None:
        import torch

        self._devices = [d for d in model.devices if d.type == "cuda"]
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)

    def values(self, run: RunFacts) -> dict[str, Any]:  # noqa: ARG002 – memory does not depend on what came out
        import torch

        values: dict[str, Any] = {"peak_rss_bytes": peak_rss_bytes()}
        if self._devices:
            values["peak_memory_allocated_bytes"] = sum(torch.cuda.max_memory_allocated(d) for d in self._devices)
            values["peak_memory_reserved_bytes"] = sum(torch.cuda.max_memory_reserved(d) for d in self._devices)
        return values


def peak_rss_bytes() -> int:
    """Largest resident set of this process since it began, bytes (the system counts it; nothing is polled)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""A probe: the processor time of the launching thread during ``generate()``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmbench.probes.protocol import RunFacts


class CpuTimeWatch:
    """The probe at work on one run."""

    stopping_criteria: ClassVar[list[Any]] = []  # nothing is called after each token

    def start(self) -> None:
        """Read the thread's clock right before ``generate()``."""
        self._began = time.thread_time_ns()

    def stop(self) -> None:
        """Read it again right after."""
        self._spent_ms = (time.thread_time_ns() - self._began) / 1e6

    def values(self, run: RunFacts) -> dict[str, Any]:
        """Return the columns of the row; a flag where the thread waited for more than half of the time."""
        flags = ["mostly_waiting"] if self._spent_ms < run.T_total / 2 else []
        return {"cpu_time_ms": self._spent_ms, "flags": flags}


@dataclass(frozen=True, kw_only=True)
class CpuTimeProbe:
    """Processor time of the launching thread, ms."""

    name: str = "cpu_time"
    own_run: bool = False
    max_output_tokens: int | None = None

    def applies(self, model: Any) -> bool:
        """Say that every model has a launching thread."""
        del model
        return True

    @contextmanager
    def watch(self, model: Any) -> Iterator[CpuTimeWatch]:
        """Watch one run; nothing is attached to the model."""
        del model
        yield CpuTimeWatch()

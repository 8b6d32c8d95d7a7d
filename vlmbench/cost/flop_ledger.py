"""Which stage and step of a counted run the operations belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """FLOPs by (stage, step); step 0 is before the language model's first call, 1 the prefill, 2 the first decode."""

    total: Callable[[], int]
    sums: dict[tuple[str, int], int] = field(default_factory=dict)
    open_stages: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    step: int = 0
    seen: int = 0

    @property
    def stage(self) -> str:
        """What operations are booked under now."""
        return self.open_stages[-1] if self.open_stages else "other"

    @property
    def place(self) -> tuple[str, int]:
        """Stage and step."""
        return self.stage, self.step

    def watched(self, call: Callable[[], Any]) -> tuple[Any, dict[tuple[str, int], int]]:
        """What a call returns, and what it booked."""
        self.settle()
        before = dict(self.sums)
        output = call()
        self.settle()
        return output, {key: done for key, total in self.sums.items() if (done := total - before.get(key, 0))}

    def credit(self, booked: Mapping[tuple[str, int], int]) -> None:
        """Books the same once more, without a run."""
        self.settle()
        for key, done in booked.items():
            self.sums[key] = self.sums.get(key, 0) + done

    def settle(self) -> None:
        """Books what was computed since the last boundary."""
        now = self.total()
        self.sums[self.place] = self.sums.get(self.place, 0) + now - self.seen
        self.seen = now

    def enter(self, stage: str, path: str) -> None:
        """A module of a stage starts."""
        self.settle()
        if stage == "language_model":
            self.calls[path] = self.calls.get(path, 0) + 1
            self.step = max(self.step, self.calls[path])
        self.open_stages.append(stage)

    def leave(self) -> None:
        """It ends."""
        self.settle()
        self.open_stages.pop()

    def of(self, stage: str, first: int, last: int | None = None) -> int:
        """FLOPs of a stage in a range of steps."""
        return sum(v for (s, k), v in self.sums.items() if s == stage and first <= k and (last is None or k <= last))

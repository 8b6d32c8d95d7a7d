"""A fixed calculation beside the runs: how fast the processor is now, whatever is measured on it.

Two runs are two processes, and a shared machine gives each another speed. What is measured cannot tell that from code
that changed; work that never changes can. Its processor time is taken, in the thread that drives the model, so that it
tells the speed of the processor; how long that thread waited for one is told by ``thread_waited_ms``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SHARE = 0.005
"""Of the time since the runs began, the most that it may take: where runs are short it has not its turn beside each."""
_NUMBERS = tuple(range(7, 7 + 400))


@dataclass(kw_only=True)
class Yardstick:
    """Calculates the same again and again, at most for :data:`SHARE` of the time.

    Args:
        on: whether it calculates at all.
    """

    on: bool = True
    _began_ns: int = field(default_factory=time.perf_counter_ns)
    _spent_ns: int = 0

    def columns(self) -> dict[str, float]:
        """``yardstick_ms``, where it is its turn; call it when no clock runs."""
        begin = time.perf_counter_ns()
        if not self.on or self._spent_ns > SHARE * (begin - self._began_ns):
            return {}
        calculate()  # what the run before left in the caches is no part of it
        first = time.thread_time_ns()
        calculate()
        taken = time.thread_time_ns() - first
        self._spent_ns += time.perf_counter_ns() - begin
        return {"yardstick_ms": taken / 1e6} if taken > 0 else {}


def calculate() -> int:
    """Some 0.3 ms of what a host does between kernels: calls, numbers, dictionaries, lists and strings of Python."""
    seen: dict[str, int] = {}
    total = 0
    for number in _NUMBERS:
        name = str(number * number)
        seen[name] = total
        total = (total + len(name) * number) % 65_521
    return total + sum(sorted(seen.values()))

"""A fixed calculation beside the runs: how fast the processor is now, whatever is measured on it.

Two runs are two processes, and a shared machine gives each another speed. What is measured cannot tell that from code
that changed; work that never changes can. Its processor time is taken, in the thread that drives the model, so that it
tells the speed of the processor and its caches; how long that thread waited for one is told by ``thread_waited_ms``.
It is not warmed: where neighbours push a run out of the caches, a loop that is always warm takes the same time and the
run does not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SHARE = 0.005
"""Of the time since the runs began, the most that it may take: where runs are short it has not its turn beside each."""
_NUMBERS = tuple(range(7, 7 + 400))
_BYTES = 1 << 19


@dataclass(kw_only=True)
class Yardstick:
    """Calculates the same again and again, at most for :data:`SHARE` of the time.

    Args:
        on: whether it calculates at all.
    """

    on: bool = True
    _began_ns: int = field(default_factory=time.perf_counter_ns)
    _spent_ns: int = 0
    _source: bytearray = field(default_factory=lambda: bytearray(b"\x01" * _BYTES))
    _target: bytearray = field(default_factory=lambda: bytearray(_BYTES))

    def columns(self) -> dict[str, float]:
        """``yardstick_ms``, where it is its turn; call it when no clock runs."""
        begin = time.perf_counter_ns()
        if not self.on or self._spent_ns > SHARE * (begin - self._began_ns):
            return {}
        first = time.thread_time_ns()
        self._calculate()
        taken = time.thread_time_ns() - first
        self._spent_ns += time.perf_counter_ns() - begin
        return {"yardstick_ms": taken / 1e6} if taken > 0 else {}

    def _calculate(self) -> int:
        """Some 0.3 ms of what a host does between kernels: numbers, strings, dictionaries, sorting, copying."""
        seen: dict[str, int] = {}
        total = 0
        for number in _NUMBERS:
            name = str(number * number)
            seen[name] = total
            total = (total + len(name) * number) % 65_521
        self._target[:] = self._source
        return total + sum(sorted(seen.values())) + self._target[total % _BYTES]

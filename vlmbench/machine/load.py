"""How busy the host is before anything is measured, and how many threads are worth having on it.

Threads of one parallel region wait for each other by spinning. Where they cannot all be on a processor at once, each
spins while the one it waits for waits for the processor: two processes of two threads on two cores do not take twice
as long, but many times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from vlmbench.text import count

_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy the processors are that this process may use, while it does nothing itself.

    Args:
        cores: how many it may use.
        busy: how many of them others kept busy, on average over a fifth of a second.
        average_1m: the machine's load average of the last minute (all its processors); None where it is not told.
    """

    cores: int
    busy: float
    average_1m: float | None

    @property
    def free(self) -> int:
        """Whole processors that nothing else uses, at least one."""
        return max(1, round(self.cores - self.busy))

    @property
    def crowded(self) -> bool:
        """Whether less than one processor is free, or more wants to run than there are processors."""
        return self.cores - self.busy < 1 or (self.average_1m is not None and self.average_1m > self.cores)

    def facts(self) -> dict[str, Any]:
        """For the provenance."""
        return asdict(self)

    def warning(self) -> str | None:
        """That the host is too busy to measure on, in words; None where it is not."""
        if not self.crowded:
            return None
        average = "" if self.average_1m is None else f", load average {self.average_1m:.1f}"
        return (
            f"the host is busy: others use {self.busy:.1f} of {count(self.cores, 'processor')}{average}; "
            "latencies will be longer and scatter more, and rows that waited for a processor carry 'busy_host'"
        )


def look(
    percents: Callable[[float], Sequence[float]] = lambda seconds: psutil.cpu_percent(interval=seconds, percpu=True),
) -> Load:
    """Look at the host for a fifth of a second.

    Args:
        percents: per cent of each processor of the machine that was in use over so many seconds.
    """
    shares = percents(_LOOK_S)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(shares))
    mine = [shares[index] for index in usable if index < len(shares)] or list(shares)
    average = None
    with suppress(OSError, AttributeError):
        average = os.getloadavg()[0]
    return Load(cores=len(mine), busy=sum(mine) / 100, average_1m=average)


def choose_threads(wanted: int | None, *, default: int, load: Load, earlier: int | None = None) -> tuple[int, str]:
    """Choose how many threads torch has on the host.

    Args:
        wanted: what was asked for; None leaves the choice to us.
        default: torch's own choice.
        earlier: what an earlier session of the same run directory had: rows of both must be alike.

    Returns:
        The number, and why it is not torch's own choice, in words (empty where it is, or was asked for).
    """
    if wanted is not None:
        return wanted, ""
    if earlier is not None:
        return earlier, "" if earlier == default else f"{count(earlier, 'thread')}, as in the sessions before"
    chosen = min(default, load.free)
    if chosen == default:
        return default, ""
    return chosen, (
        f"{count(chosen, 'thread')} instead of {default:,}: others use {load.busy:.1f} of "
        f"{count(load.cores, 'processor')}; runtime.threads={default} insists"
    )

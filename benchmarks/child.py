"""A command in a process of its own, with what it cost. Standard library only.

The system counts a child's peak memory from the fork on, so a benchmark that imported torch itself would see its own
size in every child: benchmarks keep to the standard library and measure in children.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one command cost.

    Args:
        wall_s: from its start to its end.
        cpu_s: user and system time of it and of the children it waited for.
        peak_mib: largest resident set among it and the children it waited for: of one process.
        together_mib: largest sum over it and all its descendants alive at once (proportional set size, so that shared
            pages count once), seen twice a second; None where it was not asked for or the system cannot tell.
        status: exit status.
        out, err: what it wrote.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float
    status: int
    out: str
    err: str
    together_mib: float | None = None


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 3600,
    together: bool = False,
) -> Cost:
    """Run a command to its end; ``env`` is added to this process's environment, ``together`` fills ``together_mib``.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout_s`` and was ended.
    """
    environment = {**os.environ, **(env or {})}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=cwd, env=environment)
        try:
            status, usage, most = _wait(child, start + timeout_s, together=together)
        except BaseException:
            child.kill()
            child.wait()
            raise
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here, not by Popen
        out.seek(0)
        err.seek(0)
        return Cost(
            wall_s=wall,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_mib=usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
            status=child.returncode,
            out=out.read(),
            err=err.read(),
            together_mib=most or None,
        )


def _wait(child: subprocess.Popen[bytes], deadline: float, *, together: bool) -> tuple[int, Any, float]:
    """``wait4`` with a deadline: the only call that tells one child's usage from that of all others."""
    pause, most, looked = 0.001, 0.0, time.perf_counter()
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            return status, usage, most
        now = time.perf_counter()
        if now > deadline:
            raise subprocess.TimeoutExpired(child.args, deadline)
        if together and now - looked > 0.5:
            most, looked = max(most, _tree_mib(child.pid)), now
        time.sleep(pause)
        pause = min(pause * 1.2, 0.01)


def _tree_mib(root: int) -> float:
    """Proportional set size of a process and all its descendants now, MiB; 0 where there is no /proc (not Linux)."""
    kib: int = 0
    waiting = [root]
    while waiting:
        process = Path("/proc", str(waiting.pop()))
        try:
            rollup = (process / "smaps_rollup").read_text()
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it has just ended
            continue
        kib += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return kib / 2**10


def checked(cost: Cost, what: str) -> Cost:
    """The cost, or the end of the program with the command's own words when it failed."""
    if cost.status != 0:
        last = "\n".join((cost.err.strip() or cost.out.strip()).splitlines()[-15:])
        sys.exit(f"{what} ended with status {cost.status}:\n{last}")
    return cost


def interleaved(commands: Mapping[str, Callable[[], Cost]], repeats: int) -> dict[str, list[Cost]]:
    """Each command ``repeats`` times, one after the other in turn, so that a slow minute hits all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            costs[name].append(checked(command(), name))
    return costs


def median(costs: Sequence[Cost], figure: str) -> float:
    """Median of one figure (``wall_s``, ``cpu_s``, ``peak_mib``)."""
    return statistics.median(getattr(cost, figure) for cost in costs)

"""What the kernel tells of control groups, in groups of version 1 or 2 that the test makes for itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmbench.machine.suspension import held_still_by

GROUPS = Path("/sys/fs/cgroup")
TAKES_TOO_MUCH = """
import subprocess, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
from vlmbench.machine.host import oom_kills
before = oom_kills()
subprocess.run([sys.executable, "-c", "x = bytearray(512 << 20)"])
after = oom_kills()
print(before.group == after.group, after.count - before.count)
"""


def _made(places: list[Path]) -> Iterator[Path]:
    """A group of its own in the first place that allows one; removed at the end."""
    for place in places:
        folder = place / f"vlmbench-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            yield folder
        finally:
            folder.rmdir()
        return
    pytest.skip("no control group can be made here: this needs root and a writable /sys/fs/cgroup")


@pytest.fixture
def freezer() -> Iterator[Path]:
    version_2 = [place for place in (GROUPS, GROUPS / "unified") if (place / "cgroup.controllers").exists()]
    yield from _made([*version_2, *([GROUPS / "freezer"] if (GROUPS / "freezer").is_dir() else [])])


@pytest.fixture
def memory() -> Iterator[Path]:
    yield from _made([place for place in (GROUPS / "memory", GROUPS) if place.is_dir()])


def test_a_frozen_control_group_holds_its_processes_still(freezer: Path) -> None:
    process = subprocess.Popen(["sleep", "600"])
    try:
        (freezer / "cgroup.procs").write_text(str(process.pid))
        assert held_still_by(process.pid) is None
        _freeze(freezer, 1)
        until = time.monotonic() + 60  # the kernel takes its time
        while held_still_by(process.pid) is None and time.monotonic() < until:
            time.sleep(0.01)
        assert held_still_by(process.pid) == "a frozen control group"
    finally:
        _freeze(freezer, 0)
        process.kill()
        process.wait()


COUNTS = """
import sys, time
from vlmbench.machine.suspension import Suspensions
with Suspensions() as suspensions:
    time.sleep(0.2)
    print(suspensions.count(), flush=True)
    sys.stdin.readline()
    after = suspensions.count()
    time.sleep(1.2)
    print(after, suspensions.count(), flush=True)
"""


def test_a_run_in_a_frozen_control_group_is_suspended(freezer: Path) -> None:
    """Counted at once when it goes on, and once."""
    with subprocess.Popen(
        [sys.executable, "-c", COUNTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "0\n"
            (freezer / "cgroup.procs").write_text(str(process.pid))
            _freeze(freezer, 1)
            process.stdin.write("go on\n")
            time.sleep(2.5)
            _freeze(freezer, 0)
            assert process.stdout.readline() == "1 1\n"
        finally:
            _freeze(freezer, 0)
            process.kill()


def _freeze(group: Path, number: int) -> None:
    """Freeze a group (1) or let it go on (0)."""
    if (group / "cgroup.freeze").exists():
        (group / "cgroup.freeze").write_text(str(number))
    else:
        (group / "freezer.state").write_text("FROZEN" if number else "THAWED")


def test_a_kill_for_memory_is_counted(memory: Path) -> None:
    limit = memory / "memory.limit_in_bytes"
    if not limit.exists():
        limit = memory / "memory.max"
    if not limit.exists():
        pytest.skip("the memory controller is not given to groups here")
    limit.write_text(str(200 << 20))
    if (swap := memory / "memory.swap.max").exists():
        swap.write_text("0")
    done = subprocess.run([sys.executable, "-c", TAKES_TOO_MUCH, memory], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1"], done.stderr

"""A real Slurm for these tests: ``make test-slurm`` starts one and names its folder in VLMBENCH_SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

from vlmbench.cluster.states import RunStatus
from vlmbench.cluster.status import status
from vlmbench.records.lock import holder_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cluster:
    folder: Path

    def daemon(self, command: str, name: str, *how: str) -> None:
        script = ROOT / "scripts" / "slurm-local.sh"
        subprocess.run([script, command, self.folder, name, *how], check=True, timeout=120)

    def sbatch(self, *arguments: str) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments], check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    def cancel(self, job_id: str) -> None:
        subprocess.run(["scancel", job_id], check=True, timeout=60)

    def saved(self) -> float:
        """When the controller last wrote down its jobs (seconds since the epoch)."""
        return (self.folder / "state" / "job_state").stat().st_mtime

    def says(self) -> str:
        """What Slurm knows of its node and its jobs, and the last lines of its logs."""
        told = []
        for command in (["sinfo", "-N", "-o", "%N %T %E"], ["squeue", "-r", "-o", "%i %T %r %S"]):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            told += [" ".join(command), done.stdout + done.stderr]
        for log in ("slurmctld.log", "node0.log"):
            told += [log, *(self.folder / "log" / log).read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(told)

    def drained(self) -> str:
        """Why the node takes no jobs; empty if it takes some."""
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "cpu", "-t", "drain,down,fail", "-o", "%N %T: %E"], check=True,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout.strip()


@pytest.fixture(scope="session")
def slurm_cluster() -> Cluster:
    folder = os.environ.get("VLMBENCH_SLURM")
    if not folder:
        pytest.skip("needs a Slurm of its own: make test-slurm starts one")
    return Cluster(Path(folder))


class Vlmbench:
    """The command line, in the foreground or behind the test's back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parents: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        common = ["hydra/launcher=slurm", "hydra.launcher.gpus=1", "hydra.launcher.cpus=1"]
        return [
            sys.executable, "-m", "vlmbench", "-m", "experiment=smoke", "report=none", *common,
            "hydra.launcher.memory_gb=1.5", "hydra.launcher.poll_s=1", "hydra.launcher.lost_after_s=20", *arguments,
        ]  # fmt: skip

    def run(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments), cwd=Path.cwd(), env=self.environment, capture_output=True, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "parent.log").open("ab")
        with log:
            parent = subprocess.Popen(
                self._command(arguments), cwd=Path.cwd(), env=self.environment, stdout=log, stderr=log
            )
        self.parents.append(parent)
        return parent

    def said(self) -> str:
        """What the parents that were started said."""
        return (self.folder / "parent.log").read_text()


@pytest.fixture
def vlmbench(tmp_path: Path, slurm_cluster: Cluster) -> Iterator[Vlmbench]:
    command = Vlmbench(tmp_path)
    yield command
    for parent in command.parents:
        parent.kill()
        parent.wait()
    subprocess.run(["scancel", "--quiet", "--me"], check=False, timeout=60)
    if why := slurm_cluster.drained():  # what one test broke is not the next one's fault
        subprocess.run(["scontrol", "update", "nodename=ALL", "state=resume"], check=True, timeout=60)
        pytest.fail(f"this test left a node that takes no jobs (it was resumed): {why}")


def pictures(folder: Path, count: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (96, 64), (20 * i, 90, 200)).save(folder / f"{i}.jpg")
    return folder


def until(what: Callable[[], object], timeout: float, every: float = 0.5) -> object:
    """Wait until ``what()`` gives something; the limit is part of the test."""
    deadline = time.monotonic() + timeout
    while not (found := what()):
        if time.monotonic() > deadline:
            folder = os.environ.get("VLMBENCH_SLURM")
            pytest.fail(f"waited {timeout} s in vain\n{Cluster(Path(folder)).says() if folder else ''}")
        time.sleep(every)
    return found


def states(folder: Path) -> dict[str, RunStatus]:
    return {one.run.directory.name: one for one in status(folder, lost_after_s=20)}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def hold(grid: Path, names: Sequence[str], count: int) -> list[int]:
    """Stop the processes of ``count`` runs where they are; none is left stopped when they are not so many."""
    if len(names) != count:
        return []
    pids = [holder.pid for name in names if (holder := holder_of(grid / name))]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    if sum(map(is_stopped, pids)) == count:
        return pids
    go_on(pids)
    return []


def go_on(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP holds a process; False once it is gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False

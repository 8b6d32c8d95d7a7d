"""How a task ended is read from what Slurm itself answers and writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm import tasks
from tests.slurm.conftest import Cluster, until
from vlmbench.cli import node
from vlmbench.cluster import slurm
from vlmbench.cluster.grid import Task, new_submission
from vlmbench.cluster.settings import SlurmSettings
from vlmbench.cluster.states import OVER, RunState, RunStatus
from vlmbench.cluster.status import status

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def submit(sweep_dir: Path, function: Callable[[str], object], **settings: object) -> None:
    chosen = SlurmSettings(**{"cpus": 1, "memory_gb": 0.5, "time_min": 5, **settings})
    tasks = {0: (Task(index=0, directory="0_run", overrides=()), {"seed": 1})}
    found = new_submission(sweep_dir, cluster="slurm", job_name="ends", tasks=tasks, settings={})
    slurm.submit(found, chosen, function)


def look(sweep_dir: Path) -> RunStatus:
    (one,) = status(sweep_dir, lost_after_s=20)
    return one


def test_the_reason_of_an_end_is_in_the_log_that_slurm_writes(
    tmp_path: Path, slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(tmp_path / "memory", tasks.take_memory, memory_gb=0.2)
    submit(tmp_path / "source", tasks.sleep, setup=("export A=b", f"source {tmp_path}/no-such-file"))
    submit(tmp_path / "module", tasks.sleep, setup=("module load no-such-module",))
    submit(tmp_path / "refused", node.main)  # its task file is none
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/opt/no-such-python")
        submit(tmp_path / "python", tasks.sleep)
    names = ("memory", "source", "module", "refused", "python")
    until(lambda: all(look(tmp_path / name).state in OVER for name in names), 120)
    ends = {name: look(tmp_path / name) for name in names}
    assert {one.state for one in ends.values()} == {RunState.FAILED}
    reasons = {name: one.reason or "" for name, one in ends.items()}
    assert reasons["memory"].startswith("oom: killed for too much host memory (raise hydra.launcher.memory_gb)")
    assert f"setup line failed with exit status 1: source {tmp_path}/no-such-file" in reasons["source"]
    assert "No such file or directory" in reasons["source"]
    assert "setup line failed with exit status 127: module load no-such-module" in reasons["module"]
    assert "missing, or of another kind" in reasons["refused"]
    assert "execve(): /opt/no-such-python: No such file or directory" in reasons["python"]


def test_a_suspended_job_is_suspended(tmp_path: Path, slurm_cluster: Cluster) -> None:
    submit(tmp_path, tasks.sleep)
    until(lambda: look(tmp_path).state == RunState.RUNNING, 60)
    job = look(tmp_path).job_id
    subprocess.run(["scontrol", "suspend", job], check=True, timeout=60)
    until(lambda: look(tmp_path).state == RunState.SUSPENDED, 30)
    subprocess.run(["scontrol", "resume", job], check=True, timeout=60)
    until(lambda: look(tmp_path).state == RunState.RUNNING, 30)
    slurm_cluster.cancel(job)
    until(lambda: look(tmp_path).state == RunState.CANCELLED, 60)


def test_a_job_that_is_held_is_told_with_the_way_out(tmp_path: Path, slurm_cluster: Cluster) -> None:
    submit(tmp_path, tasks.sleep)
    until(lambda: look(tmp_path).state == RunState.RUNNING, 60)
    job = look(tmp_path).job_id
    subprocess.run(["scontrol", "requeuehold", job], check=True, timeout=60)
    until(lambda: "scontrol release" in (look(tmp_path).reason or ""), 60)
    held = look(tmp_path)
    assert held.state == RunState.QUEUED
    assert held.reason.startswith("Slurm holds it back (")
    assert held.reason.endswith(f"): scontrol release {job}")
    subprocess.run(["scontrol", "release", job], check=True, timeout=60)
    until(lambda: look(tmp_path).state == RunState.RUNNING, 60)
    slurm_cluster.cancel(job)
    until(lambda: look(tmp_path).state == RunState.CANCELLED, 60)

"""One writer a run directory; a dead writer does not stand in the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from vlmbench.errors import DirectoryConflictError
from vlmbench.records import lock as lock_module
from vlmbench.records.lock import LOCK_NAME, Holder, RunLock, locks_reach_all_hosts, slurm_job_id

HOLD = (
    "import sys, time; from pathlib import Path; from vlmbench.records.lock import RunLock\n"
    "with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, env={**os.environ, "SLURM_JOB_ID": "4711"}
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_refused_and_told_who_holds_it(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    for break_lock in (False, True):
        with pytest.raises(DirectoryConflictError) as caught, RunLock(tmp_path, break_lock=break_lock):
            pass
        assert f"process {other.pid} on host" in str(caught.value)
        assert "Slurm job 4711" in str(caught.value)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_leaves_the_directory_free(tmp_path: Path, other: subprocess.Popen[bytes], how: int) -> None:
    other.send_signal(how)
    other.wait()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK_NAME).read_text() == ""


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(DirectoryConflictError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass


def leave_behind(folder: Path, **changes: object) -> Holder:
    holder = replace(Holder.myself(), **{"host": "node7", "job_id": "12_3", **changes})
    (folder / LOCK_NAME).write_text(json.dumps(asdict(holder)))
    return holder


@pytest.fixture
def far_locks_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system whose locks stay on their host (the tests' disk is a local one)."""
    monkeypatch.setattr(lock_module, "locks_reach_all_hosts", lambda directory: False)


@pytest.mark.usefixtures("far_locks_unseen")
class TestLocksThatStayOnTheirHost:
    def test_a_holder_elsewhere_is_believed_alive(self, tmp_path: Path) -> None:
        leave_behind(tmp_path)
        with pytest.raises(DirectoryConflictError, match=r"on host node7, Slurm job 12_3.*\n.*break_lock=true"):
            RunLock(tmp_path).__enter__()
        with RunLock(tmp_path, break_lock=True):
            pass

    def test_an_earlier_life_of_the_same_job_is_dead(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        leave_behind(tmp_path)
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        with RunLock(tmp_path):
            pass

    def test_a_dead_process_of_this_host_is_dead(self, tmp_path: Path) -> None:
        me = Holder.myself()
        leave_behind(tmp_path, host=me.host, process_started_unix_s=me.process_started_unix_s - 60)
        with RunLock(tmp_path):
            pass

    def test_a_living_process_of_this_host_is_not_robbed(self, tmp_path: Path) -> None:
        parent = psutil.Process(os.getppid())
        leave_behind(tmp_path, host=Holder.myself().host, pid=parent.pid, process_started_unix_s=parent.create_time())
        with pytest.raises(DirectoryConflictError, match=str(parent.pid)):
            RunLock(tmp_path, break_lock=True).__enter__()

    def test_it_is_not_robbed_after_the_wall_clock_was_set(self, tmp_path: Path) -> None:
        parent = psutil.Process(os.getppid())  # what its lock held before the clock went two hours back
        before = {"process_started_unix_s": parent.create_time() + 7200, "booted_unix_s": psutil.boot_time() + 7200}
        assert leave_behind(tmp_path, host=Holder.myself().host, pid=parent.pid, **before).lives_here()
        with pytest.raises(DirectoryConflictError, match=str(parent.pid)):
            RunLock(tmp_path).__enter__()


def test_on_shared_locks_a_crashed_holder_elsewhere_is_dead(tmp_path: Path) -> None:
    leave_behind(tmp_path)
    with RunLock(tmp_path):
        pass


def test_a_lock_stuck_at_a_lock_server_can_be_set_aside(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    leave_behind(tmp_path)  # the kernel lock of `other` now bears the name of a process on another host
    with pytest.raises(DirectoryConflictError, match="node7"):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path, break_lock=True):
        pass
    assert [p.name for p in tmp_path.glob(f"{LOCK_NAME}.broken-*")]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "null"])
def test_a_damaged_name_is_no_holder(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_NAME).write_text(content)
    with RunLock(tmp_path):
        pass


def test_without_kernel_locks_the_name_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock_module.fcntl, "flock", unsupported)
    monkeypatch.setattr(lock_module, "_SETTLE_S", 0.0)
    with RunLock(tmp_path), pytest.raises(DirectoryConflictError, match=str(os.getpid())):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass
    # a rival who writes its name in the same moment: the last one wins, the other withdraws
    monkeypatch.setattr(lock_module.time, "sleep", lambda s: leave_behind(tmp_path))
    (tmp_path / LOCK_NAME).write_text("")
    with pytest.raises(DirectoryConflictError, match="node7"):
        RunLock(tmp_path).__enter__()


def test_job_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_job_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert slurm_job_id() == "5"


@pytest.mark.parametrize(
    ("fstype", "opts", "reach"),
    [
        ("ext4", "rw", True), ("gpfs", "rw", True), ("nfs4", "rw,local_lock=none", True),
        ("nfs", "rw,nolock,local_lock=all", False), ("lustre", "rw,flock", True), ("lustre", "rw,localflock", False),
        ("lustre", "rw", False), ("fuse.sshfs", "rw", False),
    ],
)  # fmt: skip
def test_which_file_systems_share_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str, opts: str, reach: bool
) -> None:
    class Part:
        def __init__(self, mountpoint: str, fstype: str, opts: str) -> None:
            self.mountpoint, self.fstype, self.opts = mountpoint, fstype, opts

    parts = [Part("/", "ext4", "rw"), Part(str(tmp_path), fstype, opts), Part(f"{tmp_path}x", "ext4", "rw")]
    monkeypatch.setattr(lock_module.psutil, "disk_partitions", lambda all: parts)
    assert locks_reach_all_hosts(tmp_path / "run") is reach

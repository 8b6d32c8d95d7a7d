"""One process at a time writes to a run directory.

The lock is the kernel's (``flock``): it falls with its holder, however that one dies, so that a killed run can be
continued at once. Beside it the lock file names the holder. On network file systems whose locks do not reach other
hosts the name decides: a holder on another host is believed alive unless it is an earlier life of the same Slurm job,
or the user breaks the lock on purpose.

The package ``filelock`` was tried in its place. It takes the same ``flock``, but falls back to a lock file only where
the file system answers ENOSYS; where a network mount answers ENOLCK or EOPNOTSUPP it raises, so two runs there could
not be told apart. It also names no holder, so neither a requeued Slurm job nor ``break_lock`` could be served.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from vlmbench.errors import DirectoryConflictError, InputError
from vlmbench.records.files import NO_LINK, is_link_error
from vlmbench.text import parse_json

LOCK_NAME = ".run.lock"
LAST_UNIX_S = 1e11
"""The year 5138: what a file says was later is no time."""
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_SETTLE_S = 0.5  # without kernel locks: how long a rival has to show up after we wrote our name
_LOOKS, _LOOK_S = 5, 0.02
_DISK_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "jfs", "reiserfs",
                      "apfs", "hfs", "bcachefs", "ramfs", "rootfs"}  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a run directory."""

    host: str
    pid: int
    process_started_unix_s: float
    job_id: str | None
    since_unix_s: float
    booted_unix_s: float = 0.0

    @classmethod
    def myself(cls) -> Holder:
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started_unix_s=psutil.Process().create_time(),
            job_id=slurm_job_id(),
            since_unix_s=time.time(),
            booted_unix_s=psutil.boot_time(),
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job_id}" if self.job_id else ""
        return f"process {self.pid} on host {self.host}{job}"

    def lives_here(self) -> bool:
        """Whether it is a process of this host that still runs (a pid that was given out again does not count)."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            apart_s = process.create_time() - self.process_started_unix_s
            # Linux counts from the boot, whose date moves with the wall clock when that is set.
            moved_s = psutil.boot_time() - self.booted_unix_s
            return min(abs(apart_s), abs(apart_s - moved_s)) < 2 and process.is_running()
        except psutil.Error:
            return False


def slurm_job_id() -> str | None:
    """The id of the Slurm job this process belongs to, ``123`` or ``123_4`` for an array's task."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


class RunLock:
    """The exclusive right to write to a run directory; a context manager.

    Args:
        directory: the run directory; made when missing.
        break_lock: take over from a holder on another host that cannot be asked whether it lives. A holder that is
            seen to live on this host is never robbed.
    """

    def __init__(self, directory: Path, *, break_lock: bool = False) -> None:
        self.directory = Path(directory)
        self.path = self.directory / LOCK_NAME
        self.break_lock = break_lock
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock, at once or not at all.

        Raises:
            DirectoryConflictError: another process holds it; the message names that process.
            InputError: the directory cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.break_lock:
                self._set_aside_held_elsewhere()
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                self._take()
            except BaseException:
                self._close()
                raise
            atexit.register(self._release)  # a process that ends within an import leaves no block
        except OSError as error:
            if is_link_error(error):
                raise InputError(f"'{self.path}' {NO_LINK}") from error
            raise InputError(
                f"cannot lock the run directory '{self.directory}': {error.strerror or error}.\n"
                "Make it writable, or choose another directory with output_dir=DIR."
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        atexit.unregister(self._release)
        self._release()

    def _release(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                # The name goes first; the file stays, for removing a locked file lets two processes lock two files.
                os.ftruncate(self._descriptor, 0)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _take(self) -> None:
        kernel = _flock(self._descriptor)
        for _ in range(_LOOKS):  # an onlooker (is_held) may be in the way for a moment
            if kernel is not False:
                break
            time.sleep(_LOOK_S)
            kernel = _flock(self._descriptor)
        holder = _read_holder(self._descriptor)
        if kernel is False:
            raise self._conflict(holder)
        if holder is not None:
            believed_dead = kernel is True and locks_reach_all_hosts(self.directory)
            if not believed_dead and not self._may_replace(holder):
                raise self._conflict(holder)
            _log.warning("%s: taken over from %s, which ended without releasing it", self.directory, holder)
        me = Holder.myself()
        _write_holder(self._descriptor, me)
        if kernel is None:
            time.sleep(_SETTLE_S)
            now = _read_holder(self._descriptor)
            if now != me:
                raise self._conflict(now)

    def _may_replace(self, holder: Holder) -> bool:
        if holder.host == socket.gethostname():
            return not holder.lives_here()
        same_job = holder.job_id is not None and holder.job_id == slurm_job_id()  # requeued: Slurm ended the first life
        return same_job or self.break_lock

    def _set_aside_held_elsewhere(self) -> None:
        """A dead host's kernel lock may stay at the lock server: such a lock file is renamed, a new one made."""
        with suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _flock(descriptor) is not False:
                    return
                holder = _read_holder(descriptor)
                if holder is not None and holder.host != socket.gethostname():
                    self.path.rename(self.path.with_name(f"{LOCK_NAME}.broken-{time.time_ns()}"))
                    _log.warning("%s: lock of %s broken on request", self.directory, holder)
            finally:
                os.close(descriptor)

    def _conflict(self, holder: Holder | None) -> DirectoryConflictError:
        who = str(holder) if holder else "another process"
        elsewhere = holder is not None and holder.host != socket.gethostname()
        advice = "Wait for it or stop it, or choose another directory with output_dir=DIR"
        if elsewhere:
            advice += "; if that host is dead or the job has ended, take over with break_lock=true"
        return DirectoryConflictError(f"'{self.directory}' is in use by {who}.\n{advice}.")


def _flock(descriptor: int) -> bool | None:
    """True: locked; False: someone else holds it; None: this file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _read_holder(descriptor: int) -> Holder | None:
    """Who is named in the lock file; None when nobody is, or the name is not whole or of another kind."""
    try:
        found = parse_json(os.pread(descriptor, 4096, 0))
        times = (found["process_started_unix_s"], found["since_unix_s"], found.get("booted_unix_s", 0.0))
        whole = type(found["pid"]) is int and found["pid"] > 0 and all(abs(0.0 + at) < LAST_UNIX_S for at in times)
        texts = isinstance(found["host"], str) and isinstance(found["job_id"], str | None)
        return Holder(**found) if whole and texts else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _write_holder(descriptor: int, holder: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode() + b"\n", 0)
    os.fsync(descriptor)


def locks_reach_all_hosts(directory: Path) -> bool:
    """Whether a kernel lock taken here is seen by every host that sees the directory: local disks, and network file
    systems mounted with locks of their own. Unknown ones count as not.
    """
    real = directory.resolve()
    below = [part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)]
    if not below:
        return False
    mount = max(reversed(below), key=lambda part: len(part.mountpoint))  # of two at one place, the later covers
    options = set(mount.opts.split(","))
    kind = mount.fstype.lower()
    if kind in _DISK_FILE_SYSTEMS or kind == "gpfs":
        return True
    if kind.startswith("nfs"):
        return "nolock" not in options and not options & {"local_lock=flock", "local_lock=all"}
    return kind == "lustre" and "flock" in options


def is_held(directory: Path) -> bool:
    """Whether a living process holds the directory, as far as it can be told from here; takes nothing away.

    Raises:
        InputError: the lock file cannot be read.
    """
    path = Path(directory) / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}.") from error
    try:
        # shared: two onlookers do not see each other, and an onlooker holds it for microseconds only
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        holder = _read_holder(descriptor)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        holder = _read_holder(descriptor)
        return holder is not None and (holder.host != socket.gethostname() or holder.lives_here())
    finally:
        os.close(descriptor)
    return holder is not None and not locks_reach_all_hosts(Path(directory)) and holder.host != socket.gethostname()


def holder_of(directory: Path) -> Holder | None:
    """Who is named in the directory's lock file, alive or not; None when nobody is."""
    try:
        descriptor = os.open(Path(directory) / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read_holder(descriptor)
    finally:
        os.close(descriptor)

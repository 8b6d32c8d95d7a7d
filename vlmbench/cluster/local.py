"""Tasks as processes of this machine, each with GPUs of its own, as many at once as GPUs allow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlmbench.cluster.grid import Submission, Task, new_submission, read_submissions
from vlmbench.cluster.launch import now, say_next
from vlmbench.cluster.remaining import Composed, contents_of, submitting, to_do
from vlmbench.cluster.settings import LocalSettings
from vlmbench.cluster.states import RunStatus
from vlmbench.errors import ConfigError, InputError, MeasurementError
from vlmbench.machine.turns import hold_place
from vlmbench.records.lock import RunLock, is_held
from vlmbench.text import count, parse_json, say

CANCELLED, OVER = "cancelled", "over"
_TAKES_OVER_S = 120  # so long the process of a detached launcher may take to start


def launch_here(sweep_dir: Path, composed: Composed, settings: LocalSettings) -> list[RunStatus]:
    """Run what is missing on this machine; returns the state of every task.

    Raises:
        DirectoryConflictError: a run directory belongs to another configuration, or another process is submitting to
            this sweep directory; nothing was started.
        ConfigError: a task wants more GPUs than there are, or others at its side than run at once.
        KeyboardInterrupt: after the running tasks have saved and ended.
    """
    wanted = [sweep_dir / task.directory for task, _ in composed.values()]
    _check_turns(composed, len(slots(settings)))  # refuses what cannot be before anything is written
    with ExitStack() as held:
        with submitting(sweep_dir):  # until a launcher holds the submission: from then on its tasks are on their way
            missing = to_do(sweep_dir, composed)
            if not missing:
                say(f"nothing to start: all {len(composed)} tasks are done or running")
                return now(wanted, sweep_dir, lost_after_s=0)
            if left := len(missing) % (members := max(_members(missing), default=1)):
                tasks = f"{count(len(missing), 'task')} take{'s' if len(missing) == 1 else ''}"
                words = "one measures its last runs" if left == 1 else f"{left} measure their last runs"
                say(f"warning: {tasks} turns by {members}: {words} with fewer or none beside")
            contents = contents_of(missing, requeues=0, grace_s=0)
            submission = new_submission(
                sweep_dir, cluster="local", job_name="local", tasks=contents, settings=asdict(settings)
            )
            if settings.detach:
                _supervise_apart(submission)
            else:
                held.enter_context(RunLock(submission.folder))
        if settings.detach:
            say(f"{len(missing)} of {len(composed)} tasks run on this machine")
            say_next(sweep_dir)
        else:
            supervise(submission, settings)
    return now(wanted, sweep_dir, lost_after_s=0)


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name here: its own entries where it is set, else the UUIDs of all GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run(  # noqa: S603  # a fixed program
        [program, "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=60
    )
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("GPU-")] if not done.returncode else []


def slots(settings: LocalSettings) -> list[list[str] | None]:
    """What each of the processes that run at once gets: GPUs, or None for whatever is visible.

    Raises:
        ConfigError: a task wants more GPUs than there are.
    """
    there, each = gpus(), settings.gpus_per_task
    if not there or each == 0:
        return [None] * (settings.parallel or 1)
    if each > len(there):
        raise ConfigError(f"'hydra.launcher.gpus_per_task' must be at most the {len(there)} GPUs here (got {each})")
    groups: list[list[str] | None] = [there[i : i + each] for i in range(0, len(there) - each + 1, each)]
    return groups[: settings.parallel]


def _members(composed: Composed) -> list[int]:
    """How many take turns, of each task that does."""
    turns = [(plain.get("measurement") or {}).get("turns") or {} for _, plain in composed.values()]
    return [int(one["members"]) for one in turns if one.get("directory")]


def _check_turns(composed: Composed, at_once: int) -> None:
    """Refuse tasks that would wait for others whose turn to start never comes.

    Raises:
        ConfigError: fewer run at once than are to take turns.
    """
    if (members := max(_members(composed), default=1)) > at_once:
        raise ConfigError(
            f"{members} tasks are to take turns (measurement.turns.members), and {at_once} would run at once\n"
            f"Use hydra.launcher.parallel={members} hydra.launcher.gpus_per_task=0, on a GPU that holds all of them."
        )


@dataclass(kw_only=True)
class _Pool:
    submission: Submission
    free: list[list[str] | None]
    running: dict[int, tuple[subprocess.Popen[bytes], list[str] | None]] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)

    def hold_places(self) -> None:
        """Let tasks that take turns know which others come: until they are started this process stands for them."""
        for task in self.submission.tasks:
            content = parse_json(self.submission.task_file(task).read_bytes())
            turns = (content["config"].get("measurement") or {}).get("turns") or {}
            if directory := turns.get("directory"):
                with suppress(OSError):  # it will say so itself
                    of = self.submission.sweep_dir / task.directory
                    self.places[task.index] = hold_place(Path(directory).expanduser(), of)

    def leave_places(self) -> None:
        """Nobody else is started."""
        while self.places:
            os.close(self.places.popitem()[1])

    def start(self, task: Task) -> None:
        import vlmbench

        mine, place = self.free.pop(0), self.places.pop(task.index, None)
        root = str(Path(vlmbench.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        if mine is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        command = [sys.executable, "-u", "-m", "vlmbench.cli.node", str(self.submission.task_file(task).absolute())]
        with (self.submission.folder / "logs" / f"{task.index}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  # this interpreter; a session of its own: Ctrl-C is ours to pass on
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, pass_fds=[] if place is None else [place],
            )  # fmt: skip
        if place is not None:
            os.close(place)
        self.running[task.index] = (process, mine)

    def reap(self) -> None:
        for index, (process, mine) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[index]
                self.free.append(mine)

    def stop(self, within_s: float) -> None:
        """Tell the running tasks to save and end; those that do not are killed (their rows are on disk)."""
        for process, _ in self.running.values():
            process.terminate()
        deadline = time.monotonic() + within_s
        while self.running and time.monotonic() < deadline:
            time.sleep(0.1)
            self.reap()
        for process, _ in self.running.values():
            process.kill()
            process.wait()


def supervise(submission: Submission, settings: LocalSettings) -> None:
    """Run all tasks of a submission, a slot each, while holding its lock.

    Ends when none is left or the grid was cancelled.
    """
    pool = _Pool(submission=submission, free=slots(settings))
    waiting = deque(submission.tasks)
    try:
        pool.hold_places()
        while waiting or pool.running:
            if (submission.folder / CANCELLED).exists():
                waiting.clear()
                pool.leave_places()
            while waiting and pool.free:
                pool.start(waiting.popleft())
            time.sleep(settings.poll_s)
            pool.reap()
    except BaseException:
        say("stopping: running tasks finish their current repeat")
        pool.stop(settings.stop_s)
        raise
    finally:
        pool.leave_places()
        (submission.folder / OVER).touch()


def _supervise_apart(submission: Submission) -> None:
    """The same in a process that outlives this one; returns once that one holds the submission.

    Raises:
        MeasurementError: it does not.
    """
    path = submission.folder / "logs" / "launcher.log"
    with path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # this interpreter
            [sys.executable, "-m", "vlmbench.cluster.local", str(submission.sweep_dir.absolute()), submission.name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + _TAKES_OVER_S
    while not (is_held(submission.folder) or (submission.folder / OVER).exists()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise MeasurementError(f"the process that was to run these tasks did not start; its words are in '{path}'.")
        time.sleep(0.1)


def _main(sweep_dir: str, name: str) -> None:
    found = [s for s in read_submissions(Path(sweep_dir)) if s.name == name]
    if not found:
        raise InputError(f"there is no submission '{name}' in '{sweep_dir}'")
    with RunLock(found[0].folder):
        supervise(found[0], LocalSettings(**found[0].settings))


if __name__ == "__main__":
    _main(*sys.argv[1:])

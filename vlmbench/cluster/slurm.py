"""Talking to Slurm: submit arrays (through submitit), ask for states, cancel. No shell is involved in any of it."""

from __future__ import annotations

import logging
import math
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbench.cluster.grid import Submission
from vlmbench.cluster.last_words import SETUP_FAILED
from vlmbench.cluster.settings import SlurmSettings, safe_line
from vlmbench.errors import ConfigError, InputError

_log = logging.getLogger(__name__)
_TIMEOUT_S = 60
_MAX_ARRAY = 1001  # Slurm's default
ALIVE = frozenset(
    {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
     "REQUEUE_FED", "SPECIAL_EXIT", "STAGE_OUT", "SIGNALING", "RESV_DEL_HOLD"}
)  # fmt: skip
WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)

STOPPED = frozenset({"SUSPENDED", "STOPPED"})
HELD = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})


class SlurmSilentError(Exception):
    """Slurm did not answer: nothing is known about its jobs for now."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What Slurm says about a job.

    Args:
        state: ``PENDING``, ``RUNNING``, ``CANCELLED``, ``TIMEOUT``, ``OUT_OF_MEMORY`` …
        reason: why it waits, in Slurm's words.
        left_s: time left of its limit; None while it waits.
        exit_code: ``1:0`` (exit status:signal), from accounting.
    """

    state: str
    reason: str = ""
    left_s: float | None = None
    exit_code: str = ""


def submit(
    submission: Submission,
    settings: SlurmSettings,
    function: Callable[[str], object],
    *,
    stored: Callable[[Submission], None] = Submission.write,
) -> Submission:
    """Submit the tasks as arrays of at most MaxArraySize; ids are stored as soon as Slurm gives them.

    Args:
        function: importable by name; called on the node with the path of the task file.
        stored: called after each array.

    Raises:
        ConfigError: sbatch refuses; what it says is in the message. Arrays submitted before stay.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        executor = submitit.SlurmExecutor(folder=submission.folder / "logs", max_num_timeout=0)
    except RuntimeError:
        raise ConfigError(
            "hydra/launcher=slurm needs Slurm's commands, and 'srun' is not on the PATH.\n"
            "Run it on a login node, or use hydra/launcher=local for this machine."
        ) from None
    executor.update_parameters(**_parameters(submission, settings))
    size = max_array_size()
    pending = [task for task in submission.tasks if task.job_id is None]
    for start in range(0, len(pending), size):
        part = pending[start : start + size]
        files = [str(submission.task_file(task).absolute()) for task in part]
        try:
            with _outside_allocation():
                jobs = executor.map_array(function, files)
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"Slurm refused the jobs: {_said(error)}\n{_after(submission)}") from None
        submission = submission.with_ids({t.index: str(j.job_id) for t, j in zip(part, jobs, strict=True)})
        stored(submission)
    return submission


@contextmanager
def _outside_allocation() -> Iterator[None]:
    """Inside an allocation sbatch would mix that one's limits with ours; the variables are put back afterwards."""
    names = [
        name
        for name in os.environ
        if name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF"
    ]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def _after(submission: Submission) -> str:
    done = sum(task.job_id is not None for task in submission.tasks)
    return f"{done} of {len(submission.tasks)} tasks were submitted; change hydra.launcher.… and run it again."


def _said(error: BaseException) -> str:
    text = str(error)
    found = [line.strip() for line in text.splitlines() if "error" in line.lower() and "Command" not in line]
    return " ".join(dict.fromkeys(found))[:500] or text[:500]


def _parameters(submission: Submission, settings: SlurmSettings) -> dict[str, Any]:
    """For submitit; values were checked by :class:`SlurmSettings`."""
    extra: dict[str, Any] = {"requeue": True}
    gpus = settings.gpus
    if gpus:
        extra["gres"] = f"gpu:{settings.gpu_type}:{gpus}" if settings.gpu_type else f"gpu:{gpus}"
    if settings.reservation is not None:
        extra["reservation"] = settings.reservation
    if settings.memory_gb is not None:
        extra["mem"] = f"{math.ceil(settings.memory_gb * 1024)}M"
    extra.update(settings.extra)
    named = ("partition", "account", "qos", "constraint", "exclude", "comment")
    return {
        "job_name": submission.job_name,
        "time": settings.time_min,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": settings.cpus,
        "signal_delay_s": settings.grace_s,
        "array_parallelism": settings.parallel,
        "stderr_to_stdout": True,
        "setup": [*map(_or_end, settings.setup), *_environment()],
        "additional_parameters": extra,
        **{name: getattr(settings, name) for name in named},
    }


def _or_end(line: str) -> str:
    """A setup line that ends the job when it fails: what ran after it would run in the wrong environment."""
    told = shlex.quote(f": {line}")
    return f'{safe_line(line)} || {{ echo "slurm_script: {SETUP_FAILED} with exit status $?"{told} >&2; exit 2; }}'


def _environment() -> list[str]:
    # A checkout that is not installed is found on the node as it was found here.
    import vlmbench

    root = str(Path(vlmbench.__file__).resolve().parents[1])
    return [f"export PYTHONPATH={shlex.quote(root)}${{PYTHONPATH:+:$PYTHONPATH}}"]


def max_array_size() -> int:
    """How many tasks one array may have here."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run(["scontrol", "show", "config"]), re.MULTILINE)
    except SlurmSilentError:
        found = None
    # Slurm's number is one above the largest index, and ours begin at 0.
    return max(1, int(found.group(1)) - 1 if found else _MAX_ARRAY - 1)


def queue() -> dict[str, JobState]:
    """The user's jobs that the controller remembers, by job id, array tasks one by one.

    Those that are over are remembered for some minutes (MinJobAge), which helps where there are no accounts.

    Raises:
        SlurmSilentError: the controller does not answer.
    """
    text = _run(["squeue", "-h", "-r", "-t", "all", "-u", pwd.getpwuid(os.getuid()).pw_name, "-o", "%i|%T|%L|%r"])
    jobs = {}
    for line in text.splitlines():
        job_id, state, left, reason = [*line.split("|", 3), "", "", ""][:4]
        for one in _expand(job_id):  # an array that was cancelled as a whole stays one line
            jobs[one] = JobState(state=state, left_s=_seconds(left), reason=reason)
    return jobs


def queue_by_name(name: str) -> dict[int, str]:
    """Array index to job id of the jobs with this name, for when their ids were never stored.

    Only known for the tasks of one array: of several arrays nobody can tell which is which.
    """
    try:
        jobs = _run(["squeue", "-h", "-r", "-t", "all", "-n", name, "-o", "%i"]).split()
    except SlurmSilentError:
        return {}
    if len({job.partition("_")[0] for job in jobs}) != 1:
        return {}
    return {int(job.partition("_")[2] or 0): job for job in jobs}


def accounting(job_ids: Iterable[str]) -> dict[str, JobState]:
    """How jobs ended, by job id; empty where the cluster keeps no accounts."""
    wanted = set(job_ids)
    arrays = sorted({job_id.partition("_")[0] for job_id in wanted})
    found: dict[str, JobState] = {}
    for start in range(0, len(arrays), 200):
        names = ",".join(arrays[start : start + 200])
        try:
            text = _run(["sacct", "-X", "-n", "-P", "-D", "-j", names, "-o", "JobID,State,ExitCode"])
        except SlurmSilentError as error:
            _log.debug("no accounts: %s", error)
            return {}
        for line in text.splitlines():
            job_id, state, code = [*line.split("|"), "", ""][:3]
            for one in _expand(job_id):
                # the state may say more: "CANCELLED by 1000"; of several lives (requeued) the last stands last
                found[one] = JobState(state=state.split(" ")[0], exit_code=code)
    return {job_id: job for job_id, job in found.items() if job_id in wanted}


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; those that are over are passed over.

    Raises:
        InputError: Slurm does not answer.
    """
    for start in range(0, len(job_ids), 500):
        try:
            _run(["scancel", "--quiet", *job_ids[start : start + 500]])
        except SlurmSilentError as error:
            raise InputError(f"the jobs could not be cancelled: {error}") from error


def requeue(job_id: str) -> bool:
    """Put the running job ``job_id`` back into the queue; whether Slurm agreed."""
    try:
        _run(["scontrol", "requeue", job_id])
    except SlurmSilentError as error:
        _log.warning("job %s was not requeued: %s", job_id, error)
        return False
    return True


def is_preempted(job_id: str) -> bool:
    """Whether Slurm is about to take this running job's place."""
    try:
        text = _run(["scontrol", "show", "job", "-o", job_id])
    except SlurmSilentError:
        return False
    found = re.search(r"\bPreemptTime=(\S+)", text)
    return found is not None and found.group(1) not in ("None", "N/A", "Unknown")


def left_s(job_id: str) -> float | None:
    """Time left of a running job's limit; None for one that does not run, as one that was cancelled."""
    try:
        state, _, left = _run(["squeue", "-h", "-j", job_id, "-o", "%T|%L"]).strip().partition("|")
    except SlurmSilentError:
        return None
    return _seconds(left) if state == "RUNNING" else None


def _run(command: list[str]) -> str:
    environment: Mapping[str, str] = {
        **os.environ,
        "LC_ALL": "C",
        "SLURM_TIME_FORMAT": "standard",
        "SLURM_BITSTR_LEN": "0",
    }
    try:
        done = subprocess.run(  # noqa: S603  # fixed programs, checked ids, no shell
            command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmSilentError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise SlurmSilentError(f"{command[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def _expand(job_id: str) -> list[str]:
    """``12_[0-2,5%4]`` → ``12_0 12_1 12_2 12_5``; other ids as they are."""
    found = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if not found:
        return [job_id]
    ids = []
    for part in found.group(2).split(","):
        first, _, last = part.partition("-")
        ids += [f"{found.group(1)}_{i}" for i in range(int(first), int(last or first) + 1)]
    return ids


def _seconds(text: str) -> float | None:
    """``2-03:04:05``, ``04:05`` in seconds; None for ``UNLIMITED``, ``INVALID`` and their like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(g or 0) for g in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

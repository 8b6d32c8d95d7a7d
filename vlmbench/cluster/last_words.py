"""What a task said last in its log: all that is left of one that was refused, or that never came to speak."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from vlmbench.cluster.grid import Submission, Task

_TAIL_BYTES = 1 << 16
_OVER = "vlmbench task over: "
# What ends a task that never came to speak: Slurm's own errors, and those of the script around the task.
_SLURM_SAID = re.compile(
    r"^(?:(?:slurmstepd|srun|slurmd)\S*: (?:error|fatal): |\S*slurm_script: )(?P<text>.+)|^(?P<exec>execve\(\): .+)",
    re.MULTILINE,
)
_SAYS_NOTHING = re.compile(r"\*\*\*|Exited with exit code|[Tt]erminating|First task exited|Job step aborted")
_MEMORY = re.compile(r"[Oo]ut [Oo]f [Mm]emory|oom[-_ ]kill|[Ee]xceeded (?:job |step )?memory limit")
SETUP_FAILED = "setup line failed"
"""How the script around a task names a line of ``hydra.launcher.setup`` that failed, behind ``slurm_script: ``."""


def log_of(submission: Submission, task: Task, job_id: str | None) -> str | None:
    """The end of a task's log; None where it left none."""
    file = log_file(submission, task, job_id)
    return None if file is None else _tail(file)


def log_file(submission: Submission, task: Task, job_id: str | None) -> Path | None:
    """Where a task's log is, if it left one; None for a task of Slurm whose job is not known."""
    folder = submission.folder / "logs"
    if submission.cluster != "slurm":
        return folder / f"{task.index}.log"
    return folder / f"{job_id}_0_log.out" if job_id else None  # submitit's name; standard error goes there, too


def ending(exit_status: int, reason: str | None) -> str:
    """The line that a task leaves in its log when it comes to its end.

    Args:
        reason: what it told its user last.
    """
    return _OVER + json.dumps({"exit_status": exit_status, "reason": reason})


def is_over(log: str) -> bool:
    """Whether the task came to its end, whatever it was."""
    return any(line.startswith(_OVER) for line in log.splitlines())


def last_words(log: str) -> str | None:
    """Why the last attempt in a log ended, two lines at most; None if it does not say.

    An attempt that came to its end said why in its last line; of one that did not, only Slurm's errors tell.
    """
    lines = log.splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if line.startswith(_OVER)]
    if not ends:
        return _slurms_words(log)
    if said := _slurms_words("".join(lines[ends[-1] + 1 :])):  # a requeued task goes on in the same file
        return said
    with suppress(ValueError):
        reason = json.loads(lines[ends[-1]].removeprefix(_OVER)).get("reason")
        if isinstance(reason, str):
            return "\n".join(reason.splitlines()[:2])
    before = ends[-2] + 1 if len(ends) > 1 else 0
    return _slurms_words("".join(lines[before : ends[-1]]))


def _slurms_words(text: str) -> str | None:
    said = [(match["exec"] or match["text"]).strip() for match in _SLURM_SAID.finditer(text)]
    telling = [line for line in said if not _SAYS_NOTHING.search(line)]
    for line in telling:
        if _MEMORY.search(line):
            return f"oom: {line}"
    if telling and telling[-1].startswith(SETUP_FAILED):
        return "\n".join([telling[-1], *telling[-2:-1]])  # the shell's own word on it stands before
    return telling[-1] if telling else None


def _tail(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            stream.seek(max(stream.seek(0, 2) - _TAIL_BYTES, 0))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return None

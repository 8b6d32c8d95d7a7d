"""What a task said last in its log: all that is left of one that was refused, or that never came to speak."""

from __future__ import annotations

import re
from pathlib import Path

from vlmbench.cluster.grid import Submission, Task

_TAIL_BYTES = 1 << 16
_OVER = re.compile(r"^INFO \S+: exit status \d+ .*$", re.MULTILINE)  # of vlmbench.cli.node
_SAID = re.compile(r"^vlmbench: (?P<text>.*(?:\n(?!vlmbench: |[A-Z]+ [\w.]+: ).+)?)", re.MULTILINE)
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
    folder = submission.folder / "logs"
    if submission.cluster != "slurm":
        return _tail(folder / f"{task.index}.log")
    return _tail(folder / f"{job_id}_0_log.out") if job_id else None  # submitit's name; standard error goes there, too


def is_over(log: str) -> bool:
    """Whether the task came to its end, whatever it was."""
    return _OVER.search(log) is not None


def last_words(log: str) -> str | None:
    """Why the last attempt in a log ended, two lines at most; None if it does not say.

    An attempt that came to its end said so to the user last; of one that did not, only Slurm's errors tell.
    """
    *ended, rest = _OVER.split(log)  # a requeued task goes on in the same file
    if said := _slurms_words(rest):
        return said
    if not ended:
        return None
    own = [match["text"].strip() for match in _SAID.finditer(ended[-1])]
    return own[-1] if own else _slurms_words(ended[-1])


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

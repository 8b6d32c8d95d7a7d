"""What a task said last in its log: all that is left of one that was refused, for its directory is another run's."""

from __future__ import annotations

import re
from pathlib import Path

from vlmbench.cluster.grid import Submission, Task

_TAIL_BYTES = 1 << 16
_OVER = re.compile(r"^INFO \S+: exit status \d+ ", re.MULTILINE)  # of vlmbench.cluster.task
_SAID = re.compile(r"^vlmbench: (?P<text>.*(?:\n(?!vlmbench: |[A-Z]+ [\w.]+: ).+)?)", re.MULTILINE)


def log_of(submission: Submission, task: Task, job_id: str | None) -> str | None:
    """The end of a task's log; None where it left none."""
    folder = submission.folder / "logs"
    files = [folder / f"{task.index}.log"]
    if submission.cluster == "slurm":
        files = sorted(folder.glob(f"{job_id}_*.err")) if job_id else []
    for file in reversed(files):
        if (text := _tail(file)) is not None:
            return text
    return None


def is_over(log: str) -> bool:
    """Whether the task came to its end, whatever it was."""
    return _OVER.search(log) is not None


def last_words(log: str) -> str | None:
    """The last message to the user, two lines at most; None if there is none."""
    said = [match["text"].strip() for match in _SAID.finditer(log)]
    return said[-1] if said else None


def _tail(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            stream.seek(max(stream.seek(0, 2) - _TAIL_BYTES, 0))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return None

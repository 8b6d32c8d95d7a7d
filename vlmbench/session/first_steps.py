"""What a fresh process pays: each arm is measured by a process of its own, without warm-up, then they are compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench.errors import FAILED, INTERRUPTED, ConfigError
from vlmbench.records.outcome import State
from vlmbench.report.first_steps import write_first_steps
from vlmbench.text import note, say, show, shown

if TYPE_CHECKING:
    from vlmbench.session.job import Job

# What the user wrote that belongs to the whole, not to an arm.
_OF_THE_WHOLE = ("output_dir", "task", "parts", "dry_run")


def first_steps(job: Job) -> int:
    """Measure every arm of ``parts`` in a fresh process, one after the other; returns the worst exit status.

    Raises:
        ConfigError: there are no arms.
        InputError: nothing can be compared.
    """
    if not job.settings.parts:
        raise ConfigError("'parts' must name the arms of first steps, each with its choices (got none)")
    job.directory.mkdir(parents=True, exist_ok=True)
    job.outcome.begin(points_total=len(job.settings.parts))
    worst = 0
    for number, (arm, choices) in enumerate(job.settings.parts.items(), start=1):
        note(f"arm {number} of {len(job.settings.parts)}, a process of its own: {arm}")
        status = subprocess.run(_command(job, arm, choices), check=False).returncode  # noqa: S603  # this program
        if status in (INTERRUPTED, -2):
            job.outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=f"{arm} was interrupted")
            return INTERRUPTED
        worst = max(worst, FAILED if status < 0 else status)  # a process that was killed has no status of its own
        job.outcome.progress(points_done=number)
    arms = {arm: job.directory / arm for arm in job.settings.parts if (job.directory / arm).is_dir()}
    show(write_first_steps(job.directory, arms))
    job.outcome.end(State.FAILED if worst else State.DONE, exit_status=worst, reason="arms failed" if worst else None)
    say(f"results are in {shown(job.directory)}")
    return worst


def _command(job: Job, arm: str, choices: list[str]) -> list[str]:
    """The command line of one arm: what the user wrote, then what makes the arm."""
    mine = [one for one in job.overrides if one.lstrip("+~").partition("=")[0].partition(".")[0] not in _OF_THE_WHOLE]
    directory = Path(job.directory).absolute() / arm
    return [sys.executable, "-m", "vlmbench", *mine, "task=profile", *choices, f"output_dir='{directory}'"]

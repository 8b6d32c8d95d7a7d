"""Several parts with one loaded model in one directory, and what they say together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench.ending import INTERRUPTED
from vlmbench.records.lock import RunLock
from vlmbench.records.outcome import State
from vlmbench.records.whole import write_json
from vlmbench.session import load_model, profile

if TYPE_CHECKING:
    from vlmbench.job import Job
    from vlmbench.models.protocol import VisionLanguageModel


def study(job: Job) -> int:
    """Measure the parts that are not given as results, then compare tokens; returns the worst exit status.

    Each part has its own sub-directory, is continued when it was interrupted, and is not repeated when it is done.
    """
    settings = job.settings
    given = {"phase2": settings.phase2_results, "phase3": settings.phase3_results}
    names = [name for name in settings.parts if not given.get(name)]
    parts = [job.part(name, settings.parts[name]) for name in names]
    statuses = []
    with RunLock(job.directory, break_lock=settings.break_lock):
        job.outcome.begin(points_total=len(parts) + 1)
        model: VisionLanguageModel | None = None
        for number, part in enumerate(parts, start=1):
            sys.stderr.write(
                f"vlmbench: part {number} of {len(parts)}: {part.settings.name} in {part.directory.name}/\n"
            )
            model = model or load_model(part)
            statuses.append(profile(part, model))
            job.outcome.progress(points_done=number)
            if statuses[-1] == INTERRUPTED:
                reason = f"{part.directory.name}: {part.outcome.now.reason}"
                job.outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=reason)
                return INTERRUPTED
        text = _together(job, parts, given)
        sys.stdout.write(text + "\n")
        status = max(statuses, default=0)
        failed = [part.directory.name for part, s in zip(parts, statuses, strict=True) if s]
        job.outcome.end(
            State.FAILED if failed else State.DONE,
            exit_status=status,
            reason=f"parts failed: {', '.join(failed)}" if failed else None,
        )
    return status


def _together(job: Job, parts: list[Job], given: dict[str, str | None]) -> str:
    """The token comparison, and a summary that names what each part found and where it lies."""
    from vlmbench.report.exp5 import write_exp5

    by_name = {part.directory.name: part.directory for part in parts}
    swept = [by_name[name] for name in ("phase2", "prompt_tokens") if name in by_name]  # vision and prompt tokens
    phase2 = Path(given["phase2"]) if given["phase2"] else swept
    phase3 = Path(given["phase3"]) if given["phase3"] else by_name["phase3"]
    comparison = write_exp5(phase2, phase3, job.directory, allow_unlike=job.settings.allow_unlike)
    write_json(
        job.directory / "study.json",
        {"schema_version": 1, "parts": {name: str(Path(name) / "summary.json") for name in by_name}},
    )
    return comparison.text

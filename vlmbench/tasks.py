"""What ``task=`` can be: one function a task. Gets plain values and built components, never a DictConfig."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbench.config import RunConfig
from vlmbench.records.outcome import OutcomeFile


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of the command line.

    Args:
        settings: typed settings.
        config: the whole resolved configuration, plain.
        overrides: what the user wrote on the command line.
        directory: the run directory.
        outcome: the job's own account of its end.
        part: the job of a part of this one, from its name and the choices that make it.
        build: makes the component of a configuration key (``model``, ``dataset``, ``probe.timeline`` …).
    """

    settings: RunConfig
    config: Mapping[str, Any]
    overrides: list[str]
    directory: Path
    outcome: OutcomeFile
    build: Callable[[str], Any]
    part: Callable[[str, list[str]], Job]


def run(job: Job) -> int:
    """Run the job's task; returns the exit status."""
    task = job.settings.task
    if job.settings.dry_run and task in ("profile", "study"):
        from vlmbench.dry_run import dry_run

        parts = [job.part(name, choices) for name, choices in job.settings.parts.items()] or [job]
        return max(dry_run(part) for part in parts)
    if task == "profile":
        from vlmbench.session import profile

        return profile(job)
    if task == "study":
        from vlmbench.study import study

        return study(job)
    if task == "anatomy":
        return _anatomy(job)
    from vlmbench.cluster import commands

    given = job.settings.output_dir
    return commands.run(task, job.settings.runs, Path(given) if given else None)


def _anatomy(job: Job) -> int:
    """Print which module is which stage."""
    from rich.console import Console

    from vlmbench.models.anatomy import anatomy_table
    from vlmbench.report.tables import anatomy as table
    from vlmbench.session import load_model

    model = load_model(job)
    Console().print(table(str(model.facts["name"]), anatomy_table(model.module, model.anatomy), model.anatomy.notes))
    return 0

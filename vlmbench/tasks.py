"""What ``task=`` can be: one function a task. Gets a job of plain values and built components, never a DictConfig."""

from __future__ import annotations

from pathlib import Path

from vlmbench.job import Job


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

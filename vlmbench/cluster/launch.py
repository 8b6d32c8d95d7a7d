"""Submit a grid and, unless told to leave, wait for it; what is done already is not submitted again."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from vlmbench.cluster import slurm
from vlmbench.cluster.grid import Submission, new_submission, read_submissions
from vlmbench.cluster.remaining import Composed, contents_of, runs_of, submitting, to_do
from vlmbench.cluster.settings import SlurmSettings
from vlmbench.cluster.states import OVER, RunState, RunStatus, counts, overall, table
from vlmbench.cluster.status import status, status_of
from vlmbench.errors import ConfigError
from vlmbench.records.lock import holder_of
from vlmbench.text import say

_log = logging.getLogger(__name__)
_SHOWN_FAILURES = 20


def launch_on_slurm(
    sweep_dir: Path, composed: Composed, settings: SlurmSettings, run_task: Callable[[str], None]
) -> list[RunStatus]:
    """Submit what is missing, store the ids, wait unless ``detach``; returns the state of every task.

    Args:
        composed: from ``vlmbench.cli.compose.compose_tasks``.
        run_task: what a node calls with the path of its task file; found by its name there.

    Raises:
        DirectoryConflictError: a run directory belongs to another configuration, or another process is submitting to
            this sweep directory; nothing was submitted.
        ConfigError: Slurm refuses the jobs.
        KeyboardInterrupt: while waiting; the jobs go on.
    """
    wanted = [sweep_dir / task.directory for task, _ in composed.values()]
    with submitting(sweep_dir):
        _submit_missing(sweep_dir, composed, settings, run_task)
    if settings.detach:
        say_next(sweep_dir)
        return now(wanted, sweep_dir, settings.lost_after_s)
    try:
        return wait(wanted, sweep_dir, poll_s=settings.poll_s, lost_after_s=settings.lost_after_s)
    except KeyboardInterrupt:
        say("no longer waiting; the jobs go on")
        say_next(sweep_dir)
        raise


def _submit_missing(
    sweep_dir: Path, composed: Composed, settings: SlurmSettings, run_task: Callable[[str], None]
) -> None:
    missing = to_do(sweep_dir, composed)
    if not missing:
        say(f"nothing to submit: all {len(composed)} tasks are done or on their way")
        return
    contents = contents_of(missing, requeues=settings.requeues, grace_s=settings.grace_s)
    submission = new_submission(
        sweep_dir, cluster="slurm", job_name=settings.job_name, tasks=contents, settings=asdict(settings)
    )
    try:
        submission = slurm.submit(submission, settings, run_task)
    except ConfigError:
        _forget_if_nothing_was_submitted(submission)
        raise
    say(f"submitted {len(missing)} of {len(composed)} tasks as {', '.join(arrays(submission))}")


def _forget_if_nothing_was_submitted(submission: Submission) -> None:
    kept = [s for s in read_submissions(submission.sweep_dir) if s.name == submission.name]
    if kept and not arrays(kept[0]):
        shutil.rmtree(submission.folder, ignore_errors=True)


def arrays(submission: Submission) -> list[str]:
    """The ids of the arrays (or single jobs) of a submission."""
    return list(dict.fromkeys(t.job_id.partition("_")[0] for t in submission.tasks if t.job_id))


def now(wanted: list[Path], sweep_dir: Path, lost_after_s: float) -> list[RunStatus]:
    """The state of these run directories."""
    runs = runs_of(sweep_dir)
    return status_of([runs[path] for path in wanted if path in runs], lost_after_s=lost_after_s)


def wait(wanted: list[Path], sweep_dir: Path, *, poll_s: float, lost_after_s: float) -> list[RunStatus]:
    """Until every task is over or lost; says what changes, and why a task waits for more than its turn."""
    runs = runs_of(sweep_dir)
    pending = [runs[path] for path in wanted if path in runs]
    over: dict[Path, RunStatus] = {}
    told, reasons = "", set[str]()
    while True:
        found = status_of([run for run in pending if run.directory not in over], lost_after_s=lost_after_s)
        over.update({one.run.directory: one for one in found if one.state in OVER})
        line = ", ".join(f"{n} {state}" for state, n in sorted(counts([*over.values(), *_still(found)]).items()))
        if line != told:
            say(line)
            told = line
        waits = {one.reason: one.run.directory.name for one in found if one.state == RunState.QUEUED and one.reason}
        for reason in sorted(waits.keys() - reasons - _ITS_TURN):
            say(f"{waits[reason]}: queued: {reason}")
        reasons |= waits.keys()
        if len(over) == len(pending):
            return [over[run.directory] for run in pending]
        time.sleep(poll_s)


# What Slurm answers about a job that waits for others, which needs no word.
_ITS_TURN = frozenset({"None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency"})


def _still(found: list[RunStatus]) -> list[RunStatus]:
    return [one for one in found if one.state not in OVER]


def conclude(found: list[RunStatus], sweep_dir: Path) -> int:
    """Say what failed and why, last lines of the command; returns the exit status."""
    rows = table(found, sweep_dir)
    failed = [row for row, one in zip(rows, found, strict=True) if one.state in OVER and one.state != RunState.DONE]
    for row in failed[:_SHOWN_FAILURES]:
        say(f"{row['run']}: {row['state']}: {row['reason'] or 'no reason was left'}")
    if len(failed) > _SHOWN_FAILURES:
        say(f"… and {len(failed) - _SHOWN_FAILURES} more")
    say(f"{counts(found)[RunState.DONE]} of {len(found)} tasks done in {sweep_dir}")
    if failed:
        say("run the same command again to continue: only what is missing or failed runs again")
    return overall(found)


def say_next(sweep_dir: Path) -> None:
    """Tell how to go on after leaving."""
    import shlex

    where = shlex.quote(f"runs={sweep_dir}")
    say(f"next: python -m vlmbench experiment=status {where}   (then experiment=collect; or experiment=cancel)")


# End the runs of a grid that are queued or running, from any host.

_GOING = frozenset({RunState.QUEUED, RunState.RUNNING, RunState.SUSPENDED, RunState.UNKNOWN})


def cancel(runs: Path) -> list[RunStatus]:
    """Cancel all tasks at and below ``runs`` that are not over; returns them as they were.

    Running tasks are told to stop: they finish their current repeat, save, and can be continued.

    Raises:
        InputError: there are no runs, or Slurm does not answer.
    """
    everything = status(runs)
    studies = {one.run.directory for one in everything if one.state in _GOING}
    # A part of a study that goes on is told by its study: the process is the same, and a second signal ends it harder.
    told = [one for one in everything if one.run.study is None or one.run.study.directory not in studies]
    going = [one for one in told if one.state in _GOING]
    slurm_ids = [one.job_id for one in going if one.job_id and _is_on_slurm(one)]
    _end_local_launchers(going)
    if slurm_ids:
        slurm.cancel(slurm_ids)
    for one in going:
        holder = None if _is_on_slurm(one) else holder_of(one.run.directory)
        if holder is not None and holder.lives_here():  # a pid alone could have been given to somebody else
            with suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGTERM)
    return going


def _is_on_slurm(one: RunStatus) -> bool:
    return one.run.submission is not None and one.run.submission.cluster == "slurm"


def _end_local_launchers(going: Sequence[RunStatus]) -> None:
    """No further task of a local launcher starts once this file is there."""
    for folder in {one.run.submission.folder for one in going if one.run.submission and not _is_on_slurm(one)}:
        (folder / "cancelled").touch()

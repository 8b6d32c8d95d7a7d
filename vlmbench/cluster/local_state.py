"""What a run of this machine, or of nobody's launcher, is doing: locks, outcomes and logs tell."""

from __future__ import annotations

import time

from vlmbench.cluster.grid import Run, Submission
from vlmbench.cluster.last_words import is_over, last_words, log_of
from vlmbench.cluster.states import RunState, RunStatus, time_left, waiting_for
from vlmbench.records.lock import is_held
from vlmbench.records.outcome import OUTCOME_NAME, Outcome, State
from vlmbench.records.reading import RECORDS_NAME


def judge(run: Run, outcome: Outcome | None, job_id: str | None, lost_after_s: float) -> RunStatus:
    """What the run is doing.

    Args:
        outcome: its own account, if it left one.
        lost_after_s: so long a task may take to show itself.
    """
    return _of_log(run, outcome, job_id) or _here(run, outcome, job_id, lost_after_s)


def _of_log(run: Run, outcome: Outcome | None, job_id: str | None) -> RunStatus | None:
    """A task of this machine's launcher that came after the outcome in its directory and left none of its own."""
    if run.submission is None or run.task is None or outcome is None or outcome.state == State.DONE:
        return None
    if outcome.updated_unix_s >= run.submission.submitted_unix_s or is_held(run.directory):
        return None
    log = log_of(run.submission, run.task, job_id)
    if log is not None and is_over(log):
        reason = last_words(log) or "it ended without a result"
        return RunStatus(run=run, state=RunState.FAILED, outcome=outcome, job_id=job_id, reason=reason)
    if not is_held(run.submission.folder):  # its turn did not come: what was before still holds
        return None
    state = RunState.QUEUED if log is None else RunState.RUNNING
    return RunStatus(run=run, state=state, outcome=outcome, job_id=job_id)


def _here(run: Run, outcome: Outcome | None, job_id: str | None, lost_after_s: float) -> RunStatus:
    """A run of this machine or of nobody's: its lock tells whether it lives."""
    if outcome is not None and outcome.state != State.RUNNING:
        state, reason = RunState(outcome.state), outcome.reason
        return RunStatus(run=run, state=state, outcome=outcome, job_id=job_id, reason=reason)
    if is_held(run.directory):
        left, reason = time_left(outcome, None), waiting_for(outcome)
        return RunStatus(run=run, state=RunState.RUNNING, outcome=outcome, job_id=job_id, left_s=left, reason=reason)
    if outcome is None and run.submission is not None and not (run.directory / RECORDS_NAME).exists():
        return _before_its_turn(run, run.submission, job_id, lost_after_s)
    reason = (
        "its process is gone and left no result; the same command continues"
        if outcome
        else f"there are rows, but no {OUTCOME_NAME}"
    )
    return RunStatus(run=run, state=RunState.LOST, outcome=outcome, job_id=job_id, reason=reason)


def _before_its_turn(run: Run, submission: Submission, job_id: str | None, lost_after_s: float) -> RunStatus:
    """A task of a launcher of this machine that left nothing: its launcher tells."""
    log = log_of(submission, run.task, job_id) if run.task is not None else None
    if log is not None and is_over(log):  # refused, say
        reason = last_words(log) or "it ended without a result"
        return RunStatus(run=run, state=RunState.FAILED, job_id=job_id, reason=reason)
    if is_held(submission.folder):
        state = RunState.QUEUED if log is None else RunState.RUNNING
        return RunStatus(run=run, state=state, job_id=job_id)
    if log is not None:
        reason = last_words(log) or "its process is gone and left no result"
        return RunStatus(run=run, state=RunState.LOST, job_id=job_id, reason=reason)
    over = (submission.folder / "over").exists()
    if not over and time.time() - submission.submitted_unix_s < lost_after_s:
        return RunStatus(run=run, state=RunState.UNKNOWN, job_id=job_id, reason="no sign of it yet")
    reason = f"its launcher {'ended' if over else 'is gone'}, and its turn did not come"
    return RunStatus(run=run, state=RunState.NOT_BEGUN, job_id=job_id, reason=reason)

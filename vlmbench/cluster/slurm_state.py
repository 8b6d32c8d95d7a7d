"""What a task of Slurm is doing: its own outcome, then the queue, then the accounts and its log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vlmbench.cluster import slurm
from vlmbench.cluster.grid import Run, Submission
from vlmbench.cluster.last_words import last_words, log_of
from vlmbench.cluster.states import RunState, RunStatus, time_left, waiting_for
from vlmbench.records.outcome import Outcome, State

_CLOCKS_APART_S = 300.0  # of two hosts
_OOM = "oom: killed for too much host memory (raise hydra.launcher.memory_gb)"


def is_final(outcome: Outcome | str | None) -> bool:
    """Whether the run's own account is the last word, whichever of several submissions measured it."""
    return isinstance(outcome, Outcome) and outcome.state == State.DONE


def _is_of(outcome: Outcome, run: Run, job_id: str | None) -> bool:
    """Whether the outcome was written by the job that was submitted last, not by an earlier one.

    Slurm may give an id a second time (its counter begins anew): what is older than the submission is not of it.
    """
    if run.submission is None or run.submission.cluster != "slurm":
        return True
    if outcome.updated_unix_s < run.submission.submitted_unix_s - _CLOCKS_APART_S:
        return False
    return outcome.job_id == job_id if job_id is not None and outcome.job_id is not None else True


def find_unstored(runs: Sequence[Run], ids: list[str | None], open_ones: Iterable[int]) -> None:
    """Fill in the ids of jobs whose parent died before it could store them."""
    names: dict[str, dict[int, str]] = {}
    for i in open_ones:
        submission, task = runs[i].submission, runs[i].task
        if ids[i] is not None or submission is None or task is None:
            continue
        if submission.job_name not in names:
            names[submission.job_name] = slurm.queue_by_name(submission.job_name)
        ids[i] = names[submission.job_name].get(_place(submission, task.index))


def _place(submission: Submission, index: int) -> int:
    """Where a task stands in its array."""
    return [task.index for task in submission.tasks].index(index)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What Slurm answered: its queue (None: nothing) and how jobs that left it ended."""

    waiting: dict[str, slurm.JobState] | None
    ended: dict[str, slurm.JobState]
    lost_after_s: float

    def judge(self, run: Run, outcome: Outcome | None, job_id: str | None) -> RunStatus:
        """What the run is doing.

        Args:
            outcome: its own account, if it left one.
            job_id: of the job it was submitted as last.
        """
        job_id = self._alive(run, outcome, job_id) or job_id
        ours = outcome if outcome is not None and _is_of(outcome, run, job_id) else None
        job = (self.waiting or {}).get(job_id or "")
        left_s, silent = None, False
        if is_final(outcome):
            state, reason = RunState.DONE, None
        elif job is not None and job.state in slurm.WAITING:
            state, reason = RunState.QUEUED, _why_it_waits(job, job_id)
        elif job is not None and job.state in slurm.STOPPED:
            state, reason = RunState.SUSPENDED, f"Slurm holds it back ({job.state}): scontrol resume {job_id}"
        elif job is not None:
            state, reason, left_s = RunState.RUNNING, waiting_for(ours), time_left(ours, job.left_s)
        elif ours is not None and ours.state != State.RUNNING:
            state, reason = RunState(ours.state), ours.reason
        elif silent := self.waiting is None:
            state, reason = RunState.UNKNOWN, "Slurm does not answer"
        else:
            state, reason = self._without_trace(run, ours, job_id)
        return RunStatus(
            run=run, state=state, outcome=outcome, job_id=job_id, reason=reason, left_s=left_s, unanswered=silent
        )

    def _alive(self, run: Run, outcome: Outcome | None, job_id: str | None) -> str | None:
        """The job that works on this run or will, of whichever submission; one that runs before one that waits."""
        jobs = [job_id, outcome.job_id if outcome is not None else None, *run.earlier]
        alive = [(job, self.waiting[job].state) for job in jobs if job and self.waiting and job in self.waiting]
        runs = [job for job, state in alive if state not in slurm.WAITING]
        return next(iter([*runs, *(job for job, _ in alive)]), None)

    def _without_trace(self, run: Run, ours: Outcome | None, job_id: str | None) -> tuple[RunState, str]:
        """A job that is not in the queue and left no result."""
        end = self.ended.get(job_id or "")
        assert run.submission is not None
        if end is not None and end.state not in slurm.ALIVE:
            state, reason = _by_accounts(end)
            log = log_of(run.submission, run.task, job_id) if run.task is not None else None
            said = last_words(log) if log is not None else None
            if said and said.startswith("oom: ") and state == RunState.FAILED:
                return state, f"{_OOM}: {said.removeprefix('oom: ')}"
            return state, f"{reason}: {said}" if said else reason
        last_sign = max(run.submission.submitted_unix_s, ours.updated_unix_s if ours else 0.0)
        if time.time() - last_sign < self.lost_after_s:
            return RunState.UNKNOWN, "no sign of it yet"
        return RunState.LOST, "neither in the queue nor in the accounts, and it left no result"


def _why_it_waits(job: slurm.JobState, job_id: str | None) -> str:
    """Slurm's words, and what to do about a job that will not begin by itself."""
    held = "held" in job.reason.lower() or job.state in slurm.HELD
    return f"Slurm holds it back ({job.reason or job.state}): scontrol release {job_id}" if held else job.reason


def _by_accounts(end: slurm.JobState) -> tuple[RunState, str]:
    """A job that is over and left no result of its own."""
    if end.state == "CANCELLED":
        return RunState.CANCELLED, "cancelled"
    status = f", exit code {end.exit_code}" if end.exit_code else ""  # a cluster without accounts tells none
    how = {
        "DEADLINE": "its deadline passed",
        "TIMEOUT": "killed at its time limit (raise hydra.launcher.time_min or grace_s)",
        "OUT_OF_MEMORY": _OOM,
        "NODE_FAIL": "its node failed",
        "PREEMPTED": "preempted",
        "BOOT_FAIL": "its node did not start",
    }.get(end.state, f"it ended without a result (Slurm: {end.state}{status})")
    return RunState.FAILED, how

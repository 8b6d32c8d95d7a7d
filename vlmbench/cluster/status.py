"""How far every run of a grid is: from its own files first, from the scheduler second."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from vlmbench.cluster import slurm
from vlmbench.cluster.grid import Run, Submission, Task, find_runs
from vlmbench.errors import INTERRUPTED, InputError
from vlmbench.records.lock import is_held
from vlmbench.records.outcome import Outcome, State, read_outcome

# What a task said last in its log: all that is left of one that was refused, for its directory is another run's.

_TAIL_BYTES = 1 << 16
_OVER = re.compile(r"^INFO \S+: exit status \d+ .*$", re.MULTILINE)  # of vlmbench.cli.node
_SAID = re.compile(r"^vlmbench: (?P<text>.*(?:\n(?!vlmbench: |[A-Z]+ [\w.]+: ).+)?)", re.MULTILINE)
# What ends a task that never came to speak: Slurm's own errors, and those of the script around the task.
_SLURM_SAID = re.compile(
    r"^(?:(?:slurmstepd|srun|slurmd)\S*: (?:error|fatal): |\S*slurm_script: )(?P<text>.+)|^(?P<exec>execve\(\): .+)",
    re.MULTILINE,
)
_SAYS_NOTHING = re.compile(r"\*\*\*|Exited with exit code|[Tt]erminating|First task exited|Job step aborted")


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
    return telling[-1] if telling else None


def _tail(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            stream.seek(max(stream.seek(0, 2) - _TAIL_BYTES, 0))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return None


LOST_AFTER_S = 60.0


class RunState(StrEnum):
    """What a run is doing."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # to be continued with the same command
    CANCELLED = "cancelled"
    LOST = "lost"  # neither its files nor the scheduler know what became of it
    UNKNOWN = "unknown"  # the scheduler does not answer, or the run was submitted a moment ago


OVER = frozenset({RunState.DONE, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED, RunState.LOST})


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One line of the status table.

    Args:
        run: directory, task and submission.
        state: what it is doing.
        outcome: its own account, if it ever wrote one.
        job_id: of the scheduler.
        reason: why it waits, failed or is lost, one or two lines.
        unanswered: whether it is unknown because the scheduler does not answer.
        left_s: estimate of the time left from the points done, else what is left of its time limit; None if unknown.
    """

    run: Run
    state: RunState
    outcome: Outcome | None = None
    job_id: str | None = None
    reason: str | None = None
    left_s: float | None = None
    unanswered: bool = False

    @property
    def exit_status(self) -> int:
        """As the command line counts it: the run's own where it left one, 130 if it may continue, else 1."""
        if self.state == RunState.DONE:
            return 0
        if self.state == RunState.INTERRUPTED:
            return INTERRUPTED
        own = self.outcome.exit_status if self.outcome is not None else None
        if self.state == RunState.FAILED and own and own != INTERRUPTED:  # else an earlier attempt's
            return own
        return 1


def status(runs: Path, *, lost_after_s: float = LOST_AFTER_S) -> list[RunStatus]:
    """The state of all runs at and below ``runs``.

    Raises:
        InputError: there are none.
    """
    return status_of(find_runs(runs), lost_after_s=lost_after_s)


def status_of(runs: Sequence[Run], *, lost_after_s: float = LOST_AFTER_S) -> list[RunStatus]:
    """The state of the given runs; Slurm is asked once for all of them."""
    outcomes = [_outcome(run) for run in runs]
    ids = [_job_id(run) for run in runs]
    on_slurm = [i for i, run in enumerate(runs) if run.submission and run.submission.cluster == "slurm"]
    open_ones = [i for i in on_slurm if not _is_final(outcomes[i])]
    waiting: dict[str, slurm.JobState] | None = {}
    ended: dict[str, slurm.JobState] = {}
    if open_ones:
        _find_unstored(runs, ids, open_ones)
        try:
            waiting = slurm.queue()
        except slurm.SlurmSilentError:
            waiting = None
        else:
            # A job that ended between the two looks has its outcome on disk by now.
            for i in open_ones:
                outcomes[i] = _outcome(runs[i])
            ended = {job_id: job for job_id, job in waiting.items() if job.state not in slurm.ALIVE}
            waiting = {job_id: job for job_id, job in waiting.items() if job.state in slurm.ALIVE}
            ended |= slurm.accounting([job for i in open_ones if (job := ids[i]) and job not in waiting])
    asked = _Slurm(waiting=waiting, ended=ended, lost_after_s=lost_after_s)
    found = []
    for run, outcome, job_id in zip(runs, outcomes, ids, strict=True):
        if isinstance(outcome, str):
            found.append(RunStatus(run=run, state=RunState.FAILED, job_id=job_id, reason=outcome))
        elif run.submission and run.submission.cluster == "slurm":
            found.append(asked.judge(run, outcome, job_id))
        else:
            found.append(_of_log(run, outcome, job_id) or _here(run, outcome, job_id, lost_after_s))
    return _as_their_study(found)


def _as_their_study(found: Sequence[RunStatus]) -> list[RunStatus]:
    """Parts that claim to run have what they are in from their study: they are measured by its process."""
    states = {one.run.directory: one for one in found}
    judged = []
    for one in found:
        study = states.get(one.run.study.directory) if one.run.study is not None else None
        claims = one.outcome is not None and one.outcome.state == State.RUNNING
        if study is not None and claims and study.state != RunState.DONE:
            left = one.left_s if one.left_s is not None else _time_left(one.outcome, None)
            running = study.state == RunState.RUNNING
            judged.append(replace(one, state=study.state, reason=study.reason, left_s=left if running else None))
        else:
            judged.append(one)
    return judged


def _outcome(run: Run) -> Outcome | str | None:
    try:
        return read_outcome(run.directory)
    except InputError as error:
        return str(error)


def _job_id(run: Run) -> str | None:
    return run.task.job_id if run.task else None


def _is_final(outcome: Outcome | str | None) -> bool:
    """Whether the run's own account is the last word, whichever of several submissions measured it."""
    return isinstance(outcome, Outcome) and outcome.state == State.DONE


def _is_of(outcome: Outcome, run: Run, job_id: str | None) -> bool:
    """Whether the outcome was written by the job that was submitted last, not by an earlier one."""
    if run.submission is None or run.submission.cluster != "slurm":
        return True
    return outcome.job_id == job_id if job_id is not None and outcome.job_id is not None else True


def _find_unstored(runs: Sequence[Run], ids: list[str | None], open_ones: Iterable[int]) -> None:
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
class _Slurm:
    """What Slurm answered: its queue (None: nothing) and how jobs that left it ended."""

    waiting: dict[str, slurm.JobState] | None
    ended: dict[str, slurm.JobState]
    lost_after_s: float

    def judge(self, run: Run, outcome: Outcome | None, job_id: str | None) -> RunStatus:
        ours = outcome if outcome is not None and _is_of(outcome, run, job_id) else None
        job = (self.waiting or {}).get(job_id or "")
        left_s, silent = None, False
        if _is_final(outcome):
            state, reason = RunState.DONE, None
        elif job is not None and job.state in slurm.WAITING:
            state, reason = RunState.QUEUED, job.reason
        elif job is not None:
            state, reason, left_s = RunState.RUNNING, None, _time_left(ours, job.left_s)
        elif ours is not None and ours.state != State.RUNNING:
            state, reason = RunState(ours.state), ours.reason
        elif silent := self.waiting is None:
            state, reason = RunState.UNKNOWN, "Slurm does not answer"
        else:
            state, reason = self._without_trace(run, ours, job_id)
        return RunStatus(
            run=run, state=state, outcome=outcome, job_id=job_id, reason=reason, left_s=left_s, unanswered=silent
        )

    def _without_trace(self, run: Run, ours: Outcome | None, job_id: str | None) -> tuple[RunState, str]:
        """A job that is not in the queue and left no result."""
        end = self.ended.get(job_id or "")
        assert run.submission is not None
        if end is not None and end.state not in slurm.ALIVE:
            state, reason = _by_accounts(end)
            log = log_of(run.submission, run.task, job_id) if run.task is not None else None
            said = last_words(log) if log is not None else None
            return state, f"{reason}: {said}" if said else reason
        last_sign = max(run.submission.submitted_unix_s, ours.updated_unix_s if ours else 0.0)
        if time.time() - last_sign < self.lost_after_s:
            return RunState.UNKNOWN, "no sign of it yet"
        return RunState.LOST, "neither in the queue nor in the accounts, and it left no result"


def _by_accounts(end: slurm.JobState) -> tuple[RunState, str]:
    """A job that is over and left no result of its own."""
    if end.state == "CANCELLED":
        return RunState.CANCELLED, "cancelled"
    how = {
        "DEADLINE": "its deadline passed",
        "TIMEOUT": "killed at its time limit (raise hydra.launcher.time_min or grace_s)",
        "OUT_OF_MEMORY": "killed for too much host memory (raise hydra.launcher.memory_gb)",
        "NODE_FAIL": "its node failed",
        "PREEMPTED": "preempted",
        "BOOT_FAIL": "its node did not start",
    }.get(end.state, f"it ended without a result (Slurm: {end.state}, exit code {end.exit_code})")
    return RunState.FAILED, how


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
        left = _time_left(outcome, None)
        return RunStatus(run=run, state=RunState.RUNNING, outcome=outcome, job_id=job_id, left_s=left)
    if outcome is None and run.submission is not None and run.task is not None:
        if (run.submission.folder / "over").exists():
            reason = "its launcher ended before its turn came"
            return RunStatus(run=run, state=RunState.CANCELLED, job_id=job_id, reason=reason)
        if is_held(run.submission.folder):
            return RunStatus(run=run, state=RunState.QUEUED, job_id=job_id)
    if outcome is None and run.submission and time.time() - run.submission.submitted_unix_s < lost_after_s:
        return RunStatus(run=run, state=RunState.UNKNOWN, job_id=job_id, reason="no sign of it yet")
    reason = "its process is gone and left no result" if outcome else "it was never begun"
    return RunStatus(run=run, state=RunState.LOST, outcome=outcome, job_id=job_id, reason=reason)


def _time_left(outcome: Outcome | None, limit_s: float | None) -> float | None:
    """By rule of three from the points done, but not more than its time limit leaves."""
    if outcome is None or not outcome.points_done or not outcome.points_total:
        return limit_s
    spent = outcome.updated_unix_s - outcome.started_unix_s
    rest = spent / outcome.points_done * (outcome.points_total - outcome.points_done)
    return rest if limit_s is None else min(rest, limit_s)


def counts(found: Iterable[RunStatus]) -> Counter[str]:
    """State to number of runs."""
    return Counter(str(one.state) for one in found)


def without_studies(found: Sequence[RunStatus]) -> list[RunStatus]:
    """What measures: a study whose parts are there is left out."""
    studies = {one.run.study.directory for one in found if one.run.study is not None}
    return [one for one in found if one.run.directory not in studies]


def overall(found: Sequence[RunStatus]) -> int:
    """One exit status: 0 all done, 130 when any may continue, 2 when all had bad input, else 1."""
    statuses = {one.exit_status for one in found if one.state in OVER}
    if statuses <= {0}:
        return 0
    if 130 in statuses:
        return 130
    return 2 if statuses == {2} else 1


def table(found: Sequence[RunStatus], root: Path) -> list[dict[str, str]]:
    """Rows for printing: run, state, job, progress, time left, reason; all text."""
    rows = []
    for one in found:
        outcome = one.outcome
        try:
            name = str(one.run.directory.resolve().relative_to(Path(root).resolve()))
        except ValueError:
            name = str(one.run.directory)
        progress = ""
        if outcome is not None and one.state != RunState.QUEUED:
            points = f"{outcome.points_done}/{outcome.points_total} points, " if outcome.points_done else ""
            progress = f"{points}{outcome.rows} rows"
        rows.append(
            {
                "run": name,
                "state": str(one.state),
                "job": one.job_id or "",
                "progress": progress,
                "left": "" if one.left_s is None else _duration(one.left_s),
                "reason": (one.reason or "").replace("\n", " "),
            }
        )
    return rows


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

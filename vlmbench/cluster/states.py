"""What a run of a grid may be doing, how many do what, and both as rows of text for the terminal and the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vlmbench.cluster.grid import Run
from vlmbench.errors import INTERRUPTED
from vlmbench.records.outcome import Outcome, State

LOST_AFTER_S = 60.0


class RunState(StrEnum):
    """What a run is doing."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"  # it neither runs nor ended: scontrol suspend, SIGSTOP, a frozen control group
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # to be continued with the same command
    CANCELLED = "cancelled"
    NOT_BEGUN = "not begun"  # its launcher ended before its turn came: to be continued with the same command
    LOST = "lost"  # neither its files nor the scheduler know what became of it, or its rows are gone
    UNKNOWN = "unknown"  # the scheduler does not answer, or the run was submitted a moment ago


OVER = frozenset(
    {RunState.DONE, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED, RunState.NOT_BEGUN, RunState.LOST}
)


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
        unreadable: what is wrong with its account, where that cannot be read.
        sign_s: age of the last sign of life of a run that is neither over nor queued; None where it gave none.
        left_s: estimate of the time left from the points done, else what is left of its time limit; None if unknown.
    """

    run: Run
    state: RunState
    outcome: Outcome | None = None
    job_id: str | None = None
    reason: str | None = None
    left_s: float | None = None
    unanswered: bool = False
    unreadable: str | None = None
    sign_s: float | None = None

    @property
    def exit_status(self) -> int:
        """As the command line counts it: the run's own where it left one, 130 if it may continue, else 1."""
        if self.state == RunState.DONE:
            return 0
        if self.state in (RunState.INTERRUPTED, RunState.NOT_BEGUN):
            return INTERRUPTED
        own = self.outcome.exit_status if self.outcome is not None else None
        if self.state == RunState.FAILED and own and own != INTERRUPTED:  # else an earlier attempt's
            return own
        return 1


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


def time_left(outcome: Outcome | None, limit_s: float | None) -> float | None:
    """By rule of three from the points done, but not more than its time limit leaves."""
    if outcome is None or not outcome.points_done or not outcome.points_total:
        return limit_s
    spent = outcome.updated_unix_s - outcome.started_unix_s
    rest = spent / outcome.points_done * (outcome.points_total - outcome.points_done)
    return rest if limit_s is None else min(rest, limit_s)


def waiting_for(outcome: Outcome | None) -> str | None:
    """What a run that is under way waits for, by its own account."""
    return outcome.reason if outcome is not None and outcome.state == State.RUNNING else None


def table(found: Sequence[RunStatus], root: Path) -> list[dict[str, str]]:
    """Rows for printing: run, state, job, progress, age of the last sign of life, time left, reason; all text."""
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
            # Its process told that every ten seconds, and can tell no more.
            as_told = " when last heard of" if one.state == RunState.LOST else ""
            progress = f"{points}{outcome.rows} rows{as_told}"
        rows.append(
            {
                "run": name,
                "state": str(one.state),
                "job": one.job_id or "",
                "progress": progress,
                "sign": "" if one.sign_s is None else f"{_duration(one.sign_s)} ago",
                "left": "" if one.left_s is None else _duration(one.left_s),
                "reason": (one.reason or "").replace("\n", " "),
            }
        )
    return rows


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

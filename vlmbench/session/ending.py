"""How a session ends: done, failed, interrupted, cut short by its time limit; and what it writes of itself then."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.errors import INTERRUPTED, DirectoryConflictError, InputError, VlmbenchError
from vlmbench.records import provenance
from vlmbench.records.lock import RunLock
from vlmbench.records.outcome import OUTCOME_NAME, Cause, OutcomeFile, State, read_outcome
from vlmbench.runner.plan import SeriesState
from vlmbench.session.signals import heed
from vlmbench.text import Level, level, say, show, shown

if TYPE_CHECKING:
    from vlmbench.session.job import Job


SAME_COMMAND = "run the same command again to continue"
_SHOWN = 10
SWEEP_FILE = "multirun.yaml"  # which Hydra writes into the directory of a multirun


def to_continue(directory: Path, output_dir: str | None) -> str:
    """What to type to continue a run: where no ``output_dir`` was given, the same command would begin another.

    Args:
        directory: of the run, or of one job of a multirun.
    """
    if output_dir:
        return SAME_COMMAND
    whole = directory.parent if (directory.parent / SWEEP_FILE).is_file() else directory
    return f"run the same command with {shlex.quote(f'output_dir={shown(whole)}')} to continue"


def conclude(
    outcome: OutcomeFile,
    states: Sequence[SeriesState],
    say: Callable[[str], None],
    *,
    untraced: Collection[str] = (),
    again: str = SAME_COMMAND,
    far: str = "",
) -> int:
    """Write down how the run ended, and say so.

    Args:
        states: of all series, which have ended.
        untraced: point ids whose trace the time limit left out.
        again: how the run is continued, see :func:`to_continue`.
        far: how far it is, in words, for a run that the time limit cut short.

    Returns:
        The exit status: 0 done; 1 something failed, or nothing of what was asked for could be measured; 130 the time
        limit cut it short.
    """
    if cut := cut_short(states, untraced):
        return interrupted(outcome, f"{_cut_words(cut, far)}; {again}", say, cause=Cause.TIME_LIMIT)
    failed = [s for s in states if s.failed and s.ended != "skipped"]
    asked = [s for s in states if not s.series.beside]
    reason: str | None = None
    if failed:
        reason = "; ".join(map(_failed_words, failed[:_SHOWN]))
    elif not any(state.measured for state in asked):
        what = "nothing could be measured" if len(asked) == len(states) else "no run of the method could be measured"
        reason = f"{what}: " + "; ".join(f"{s.series.point_id}: {s.reason}" for s in asked[:_SHOWN])
    if reason is not None:
        say(reason)
    elif left_out := [s for s in states if s.left_out]:
        say("; ".join(f"{s.series.point_id}: left out ({s.reason})" for s in left_out[:_SHOWN]))
    status = 0 if reason is None else 1
    outcome.end(State.DONE if status == 0 else State.FAILED, exit_status=status, reason=reason)
    return status


def _failed_words(state: SeriesState) -> str:
    """How many runs of a series failed, of how many that were tried, and why, by kind."""
    tried = f" of {state.measured + state.failed:,}" if state.measured else ""
    return f"{state.series.point_id}: {state.failed:,}{tried} failed ({state.reasons.words() or state.reason})"


def cut_short(states: Sequence[SeriesState], untraced: Collection[str] = ()) -> list[SeriesState]:
    """The series that the time limit left with work to do: runs that their rule or data set asks for, or a trace."""
    return [s for s in states if (s.ended == "time_limit" and _is_short(s)) or s.series.point_id in untraced]


def interrupted(outcome: OutcomeFile, reason: str, say: Callable[[str], None], *, cause: Cause = Cause.STOPPED) -> int:
    """Write down that this run can be continued; returns the exit status."""
    outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=reason, cause=cause)
    say(reason)
    return INTERRUPTED


def _is_short(state: SeriesState) -> bool:
    """Whether a series that met the time limit lacks runs: its stopping rule is unmet, or not each request was run."""
    return state.series.stopping is not None or state.measured + state.failed + state.left_out < state.series.expected


def _cut_words(cut: Sequence[SeriesState], far: str) -> str:
    """Which series the time limit cut short, and how far they are."""
    named = [f"{s.series.point_id} ({_how_far(s)})" for s in cut[:_SHOWN]]
    more = f" and {len(cut) - _SHOWN} more" if len(cut) > _SHOWN else ""
    after = f" after {far}" if far else ""
    names = f"{', '.join(named)}{more}"
    return f"measurement.time_limit_s is over{after}, not finished: {names}; what was measured is reported"


def _how_far(state: SeriesState) -> str:
    if state.ended != "time_limit":
        return "not traced"
    return f"{state.measured} measured" + ("" if state.series.stopping else f" of {state.series.expected}")


# How a job that did not end by itself is written down: never over what is known of another run.


def keep(
    outcome: OutcomeFile,
    state: State,
    *,
    exit_status: int,
    reason: str | None = None,
    error: Exception | None = None,
    cause: Cause | None = None,
) -> None:
    """Write the end down, unless the directory is another run's: its outcome is not this job's to replace."""
    if outcome.is_lost:
        return
    if outcome.now.started_unix_s > 0 or not (outcome.directory / OUTCOME_NAME).exists():
        try:
            outcome.end(state, exit_status=exit_status, reason=reason, error=error, cause=cause)
        except VlmbenchError as disk:
            sys.stderr.write(f"vlmbench: the outcome could not be written: {disk}\n")


def note_loss(outcome: OutcomeFile, again: str, reason: str) -> None:
    """Another process that shares the model failed; this one is stuck, and is ended right after this."""
    outcome.end(State.FAILED, exit_status=1, reason=f"{reason}; {again}")


def note_refusal(outcome: OutcomeFile, error: DirectoryConflictError, config: Mapping[str, Any]) -> None:
    """Why a run of this very configuration was not continued (on unlike hardware, say), beside how far it is.

    State, exit status and counts stay those of the rows that are there; a run that died without a word is one that can
    be continued. Nothing is written where the directory belongs to another configuration or process, where it cannot
    be, or where the run is done.

    Args:
        outcome: of the job that was refused, not begun.
        config: resolved, of that job.
    """
    try:
        with RunLock(outcome.directory):
            before = read_outcome(outcome.directory)
            known = provenance.check_directory(outcome.directory, config)
            if not known or before is None or before.state == State.DONE:
                return
            earlier = before.reason if before.cause != Cause.REFUSED else before.before
            died = before.state == State.RUNNING  # its lock is free
            told = f"\nbefore that: {earlier}" if before.state == State.FAILED else ""
            outcome.now = before
            outcome.end(
                State.INTERRUPTED if died else before.state,
                exit_status=INTERRUPTED if died or before.exit_status is None else before.exit_status,
                reason=f"not continued: {error}{told}",
                cause=Cause.REFUSED,
                before=earlier,
            )
    except VlmbenchError:
        return  # the refusal itself is said aloud


def report_and_conclude(
    job: Job, states: Sequence[SeriesState], *, again: str, far: str, untraced: Collection[str] = ()
) -> int:
    """Write the reports of a run that was not told to stop, and how it ended; returns the exit status.

    A run that its time limit cut short is first written down as such: its page says how far it is.
    """
    ends = partial(conclude, job.outcome, states, say, untraced=untraced, again=again, far=far)
    if cut_short(states, untraced):
        status = ends()
        write_reports(job, needed=False)
        return status
    write_reports(job, needed=True)
    return ends()


def report_to_come(job: Job) -> str:
    """Say that a report comes once all runs are over; empty where none was asked for."""
    return "" if job.settings.report == "none" else "now the report"


def write_reports(job: Job, *, needed: bool) -> None:
    """Figures, summary and phase file; a failure here loses no measurement and is said aloud.

    Args:
        needed: False where the run will be continued: too little for a report then does not end it as failed.
    """
    from vlmbench.report import write_report

    try:
        text = write_report(job.settings.report, job.directory, extra_figures=job.settings.figures.extra)
    except InputError as error:
        if needed:
            raise
        text = f"No report yet: {error}"
    if level() > Level.QUIET:
        show(text)


def stopped(job: Job, far: str, *, again: str) -> int:
    """End a run that was told to stop: first the truth about it on disk, then a page of what there is.

    Whoever stops a run may give it little time: no figure is drawn, and another signal ends it at once.

    Args:
        far: how far it is, in words.
    """
    from vlmbench.report import write_quick_report

    status = interrupted(job.outcome, f"interrupted after {far}; {again}", say)
    try:
        if text := write_quick_report(job.settings.report, job.directory):
            say(text)
    except KeyboardInterrupt:
        heed()
        say(f"stopped again, so there is no page; experiment=report runs={shown(job.directory)} makes it")
    except VlmbenchError as error:  # the run is ended and can be continued, whatever becomes of its page
        say(f"no page: {error}")
    return status

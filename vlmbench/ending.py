"""How a session that was not told to stop ends: done, failed, or cut short by its time limit."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vlmbench.records.outcome import OutcomeFile, State
from vlmbench.runner.plan import SeriesState
from vlmbench.text import shown

INTERRUPTED = 130
"""Exit status of a run that the same command continues."""
SAME_COMMAND = "run the same command again to continue"
_SHOWN = 10
_SWEEP_FILE = "multirun.yaml"  # which Hydra writes into the directory of a multirun


def to_continue(directory: Path, output_dir: str | None) -> str:
    """What to type to continue a run: where no ``output_dir`` was given, the same command would begin another.

    Args:
        directory: of the run, or of one job of a multirun.
        output_dir: as configured.
    """
    if output_dir:
        return SAME_COMMAND
    whole = directory.parent if (directory.parent / _SWEEP_FILE).is_file() else directory
    return f"run the same command with {shlex.quote(f'output_dir={shown(whole)}')} to continue"


def conclude(
    outcome: OutcomeFile,
    states: Sequence[SeriesState],
    say: Callable[[str], None],
    *,
    untraced: Collection[str] = (),
    again: str = SAME_COMMAND,
) -> int:
    """Write down how the run ended, and say so.

    Args:
        outcome: of the run.
        states: of all series, which have ended.
        say: tells the user.
        untraced: point ids whose trace the time limit left out.
        again: how the run is continued, see :func:`to_continue`.

    Returns:
        The exit status: 0 done; 1 something failed, or nothing could be measured; 130 the time limit cut it short.
    """
    if cut := cut_short(states, untraced):
        return interrupted(outcome, f"{_cut_words(cut)}, {again}", say)
    failed = [s for s in states if s.failed and s.ended != "skipped"]
    reason: str | None = None
    if failed:
        reason = "; ".join(f"{s.series.point_id}: {s.failed} failed ({s.reason})" for s in failed[:_SHOWN])
    elif not any(state.measured for state in states):
        reason = "nothing could be measured: " + "; ".join(f"{s.series.point_id}: {s.reason}" for s in states[:_SHOWN])
    if reason is not None:
        say(reason)
    status = 0 if reason is None else 1
    outcome.end(State.DONE if status == 0 else State.FAILED, exit_status=status, reason=reason)
    return status


def cut_short(states: Sequence[SeriesState], untraced: Collection[str] = ()) -> list[SeriesState]:
    """The series that the time limit left with work to do: runs that their rule or data set asks for, or a trace."""
    return [s for s in states if (s.ended == "time_limit" and _is_short(s)) or s.series.point_id in untraced]


def interrupted(outcome: OutcomeFile, reason: str, say: Callable[[str], None]) -> int:
    """Write down that this run can be continued; returns the exit status."""
    outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=reason)
    say(reason)
    return INTERRUPTED


def _is_short(state: SeriesState) -> bool:
    """Whether a series that met the time limit lacks runs: its stopping rule is unmet, or not each request was run."""
    return state.series.stopping is not None or state.measured + state.failed < state.series.expected


def _cut_words(cut: Sequence[SeriesState]) -> str:
    """Which series the time limit cut short, and how far they are."""
    named = [f"{s.series.point_id} ({_how_far(s)})" for s in cut[:_SHOWN]]
    more = f" and {len(cut) - _SHOWN} more" if len(cut) > _SHOWN else ""
    return f"measurement.time_limit_s is over, not finished: {', '.join(named)}{more}; what was measured is reported"


def _how_far(state: SeriesState) -> str:
    if state.ended != "time_limit":
        return "not traced"
    return f"{state.measured} measured" + ("" if state.series.stopping else f" of {state.series.expected}")

"""How far a run is that did not come to its end, in the words that the page and the terminal share."""

from __future__ import annotations

import os
from pathlib import Path

from vlmbench.machine.host import host_hash
from vlmbench.records.lock import is_held
from vlmbench.records.outcome import Cause, Outcome, State, read_outcome
from vlmbench.text import count


def unfinished(directory: Path, *, about: bool = False) -> str | None:
    """Say how far a run is that is not over: ``interrupted after 69 of 200 runs``.

    Args:
        about: whether a rule, not a number, ends its points, so that its total is an estimate.

    Returns:
        None for a run that came to its end, also where this process is about to say so, and for rows without an
        ``outcome.json`` (published ones).

    Raises:
        InputError: ``outcome.json`` or the lock cannot be read.
    """
    outcome = read_outcome(directory)
    if outcome is None or outcome.state == State.DONE or _is_ours(outcome):
        return None
    far = how_far(outcome, about=about)
    if outcome.state == State.RUNNING:
        return f"still running, {far} so far" if is_held(directory) else f"ended without a word after {far}"
    if outcome.state == State.INTERRUPTED:
        return f"{'cut short by its time limit' if outcome.cause == Cause.TIME_LIMIT else 'interrupted'} after {far}"
    short = outcome.runs_total is not None and (outcome.runs_done or 0) < outcome.runs_total
    return f"failed after {far}" if short else None


def _is_ours(outcome: Outcome) -> bool:
    """Whether this process measures the run: who writes a report then has measured all of it."""
    return outcome.state == State.RUNNING and outcome.pid == os.getpid() and outcome.host == host_hash()


def how_far(outcome: Outcome, *, about: bool = False) -> str:
    """``69 of 200 runs``; points or rows where an earlier version counted no runs."""
    if outcome.runs_done is not None and outcome.runs_total is not None:
        return runs_of(outcome.runs_done, outcome.runs_total, about=about)
    if outcome.points_total is not None:
        return f"{outcome.points_done:,} of {count(outcome.points_total, 'point')}"
    return count(outcome.rows, "row")


def runs_of(done: int, total: int, *, about: bool = False) -> str:
    """``69 of 200 runs``, ``69 of about 200 runs``."""
    return f"{done:,} of {'about ' if about else ''}{count(total, 'run')}"

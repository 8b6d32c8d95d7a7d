"""How a job that did not end by itself is written down: never over what is known of another run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from vlmbench.ending import INTERRUPTED
from vlmbench.errors import DirectoryConflictError, VlmbenchError
from vlmbench.records import provenance
from vlmbench.records.lock import RunLock
from vlmbench.records.outcome import OUTCOME_NAME, OutcomeFile, State, read_outcome

_REFUSED, _BEFORE = "not continued: ", "before that: "


def keep(
    outcome: OutcomeFile, state: State, *, exit_status: int, reason: str | None = None, error: Exception | None = None
) -> None:
    """Write the end down, unless the directory is another run's: its outcome is not this job's to replace."""
    if outcome.now.started_unix_s > 0 or not (outcome.directory / OUTCOME_NAME).exists():
        try:
            outcome.end(state, exit_status=exit_status, reason=reason, error=error)
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
        error: why.
        config: resolved, of that job.
    """
    try:
        with RunLock(outcome.directory):
            before = read_outcome(outcome.directory)
            known = provenance.check_directory(outcome.directory, config)
            if not known or before is None or before.state == State.DONE:
                return
            earlier = (before.reason or "").rpartition(_BEFORE)[2]
            died = before.state == State.RUNNING  # its lock is free
            outcome.now = before
            outcome.end(
                State.INTERRUPTED if died else before.state,
                exit_status=INTERRUPTED if died or before.exit_status is None else before.exit_status,
                reason=f"{_REFUSED}{error}" + (f"\n{_BEFORE}{earlier}" if before.state == State.FAILED else ""),
            )
    except VlmbenchError:
        return  # the refusal itself is said aloud

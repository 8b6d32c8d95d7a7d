"""Whether what is over left its rows, and when what is not over last gave a sign of life."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from vlmbench.cluster.states import RunState, RunStatus
from vlmbench.machine.suspension import held_still_by
from vlmbench.records.lock import holder_of
from vlmbench.records.outcome import OUTCOME_NAME, Outcome
from vlmbench.records.reading import RECORDS_NAME
from vlmbench.text import lasting

QUIET_S = 120.0
"""A run writes at least every ten seconds once it measures; loading a model and one long run may take longer."""


def with_rows(one: RunStatus) -> RunStatus:
    """A run that says it is done, and whose rows are gone, is not."""
    gone = rows_gone(one.run.directory, one.outcome) if one.state == RunState.DONE and one.outcome else None
    return one if gone is None else replace(one, state=RunState.LOST, reason=gone)


def rows_gone(directory: Path, outcome: Outcome) -> str | None:
    """What is wrong with the rows of a run that is over, in words; None where a look finds them there."""
    file = directory / RECORDS_NAME
    if not outcome.rows or ((there := file.exists()) and file.stat().st_size):
        return None
    if file.with_name(f"{RECORDS_NAME}.gz").exists() or any(directory.glob(f"*/{OUTCOME_NAME}")):
        return None  # packed; a study, whose rows are those of its parts
    return f"its {outcome.rows} rows are gone: {RECORDS_NAME} is {'empty' if there else 'missing'}"


def with_last_sign(one: RunStatus) -> RunStatus:
    """A run that is under way, with the age of its last sign of life, and with what holds it still on this host."""
    if one.state not in (RunState.RUNNING, RunState.SUSPENDED):
        return one
    sign_s = _age_s(one.run.directory)
    holder = holder_of(one.run.directory)
    still = held_still_by(holder.pid) if holder is not None and holder.lives_here() else None
    state, reason = one.state, one.reason
    if still is not None and holder is not None:
        state, reason = RunState.SUSPENDED, reason or f"process {holder.pid} is held still by {still}"
    elif state == RunState.RUNNING and sign_s is not None and sign_s > QUIET_S:
        who = f" ({holder})" if holder is not None else ""
        reason = f"no sign of life for {lasting(sign_s)}: it loads, is in a long run, or is frozen{who}"
    return replace(one, state=state, reason=reason, sign_s=sign_s)


def _age_s(directory: Path) -> float | None:
    """How long ago anything of a run, or of the parts of a study, was written; s."""
    names = (OUTCOME_NAME, RECORDS_NAME, f"*/{OUTCOME_NAME}", f"*/{RECORDS_NAME}")
    times = [path.stat().st_mtime for name in names for path in directory.glob(name)]
    return max(time.time() - max(times), 0.0) if times else None

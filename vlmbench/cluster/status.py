"""How far every run of a grid is: from its own files first, from the scheduler second.

Looking writes nothing and takes no lock, so anybody who may read a grid may ask.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlmbench.cluster import local_state, slurm
from vlmbench.cluster.grid import Run, find_runs
from vlmbench.cluster.slurm_state import Answers, find_unstored, is_final
from vlmbench.cluster.states import LOST_AFTER_S, OVER, RunState, RunStatus, time_left
from vlmbench.errors import InputError
from vlmbench.machine.suspension import held_still_by
from vlmbench.records.lock import holder_of
from vlmbench.records.outcome import OUTCOME_NAME, Outcome, State, read_outcome
from vlmbench.records.reading import PACKED_NAMES, RECORDS_NAME
from vlmbench.text import lasting


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
    open_ones = [i for i in on_slurm if not is_final(outcomes[i])]
    waiting: dict[str, slurm.JobState] | None = {}
    ended: dict[str, slurm.JobState] = {}
    if open_ones:
        find_unstored(runs, ids, open_ones)
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
    asked = Answers(waiting=waiting, ended=ended, lost_after_s=lost_after_s)
    found = []
    for run, outcome, job_id in zip(runs, outcomes, ids, strict=True):
        on_slurm_too = run.submission is not None and run.submission.cluster == "slurm"
        if on_slurm_too and isinstance(outcome, str):
            found.append(_unreadable(asked.judge(run, None, job_id), outcome))
        elif isinstance(outcome, str):
            found.append(RunStatus(run=run, state=RunState.FAILED, job_id=job_id, reason=outcome, unreadable=outcome))
        elif on_slurm_too:
            found.append(asked.judge(run, outcome, job_id))
        else:
            found.append(local_state.judge(run, outcome, job_id, lost_after_s))
    return _as_their_study([with_last_sign(with_rows(one)) for one in found])


def _as_their_study(found: Sequence[RunStatus]) -> list[RunStatus]:
    """Parts that claim to run have what they are in from their study: they are measured by its process."""
    states = {one.run.directory: one for one in found}
    judged = []
    for one in found:
        study = states.get(one.run.study.directory) if one.run.study is not None else None
        claims = one.outcome is not None and one.outcome.state == State.RUNNING
        if study is not None and claims and study.state != RunState.DONE:
            left = one.left_s if one.left_s is not None else time_left(one.outcome, None)
            running = study.state in (RunState.RUNNING, RunState.SUSPENDED)
            judged.append(
                replace(
                    one,
                    state=study.state,
                    reason=study.reason or one.reason,
                    left_s=left if running else None,
                    sign_s=study.sign_s,
                )
            )
        else:
            judged.append(one)
    return judged


def _outcome(run: Run) -> Outcome | str | None:
    try:
        return read_outcome(run.directory)
    except InputError as error:
        return str(error)


def _unreadable(one: RunStatus, why: str) -> RunStatus:
    """A run of Slurm whose account cannot be read: what it is doing Slurm tells, how it ended nobody."""
    return replace(one, state=RunState.FAILED if one.state in OVER else one.state, reason=why, unreadable=why)


def _job_id(run: Run) -> str | None:
    return run.task.job_id if run.task else None


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
    if any((directory / name).exists() for name in PACKED_NAMES) or any(directory.glob(f"*/{OUTCOME_NAME}")):
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
        held = f"process {holder.pid} is held still by {still}"
        state, reason = RunState.SUSPENDED, reason if state == RunState.SUSPENDED and reason else held
    elif state == RunState.RUNNING and sign_s is not None and sign_s > QUIET_S:
        who = f" ({holder})" if holder is not None else ""
        reason = reason or f"no sign of life for {lasting(sign_s)}: it loads, is in a long run, or is frozen{who}"
    return replace(one, state=state, reason=reason, sign_s=sign_s)


def _age_s(directory: Path) -> float | None:
    """How long ago anything of a run, or of the parts of a study, was written; s."""
    names = (OUTCOME_NAME, RECORDS_NAME, f"*/{OUTCOME_NAME}", f"*/{RECORDS_NAME}")
    times = [path.stat().st_mtime for name in names for path in directory.glob(name)]
    return max(time.time() - max(times), 0.0) if times else None

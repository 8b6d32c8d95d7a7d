"""End the runs of a grid that are queued or running, from any host."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vlmbench.cluster import slurm
from vlmbench.cluster.status import RunState, RunStatus, status
from vlmbench.records.lock import holder_of

_GOING = frozenset({RunState.QUEUED, RunState.RUNNING, RunState.UNKNOWN})


def cancel(runs: Path) -> list[RunStatus]:
    """Cancel all tasks at and below ``runs`` that are not over; returns them as they were.

    Running tasks are told to stop: they finish their current repeat, save, and can be continued.

    Raises:
        InputError: there are no runs, or Slurm does not answer.
    """
    everything = status(runs)
    studies = {one.run.directory for one in everything if one.state in _GOING}
    # A part of a study that goes on is told by its study: the process is the same, and a second signal ends it harder.
    told = [one for one in everything if one.run.study is None or one.run.study.directory not in studies]
    going = [one for one in told if one.state in _GOING]
    slurm_ids = [one.job_id for one in going if one.job_id and _is_on_slurm(one)]
    _end_local_launchers(going)
    if slurm_ids:
        slurm.cancel(slurm_ids)
    for one in going:
        holder = None if _is_on_slurm(one) else holder_of(one.run.directory)
        if holder is not None and holder.lives_here():  # a pid alone could have been given to somebody else
            with suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGTERM)
    return going


def _is_on_slurm(one: RunStatus) -> bool:
    return one.run.submission is not None and one.run.submission.cluster == "slurm"


def _end_local_launchers(going: Sequence[RunStatus]) -> None:
    """No further task of a local launcher starts once this file is there."""
    for folder in {one.run.submission.folder for one in going if one.run.submission and not _is_on_slurm(one)}:
        (folder / "cancelled").touch()

"""Which tasks of a grid on Slurm may still take part in turns: asked by one of them, on its node, while it waits.

A task that dies before it reads its settings (no environment on its node, say) leaves nothing in the folder of the
turns. Slurm knows of it, and its log why.
"""

from __future__ import annotations

from pathlib import Path

from vlmbench.cluster.grid import FOLDER, Run
from vlmbench.cluster.last_words import log_file
from vlmbench.cluster.remaining import runs_of
from vlmbench.cluster.states import OVER, RunState, RunStatus
from vlmbench.cluster.status import status_of
from vlmbench.machine.turns import StartedTogether, member_name
from vlmbench.records.lock import slurm_job_id
from vlmbench.text import parse_json


def started_with(directory: Path, turns: Path) -> StartedTogether:
    """Look up what became of the other tasks of a run's grid that were to take its turns.

    Where Slurm does not answer (a node without ``squeue``), a task counts as one that may still come, unless its own
    files say how it ended. So does one whose account cannot be read and of whose end Slurm knows nothing. Where a
    submission cannot be read, nobody knows how many tasks it tells of, and no other is given up.

    Args:
        directory: of the run that waits.
        turns: the folder that the members share.
    """
    mine = directory.absolute()
    sweep_dir = next((folder for folder in mine.parents if (folder / FOLDER).is_dir()), None)
    if sweep_dir is None or slurm_job_id() is None:
        return StartedTogether()
    damaged: list[str] = []
    runs = runs_of(sweep_dir, damaged=damaged)
    if damaged:
        return StartedTogether(unreadable=tuple(damaged))
    if mine not in runs or not _takes_turns(runs.pop(mine), turns):
        return StartedTogether()
    others = [run for run in runs.values() if _takes_turns(run, turns)]
    found = status_of(others)
    failed = [one for one in found if one.state in OVER and one.state != RunState.DONE]
    return StartedTogether(
        coming=tuple(member_name(one.run.directory) for one in found if one.state not in OVER),
        ended=tuple(map(_how, failed)),
        unreadable=tuple(one.unreadable for one in found if one.unreadable and one.state not in OVER),
    )


def _takes_turns(run: Run, turns: Path) -> bool:
    """Whether a task of Slurm is to take these turns; one whose settings cannot be read may be."""
    if run.submission is None or run.task is None or run.submission.cluster != "slurm":
        return False
    try:
        content = parse_json(run.submission.task_file(run.task).read_bytes())
        given = ((content["config"].get("measurement") or {}).get("turns") or {}).get("directory")
        return given is not None and Path(given).expanduser() == turns
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # the last: of a user's home
        return True


def _how(one: RunStatus) -> tuple[str, str]:
    """How a task ended and where its log is below the sweep directory: whole paths are not stored with a reason."""
    assert one.run.submission is not None
    assert one.run.task is not None
    log = log_file(one.run.submission, one.run.task, one.job_id)
    where = "it left no log"
    if log is not None and log.exists():
        where = f"its log: {log.relative_to(one.run.submission.sweep_dir)}"
    reason = " ".join((one.reason or "no reason was left").split())
    return f"task {one.run.task.directory} {one.state}: {reason}", where

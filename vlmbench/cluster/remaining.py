"""What is to be submitted: neither done nor on its way; one submit at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmbench.cluster.grid import FOLDER, Run, Task, check_path, find_runs, read_submissions, task_content
from vlmbench.cluster.states import RunState
from vlmbench.cluster.status import rows_gone, status_of
from vlmbench.errors import DirectoryConflictError, InputError
from vlmbench.machine.installation import package_dir, source_sha256
from vlmbench.records.files import remove_stray_parts
from vlmbench.records.lock import RunLock, holder_of
from vlmbench.records.outcome import State, read_outcome
from vlmbench.records.provenance import check_directory
from vlmbench.text import say

Composed = Mapping[int, tuple[Task, Mapping[str, Any]]]


@contextmanager
def submitting(sweep_dir: Path) -> Iterator[None]:
    """The exclusive right to submit to a sweep directory: of two submits at once, each would submit every task.

    What a submit that was killed left half-written is removed.

    Raises:
        DirectoryConflictError: another process is at it.
        ConfigError: the sweep directory's name cannot be given to a scheduler.
        InputError: it cannot be written.
    """
    check_path(sweep_dir)
    folder = sweep_dir / FOLDER
    lock = RunLock(folder)
    try:
        lock.__enter__()
    except DirectoryConflictError:
        who = holder_of(folder) or "another process"
        raise DirectoryConflictError(
            f"nothing was submitted: {who} is submitting to '{sweep_dir}' at this moment; run it again after that."
        ) from None
    try:
        folder.chmod(0o700)
        remove_stray_parts(folder)
        yield
    finally:
        lock.__exit__(None, None, None)


def to_do(sweep_dir: Path, composed: Composed) -> dict[int, tuple[Task, Mapping[str, Any]]]:
    """The tasks that are to be submitted: not done with this very configuration, not queued and not running.

    Raises:
        DirectoryConflictError: one message for all directories that belong to another configuration.
    """
    conflicts, missing = [], {}
    for index, (task, config) in composed.items():
        directory = sweep_dir / task.directory
        try:
            known = check_directory(directory, config)
        except InputError as error:
            conflicts.append(str(error).splitlines()[0])
            continue
        if not (known and is_done(directory)):
            missing[index] = (task, config)
    if conflicts:
        more = f"\n… and {len(conflicts) - 5} more" if len(conflicts) > 5 else ""
        raise DirectoryConflictError(
            "\n".join(conflicts[:5]) + more + "\nNothing was submitted; choose another output_dir."
        )
    alive = _on_their_way(sweep_dir, missing)
    if alive:
        say(f"{len(alive)} tasks are queued or running already")
    return {index: one for index, one in missing.items() if index not in alive}


def is_done(directory: Path) -> bool:
    """Whether a run is done and its rows are still there."""
    try:
        found = read_outcome(directory)
    except InputError:
        return False
    return found is not None and found.state == State.DONE and rows_gone(directory, found) is None


def _on_their_way(sweep_dir: Path, missing: Composed) -> set[int]:
    read_submissions(sweep_dir)  # one that cannot be read may have jobs in the queue: nothing is submitted then
    runs = runs_of(sweep_dir)
    asked = {
        index: runs[sweep_dir / t.directory] for index, (t, _) in missing.items() if sweep_dir / t.directory in runs
    }
    states = status_of(list(asked.values()))
    going = {RunState.QUEUED, RunState.RUNNING, RunState.SUSPENDED}
    silent = [one for one in states if one.unanswered]
    if silent:
        raise InputError(
            f"Slurm does not answer, so nobody knows whether {len(silent)} earlier tasks of '{sweep_dir}' still run.\n"
            "Nothing was submitted; try again when `squeue` answers."
        )
    return {index for index, one in zip(asked, states, strict=True) if one.state in going}


def runs_of(sweep_dir: Path, *, damaged: list[str] | None = None) -> dict[Path, Run]:
    """The runs of a sweep directory by their own; none where there is nothing yet.

    Args:
        damaged: see :func:`find_runs`.
    """
    try:
        return {run.directory: run for run in find_runs(sweep_dir, damaged=damaged)}
    except InputError:
        return {}


def contents_of(tasks: Composed, *, requeues: int, grace_s: float) -> dict[int, tuple[Task, dict[str, Any]]]:
    """Index to the task and what its task file holds."""
    source = source_sha256(package_dir())
    return {
        index: (
            task,
            task_content(
                index=index,
                directory=task.directory,
                overrides=list(task.overrides),
                config=dict(config),
                requeues=requeues,
                grace_s=grace_s,
                source_sha256=source,
            ),
        )
        for index, (task, config) in tasks.items()
    }

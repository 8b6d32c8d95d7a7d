"""What was submitted, in files: a sweep directory's ``.vlmbench`` folder.

::

    <sweep directory>/
        .vlmbench/                          mode 0700
            <submission>/                   names sort by time
                submission.json             cluster, job name, tasks with directory, overrides and job id
                tasks/<index>.json          the configuration of each task
                logs/                       of the scheduler
        0_run/  1_run/ …                    the run directories

``submission.json`` is written before anything is submitted (job ids unknown) and again after each array, so that a
parent that dies between the two leaves a trace.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmbench.errors import ConfigError, InputError, MeasurementError
from vlmbench.records.files import write_json
from vlmbench.records.lock import LAST_UNIX_S
from vlmbench.records.outcome import OUTCOME_NAME
from vlmbench.records.provenance import PROVENANCE_NAME
from vlmbench.records.reading import RECORDS_NAME
from vlmbench.text import parse_json, say

FOLDER = ".vlmbench"
SUBMISSION_NAME = "submission.json"
_SEARCH_DEPTH = 5
_NAME_BYTES = 255  # of a file or folder, on the usual disks


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run that was submitted.

    Args:
        index: Hydra's job number, which is unique in a sweep.
        directory: the run directory, relative to the sweep directory.
        overrides: what makes this run differ, as on the command line.
        job_id: the scheduler's (``12_3``), or a pid for the local launcher; None while not submitted.
    """

    index: int
    directory: str
    overrides: tuple[str, ...]
    job_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Tasks that were submitted together.

    Args:
        sweep_dir: of the sweep; stored nowhere, so that a sweep may be moved.
        name: of the folder in ``.vlmbench``.
        cluster: ``slurm``, ``local``, or ``basic``: the process of the multirun itself, one after the other.
        job_name: what the scheduler calls it; unique, so that jobs are found even when their ids were not stored.
        submitted_unix_s: when.
        tasks: by index.
    """

    sweep_dir: Path
    name: str
    cluster: str
    job_name: str
    submitted_unix_s: float
    tasks: tuple[Task, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.sweep_dir / FOLDER / self.name

    def run_dir(self, task: Task) -> Path:
        """A task's run directory."""
        return self.sweep_dir / task.directory

    def task_file(self, task: Task) -> Path:
        """A task's resolved configuration."""
        return self.folder / "tasks" / f"{task.index}.json"

    def with_ids(self, job_ids: Mapping[int, str]) -> Submission:
        """The same with the job ids of some tasks (by index)."""
        tasks = (replace(t, job_id=job_ids.get(t.index, t.job_id)) for t in self.tasks)
        return replace(self, tasks=tuple(tasks))

    def write(self) -> None:
        """Store it; tasks keep the directories they had."""
        content = {k: v for k, v in asdict(self).items() if k not in ("sweep_dir", "name")}
        write_json(self.folder / SUBMISSION_NAME, content, mode=0o600)


def task_content(
    *,
    index: int,
    directory: str,
    overrides: list[str],
    config: dict[str, Any],
    source_sha256: str,
    requeues: int = 0,
    grace_s: float = 0.0,
) -> dict[str, Any]:
    """What a task file holds.

    Args:
        index: the job's number in its sweep.
        directory: the run directory, relative to the sweep directory.
        config: without Hydra's own node, resolved but for what the environment holds.
        source_sha256: of vlmbench's sources at submit.
        requeues: how often the task may go back into the queue at its time limit.
        grace_s: how long before the limit it is told.
    """
    return {
        "index": index,
        "directory": directory,
        "overrides": overrides,
        "config": config,
        "requeues": requeues,
        "grace_s": grace_s,
        "source_sha256": source_sha256,
    }


def new_submission(
    sweep_dir: Path,
    *,
    cluster: str,
    job_name: str,
    tasks: Mapping[int, tuple[Task, Mapping[str, Any] | None]],
    settings: Mapping[str, Any],
) -> Submission:
    """Lay out and store a submission.

    Args:
        cluster: ``slurm``, ``local`` or ``basic``.
        tasks: index to the task and the content of its task file (see :func:`task_content`); None for one that is run
            by the process that submits it.
        settings: of the launcher, for the record.

    Raises:
        MeasurementError: it cannot be written.
    """
    now = time.time()
    unique = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{os.urandom(3).hex()}"
    submission = Submission(
        sweep_dir=sweep_dir,
        name=unique,
        cluster=cluster,
        job_name=f"{job_name}.{unique[-6:]}",
        submitted_unix_s=now,
        tasks=tuple(task for task, _ in tasks.values()),
        settings=settings,
    )
    for folder in (sweep_dir / FOLDER, submission.folder, submission.folder / "tasks", submission.folder / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    for task, content in tasks.values():
        if content is not None:
            _write_private(submission.task_file(task), json.dumps(content))
    submission.write()
    return submission


def _write_private(path: Path, text: str) -> None:
    # Not synced one by one: ten thousand would take a minute, and nobody reads one before the submission is there.
    try:
        with path.open("x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
    except OSError as error:
        raise MeasurementError(f"cannot write '{path}': {error.strerror or error}; nothing was submitted.") from error


def check_path(path: Path) -> None:
    """Refuse names that a scheduler or shell script would read as something else.

    Raises:
        ConfigError: a control character, or a ``%`` or backslash, which Slurm replaces in paths.
    """
    text = str(path.absolute())
    if not text.isprintable() or "%" in text or "\\" in text:
        raise ConfigError(
            f"the sweep directory {text!r} cannot be given to a scheduler: it must have no %, backslash, line break or "
            "other control character. Choose another with output_dir=DIR."
        )


def read_submissions(sweep_dir: Path, *, damaged: list[str] | None = None) -> list[Submission]:
    """All submissions of a sweep directory, the oldest first.

    Args:
        damaged: gets what is wrong with those that cannot be read; None raises it.

    Raises:
        InputError: one cannot be read.
    """
    found = []
    for path in (sweep_dir / FOLDER).glob(f"*/{SUBMISSION_NAME}"):
        try:
            content = parse_json(path.read_bytes())
            tasks = tuple(Task(**{**t, "overrides": tuple(t["overrides"])}) for t in content.pop("tasks"))
            submission = Submission(sweep_dir=sweep_dir, name=path.parent.name, tasks=tasks, **content)
            _check(submission)
            found.append(submission)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            told = f"cannot read '{path}': {error!r}."
            if damaged is None:
                raise InputError(told) from error
            damaged.append(told)
    return sorted(found, key=lambda s: (s.submitted_unix_s, s.name))


def _check(submission: Submission) -> None:
    """Refuse a submission file that no launcher wrote: wrong types, or a run directory outside the sweep's."""
    if not isinstance(submission.submitted_unix_s, int | float) or not isinstance(submission.settings, Mapping):
        raise TypeError("'submitted_unix_s' must be a number and 'settings' a mapping")
    if not abs(submission.submitted_unix_s) < LAST_UNIX_S:
        raise ValueError("'submitted_unix_s' must be a time")
    if not all(isinstance(text, str) for text in (submission.cluster, submission.job_name)):
        raise TypeError("'cluster' and 'job_name' must be texts")
    for task in submission.tasks:
        if type(task.index) is not int or not isinstance(task.job_id, str | None):
            raise TypeError(f"a task's 'index' must be a whole number and its 'job_id' a text (got {task})")
        if not isinstance(task.directory, str) or not all(isinstance(one, str) for one in task.overrides):
            raise TypeError(f"a task's 'directory' and 'overrides' must be texts (got {task})")
        place = Path(task.directory)
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"a task's 'directory' must lie below the sweep's (got {task.directory!r})")
        if "\0" in task.directory or any(len(os.fsencode(part)) > _NAME_BYTES for part in place.parts):
            raise ValueError("a task's 'directory' must be a name that a disk can hold")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory, and how it was last submitted (None: it ran without a launcher of this project).

    A study's parts are runs of their own, in directories below the study's; ``study`` is the study they belong to.
    ``earlier`` are the jobs of Slurm that it was submitted as before, the newest first: one of them may still be alive.
    """

    directory: Path
    task: Task | None = None
    submission: Submission | None = None
    study: Run | None = None
    earlier: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """What it was submitted with, a part what its study was; empty without a launcher of this project."""
        of_study = self.study.overrides if self.study is not None else ()
        return self.task.overrides if self.task is not None else of_study


def numbered_directories(sweep_dir: Path, numbers: range) -> dict[int, list[str]]:
    """Number of a job to the directories of that number that a sweep holds or was submitted with, the latest last.

    Args:
        sweep_dir: of the sweep; it need not exist.
        numbers: of the jobs that are asked for.
    """
    found: dict[int, list[str]] = {}
    if not sweep_dir.is_dir():
        return found
    with os.scandir(sweep_dir) as entries:
        for name in sorted(e.name for e in entries if e.is_dir(follow_symlinks=False)):
            number = name.partition("_")[0]
            is_run = any((sweep_dir / name / file).exists() for file in (OUTCOME_NAME, RECORDS_NAME, PROVENANCE_NAME))
            if number.isdecimal() and int(number) in numbers and is_run:
                found.setdefault(int(number), []).append(name)
    for submission in read_submissions(sweep_dir, damaged=[]):
        for task in submission.tasks:
            if task.index in numbers:
                found.setdefault(task.index, []).append(task.directory)
    return found


def find_runs(root: Path, *, damaged: list[str] | None = None) -> list[Run]:
    """All runs at and below a directory: submitted ones, and directories that hold an outcome or records.

    A study is followed by its parts. Where a submission cannot be read the other runs are given.

    Args:
        damaged: gets what is wrong with submissions that cannot be read; None says it aloud.

    Raises:
        InputError: there is no such directory, or no run in it.
    """
    root, aloud = Path(root), damaged is None
    damaged = [] if damaged is None else damaged
    if not root.is_dir():
        raise InputError(f"'{root}' is no directory. runs=DIR names a run or sweep directory, or one that holds some.")
    runs: dict[Path, Run] = {}
    if not _may_look(root):
        raise InputError(f"'{root}' may not be read by this user\nask its owner, or name another with runs=DIR")
    for folder in _folders(root, _SEARCH_DEPTH):
        if not _may_look(folder):
            say(f"'{folder}' may not be read by this user: left out")
            continue
        if (folder / FOLDER).is_dir():
            for submission in read_submissions(folder, damaged=damaged):
                for task in submission.tasks:
                    directory = submission.run_dir(task)
                    earlier = _jobs(runs.get(directory))
                    runs[directory] = Run(directory=directory, task=task, submission=submission, earlier=earlier)
        if folder not in runs and ((folder / OUTCOME_NAME).exists() or (folder / RECORDS_NAME).exists()):
            runs[folder] = Run(directory=folder, study=_study(runs.get(folder.parent)))
    for told in damaged if aloud else []:
        say(f"{told} Its runs are shown as far as they left files.")
    if not runs:
        raise InputError(f"'{root}' holds no runs. runs=DIR names a run or sweep directory, or one that holds some.")
    return sorted(runs.values(), key=lambda run: _natural(run.directory))


def _jobs(run: Run | None) -> tuple[str, ...]:
    """The jobs of Slurm that a run was submitted as so far, the newest first."""
    if run is None or run.submission is None or run.task is None:
        return ()
    newest = run.task.job_id if run.submission.cluster == "slurm" else None
    return (*([newest] if newest else []), *run.earlier)


def _study(above: Run | None) -> Run | None:
    """The run above, if it measured nothing itself."""
    if above is None or not (above.directory / OUTCOME_NAME).exists() or (above.directory / RECORDS_NAME).exists():
        return None
    return above


def _may_look(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    if depth == 0 or not _may_look(root) or (root / RECORDS_NAME).exists():
        return  # what measures holds no runs; a study does
    with os.scandir(root) as entries:
        below = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
    for name in below:
        yield from _folders(root / name, depth - 1)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers in front of names by their value, what is below a directory right after it."""
    numbers = ((part.partition("_")[0], part) for part in path.parts)
    return [(int(number) if number.isdecimal() else -1, part) for number, part in numbers]

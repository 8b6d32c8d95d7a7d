"""A multirun whose jobs this process runs one after the other leaves a list of them, as a grid does.

So ``experiment=status`` can tell the jobs that were never begun, also after the process was killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, open_dict

from vlmbench.cli import run_names
from vlmbench.cli.compose import quicken
from vlmbench.cli.config import without_secrets_in
from vlmbench.cluster.grid import Task, new_submission
from vlmbench.cluster.local import OVER
from vlmbench.records.lock import RunLock

BASIC = "basic"
_MEASURE = ("profile", "study", "first_steps", "budget")


@contextmanager
def announced(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]], first_index: int
) -> Iterator[None]:
    """Name the jobs and list those that measure, then let them run.

    Args:
        job_overrides: overrides of each job.
    """
    sweep_dir = Path(str(config.hydra.sweep.dir))
    run_names.choose(sweep_dir, job_overrides, first_index)
    quicken(loader)
    tasks = _measuring(loader, config, job_overrides, first_index)
    if not tasks:
        yield
        return
    given = {index: (task, None) for index, task in tasks.items()}
    submission = new_submission(sweep_dir, cluster=BASIC, job_name=BASIC, tasks=given, settings={})
    with RunLock(submission.folder):
        try:
            yield
        finally:
            (submission.folder / OVER).touch()


def _measuring(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]], first_index: int
) -> dict[int, Task]:
    tasks = {}
    for index, overrides in enumerate(job_overrides, start=first_index):
        one = loader.load_sweep_config(config, list(overrides))
        with open_dict(one.hydra.job):
            one.hydra.job.num = index
        if one.task in _MEASURE and not one.dry_run:
            plain = without_secrets_in(filter_overrides(list(overrides)))  # for reading only: they run from memory
            tasks[index] = Task(index=index, directory=str(one.hydra.sweep.subdir), overrides=tuple(plain))
    return tasks

"""Where grids meet Hydra: sweeps become task files, task files become runs of the command line's job function."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vlmbench.cluster.grid import Task
from vlmbench.machine.installation import conf_dir
from vlmbench.session.settings import RunConfig


def compose_tasks(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]], first_index: int
) -> dict[int, tuple[Task, dict[str, Any]]]:
    """Index to the task and its resolved configuration (Hydra's node left out).

    Args:
        loader: of the running Hydra.
        config: of the sweep.
        job_overrides: overrides of each job.
        first_index: number of the first.

    Raises:
        ConfigError: a job's configuration is wrong; better said now than by a thousand failed jobs.
    """
    from vlmbench.validate import validate

    tasks = {}
    seen: set[str] = set()
    for index, overrides in enumerate(job_overrides, start=first_index):
        one = loader.load_sweep_config(config, list(overrides))
        with open_dict(one.hydra.job):
            one.hydra.job.num = index
            one.hydra.job.id = str(index)
        directory = str(one.hydra.sweep.subdir)
        plain_overrides = tuple(filter_overrides(list(overrides)))
        with _hydra_of(one, Path(str(one.hydra.sweep.dir)) / directory):
            with read_write(one), open_dict(one):
                del one["hydra"]  # as Hydra does before it calls the job
            resolved: Any = OmegaConf.to_container(one, resolve=True)
        parts = _parts(resolved, directory)
        if not parts <= seen:
            validate(one)
            seen |= parts
        tasks[index] = (Task(index=index, directory=directory, overrides=plain_overrides), resolved)
    return tasks


def _parts(config: dict[str, Any], directory: str) -> set[str]:
    """The groups of a configuration as text, its seeds and own files left out: of a thousand jobs that differ in those
    alone, checking one is enough.
    """
    texts = (f"{key}:{json.dumps(value, default=str)}" for key, value in config.items() if isinstance(value, dict))
    return {re.sub(r'"seed": \d+', "", text).replace(f"/{directory}/", "/") for text in texts}


@contextmanager
def _hydra_of(job: DictConfig, output_dir: Path) -> Iterator[None]:
    """Settings that name files of their run directory resolve as they will in the job."""
    with read_write(job.hydra), open_dict(job.hydra):
        job.hydra.runtime.output_dir = str(output_dir.absolute())
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(job)
    try:
        yield
    finally:
        instance.cfg = before


def run_saved(config: Mapping[str, Any], *, directory: Path, overrides: Sequence[str]) -> int:
    """Run the command line's job with a configuration that was resolved earlier; returns the exit status."""
    from vlmbench import config as schema
    from vlmbench.cli import job

    schema.register()
    hydra = OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)})
    with open_dict(hydra):
        hydra.hydra.runtime.output_dir = str(directory)
        hydra.hydra.overrides.task = list(overrides)
        hydra.hydra.job.name = "vlmbench"
    HydraConfig.instance().set_config(hydra)
    directory.mkdir(parents=True, exist_ok=True)
    typed = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(dict(config)))
    OmegaConf.set_struct(typed, True)
    assert isinstance(typed, DictConfig)
    # A study composes its parts when it comes to them.
    with initialize_config_dir(str(conf_dir()), job_name="vlmbench", version_base="1.3"):
        return job(typed)

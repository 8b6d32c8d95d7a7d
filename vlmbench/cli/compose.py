"""Where grids meet Hydra: sweeps become task files, task files become runs of the command line's job function."""

from __future__ import annotations

import copy
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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vlmbench.cli.secrets import as_written
from vlmbench.cluster.grid import Task
from vlmbench.machine.installation import conf_dir
from vlmbench.session.settings import RunConfig


def compose_tasks(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]], first_index: int
) -> dict[int, tuple[Task, dict[str, Any]]]:
    """Index to the task and its configuration (Hydra's node left out), resolved but for what the environment holds.

    Args:
        job_overrides: overrides of each job.

    Raises:
        ConfigError: a job's configuration is wrong; better said now than by a thousand failed jobs.
    """
    from vlmbench.cli.validate import validate

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
            plain = as_written(one)
        parts = _parts(plain, directory)
        if not parts <= seen:
            validate(one)
            seen |= parts
        tasks[index] = (Task(index=index, directory=directory, overrides=plain_overrides), plain)
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
    from vlmbench.cli import config as schema
    from vlmbench.cli.main import run_job

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
        return run_job(typed)


# Composing a thousand jobs of one sweep in seconds: groups are composed once, values are set on a copy.


def quicken(loader: ConfigLoader) -> None:
    """Let this loader compose the jobs of a sweep from copies; what it returns stays the same."""
    try:
        from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
    except ImportError:
        return
    if not isinstance(loader, ConfigLoaderImpl) or not hasattr(loader, "_apply_overrides_to_config"):
        return
    plain = loader.load_sweep_config
    bases: dict[tuple[str, ...], DictConfig] = {}
    parser = OverridesParser.create()

    def load(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        parsed = parser.parse_overrides(list(sweep_overrides))
        groups = [one for one in parsed if not _sets_value(loader, one)]
        values = [one for one in parsed if _sets_value(loader, one)]
        if any(one.is_hydra_override() for one in values):
            return plain(master_config, sweep_overrides)
        key = (str(id(master_config)), *(one.input_line or "" for one in groups))
        if key not in bases:
            bases[key] = plain(master_config, [one.input_line or "" for one in groups])
        config = copy.deepcopy(bases[key])
        with read_write(config.hydra), open_dict(config.hydra):
            loader._apply_overrides_to_config(values, config)
            tasks = [one for one in parsed if not one.is_hydra_override()]
            config.hydra.overrides.task = [one.input_line for one in tasks]
            said: Any = config.hydra.job.config.override_dirname
            config.hydra.job.override_dirname = get_overrides_dirname(
                overrides=tasks, kv_sep=said.kv_sep, item_sep=said.item_sep, exclude_keys=said.exclude_keys
            )
        return config

    loader.load_sweep_config = load  # type: ignore[method-assign]


def _sets_value(loader: Any, override: Override) -> bool:
    """Whether it sets one value of what the groups make: no group, nothing added or deleted."""
    if override.is_add() or override.is_force_add() or override.is_delete() or override.is_sweep_override():
        return False
    return override.package is None and not loader.repository.group_exists(override.key_or_group)

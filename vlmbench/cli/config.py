"""What Hydra is told before it composes: the schema of settings, resolvers, and what it writes into ``.hydra/``.

Values and defaults stand in ``conf/``; the dataclasses of :mod:`vlmbench.session.settings` only give types, so that a
typo or a wrong type is refused while Hydra composes. Ranges are checked in ``__post_init__``
(:mod:`vlmbench.cli.validate` collects the messages). Components (model, dataset, sweep, probes, stopping, warmup) are
``_target_`` nodes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vlmbench.cli.run_names import in_a_path, run_name
from vlmbench.cli.secrets import watch_environment
from vlmbench.hiding import without_secrets
from vlmbench.records.files import write_whole
from vlmbench.session.settings import RunConfig


def _run_directory(given: str | None, root: str, name: str) -> str:
    """``output_dir`` where given, else ``<root>/<date>/<time>_<name>``; one moment for a whole process."""
    if given:
        return given
    seconds, fraction = divmod(_STARTED, 1)
    stamp = time.localtime(seconds)
    folder = f"{time.strftime('%H-%M-%S', stamp)}-{int(fraction * 1e6):06d}"
    return f"{root}/{time.strftime('%Y-%m-%d', stamp)}/{folder}{'_' + in_a_path(name) if name else ''}"


def _run_file(name: str) -> str:
    """A path inside the run directory; the bare name where nothing runs (composing or showing only)."""
    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return name
    return f"{HydraConfig.get().runtime.output_dir}/{name}"


_STARTED = time.time()


def _the_store_itself(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:  # noqa: ARG001
    return store


def register() -> None:
    """Make the schema and the resolver known to Hydra; a second call changes nothing."""
    # Hydra copies the whole store, schema and all, for each group that --help lists and for each job of a sweep. There
    # is only one store, and what is loaded from it is copied then: so a copy of the store may be the store.
    ConfigStore.__deepcopy__ = _the_store_itself  # type: ignore[attr-defined]
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    OmegaConf.register_new_resolver("run_directory", _run_directory, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("run_file", _run_file, replace=True)
    OmegaConf.register_new_resolver("job_directory", run_name, replace=True)
    watch_environment()


def write_composed(directory: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write ``.hydra/`` as Hydra itself would, secrets hidden; called once the directory is this run's.

    Args:
        config: plain, what the environment holds as it is written (``${oc.env:NAME}``).
        overrides: what the user wrote on the command line.
    """
    folder = directory / ".hydra"
    shown = without_secrets_in(overrides)
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(without_secrets(dict(config)))))
    write_whole(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(shown)))


def without_secrets_in(overrides: Sequence[str]) -> list[str]:
    """What the user wrote on the command line, with secrets hidden."""
    parts = (text.partition("=") for text in overrides)
    return [f"{key}{equals}{without_secrets(value, key)}" for key, equals, value in parts]

"""Composing a thousand jobs of one sweep in seconds: groups are composed once, values are set on a copy.

Hydra composes every job of a sweep from its YAML files twice (in the sweeper's check and in the launcher), for some
0.05 s of CPU each time. The jobs of a grid differ in values more than in groups, and what the same groups make is the
same. Where Hydra is not as expected (another version, another loader), it composes as ever.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict, read_write


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

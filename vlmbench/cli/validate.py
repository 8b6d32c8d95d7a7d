"""Every ``_target_`` node is checked against its dataclass before anything heavy is imported; all errors at once.

This is also the one place where components are built from configuration.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from vlmbench import plugins
from vlmbench.errors import ConfigError
from vlmbench.records.config_history import TARGET, current_target
from vlmbench.session.settings import (
    FiguresConfig,
    LoadConfig,
    MeasurementConfig,
    OutputConfig,
    RunConfig,
    RuntimeConfig,
    TurnsConfig,
)

_COMPONENTS = ("model", "dataset", "sweep", "intervention", "tracker", "measurement.stopping", "measurement.warmup")
# Keys that nobody gave, for experiments set them: what a component must do that lacks them.
_SET_BY_EXPERIMENTS: Mapping[str, Mapping[str, str]] = {
    "dataset": {
        "num_samples": "experiments say how many samples they take: the data set's class needs this field",
    }
}


def validate(config: DictConfig) -> RunConfig:
    """Check the whole configuration; returns its typed settings (components stay nodes).

    A ``_target_`` that a component had in an earlier version is replaced in ``config`` by its present one.

    Raises:
        ConfigError: one message with every error, a line each.
    """
    if kinds := list(_no_components(config)):
        raise ConfigError("\n".join(kinds))
    _rename_moved(config)
    errors = [*_missing(config), *_appended(config)]
    settings: RunConfig | None = None
    if not errors:
        for path, node in _component_nodes(config):
            errors += [f"{path}: {message}" for message in check_component(node, _SET_BY_EXPERIMENTS.get(path, {}))]
        errors += _unknown_figures(config)
        settings = _settings(config, errors)
    if errors or settings is None:
        raise ConfigError("\n".join(errors))
    return settings


def build(node: Any) -> Any:
    """The component that a checked node describes, with plain Python containers inside.

    Raises:
        ConfigError: its constructor refuses a value.
    """
    try:
        return instantiate(node, _convert_="all")
    except Exception as error:  # Hydra wraps whatever the constructor raised
        cause = error.__cause__ or error
        raise ConfigError(f"{OmegaConf.select(node, '_target_')}: {cause}") from cause


def check_component(node: DictConfig, needed: Mapping[str, str] | None = None) -> list[str]:
    """Say what is wrong with one ``_target_`` node: target, keys, types, ranges.

    Args:
        node: the component's part of the configuration.
        needed: key to what is said where the component has no such key.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or not plugins.may_name(target):
        return [
            f"'_target_' must name a class of vlmbench or of a plug-in that declares an entry point (got {target!r}); "
            f"{plugins.described()}"
        ]
    module_name, _, class_name = target.rpartition(".")
    try:
        component = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError):
        return [f"'_target_' {target} does not exist"]
    if not is_dataclass(component) or not isinstance(component, type):
        return [f"'_target_' {target} is no component that can be configured"]
    known = {f.name: f for f in fields(component) if f.init}
    surplus = [str(key) for key in node if key not in known and key != "_target_"]
    errors = ["; ".join(filter(None, (unknown_key("", key, list(known)), (needed or {}).get(key)))) for key in surplus]
    errors += [f"'{name}' is missing" for name, f in known.items() if _required(f) and name not in node]
    errors += _type_errors(component, node, set(known))
    if not errors:
        errors += _range_errors(node)
    return errors


def unknown_key(where: str, key: str, allowed: list[str], below: Sequence[str] = ()) -> str:
    """The message for a key that does not exist: what was meant, perhaps, and what there is.

    Args:
        below: keys of that very name in groups, which are likelier meant than one that is spelt alike.
    """
    near = below or [f"{where}{name}" for name in difflib.get_close_matches(key, allowed, n=1)]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"'{where}{key}' is not a key of the configuration{hint} (allowed here: {', '.join(sorted(allowed))})"


def _appended(config: DictConfig) -> list[str]:
    """Keys that ``+key=value`` put where the schema has none."""
    errors = []
    for where, node, kind in (
        ("", config, RunConfig),
        ("output.", config.output, OutputConfig),
        ("measurement.", config.measurement, MeasurementConfig),
        ("measurement.turns.", config.measurement.turns, TurnsConfig),
        ("runtime.", config.runtime, RuntimeConfig),
        ("figures.", config.figures, FiguresConfig),
        ("load.", config.load, LoadConfig),
    ):
        known = [f.name for f in fields(kind)]
        errors += [unknown_key(where, str(key), known) for key in node if key not in known]
    return errors


def _no_components(config: DictConfig) -> Iterator[str]:
    """Keys whose component was replaced by a value of another kind: ``measurement.warmup=1``."""
    keys = [*_COMPONENTS, *(f"probe.{name}" for name in config.probe)]
    for key in keys:
        node = OmegaConf.select(config, key)
        if isinstance(node, DictConfig) and TARGET in node.keys():  # noqa: SIM118  # a missing value is there, too
            continue
        given = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        change = f"{key}.KEY=VALUE" if "." in key else f"{key}=NAME, or a part of it with {key}.KEY=VALUE"
        yield f"'{key}' must be a mapping with '_target_' (got {given!r}); change it with {change}"


def _unknown_figures(config: DictConfig) -> list[str]:
    there = sorted(plugins.installed("vlmbench.figures"))
    listed = f"installed: {', '.join(there)}" if there else plugins.described()
    wanted = config.figures.extra or []
    return [f"figures.extra: no figure {name!r} of a plug-in ({listed})" for name in wanted if name not in there]


def _required(f: Field[Any]) -> bool:
    return f.default is NO_DEFAULT and f.default_factory is NO_DEFAULT


def _type_errors(component: type, node: DictConfig, known: set[str]) -> list[str]:
    """Each key against the dataclass's type, by OmegaConf's own rules."""
    errors = []
    resolved: Any = OmegaConf.to_container(node, resolve=True)
    for key in known & {str(k) for k in node}:
        schema = OmegaConf.structured(component, flags={"readonly": False})
        OmegaConf.set_readonly(schema, False)
        try:
            OmegaConf.update(schema, key, resolved[key], merge=False)
        except OmegaConfBaseException:
            wanted = next(f.type for f in fields(component) if f.name == key)
            named = wanted.__name__ if isinstance(wanted, type) else wanted  # a class where annotations are no texts
            errors.append(f"'{key}' must be {named} (got {resolved[key]!r})")
    return errors


def _range_errors(node: DictConfig) -> list[str]:
    """What the constructor itself refuses."""
    try:
        build(node)
    except ConfigError as error:
        return [str(error.__cause__) or str(error)]
    return []


def _component_nodes(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """(dotted path, node) of every mapping with a ``_target_``, inner ones too."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in map(str, node):
            child = node._get_node(key)
            if isinstance(child, DictConfig | ListConfig) and not child._is_none():
                yield from _component_nodes(child, f"{path}.{key}" if path else key)
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from _component_nodes(node._get_node(index), f"{path}[{index}]")


def _rename_moved(config: DictConfig) -> None:
    for _, node in _component_nodes(config):
        target = node.get(TARGET)
        if isinstance(target, str) and (current := current_target(target)) != target:
            with flag_override(node, ["readonly", "struct"], [False, False]):
                node[TARGET] = current


def _missing(config: DictConfig) -> list[str]:
    return [f"{key}: a value is missing (???)" for key in sorted(map(str, OmegaConf.missing_keys(config)))]


def _settings(config: DictConfig, errors: list[str]) -> RunConfig | None:
    """The typed part as dataclass instances; range errors go to ``errors``."""
    found = []
    for key in ("output", "measurement", "runtime", "load"):
        try:
            OmegaConf.to_object(config[key])
        except ValueError as error:
            found.append(str(error))
    errors += found
    if found:
        return None
    try:
        settings = OmegaConf.to_object(config)
    except ValueError as error:
        errors.append(str(error))
        return None
    assert isinstance(settings, RunConfig)
    return settings

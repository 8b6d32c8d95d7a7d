"""The shipped YAML without Hydra: a choice of a group as plain values, and components built from them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from vlmbench.api.arguments import check
from vlmbench.errors import ConfigError
from vlmbench.machine.installation import conf_dir
from vlmbench.text import nearest

_TARGET, _SELF = "_target_", "_self_"


def choice(group: str, name: str) -> dict[str, Any]:
    """Read one choice of a configuration group as the command line composes it.

    Args:
        group: ``model``, ``probe`` …
        name: a YAML of that group, without its ending.

    Raises:
        ConfigError: there is none of that name; the message has the nearest ones.
    """
    folder = conf_dir() / group
    file = folder / f"{name}.yaml"
    if not file.is_file():
        there = sorted(path.stem for path in folder.glob("*.yaml"))
        raise ConfigError(f"'{group}' must be one of the shipped ones (got {name!r}); near it: {nearest(name, there)}")
    content = _content(file)
    merged: dict[str, Any] = {}
    for base in content.pop("defaults", [_SELF]):
        merged.update(content if base == _SELF else choice(group, str(base)))
    return {**merged, **content}


def defaults(*path: str) -> dict[str, Any]:
    """Read a node of the root configuration, ``("measurement", "warmup")`` say."""
    node: Any = _content(conf_dir() / "config.yaml")
    for key in path:
        node = node[key]
    return dict(node)


def component(node: Mapping[str, Any], **changes: Any) -> Any:
    """Build the component that a node with a ``_target_`` describes.

    Raises:
        ConfigError: a field that the component does not have, or a value of another type or that it refuses.
    """
    module, _, name = str(node[_TARGET]).rpartition(".")
    kind: Any = getattr(importlib.import_module(module), name)
    known = {f.name for f in fields(kind)}
    values = {key: value for key, value in {**node, **changes}.items() if key != _TARGET}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"'{unknown[0]}' must be a field of {name}: {', '.join(sorted(known))}")
    check({f.name: f.type for f in fields(kind)}, values)
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _content(file: Path) -> dict[str, Any]:
    loaded: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    return dict(loaded)

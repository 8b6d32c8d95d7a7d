"""Plug-ins: components of other installed packages, declared by entry points. Standard library only.

A package declares what it offers in its ``pyproject.toml``; the name is what users write, the value is the object::

    [project.entry-points."vlmbench.probes"]
    cpu_time = "my_package.probes:CpuTimeProbe"
    [project.entry-points."vlmbench.conf"]
    my_package = "my_package.conf"           # a folder of YAML: conf/probe/cpu_time.yaml makes probe=cpu_time a choice

A ``_target_`` may name any class of a package that declares at least one entry point. Nothing of a package is imported
before a configuration, or a call, names something of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmbench.errors import ConfigError

GROUPS = (
    "vlmbench.probes",
    "vlmbench.datasets",
    "vlmbench.engines",
    "vlmbench.interventions",
    "vlmbench.figures",
    "vlmbench.trackers",
)
CONF = "vlmbench.conf"
_OWN = "vlmbench"


def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """List the entry points of a group by name, those of other packages; nothing is imported."""
    return {point.name: point for point in metadata.entry_points(group=group)}


def packages() -> dict[str, list[str]]:
    """Map each package that declares components to what it declares, as ``group: name``."""
    found: dict[str, list[str]] = {}
    for group in GROUPS:
        for name, point in sorted(installed(group).items()):
            package = point.module.partition(".")[0]
            found.setdefault(package, []).append(f"{group.removeprefix('vlmbench.')}: {name}")
    return found


def may_name(target: str) -> bool:
    """Tell whether a ``_target_`` names something of vlmbench or of a package that declares components."""
    package, dot, _ = target.partition(".")
    return bool(dot) and (package == _OWN or package in packages())


def described() -> str:
    """Say which plug-ins are installed, for an error message."""
    listed = [f"{package} ({', '.join(names)})" for package, names in sorted(packages().items())]
    return f"installed plug-ins: {'; '.join(listed)}" if listed else "no plug-in is installed"


def load(group: str, name: str) -> Any:
    """Import what an entry point names.

    Args:
        group: one of :data:`GROUPS`.
        name: of the entry point.

    Raises:
        ConfigError: no such entry point, or its package cannot be imported.
    """
    points = installed(group)
    if name not in points:
        there = f"installed: {', '.join(sorted(points))}" if points else "none is installed"
        raise ConfigError(f"'{name}' is no entry point of {group} ({there})")
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"'{name}' of {group} ({points[name].value}) cannot be imported: {error}") from error


def config_folders() -> Iterator[tuple[str, Path]]:
    """Yield (package, folder) of every installed folder of YAML; the packages are found, not imported."""
    for name, point in sorted(installed(CONF).items()):
        top, *rest = point.value.split(".")
        spec = find_spec(top)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (folder := Path(place, *rest)).is_dir():
                yield name, folder

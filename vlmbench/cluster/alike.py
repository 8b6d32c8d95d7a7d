"""What the runs of a grid differ in: what a reader must be told, and what keeps two runs out of one line of a figure.

The rule is that of every comparison, :func:`vlmbench.records.comparable.identity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.records.comparable import varying

Identity = Mapping[str, Any]

COLUMNS: Mapping[str, str] = {
    "model": "model.name",
    "weights": "model.weights",
    "dtype": "runtime.dtype",
    "device": "device.name",
}
"""Columns of the table that say a part of a run's identity."""
# Models differ in these by nature; only between runs of one model do they speak against a comparison.
_OF_A_MODEL = ("model.architecture", "model.parameters", "model.revision", "runtime.experts_implementation")


def unlike(identities: Sequence[Identity]) -> dict[str, list[str]]:
    """What runs differ in that no comparison of their latencies may pass over, with the values, sorted.

    A grid over models is no mistake: the model's name is left out. Names are those of the table's columns where there
    is one (``dtype``, ``device``), else with their part (``runtime.compile``).
    """
    found = {name: values for name, values in varying(identities).items() if not name.startswith(_OF_A_MODEL)}
    by_model: dict[Any, list[Identity]] = {}
    for one in identities:
        by_model.setdefault(one.get("model.name"), []).append(one)
    for same in by_model.values():
        for name, values in varying(same).items():
            if name.startswith(_OF_A_MODEL):
                found[name] = list(dict.fromkeys([*found.get(name, []), *values]))
    found.pop("model.name", None)
    columns = {name: column for column, name in COLUMNS.items()}
    return {columns.get(name, name): sorted(map(str, values)) for name, values in found.items()}


def settings(labels: Sequence[tuple[str | None, ...]], identities: Sequence[Identity]) -> list[str]:
    """What sets each run apart from the runs that are called the same: ``cache_implementation static, compile True``.

    Args:
        labels: what each run is called (model, runtime, dtype, device …).
        identities: of each run.

    Returns:
        A text a run; empty where all runs of its label are alike.
    """
    alike: dict[tuple[str | None, ...], list[int]] = {}
    for number, label in enumerate(labels):
        alike.setdefault(label, []).append(number)
    said = [""] * len(labels)
    for numbers in alike.values():
        names = varying([identities[i] for i in numbers])
        for i in numbers:
            told = (f"{_short(name)} {identities[i][name]}" for name in names if name in identities[i])
            said[i] = ", ".join(told)
    return said


def _short(name: str) -> str:
    return name.removeprefix("runtime.").replace("device.", "device ").replace("model.", "model ").replace("_", " ")

"""Which numbers of a summary a tracker gets: each estimate that has an interval, with its two ends and its n."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

# Sections of ``summary.json`` that hold answers; the others hold one entry a point, or how the run went.
SECTIONS = (
    "headline", "distribution", "components", "launch_bound", "cost", "residual", "instrument_overhead", "aa_check",
    "energy", "comparisons", "interventions", "serving",
)  # fmt: skip
_LEFT_OUT = ("fits", "by_stage")  # within these: the same stage by stage
# What an entry beside ``low`` and ``high`` is called.
_ESTIMATES = ("value", "ratio", "launch_bound", "saved_ms")
_COUNTS = ("n", "effective_n", "rows", "effective_rows", "requests")
# What tells the entries of a list apart, the first that they have.
_KEYS = ("component", "stage", "quantile", "arm", "kind", "point_id", "load", "name")


def headline_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Name and value of each number: ``T_total/workload/p50``, with ``…_low`` and ``…_high``, and the n of its section.

    A number that could not be given (null, since n is too small) is absent.

    Args:
        summary: content of a ``summary.json``.
    """
    found: dict[str, float] = {}
    for section in SECTIONS:
        prefix = "" if section in ("headline", "distribution") else section
        found |= dict(_numbers(summary.get(section), prefix))
    return found


def _numbers(node: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _numbers(item, _join(path, _key(item, index)))
    if not isinstance(node, Mapping):
        return
    estimates = list(_estimates(node, path))
    yield from estimates
    inner = [
        pair for key, child in node.items() if key not in _LEFT_OUT for pair in _numbers(child, _join(path, str(key)))
    ]
    yield from inner
    if estimates or inner:
        yield from ((_join(path, key), float(node[key])) for key in _COUNTS if _is_number(node.get(key)))


def _estimates(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, float]]:
    """The numbers of one mapping that have two ends: ``low`` and ``high``, or these behind their name."""
    for key in node:
        stem = key.removesuffix("low")
        if stem == key or f"{stem}high" not in node:
            continue
        names = (stem.removesuffix("_"), f"{stem}ms") if stem else _ESTIMATES
        name = next((name for name in names if name in node), None)
        if name is not None:
            full = path if name == "value" else _join(path, name)
            numbers = {full: node[name], f"{full}_low": node[key], f"{full}_high": node[f"{stem}high"]}
            yield from ((one, float(value)) for one, value in numbers.items() if _is_number(value))


def _key(item: Any, index: int) -> str:
    if isinstance(item, Mapping):
        return next((str(item[key]) for key in _KEYS if isinstance(item.get(key), str)), str(index))
    return str(index)


def _join(path: str, key: str) -> str:
    return f"{path}/{key}" if path else key


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""What a run is worth to a sweeper: values of its ``summary.json`` by dotted path, kept in ``objective.json``.

In short, ``T_request.p95`` is ``distribution.T_request.workload.p95`` and ``num_vision_tokens`` is
``tokens.num_vision_tokens.median``. Where a path ends at an estimate its value is taken, and its interval, which is the
noise of the objective, is kept beside it. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmbench.errors import InputError, MeasurementError
from vlmbench.records.files import write_json
from vlmbench.text import nearest, parse_json

OBJECTIVE_NAME = "objective.json"
SUMMARY_NAME = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One value that a sweeper minimises or maximises.

    Args:
        name: its path, as it was asked for.
        value: what the sweeper gets.
        low, high: ends of the 95 % interval, where there is one.
        n: runs or requests behind it. effective_n: independent ones that they are worth.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    effective_n: float | None = None


def names_of(given: Any) -> tuple[str, ...]:
    """The paths of a setting: a text, or a list of texts; none for null.

    Raises:
        ValueError: something else.
    """
    names = [given] if isinstance(given, str) else given
    if names is None:
        return ()
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            "'objective' must be a dotted path into summary.json, or a list of them: objective=T_request.p95, "
            f"'objective=[T_request.p95,num_vision_tokens]' (got {given!r})"
        )
    return tuple(names)


def objectives(directory: Path, names: Sequence[str]) -> list[Objective]:
    """The values that a run's summary holds.

    Raises:
        MeasurementError: there is no such value, or too little was measured for it; the message says what there is.
    """
    path = directory / SUMMARY_NAME
    try:
        summary = parse_json(path.read_bytes())
        if not isinstance(summary, dict):
            raise ValueError(summary)
    except (OSError, ValueError) as error:
        raise MeasurementError(
            f"the objective {', '.join(names)} cannot be told: '{path}' cannot be read ({type(error).__name__})\n"
            "Only experiments with a summary have an objective: phase1, phase2, phase3, interventions."
        ) from error
    return [_value(summary, name) for name in names]


def _value(summary: Mapping[str, Any], name: str) -> Objective:
    above: Any = None
    found: Any = summary
    for key in _in_full(summary, name).split("."):
        above = found
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError):
            few = isinstance(found, list) and found
            there = list(found) if isinstance(found, Mapping) else [f"0 to {len(found) - 1}"] if few else []
            raise MeasurementError(
                f"the objective '{name}' is not in {SUMMARY_NAME}: there is no '{key}'\n"
                f"There is {nearest(key, list(map(str, there)), 12) or 'nothing'}."
            ) from None
    estimate = found if isinstance(found, Mapping) else {"value": found}
    value = estimate.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        why = estimate.get("note") or f"{str(found)[:60]} is no number"
        raise MeasurementError(f"the objective '{name}' has no value: {why}\nMeasure more runs, or choose another.")
    counts = {key: estimate.get(key, above.get(key)) for key in ("n", "effective_n")}
    return Objective(name=name, value=float(value), low=estimate.get("low"), high=estimate.get("high"), **counts)


def _in_full(summary: Mapping[str, Any], name: str) -> str:
    """The path with what the short forms leave out."""
    first, _, rest = name.partition(".")
    times, tokens = (part if isinstance(part := summary.get(key), dict) else {} for key in ("distribution", "tokens"))
    if first not in summary and first in times and rest in ("p50", "p90", "p95", "p99"):
        return f"distribution.{first}.workload.{rest}"
    if first not in summary and first in tokens and not rest:
        return f"tokens.{first}.median"
    return name


def keep(directory: Path, found: Sequence[Objective]) -> Path:
    """Write ``objective.json``."""
    return write_json(directory / OBJECTIVE_NAME, {"schema_version": 1, "objectives": [asdict(one) for one in found]})


def kept(directory: Path) -> list[Objective] | None:
    """What :func:`keep` wrote; None where the run has none.

    Raises:
        InputError: the file holds something else.
    """
    path = directory / OBJECTIVE_NAME
    try:
        found = [Objective(**one) for one in parse_json(path.read_bytes())["objectives"]]
        for one in found:
            ends = [end for end in (one.low, one.high) if end is not None]
            if not isinstance(one.name, str) or not all(type(x) in (int, float) for x in (one.value, *ends)):
                raise ValueError(f"{one}")
        return found
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"cannot read '{path}': {error!r}; it holds no objectives of vlmbench") from error

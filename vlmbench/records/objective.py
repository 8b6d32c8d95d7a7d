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
_TIMES = ("T_request", "T_total", "TTFT", "TTFT_model", "T_LLM_decode", "ITL")
_PERCENTILES = ("p50", "p90", "p95", "p99")
_STATISTICS = dict.fromkeys((*_PERCENTILES, "mean", "std", "min", "max", "n", "samples", "lag1", "effective_n"))
_COUNTS = (
    "num_vision_tokens", "num_vision_patches", "num_cross_attention_tokens", "num_crops", "num_images",
    "num_prompt_tokens", "num_input_tokens", "num_output_tokens",
)  # fmt: skip
_ALWAYS = dict.fromkeys(("scope", "runs", "flags", "stopping"))
_BOTH = dict.fromkeys((
    "headline", "launch_bound", "instrument_overhead", "aa_check", "memory_by_stage", "energy", "precision", "serving"
))  # fmt: skip
_PHASE1 = dict.fromkeys((
    "tail", "components", "llm_share", "top_kernels", "cost", "parameters", "time_and_parameters", "residual",
    "itl_count", "memory", "engine_agreement",
))  # fmt: skip
_SCALING = dict.fromkeys((
    "scaling", "too_few_points", "flops_latency", "roofline", "launch_bound_by_point", "latency_model"
))  # fmt: skip
# Report to the entries of its summary, as deep as they are the same in every run: what can be refused before one.
ENTRIES: Mapping[str, Mapping[str, Any]] = {
    "phase1": {
        "distribution": {time: {"workload": _STATISTICS, "reference": _STATISTICS} for time in _TIMES},
        "tokens": {name: dict.fromkeys(("median", "min", "max", "n")) for name in _COUNTS},
        **_ALWAYS, **_BOTH, **_PHASE1,
    },
    "phase2": {**_ALWAYS, **_BOTH, **_SCALING},
    "phase3": {**_ALWAYS, **_BOTH, **_SCALING},
    "interventions": {**_ALWAYS, **dict.fromkeys(("arms", "interventions", "skipped", "proofs"))},
}  # fmt: skip


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


def check_names(given: Any, report: str) -> None:
    """Refuse a path that no summary of such a report has, before anything is measured.

    Args:
        given: the setting, as :func:`names_of` takes it.
        report: ``phase1`` … ; others have no summary of their own, and are not looked at.

    Raises:
        ValueError: such a path, or no paths; the message says what there is.
    """
    for name in names_of(given):
        there: Any = ENTRIES.get(report)
        for key in _in_full(there or {}, name).split("."):
            if there is None:
                break
            if key not in there:
                short = [f"{time}.p50" for time in there.get("distribution", ())]
                names = ", ".join([*short, nearest(key, list(there), 8)])
                raise ValueError(
                    f"objective: '{name}' is not in the summary of {report}: no '{key}' (there is {names})"
                )
            there = there[key]


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
    if first not in summary and first in times:
        return f"distribution.{first}.workload.{rest}"
    if first not in summary and first in tokens:
        return f"tokens.{first}.{rest or 'median'}"
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

"""What a tracker gets of a run directory: numbers, facts and files, all of them fit to be shared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmbench.records.config_history import flat
from vlmbench.records.files import read_json, write_json
from vlmbench.records.outcome import read_outcome
from vlmbench.records.provenance import read_provenance
from vlmbench.records.redact import shareable

TRACKED_NAME = "tracked.json"
_FACTS = ("model", "device", "host", "software", "config")
_LONGEST = 500  # characters of one fact; the file provenance.json is stored too and has all of it


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run directory as trackers see it.

    Args:
        directory: of the run, or of one part of a study.
        name: of the run: experiment, model, and the directory's name.
        numbers: estimates with the ends of their intervals and n (:func:`vlmbench.trackers.result.headline_numbers`).
        facts: what was measured on what, as text: configuration, model, device, host, software; secrets hidden.
        tags: what may change when a run is continued: state, exit status, sessions, command, commit.
        pictures: the figures as PNG.
        files: ``summary.json``, ``provenance.json``, ``report.html`` and the tables, by the folder they belong in.
        sessions: how many processes have measured in this directory.
    """

    directory: Path
    name: str
    numbers: Mapping[str, float]
    facts: Mapping[str, str]
    tags: Mapping[str, str]
    pictures: tuple[Path, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict)
    sessions: int = 1


def read_result(directory: Path) -> Result:
    """Read what a run directory holds after its report was written; what is absent is absent.

    Raises:
        InputError: a file of it cannot be read.
        ValueError: its summary is no JSON.
    """
    summary = read_json(directory / "summary.json") or {}
    provenance = read_provenance(directory) or {}
    sessions = provenance.get("sessions") or [{}]
    outcome = read_outcome(directory)
    experiment = str(summary.get("experiment_name") or "run")
    model = str((provenance.get("model") or {}).get("name") or "")
    tags = {
        "vlmbench.experiment": experiment,
        "vlmbench.directory": str(shareable(str(directory))),
        "vlmbench.state": str(outcome.state) if outcome else "",
        "vlmbench.exit_status": str(outcome.exit_status) if outcome else "",
        "vlmbench.reason": str(shareable((outcome.reason if outcome else None) or "")),
        "vlmbench.command": " ".join(sessions[-1].get("command") or ()),
        "vlmbench.commit": str((sessions[-1].get("code") or {}).get("commit") or ""),
        "vlmbench.sessions": str(len(sessions)),
    }
    return Result(
        directory=directory,
        name=" ".join(part for part in (experiment, model, directory.name) if part),
        numbers=headline_numbers(summary),
        facts=dict(_facts(provenance)),
        tags={key: value for key, value in tags.items() if value},
        pictures=tuple(sorted((directory / "figures").glob("*.png"))),
        files=dict(_files(directory)),
        sessions=len(sessions),
    )


def earlier(directory: Path, tracker: str) -> str | None:
    """The tracker's own name of this run, where the directory was tracked before."""
    found = (read_json(directory / TRACKED_NAME) or {}).get(tracker)
    return str(found["run_id"]) if isinstance(found, Mapping) and found.get("run_id") else None


def keep(directory: Path, tracker: str, run_id: str) -> None:
    """Write down the tracker's name of this run, so that a continued run is no second one there."""
    write_json(directory / TRACKED_NAME, {**(read_json(directory / TRACKED_NAME) or {}), tracker: {"run_id": run_id}})


def _facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Provenance in dotted keys; it is redacted where it is written."""
    for part in _FACTS:
        for key, value in flat(provenance.get(part) or {}, part):
            if value not in (None, [], {}, ""):
                text = str(value)
                yield key, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _files(directory: Path) -> Iterator[tuple[Path, str]]:
    for name in ("summary.json", "provenance.json", "report.html"):
        if (directory / name).is_file():
            yield directory / name, ""
    for folder in ("figures", "tables"):
        for path in sorted((directory / folder).glob("*")):
            if path.is_file():
                yield path, folder


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

"""What a tracker gets of a run directory: numbers, facts and files, all of them fit to be shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmbench.records.config_history import flat
from vlmbench.records.files import write_json
from vlmbench.records.outcome import read_outcome
from vlmbench.records.provenance import read_provenance
from vlmbench.records.redact import shareable
from vlmbench.text import parse_json
from vlmbench.trackers.headline import headline_numbers

TRACKED_NAME = "tracked.json"
_FACTS = ("model", "device", "host", "software", "config")
_LONGEST = 500  # characters of one fact; the file provenance.json is stored too and has all of it


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run directory as trackers see it.

    Args:
        directory: of the run, or of one part of a study.
        name: of the run: experiment, model, and the directory's name.
        numbers: estimates with the ends of their intervals and n (:func:`vlmbench.trackers.headline.headline_numbers`).
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
    summary = _summary(directory)
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
    found = _tracked(directory).get(tracker)
    return str(found["run_id"]) if isinstance(found, Mapping) and found.get("run_id") else None


def keep(directory: Path, tracker: str, run_id: str) -> None:
    """Write down the tracker's name of this run, so that a continued run is no second one there."""
    write_json(directory / TRACKED_NAME, {**_tracked(directory), tracker: {"run_id": run_id}})


def _tracked(directory: Path) -> dict[str, Any]:
    try:
        found = parse_json((directory / TRACKED_NAME).read_bytes())
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def _summary(directory: Path) -> dict[str, Any]:
    try:
        found = parse_json((directory / "summary.json").read_bytes())
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


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

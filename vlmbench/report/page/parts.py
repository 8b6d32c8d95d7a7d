"""What a page is made of: the runs in the directories that it is asked for, with summaries, rows and provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vlmbench.analysis.frames import load_runs
from vlmbench.errors import InputError
from vlmbench.figures.theme import dataset_name, device_name, model_name, runtime_name
from vlmbench.records.files import read_json
from vlmbench.records.outcome import unfinished
from vlmbench.records.reading import records_path
from vlmbench.report.phase1_summary import EXPERIMENT as PHASE1
from vlmbench.report.phase1_summary import provenance_of

COMPARISON = "exp5_token_comparison"
INTERVENTIONS = "interventions"
TITLES: Mapping[str, str] = {
    PHASE1: "Latency of a data set, part by part",
    "phase2_scaling": "Time against token counts",
    "exp4b_language_tokens": "Time against output length",
    COMPARISON: "What tokens cost against each other",
    INTERVENTIONS: "What a method saves",
}
_SCALING = ("headline", "scaling", "too_few_points", "roofline", "launch_bound", "latency_model", "aa_check")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    PHASE1: ("headline", "distribution", "components", "launch_bound", "cost", "tail", "aa_check"),
    "phase2_scaling": _SCALING,
    "exp4b_language_tokens": _SCALING,
    COMPARISON: ("headline", "comparisons"),
    INTERVENTIONS: ("arms", "interventions", "skipped", "proofs", "scope"),
}
STUDY = ("phase1", "phase2", "prompt_tokens", "phase3")
NOT_RUNS = frozenset({"figures", "tables", "traces", ".hydra", "ledger"})
_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run, or what several say together.

    Args:
        name: place below the directory of the page, ``.`` for itself.
        directory: of the run.
        summary: content of its ``summary.json``.
        provenance: of the run; empty if there is none.
        frame: its rows; None where they are not there.
        unfinished: how far it is, where it did not come to its end; else empty.
    """

    name: str
    directory: Path
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    frame: pd.DataFrame | None = None
    unfinished: str = ""

    @property
    def experiment(self) -> str:
        """``experiment_name`` of the summary."""
        return str(self.summary.get("experiment_name", ""))

    @property
    def is_phase1(self) -> bool:
        """Whether the summary describes a data set, not sweeps."""
        return self.experiment == PHASE1

    @property
    def device_word(self) -> str:
        """``GPU`` where the model ran on one, else ``device``."""
        return "GPU" if (self.provenance.get("device") or {}).get("type") == "cuda" else "device"

    @property
    def facts(self) -> dict[str, str]:
        """Model, device, runtime, sweep and data of the run, as the filters name them."""
        sweep = str((self.provenance.get("sweep") or {}).get("name") or "")
        sweep = {"language_tokens": "output_tokens"}.get(sweep, sweep)  # one word for one thing
        return {
            "model": model_name(self.provenance),
            "device": device_name(self.provenance) or "device not recorded",
            "runtime": runtime_name(self.provenance),
            "sweep": sweep.replace("_", " ") if sweep and sweep != "none" else "data set",
            "data": dataset_name(self.provenance),
        }


def parts_of(
    directories: Path | str | Sequence[Path | str],
    *,
    rows: bool = True,
    left_out: list[str] | None = None,
    summaries: Mapping[Path, Path] | None = None,
) -> list[Part]:
    """The runs in some directories, and what was compared there, in reading order.

    Args:
        directories: run directories, studies, or directories that hold some.
        rows: also read the rows of each run.
        left_out: gets why runs are not there, one sentence each; None refuses them.
        summaries: where summaries lie that are not beside their rows, by the directory of the rows.

    Raises:
        InputError: there is no ``summary.json`` that this version can show.
    """
    given = [directories] if isinstance(directories, str | Path) else list(directories)
    elsewhere = summaries or {}
    places: dict[Path, str] = {}
    for top in map(Path, given):
        for place in _walk(top, 0, elsewhere):
            places.setdefault(place, _name(place, top, several=len(given) > 1))
    found = []
    for place, name in places.items():
        path = elsewhere.get(place, place) / "summary.json"
        try:
            summary = read_json(path)
            if summary is None:
                continue
            _check(path, summary)
            found.append(_part(name, place, summary, rows))
        except InputError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
    if not found and left_out:
        raise InputError(left_out[0])
    if not found:
        named = ", ".join(f"'{place}'" for place in given)
        raise InputError(f"no summary.json at {named}; give a run directory, or write its report first")
    return sorted(found, key=lambda part: part.experiment == COMPARISON)  # what they say together comes last


def _name(place: Path, top: Path, *, several: bool) -> str:
    relative = place.relative_to(top).as_posix()
    return f"{top.name}/{relative}".removesuffix("/.") if several else relative


def _walk(directory: Path, depth: int, elsewhere: Mapping[Path, Path]) -> Iterator[Path]:
    """Directories with a summary: a run itself, a study's parts in their order, all runs of a grid."""
    summary = (elsewhere.get(directory, directory) / "summary.json").is_file()
    if summary:
        yield directory
    if depth >= _DEPTH or not directory.is_dir() or has_rows(directory):
        return
    below = sorted(place for place in directory.iterdir() if place.is_dir() and place.name not in NOT_RUNS)
    if summary:  # what several runs say together lies above them; other folders there are not its own
        below = [place for place in below if place.name in STUDY]
    below.sort(key=lambda place: STUDY.index(place.name) if place.name in STUDY else len(STUDY))
    for place in below:
        yield from _walk(place, depth + 1, elsewhere)


def _check(path: Path, summary: Mapping[str, Any]) -> None:
    experiment = summary.get("experiment_name")
    missing = [name for name in _NEEDED.get(str(experiment), ()) if name not in summary]
    if experiment not in TITLES:
        raise InputError(f"'{path}' is of experiment '{experiment}'; a page shows {', '.join(TITLES)}")
    if missing:
        raise InputError(
            f"'{path}' lacks {', '.join(missing)}: another version wrote it; run the same command again to renew it"
        )


def _part(name: str, place: Path, summary: Mapping[str, Any], rows: bool) -> Part:
    frame = None
    if rows and summary.get("experiment_name") != COMPARISON and has_rows(place):
        frame = load_runs(place)
    provenance = provenance_of(place)
    about = (provenance.get("config") or {}).get("workload") == "controlled"
    far = unfinished(place, about=about) or ""
    return Part(name=name, directory=place, summary=summary, provenance=provenance, frame=frame, unfinished=far)


def has_rows(directory: Path) -> bool:
    """Whether a run directory holds rows."""
    try:
        return records_path(directory).is_file()
    except InputError:
        return False

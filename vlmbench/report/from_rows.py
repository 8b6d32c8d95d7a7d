"""The whole report, made again from rows: of a run, a study, a grid, an interrupted run, or several of them.

What a run's own end writes is written: summary, phase file, figures, tables, page. Runs that cannot be read are named,
the others are shown. Nothing is written outside the directories that were named; no torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbench.errors import ConfigError, InputError
from vlmbench.records.files import read_json, remove_stray_parts
from vlmbench.records.lock import is_held
from vlmbench.records.reading import RECORDS_NAME, iter_rows
from vlmbench.report import write_pages, write_report
from vlmbench.report.page import PAGE
from vlmbench.report.page.parts import NOT_RUNS, STUDY, has_rows
from vlmbench.report.phase1_summary import provenance_of
from vlmbench.text import detail, shown

_KINDS: Mapping[str, str] = {
    "phase1_dataset_profiling": "phase1",
    "phase2_scaling": "phase2",
    "exp4b_language_tokens": "phase3",
    "interventions": "interventions",
}
_DEPTH = 4
_OLD_S = 60.0  # a file that is being written is younger
_LOOKED_AT = 200  # rows, where no file says what they are of
FIRST_STEPS = "first_steps.json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written.

    Args:
        page: the page of all runs.
        runs: how many it shows.
        text: the answer in words of a single run, else a line a run.
        left_out: why runs are not in it, one sentence each.
    """

    page: Path
    runs: int
    text: str
    left_out: tuple[str, ...]


def directories(given: str | None) -> list[Path]:
    """The directories of ``runs=DIR[,DIR…]``.

    Raises:
        ConfigError: none was given.
        InputError: one is not there, or is a file.
    """
    if not given:
        raise ConfigError(
            "experiment=report needs runs=DIR[,DIR…]: directories of runs, of studies or grids, or published results"
        )
    whole = Path(given)
    found = [whole] if whole.is_dir() else [Path(name.strip()) for name in given.split(",") if name.strip()]
    for place in found:
        if not place.exists():
            raise InputError(f"'{place}' is not there; runs=DIR[,DIR…] names directories that hold {RECORDS_NAME}")
        if not place.is_dir():
            raise InputError(f"'{place}' is a file; runs=DIR names the directory that holds it")
    return list(dict.fromkeys(found))


def report(runs: Sequence[Path], to: Path | None = None, *, extra_figures: Sequence[str] = ()) -> Report:
    """Write the report of the runs at and below some directories.

    Args:
        to: where everything goes, one folder a run; beside the rows if None, which one directory alone allows.
        extra_figures: entry points of ``vlmbench.figures``.

    Raises:
        ConfigError: several directories and no ``to``; or no such entry point.
        InputError: ``to`` is another run's directory, or no run can be shown; the message says why.
        MeasurementError: a file cannot be written.
    """
    tops = list(runs)
    if to is None and len(tops) > 1:
        raise ConfigError(
            f"{len(tops)} directories make one page: say where it goes with output_dir=DIR "
            f"(got runs={','.join(map(str, tops))})"
        )
    target = to or tops[0]
    if to is not None and to.resolve() not in {top.resolve() for top in tops} and has_rows(to):
        raise InputError(f"'{to}' holds rows of a run of its own; give another output_dir")
    bases = _bases(tops, to)
    places: dict[Path, Path] = {}
    texts, left_out = [], []
    for top, base in bases.items():
        found = list(_runs(top, 0))
        for place in found:
            places.setdefault(place, base / place.relative_to(top))
        if not found:
            left_out.append(f"{shown(top)}: no rows ({RECORDS_NAME}) at or below it")
    written: dict[Path, Path] = {}
    for place, folder in places.items():
        detail(f"report of {shown(place)}")
        _tidy(folder)
        try:
            texts.append(write_report(kind_of(place), place, folder, extra_figures=extra_figures))
            written[place] = folder
        except InputError as error:
            left_out.append(f"{shown(place)}: {error}")
    if not written:
        raise InputError("\n".join(left_out))
    shown_runs = len(written)
    single = list(written.values()) == [target]
    notes = [] if single else [*_together(bases, written), write_pages(target, tops, written)]
    if not single:
        from vlmbench.report.runtimes import draw_side_by_side

        draw_side_by_side(target, tops, written)
    notes += [f"Left out: {reason}" for reason in left_out]
    return Report(
        page=target / PAGE,
        runs=shown_runs,
        text="\n\n".join([*(texts if single else []), *notes]),
        left_out=tuple(left_out),
    )


def _tidy(folder: Path) -> None:
    """Remove what a report that was killed left half-written; a report holds no lock, so only what is old."""
    if folder.is_dir() and not is_held(folder):
        remove_stray_parts(folder, older_than_s=_OLD_S)


def _bases(tops: Sequence[Path], to: Path | None) -> dict[Path, Path]:
    """Where the report of each directory goes: beside the rows, to ``to``, or to a folder of its name there."""
    found: dict[Path, Path] = {}
    for top in tops:
        if to is None or to.resolve() == top.resolve():
            found[top] = top
            continue
        base = to if len(tops) == 1 else to / top.resolve().name
        number, name = 2, base.name
        while base in found.values():  # two directories of one name
            base = base.with_name(f"{name}_{number}")
            number += 1
        found[top] = base
    return found


def _runs(directory: Path, depth: int) -> Iterator[Path]:
    """Directories with rows, the parts of a study in their order."""
    if has_rows(directory):
        yield directory
        return
    if depth == _DEPTH:
        return
    below = sorted(p for p in directory.iterdir() if p.is_dir() and p.name not in NOT_RUNS and p.name[0] != ".")
    for place in sorted(below, key=lambda p: STUDY.index(p.name) if p.name in STUDY else len(STUDY)):
        yield from _runs(place, depth + 1)


def kind_of(directory: Path) -> str:
    """The kind of report that fits the rows of a directory: of its summary, of its configuration, of the rows.

    Raises:
        InputError: a file cannot be read, or nothing was measured yet.
    """
    summary = _summary(directory)
    if known := _KINDS.get(str(summary.get("experiment_name"))):
        return known
    config: Mapping[str, Any] = provenance_of(directory).get("config") or {}
    if (asked := str(config.get("report"))) in _KINDS.values():
        return asked
    swept: set[str] = set()
    for number, row in enumerate(iter_rows(directory, itl=False)):
        if row.get("intervention") not in (None, "baseline"):
            return "interventions"
        swept |= {name for name in row if name.startswith("axis_")}
        if number == _LOOKED_AT:
            break
    if not swept or config.get("workload") == "dataset":
        return "phase1"
    return "phase3" if swept == {"axis_output_tokens"} else "phase2"


def _summary(directory: Path) -> Mapping[str, Any]:
    """The summary that is there; one that is damaged counts for nothing: it is about to be written anew."""
    try:
        return read_json(directory / "summary.json") or {}
    except InputError:
        return {}


def _together(bases: Mapping[Path, Path], written: dict[Path, Path]) -> Iterator[str]:
    """What the parts of studies and the arms of first steps say together; says what cannot be said.

    ``written`` gets the directories of what is about several runs.
    """
    for place, base in _above(bases, list(written)).items():
        parts = {part.name: part for part in written if part.parent == place}
        if {"phase2", "phase3"} <= parts.keys():
            yield from _compared(place, base, parts, written)
        elif (place / FIRST_STEPS).is_file():
            from vlmbench.report.first_steps import write_first_steps

            yield write_first_steps(base, parts)


def _above(bases: Mapping[Path, Path], places: Sequence[Path]) -> dict[Path, Path]:
    """The directories right above runs, at or below those that were named, and where their reports go."""
    found: dict[Path, Path] = {}
    for parent in dict.fromkeys(place.parent for place in places):
        for top, base in bases.items():
            if parent.is_relative_to(top):
                found[parent] = base / parent.relative_to(top)
                break
    return found


def _compared(place: Path, folder: Path, parts: Mapping[str, Path], written: dict[Path, Path]) -> Iterator[str]:
    """The token comparison of a study."""
    from vlmbench.report.token_comparison import write_exp5

    swept = [parts[name] for name in ("phase2", "prompt_tokens") if name in parts]
    try:
        yield write_exp5(swept, parts["phase3"], folder, pages=False).text
        written[place] = folder
    except InputError as error:
        yield f"No token comparison: {error}"

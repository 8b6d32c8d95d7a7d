#!/usr/bin/env python3
"""Publish measured runs in docs/results, and make figures, tables, words and pages there anew from the rows.

    python scripts/publish_results.py --from DIR           # runs of scripts/results.sh DIR, and what is made of them
    python scripts/publish_results.py --from DIR --same-set "which does …"   # other code, in the same set for a reason
    python scripts/publish_results.py                      # all that is made of rows, summaries of the archive too
    python scripts/publish_results.py h200_llava_eager     # of one folder
    python scripts/publish_results.py --from DIR --drop-earlier   # and remove runs of the archive that it has again
    python scripts/publish_results.py --archive h200_old   # keep the rows of a folder as an earlier result
    python scripts/publish_results.py --results COPY       # try it without touching docs/results

A part ``MODEL_RUNTIME_PHASE`` of ``scripts/results.txt`` becomes ``CARD_MODEL_RUNTIME/PHASE``, any other ``CARD_PART``;
the card's name comes from the run's provenance. Published are rows (as xz; what an earlier set has as gzip is packed
anew), provenance, how points ended, proofs of methods; everything else is made of them: summary, words, tables, some
figures in few colours. Runs of another state of the code than the present set's begin a new set: those that are
measured again go, the others stay and are marked on the pages. What was cut off does not replace a run that has more
rows. Both sweeps of a folder are compared, runtimes of a model are drawn side by side in ``CARD_MODEL``, and
``scripts/findings.py`` writes the pages. What changed is printed, a line a file.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever vlmbench is installed
sys.path.insert(0, str(Path(__file__).resolve().parent))
from findings import COMPARED, write_pages_of
from published import (
    ACROSS,
    ARCHIVE,
    CARD,
    CUT_BY,
    DRAWN,
    MODELS,
    MODELS_OF,
    PIXELS,
    PROVENANCE,
    RUNTIMES,
    SERVER,
    SET,
    SIDES,
    Published,
    code_of,
    codes_of,
    folder_of,
    manifest,
    read,
    reasons_of,
    tries_of,
)

from vlmbench.analysis.budget import checked, settings_of, solve
from vlmbench.analysis.results import read_results
from vlmbench.analysis.two_sides import judge
from vlmbench.errors import InputError, VlmbenchError
from vlmbench.figures.budget import budget_figure
from vlmbench.figures.style import FigureStyle, drawn_as
from vlmbench.figures.theme import save
from vlmbench.machine.installation import source_sha256
from vlmbench.records.files import write_json, write_whole
from vlmbench.records.reading import GZIP, RECORDS_NAME, XZ, opened, records_in, records_path
from vlmbench.report import write_pages, write_report
from vlmbench.report.budget import as_dict as budget_as_dict
from vlmbench.report.comparison import as_dict, as_markdown
from vlmbench.report.first_steps import write_first_steps
from vlmbench.report.from_rows import FIRST_STEPS, kind_of
from vlmbench.report.runtimes import draw_side_by_side
from vlmbench.report.token_comparison import write_exp5

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PACKED, WORDS, SUMMARY = f"{RECORDS_NAME}{XZ}", "words.txt", "summary.json"
PACKED_SUMMARY = f"{SUMMARY}.gz"
INPUTS = (PACKED, PROVENANCE, "points.json", "proofs.json", "loads.json")
BUDGET = "budget.json"
WHOLE = (FIRST_STEPS, BUDGET, SERVER)
PART = "part.json"  # how long its tries took
PLAIN = ("*.jsonl", "*.txt")  # what scripts of scripts/gpu leave; published as it is
MADE = (SUMMARY, "latency_model*.json", FIRST_STEPS, WORDS, "tables/*.md")
STUDY_MADE = (SUMMARY, "latency_model*.json", WORDS, "tables/token_costs.md")
LOADS = ("pareto", "ttft_throughput")
FIGURES: Mapping[str, tuple[str, ...]] = {"phase1": LOADS, "phase2": (), "phase3": ()}
"""What pages show of a kind of run, the others are made of the rows; of a study nothing, of other kinds all."""
SHOWN = f"{CARD}_llava_eager"  # of this study pages show
MORE = (
    "components_bars", "request_distribution", "*_tokens_latency", "launch_bound", "latency_distribution",
    "ttft_itl", "device_use", "request_timeline", "run_lane",
)  # fmt: skip
TOUR = f"{CARD}_qwen_cudagraph"  # whose tokens the README compares
GRID = "_grid"  # its runs are the lines of one table: no figures, no tables
_STYLE = FigureStyle(formats=("png",), dpi=110 * PIXELS)
"""Of published figures, which pages show at 110 pixels an inch; a run draws its own as PDF, too."""
_COLOURS = 48
MOST_BYTES = 15_000_000
_SMALLEST = 9
_ROWS_PRESET = 6 | lzma.PRESET_EXTREME
"""Looks back 8 MiB: 64 MiB (``-9e``) make rows a thousandth smaller at most, and every reader would need them."""
_LOOKED_AT = 50  # commits whose code is compared
KEPT = ("llava_eager", "llava_cudagraph", "gemma3_eager")  # earlier runs that tests read
CUT = (124, 130, 137, 143)  # exit status of what its time, or somebody, cut off


def take(runs: Path, results: Path) -> list[Path]:
    """Copy the inputs of finished runs into ``results``; says what was taken and what was not.

    Returns:
        Folders in ``results`` that got something.

    Raises:
        InputError: the directory holds nothing to publish.
    """
    if not runs.is_dir():
        raise InputError(f"'{runs}' is no directory; give the one that scripts/results.sh wrote to")
    taken = []
    for place in sorted(path for path in runs.iterdir() if path.is_dir()):
        arms = [place] if records_in(place) else sorted(p for p in place.iterdir() if p.is_dir() and records_in(p))
        for arm in arms:
            if reason := _unusable(arm):
                sys.stdout.write(f"not published, {reason}: {arm.relative_to(runs)}\n")
                continue
            folder = Path(folder_of(place.name, card_of(arm, read(place / SERVER))))
            target = results / folder / (arm.name if arm != place else "")
            if arm == place and len(folder.parts) == 1 and (kind := kind_of(place)) in FIGURES:
                target = target / kind  # beside the phases that the same model gets later
            if reason := _not_published(arm, target, [other.name for other in arms]):
                sys.stdout.write(f"not published, {reason}: {arm.relative_to(runs)}\n")
                continue
            if target.is_dir() and any((target / name).is_file() for name in INPUTS):
                for name in INPUTS:  # none of an earlier run's stays beside those of this one
                    (target / name).unlink(missing_ok=True)
            target.mkdir(parents=True, exist_ok=True)
            for name in INPUTS[1:]:
                if (arm / name).is_file():
                    write_whole(target / name, small(arm / name))
            write_whole(target / PACKED, packed(records_path(arm)))
            for name in WHOLE:  # what the parts of it say together, which rows alone do not
                if arm != place and (place / name).is_file():
                    (results / folder / name).parent.mkdir(parents=True, exist_ok=True)
                    said = small(place / name)
                    if name.endswith(".json"):
                        said = re.sub(
                            rb'"[^"]*/(?=%b)' % re.escape(place.name).encode(), b'"', said
                        )  # no path of a machine
                    write_whole(results / folder / name, said)
            (results / folder / PART).unlink(missing_ok=True)  # an earlier run's; none was written of what was cut off
            if len(folder.parts) > 1 and {path.parent for path in (results / folder).parent.rglob(PACKED)} <= {target}:
                (results / folder.parts[0] / PART).unlink(missing_ok=True)  # of an earlier run that had all of it
            if tries := tries_of(runs).get(place.name):
                write_json(results / folder / PART, {"tries": [asdict(one) for one in tries]})
            taken.append(folder)
    card = taken[0].parts[0].partition("_")[0] if taken else CARD
    for file in [path for pattern in PLAIN for path in sorted(runs.glob(pattern)) + sorted(runs.glob(f"*/{pattern}"))]:
        if file.name in (RECORDS_NAME, WORDS) or records_in(file.parent):
            continue
        folder = Path(folder_of(file.stem if file.parent == runs else file.parent.name, card))
        (results / folder).mkdir(parents=True, exist_ok=True)
        target = results / folder / file.name
        write_whole(target, _with_earlier_parts(file, target))
        taken.append(folder)
    if not taken:
        raise InputError(f"'{runs}' holds no runs; give the directory that scripts/results.sh wrote to")
    found = list(dict.fromkeys(taken))
    sys.stdout.write(f"taken: {', '.join(map(str, found))}\n")
    return found


def packed(rows: Path) -> bytes:
    """The content of a records file as it is published.

    Raises:
        InputError: it cannot be read.
    """
    if rows.suffix == XZ:
        return rows.read_bytes()
    with opened(rows) as lines:
        return lzma.compress(lines.read(), preset=_ROWS_PRESET)


def pack_again(results: Path) -> Iterator[str]:
    """Put what is published now in the place of rows that were published as gzip; says which.

    Raises:
        InputError: rows cannot be read; they stay.
    """
    for old in sorted(results.rglob(f"{RECORDS_NAME}{GZIP}")):
        if not old.with_name(PACKED).is_file():
            write_whole(old.with_name(PACKED), packed(old))
        old.unlink()
        yield f"packed anew {old.relative_to(results).with_name(PACKED)}"


def _unusable(arm: Path) -> str:
    """Why a folder with rows is no run of vlmbench that can be read; empty where it is one."""
    try:
        card_of(arm)
    except (OSError, ValueError, AttributeError):
        return "it does not say how it was made"
    try:
        _measured(arm)
    except InputError:
        return "its rows cannot be read"
    return ""


def _not_published(arm: Path, target: Path, arms: Sequence[str]) -> str:
    """Why a run is no result; empty where it is one.

    A run that was cut off does not take the place of one that has more runs, nor one sweep that of a pair.
    """
    new = _measured(arm)
    if not new:
        return "nothing was measured"
    if not (target / PACKED).is_file():
        return ""
    old, points = _measured(target), read(arm / "points.json")
    whole = points is not None and CUT_BY.isdisjoint(str(point["ended_by"]) for point in points["points"])
    if not whole and new < old:
        return f"cut off after {new} runs, of which '{target.name}' has {old} already"
    alone = arm.name in SIDES and not {*SIDES} <= {*arms} and all((target.parent / s / PACKED).is_file() for s in SIDES)
    return "one sweep of another code than the pair that is there" if alone and _code(arm) != _code(target) else ""


def begin_set(runs: Path, results: Path, *, why_same: str | None) -> None:
    """Write which states of the code make the present set; says what that changes.

    Args:
        runs: what was taken; its code begins a new set.
        results: earlier runs in it are marked from now on.
        why_same: in what that code differs from the present set's, which it joins for that; None begins a new set.
    """
    found = {
        _code(path.parent)
        for place in ("*", "*/*")
        for path in runs.glob(f"{place}/{PROVENANCE}")
        if records_in(path.parent)
        and not _unusable(path.parent)
        and card_of(path.parent, read(path.parent.parent / SERVER)) == CARD
    }
    present = codes_of(results)
    if found - present.keys():
        joins = why_same is not None
        codes = {**(present if joins else {}), **dict.fromkeys(sorted(found), "")}
        said = {
            **(reasons_of(results) if joins else {}),
            **{code: why_same for code in found - present.keys() if joins},
        }
        write_json(results / SET, {"codes": codes, **({"reasons": said} if said else {})})
        named = ", ".join(codes)
        sys.stdout.write(
            f"the present set is of code {named} from now on; runs of other code are marked on the pages\n"
        )


def name_commits(results: Path) -> None:
    """Write which commits have the code of the present set, where that is not known yet; says what was not found."""
    codes = codes_of(results)
    if "" not in codes.values():
        return
    found = {code: commit or commit_of(code) or "" for code, commit in codes.items()}
    write_json(results / SET, {**(read(results / SET) or {}), "codes": found})
    for code in [code for code, commit in found.items() if not commit]:
        sys.stdout.write(f"no commit of this checkout has code {code}: commit it, and publish again\n")


def commit_of(code: str) -> str | None:
    """The newest commit of this checkout whose package has a hash; None where none of the last ones has."""

    def git(*words: str) -> bytes:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)
        return done.stdout

    # of merged branches too whose code was not taken
    for commit in (
        git("rev-list", "--full-history", f"--max-count={_LOOKED_AT}", "HEAD", "--", "vlmbench").decode().split()
    ):
        with (
            tempfile.TemporaryDirectory() as work,
            tarfile.open(fileobj=io.BytesIO(git("archive", commit, "vlmbench"))) as all_,
        ):
            all_.extractall(work, filter="data")
            if source_sha256(Path(work) / "vlmbench").startswith(code):
                return commit[:7]
    return None


def say_of_parts(runs: Path) -> None:
    """Say which parts failed before they had a row, were cut off or not begun, and whether they are of one code."""
    tries = tries_of(runs)
    for part, found in tries.items():
        last = found[-1]
        how = f"exit {last.status} after {last.seconds} s"
        if last.status in CUT:
            how += ", cut off"
        log = runs / "logs" / f"{part}.log"
        said = (
            [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            if (log.is_file())
            else []
        )
        has_rows = any(records_in(place) for place in (runs / part, *(runs / part).glob("*/")))
        if not has_rows:
            sys.stdout.write(f"{part}: no row ({how}); last words: {' / '.join(said[-2:]) or 'none'}\n")
        elif last.status:
            sys.stdout.write(f"{part}: published as far as it came ({how})\n")
    if tries and (left := [part for part in manifest() if part not in tries]):
        sys.stdout.write(f"not begun: {', '.join(left)}\n")
    codes = sorted({one.code for found in tries.values() for one in found if one.code})
    if len(codes) > 1:
        parts = {code: [part for part, found in tries.items() if any(t.code == code for t in found)] for code in codes}
        said = [f"{code}: {', '.join(names)}" for code, names in parts.items()]
        sys.stdout.write(f"measured by {len(codes)} states of the code, do not compare: {'; '.join(said)}\n")


def _with_earlier_parts(file: Path, target: Path) -> bytes:
    """A file's lines, behind those of parts (``"part"`` of a line) that the published file alone has."""
    lines = file.read_bytes()
    if file.suffix != ".jsonl" or not target.is_file():
        return lines
    again = {json.loads(line).get("part") for line in lines.splitlines() if line.strip()}
    old = [line for line in target.read_bytes().splitlines(keepends=True) if json.loads(line).get("part") not in again]
    return b"".join([*old, lines])


def _measured(directory: Path) -> int:
    """How many rows of a run count."""
    with opened(records_path(directory)) as lines:
        return sum(b'"status": "ok"' in line for line in lines)


def card_of(directory: Path, server: Mapping[str, Any] | None = None) -> str:
    """``h200`` of ``NVIDIA H200``, ``cpu``; of what a server ran on, where one was asked that says so."""
    device = json.loads((directory / "provenance.json").read_text(encoding="utf-8")).get("device") or {}
    name = device.get("name") if device.get("type") == "cuda" else device.get("type")
    return str((server or {}).get("device") or name or "unknown").split()[-1].lower()


def folders(results: Path, chosen: Sequence[str] = ()) -> list[Path]:
    """The folders of results that hold rows, relative to ``results``: all, or those that are named.

    Raises:
        InputError: a name holds no results.
    """
    found = sorted({p.relative_to(results).parts[0] for p in results.rglob(PACKED)} - {ARCHIVE})
    for name in chosen:
        if name not in found:
            raise InputError(
                f"'{name}' is no folder of results under '{results}'; there are: {', '.join(found) or 'none'}"
            )
    return [Path(name) for name in found if not chosen or name in chosen]


def write_again(folder: Path, work: Path) -> dict[Path, Path]:
    """Write the reports of a folder's runs below ``work``; returns what is to be published: its place to the file.

    Everything runs inside ``work`` on relative paths, so that no file names a directory of this machine.

    Raises:
        InputError: rows or provenance are no input for a report.
        MeasurementError: a file cannot be written.
    """
    runs = sorted(path.parent.relative_to(folder) for path in folder.rglob(PACKED))
    top = work / folder.name
    kinds: dict[Path, str] = {}
    for run in runs:
        _unpack(folder / run, top / run)
        _of_server(top / run, read(folder / SERVER))
    with chdir(work), drawn_as(_STYLE):
        here = Path(folder.name)
        arms = (folder / FIRST_STEPS).is_file()
        for run in runs:
            if arms:
                continue
            kinds[run] = kind_of(here / run)
            text = write_report(kinds[run], here / run)
            (here / run / WORDS).write_text(text + "\n", encoding="utf-8")
        if arms:
            text = write_first_steps(here, {run.name: here / run for run in runs})
            (here / WORDS).write_text(text + "\n", encoding="utf-8")
        elif {Path(side) for side in SIDES} <= set(runs) and (
            len({_code(folder / side) for side in SIDES}) == 1 or folder.parent.name == ARCHIVE
        ):
            text = write_exp5([here / SIDES[0]], here / SIDES[1], here, pages=False).text
            write_pages(here)
            (here / WORDS).write_text(text + "\n", encoding="utf-8")
        made = _budget_made(here, said) if (said := read(folder / BUDGET)) else {}
    return dict(_published(top, kinds)) | {name: work / path for name, path in made.items()}


def _budget_made(here: Path, said: Mapping[str, Any]) -> dict[Path, Path]:
    """Solve and draw a budget from its rows, for the limit that was asked: places to files; nothing where no setting
    could be told.
    """
    metric, percentile = said["metric"], said["percentile"]
    runs = read_results(here / "sweep")
    sides = [runs, read_results(here / "check") if (here / "check").is_dir() else []]
    swept, checks = (settings_of(side, metric=metric, percentile=percentile) for side in sides)
    found = solve(swept, limit_ms=said["latency_ms"], percentile=percentile, metric=metric, notes=said["notes"])
    again = {one.point: one.latency for one in checks}
    found = checked(found, {one.key: again[one.point] for one in found.chosen if one.point in again})
    if all(one.latency.value is None for one in found.settings):
        return {}
    (file,) = save(budget_figure(found, runs[0].provenance), here / "figures", "budget")
    return {Path(BUDGET): write_json(here / BUDGET, budget_as_dict(found)), Path("figures") / file.name: file}


def _of_server(run: Path, server: Mapping[str, Any] | None) -> None:
    """Let a run against a server say what the server ran on, which the client could not know."""
    if server is None:
        return
    about = read(run / PROVENANCE) or {}
    about["model"]["endpoint"]["device"] = server["device"]
    if "--load-format dummy" in server.get("command", ""):
        about["model"]["weights"] = "random"
    about["runtime"]["dtype"] = None  # the server's, which it does not say
    model = run.parts[-2].split("_")[1]
    about["model"]["name"] = MODELS.get(model, about["model"]["name"])
    write_json(run / PROVENANCE, about)


def _code(run: Path) -> str:
    return code_of(read(run / PROVENANCE) or {})


def _unpack(folder: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in INPUTS[1:]:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    with opened(folder / PACKED) as lines, (target / RECORDS_NAME).open("wb") as rows:
        shutil.copyfileobj(lines, rows)


def _published(top: Path, kinds: Mapping[Path, str]) -> Iterator[tuple[Path, Path]]:
    for path in sorted(path for path in top.rglob("*") if path.is_file()):
        name = path.relative_to(top)
        run = next((run for run in kinds if run != Path() and name.is_relative_to(run)), Path())
        within = name.relative_to(run)
        whole = run == Path() and bool(kinds) and Path() not in kinds  # what a study's runs say together
        figures = FIGURES.get(kinds.get(run, ""), () if whole else ("*",)) + (
            MORE if top.name == SHOWN else ("break_even",) if top.name == TOUR else ()
        )
        made: tuple[str, ...] = STUDY_MADE if whole else MADE
        if top.name.endswith(GRID):
            figures, made = (), (SUMMARY, WORDS)
        drawn = (
            within.parts[0] == "figures" and path.suffix == ".png" and any(fnmatch(path.stem, one) for one in figures)
        )
        if drawn or any(fnmatch(within.as_posix(), one) for one in made):
            yield name, path


def small(file: Path) -> bytes:
    """A file's content; JSON without its spaces, a summary with six digits a number, of a PNG the same picture in 48
    colours, which a figure of flat areas and thin lines needs not more of, in a third of the bytes.
    """
    if file.suffix == ".json":
        said = json.loads(file.read_bytes(), parse_float=_rounded if file.name == SUMMARY else float)
        return (json.dumps(said, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
    if file.suffix != ".png":
        return file.read_bytes()
    with Image.open(file) as image:
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE  # no median cut: it loses thin lines' colours
        flat = image.convert("RGB").quantize(_COLOURS, method=method, kmeans=1, dither=dither)
    content = io.BytesIO()
    flat.save(content, format="png", optimize=True)
    return content.getvalue()


def _rounded(number: str) -> float:
    return float(f"{float(number):.6g}")


def publish(made: Mapping[Path, Path], folder: Path) -> Iterator[str]:
    """Replace what a folder holds beside its inputs by what was made; says what changed, a line a file."""
    kept = {Path(name) for name in WHOLE if name != FIRST_STEPS}
    old = {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name not in (*INPUTS, PART)
    } - kept
    files: set[Path] = set()
    for made_as, path in made.items():
        content = _content(path)
        name = made_as.with_name(PACKED_SUMMARY) if made_as.name == SUMMARY else made_as
        files.add(name)
        known = (folder / name).is_file()
        if not known or content != (folder / name).read_bytes():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, content)
            yield f"{'changed' if known else 'new'} {name}"
    for name in sorted(old - files):
        (folder / name).unlink()
        yield f"removed {name}"


def _content(path: Path) -> bytes:
    """What is published of a file: a summary is packed."""
    content = small(path)
    return gzip.compress(content, _SMALLEST, mtime=0) if path.name == SUMMARY else content


def summarise_archive(results: Path) -> Iterator[str]:
    """Write the summaries of earlier runs anew from their rows, where they have one, for pages quote them; says which.

    Raises:
        VlmbenchError: rows or provenance are no input for a report.
    """
    for folder in sorted((results / ARCHIVE).glob("*/")):
        kept = {path.relative_to(folder) for path in folder.rglob(PACKED_SUMMARY)}
        if not kept:
            continue
        with tempfile.TemporaryDirectory(prefix="vlmbench-") as work:
            for made_as, path in write_again(folder, Path(work)).items():
                name = made_as.with_name(PACKED_SUMMARY)
                if (
                    made_as.name == SUMMARY
                    and name in kept
                    and (content := _content(path)) != (folder / name).read_bytes()
                ):
                    write_whole(folder / name, content)
                    yield f"changed {folder.name}/{name}"


def side_by_side(results: Path) -> Iterator[tuple[Path, list[str]]]:
    """Draw the runtimes of each model and compare them request by request; yields folders and what changed in them."""
    models: dict[str, dict[str, bool]] = {}
    codes = codes_of(results)
    for name in map(str, folders(results)):
        card, model, *runtime = name.split("_", 2)
        if runtime and runtime[0] in RUNTIMES:
            of_set = any(not codes or _code(path.parent) in codes for path in (results / name).rglob(PROVENANCE))
            models.setdefault(f"{card}_{model}", {})[runtime[0]] = of_set
    for model, runtimes in models.items():
        present = [one for one in RUNTIMES if runtimes.get(one)]
        found = present if len(present) > 1 else [one for one in RUNTIMES if one in runtimes]
        if len(found) < 2:
            continue
        with tempfile.TemporaryDirectory(prefix="vlmbench-") as work, chdir(results):
            with drawn_as(_STYLE):
                left: list[str] = []
                shown = found if model.partition("_")[2] in DRAWN else []
                runs = [Path(f"{model}_{runtime}") for runtime in shown]
                summaries = _summaries(runs, Path(work) / "summaries")
                files = list(draw_side_by_side(Path(work), runs, summaries)) if runs else []
            for one, other in COMPARED:
                sides = [Path(f"{model}_{runtime}") / "phase1" for runtime in (one, other)]
                if {one, other} <= {*found} and all((side / PACKED).is_file() for side in sides):
                    try:
                        verdict = judge(*sides)
                    except VlmbenchError as error:
                        left.append(f"not compared: {error}".partition("\n")[0])
                        continue
                    stem = Path(work) / f"compare_{one}_{other}"
                    files.append(write_json(stem.with_suffix(".json"), as_dict(verdict)))
                    files.append(write_whole(stem.with_suffix(".md"), as_markdown(verdict)))
            if files:
                changes = publish({path.relative_to(work): path for path in files}, results / model)
                yield Path(model), [*changes, *left]


def models_side_by_side(results: Path) -> list[str]:
    """Draw the models of a runtime beside each other in a folder of their own; returns what changed there."""
    codes, wanted = codes_of(results), [f"models_{runtime}" for runtime in MODELS_OF]
    files: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="vlmbench-") as work, chdir(results), drawn_as(_STYLE):
        for runtime in MODELS_OF:
            every = [Path(f"{CARD}_{model}_{runtime}") for model in MODELS]
            runs = [run for run in every if (run / "phase1" / PROVENANCE).is_file()]
            runs = [run for run in runs if not codes or _code(run / "phase1") in codes]
            if len(runs) > 1:
                files += draw_side_by_side(Path(work), runs, _summaries(runs, Path(work) / "summaries" / runtime))
        made = {path.relative_to(work): path for path in files if path.stem in wanted}
        return list(publish(made, results / f"{CARD}_{ACROSS}")) if made else []


def _summaries(runs: Sequence[Path], work: Path) -> dict[Path, Path]:
    """Unpack the published summaries of runs: the directory of each to where it lies now."""
    found = {path.parent: work / path.parent for run in runs for path in run.rglob(PACKED_SUMMARY)}
    for place, target in found.items():
        target.mkdir(parents=True)
        (target / SUMMARY).write_bytes(gzip.decompress((place / PACKED_SUMMARY).read_bytes()))
    return found


def archive(results: Path, names: Sequence[str]) -> None:
    """Keep the inputs of folders as earlier results: everything that is made of them goes.

    Raises:
        InputError: there is no such folder.
    """
    for name in names:
        if not (results / name).is_dir():
            raise InputError(f"'{name}' is no folder under '{results}'")
        for path in [path for path in (results / name).rglob("*") if path.is_file()]:
            target = results / ARCHIVE / path.relative_to(results)
            plain = path.name != WORDS and any(fnmatch(path.name, one) for one in PLAIN)
            if plain or path.name in (*INPUTS, *WHOLE, PART, PACKED_SUMMARY):
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        shutil.rmtree(results / name)


def drop_measured_since(results: Path) -> Iterator[str]:
    """Remove earlier runs that the present set has again, and their names from the archive's page; says which.

    Those in ``KEPT`` stay: they are read for what they are.
    """
    present = Published(results)
    for folder in sorted((results / ARCHIVE).glob(f"{CARD}_*")):
        name = folder.name.removeprefix(f"{CARD}_")
        phases = [path.parent.relative_to(folder) for path in folder.rglob(PACKED)]
        runs = [present.run(name, phase.as_posix()) for phase in phases]
        if name in KEPT or not runs or any(run is None or run.mark or run.cut for run in runs):
            continue
        shutil.rmtree(folder)
        page = results / ARCHIVE / "README.md"
        lines = page.read_text(encoding="utf-8").splitlines(keepends=True) if page.is_file() else []
        lines = [re.sub(rf"(, )?`{folder.name}`(?(1)|(, )?)", "", line) for line in lines]
        write_whole(page, "".join(line for line in lines if not line.startswith("|  |")))
        yield folder.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish; 0 if everything could be written, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders in the results; all if none is named")
    parser.add_argument("--from", dest="runs", type=Path, help="directory of runs to publish")
    parser.add_argument(
        "--same-set", metavar="WHY", help="the code of the runs joins the set's, and in what it differs"
    )
    parser.add_argument("--drop-earlier", action="store_true", help="remove earlier runs that were measured again")
    parser.add_argument("--archive", nargs="+", default=[], metavar="FOLDER", help="folders to keep as earlier results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of results (default: docs/results)")
    options = parser.parse_args(arguments)
    os.environ["COLUMNS"] = "120"  # published words do not depend on the terminal of who publishes them
    results, failed = options.results.resolve(), 0
    try:
        for change in pack_again(results):
            sys.stdout.write(f"{change}\n")
        archive(results, options.archive)
        took = take(options.runs.resolve(), results) if options.runs else []
        if options.runs:
            begin_set(options.runs.resolve(), results, why_same=options.same_set)
            say_of_parts(options.runs.resolve())
        # A phase of a study is made with its folder: both sweeps of it are compared, and its budget is of all phases.
        taken = sorted({name.parts[0] for name in took if any((results / name).rglob(PACKED))})
        chosen = folders(results, options.folders or taken)
    except InputError as error:
        parser.error(str(error))
    if (options.archive or options.runs) and not (options.folders or taken):
        chosen = []
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="vlmbench-") as work:
            try:
                changes = list(publish(write_again(results / name, Path(work)), results / name))
            except (VlmbenchError, OSError) as error:
                failed += 1
                changes = [f"FAILED, nothing changed: {error}"]
        _say(name, changes)
    if not options.folders and not options.runs and not options.archive:
        try:
            _say(Path(ARCHIVE), list(summarise_archive(results)))
        except (VlmbenchError, OSError) as error:
            failed += 1
            _say(Path(ARCHIVE), [f"FAILED: {error}"])
    for name, changes in side_by_side(results):
        _say(name, changes)
    _say(Path(f"{CARD}_{ACROSS}"), models_side_by_side(results))
    if options.drop_earlier:
        _say(Path(ARCHIVE), [f"removed {name}" for name in drop_measured_since(results)])
    if results == RESULTS:
        name_commits(results)
        for page in write_pages_of(results):
            _say(page, ["written"])
    size = size_of(results)
    sys.stdout.write(f"{size / 1e6:.1f} MB of {MOST_BYTES / 1e6:.0f} MB\n")
    again = [path for path in (results / ARCHIVE).glob("*/") if (results / path.name).is_dir()]
    if again:
        said = ", ".join(f"{path.name} {size_of(path) / 1e6:.2f} MB" for path in sorted(again))
        sys.stdout.write(f"in the archive and measured since: {said}\n")
    return 1 if failed or size > MOST_BYTES else 0


def size_of(directory: Path) -> int:
    """What all files in it hold, bytes."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _say(name: Path, changes: Sequence[str]) -> None:
    sys.stdout.write("\n  ".join([f"{name}:", *(changes or ["the same as before"])]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

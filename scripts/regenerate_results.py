#!/usr/bin/env python3
"""Make the published figures, tables and words of docs/results anew from the rows that lie beside them.

    python scripts/regenerate_results.py                                   # every folder
    python scripts/regenerate_results.py h200_gemma3_4b h200_scaling_llava_1_5_7b/phase2
    python scripts/regenerate_results.py --results COPY_OF_RESULTS         # try it without touching docs/results

A folder with ``records.jsonl.gz`` is unpacked into a temporary directory with its ``provenance.json`` and
``points.json``, and the report is written there as ``vlmbench`` writes it after measuring; the phase comes from the
configuration in the provenance. Then every file that the folder already publishes is replaced by its new version,
pictures in few colours and pixels: who needs more draws them again. A
folder named ``comparison`` is written by ``python -m vlmbench experiment=token_comparison`` from ``phase2`` and
``phase3`` beside it; one with ``first_steps.json`` from the arms in it. Rows, provenance and points are never written.
What changed is printed, a line a file.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path

from PIL import Image

from vlmbench.errors import InputError, VlmbenchError
from vlmbench.figures.style import FigureStyle, drawn_as
from vlmbench.records.files import write_whole
from vlmbench.report import write_report
from vlmbench.report.first_steps import write_first_steps
from vlmbench.report.from_rows import FIRST_STEPS

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
ROWS, PACKED, WORDS = "records.jsonl", "records.jsonl.gz", "words.txt"
INPUTS = (PACKED, "provenance.json", "points.json")
COMPARISON, SIDES = "comparison", ("phase2", "phase3")
_LINES = 12  # of what a failed comparison says
PHASES = ("phase1", "phase2", "phase3")
DPI = 110  # of published figures; a run draws its own with 200, and as PDF


def folders(results: Path, chosen: Sequence[str] = ()) -> list[Path]:
    """Folders to write, relative to ``results``, comparisons last.

    Args:
        results: directory of results.
        chosen: names of folders in it; one that holds others stands for all of them. Empty: all.

    Raises:
        InputError: a name holds no results.
    """
    measured = sorted({_whole(path.parent) for path in results.rglob(PACKED)})
    compared = sorted(path for path in results.rglob(COMPARISON) if _both_sides(path.parent))
    found = [path.relative_to(results) for path in (*measured, *compared)]
    wanted = [Path(name) for name in chosen]
    for name in wanted:
        if not any(path.is_relative_to(name) for path in found):
            listed = ", ".join(map(str, found)) or "none"
            raise InputError(f"'{name}' is no folder of results under '{results}'; there are: {listed}")
    return [path for path in found if not wanted or any(path.is_relative_to(name) for name in wanted)]


def _whole(folder: Path) -> Path:
    """The folder that is written as one: arms of first steps are told together."""
    return folder.parent if (folder.parent / FIRST_STEPS).is_file() else folder


def _both_sides(parent: Path) -> bool:
    return all((parent / side / PACKED).is_file() for side in SIDES)


def phase_of(provenance: Path) -> str:
    """``phase1``, ``phase2`` or ``phase3``: the report that the run's configuration names, or the run's own name.

    Raises:
        InputError: it names neither.
    """
    config = json.loads(provenance.read_text(encoding="utf-8")).get("config") or {}
    found = [str(config.get(key)) for key in ("report", "name")]
    for phase in found:
        if phase in PHASES:
            return phase
    raise InputError(
        f"'{provenance}' must name a phase as 'report' or 'name' of its config: {', '.join(PHASES)} "
        f"(got {' and '.join(found)})"
    )


def unpack(folder: Path, target: Path) -> None:
    """The inputs of a folder of results, as the run left them, in ``target`` (made)."""
    target.mkdir(parents=True)
    for name in INPUTS[1:]:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    with gzip.open(folder / PACKED) as packed, (target / ROWS).open("wb") as rows:
        shutil.copyfileobj(packed, rows)


def write_again(folder: Path, work: Path) -> Path:
    """Write the report of a folder's rows into ``work``; returns the directory that then holds it.

    Everything runs inside ``work`` on relative paths, so that no file names a directory of this machine.

    Raises:
        InputError: the folder's rows or provenance are no input for a report.
        MeasurementError: a file cannot be written.
    """
    if (folder / PACKED).is_file():
        target = work / folder.name
        unpack(folder, target)
        with chdir(target), drawn_as(FigureStyle(formats=("png",), dpi=DPI)):
            text = write_report(phase_of(Path("provenance.json")), Path())
        (target / WORDS).write_text(text + "\n", encoding="utf-8")
        return target
    if (folder / FIRST_STEPS).is_file():
        target = work / folder.name
        arms = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{PACKED}"))}
        for arm, source in arms.items():
            unpack(source, target / arm)
        with chdir(target), drawn_as(FigureStyle(formats=("png",), dpi=DPI)):
            write_first_steps(Path(), {arm: Path(arm) for arm in arms})
        return target
    for side in SIDES:
        unpack(folder.parent / side, work / side)
    command = [f"{side}_results={side}" for side in SIDES]
    command += ["figures.formats=[png]", f"figures.dpi={DPI}"]
    done = subprocess.run(
        [sys.executable, "-m", "vlmbench", "experiment=token_comparison", *command, f"output_dir={COMPARISON}"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-_LINES:])
        raise InputError(f"the comparison of '{folder.parent}' failed:\n{said}")
    (work / COMPARISON / WORDS).write_text(done.stdout, encoding="utf-8")
    return work / COMPARISON


def small(file: Path) -> bytes:
    """A file's content; of a PNG the same picture in 256 colours, which a figure of flat areas and thin lines needs not
    more of, in a fourth of the bytes.
    """
    if file.suffix != ".png":
        return file.read_bytes()
    with Image.open(file) as image:
        flat = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    flat.save(packed, format="png", optimize=True)
    return packed.getvalue()


def publish(written: Path, folder: Path) -> Iterator[str]:
    """Replace what ``folder`` publishes by what was written; says what changed, a line a file."""
    fresh = {path.relative_to(written) for path in written.rglob("*") if path.is_file()}
    old = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name not in INPUTS}
    for name in sorted(old & fresh):
        content = small(written / name)
        if content != (folder / name).read_bytes():
            write_whole(folder / name, content)
            yield f"changed {name}"
    yield from (f"no longer written, left as it is: {name}" for name in sorted(old - fresh))
    for name in sorted(fresh - old):
        if name.parts[0] in ("figures", "tables") and name.suffix != ".pdf":
            yield f"new, not published: {name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the chosen folders again; 0 if all could be written, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders in the results; all if none is named")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of results (default: docs/results)")
    options = parser.parse_args(arguments)
    results, failed = options.results.resolve(), 0
    try:
        chosen = folders(results, options.folders)
    except InputError as error:
        parser.error(str(error))
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="vlmbench-") as work:
            try:
                changes = list(publish(write_again(results / name, Path(work)), results / name))
            except (VlmbenchError, OSError) as error:
                failed += 1
                changes = [f"FAILED, nothing changed: {error}"]
        sys.stdout.write("\n  ".join([f"{name}:", *(changes or ["the same as before"])]) + "\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The runs behind a comparison: which they are, where they lie, and whether their machine held still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vlmbench.analysis.drift import HalvesCheck, halves_check
from vlmbench.analysis.phase_files import ResultSet


def runs_of(side: ResultSet, rows: pd.DataFrame) -> list[ResultSet]:
    """The runs of a set, which may have been put together from several, that some of its rows come from."""
    if len(side.runs) == 1:
        return list(side.runs)
    ends = np.cumsum([len(run.frame) for run in side.runs])
    places = np.unique(np.searchsorted(ends, rows.index.to_numpy(), side="right"))
    return [side.runs[number] for number in places]


def place(path: Path, output_dir: Path | None) -> str:
    """What a run is called in a file that may be published: its path as seen from the output directory where it lies
    below or beside it, else the name of its folder.
    """
    if output_dir is not None:
        here, there = output_dir.resolve(), path.resolve()
        if there.is_relative_to(here):
            return there.relative_to(here).as_posix()
        if there.is_relative_to(here.parent):
            return f"../{there.relative_to(here.parent).as_posix()}"
    return path.name


def checks(
    runs: Mapping[str, Sequence[ResultSet]], phase2: ResultSet, phase3: ResultSet
) -> dict[str, HalvesCheck | None]:
    """The A/A check of each run that has a part in a cost; rows of several runs are no repeats of each other.

    Args:
        runs: kind of token to the runs that its cost comes from.
        phase2, phase3: the sides.

    Returns:
        By name: ``phase 2``, ``phase 3``; ``phase 2 (prompt tokens)`` where a side has several runs, empty where one
        run is both sides. None where nothing was repeated often enough.
    """
    kinds: dict[Path, list[str]] = {}
    used: dict[Path, ResultSet] = {}
    for kind, found in runs.items():
        for run in found:
            used[run.path] = run
            kinds.setdefault(run.path, []).append(kind)
    if len(used) == 1:
        (run,) = used.values()
        return {"": halves_check(run.frame)}
    of_2, of_3 = ({run.path for run in side.runs} for side in (phase2, phase3))
    numbers = {path: 3 if path in of_3 and (path not in of_2 or "output" in kinds[path]) else 2 for path in used}
    made = {}
    for path, run in used.items():
        several = list(numbers.values()).count(numbers[path]) > 1
        name = f"phase {numbers[path]}" + (f" ({' and '.join(kinds[path])} tokens)" if several else "")
        made[name if name not in made else f"{name}, {path.name}"] = halves_check(run.frame)
    return made


def aa_words(found: Mapping[str, HalvesCheck | None]) -> str:
    """``A/A of T_total: phase 2 drift 1.050, phase 3 clean …``: one line; empty where nobody looked."""
    if not found:
        return ""
    said = ", ".join(f"{name} {_verdict(check)}".strip() for name, check in found.items())
    drifts = any(check is not None and check.verdict == "drift" for check in found.values())
    return f"A/A of T_total: {said}{'; a difference of that size may be the machine' if drifts else ''}."


def _verdict(check: HalvesCheck | None) -> str:
    if check is None:
        return "not repeated often enough to tell"
    return {"clean": "clean", "drift": f"drift {check.ratio:.3f}"}.get(check.verdict, "too noisy to tell")

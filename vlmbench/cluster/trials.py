"""The trials of a search: what was set, what it was worth, and which are best, from the files that the runs left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmbench.cluster.states import RunState, RunStatus, without_studies
from vlmbench.cluster.status import status
from vlmbench.errors import InputError
from vlmbench.records.files import write_json
from vlmbench.records.objective import Objective, kept
from vlmbench.records.run_directory import overrides_of
from vlmbench.text import parse_json

SEARCH_NAME = "search.json"
MINIMIZE, MAXIMIZE = "minimize", "maximize"
BEST, AS_GOOD, FRONT = "best", "not told from the best", "front"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of a search.

    Args:
        directory: of its run.
        parameters: what it was set to, of the keys in which trials differ.
        objectives: what it is worth; none where it failed or is not over.
        state: what its run is doing, or how it ended.
        reason: why it failed.
        standing: ``best``, ``not told from the best`` (the intervals meet), ``front`` of several objectives; or empty.
    """

    directory: Path
    parameters: Mapping[str, str]
    objectives: tuple[Objective, ...]
    state: RunState
    reason: str = ""
    standing: str = ""


def begin(sweep_dir: Path, objective: Sequence[str], directions: Sequence[str]) -> None:
    """Write what a search looks for into its directory.

    Args:
        objective: paths. directions: ``minimize`` or ``maximize`` of each.
    """
    write_json(
        sweep_dir / SEARCH_NAME, {"schema_version": 1, "objective": list(objective), "directions": list(directions)}
    )


def trials(sweep_dir: Path) -> tuple[list[Trial], list[str]] | None:
    """All trials of a search in the order begun, and what each of its objectives is to be; None where it is no search.

    Raises:
        InputError: a file is there and cannot be read.
    """
    path = sweep_dir / SEARCH_NAME
    if not path.is_file():
        return None
    try:
        directions = [str(one) for one in parse_json(path.read_bytes())["directions"]]
        if not set(directions) <= {MINIMIZE, MAXIMIZE}:
            raise ValueError(f"directions {directions}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"cannot read '{path}': {error!r}; it is of no search of vlmbench") from error
    try:
        runs = [one for one in without_studies(status(sweep_dir)) if one.run.directory.parent == sweep_dir]
    except InputError:  # nothing was begun
        return [], directions
    runs.sort(key=lambda one: one.outcome.started_unix_s if one.outcome else float("inf"))
    set_to = [_set_to(one) for one in runs]
    varied = [key for key in dict.fromkeys(k for one in set_to for k in one) if len({o.get(key) for o in set_to}) > 1]
    made = [_trial(one, {k: given[k] for k in varied if k in given}) for one, given in zip(runs, set_to, strict=True)]
    return _judged(made, directions), directions


def _trial(one: RunStatus, parameters: Mapping[str, str]) -> Trial:
    found = kept(one.run.directory) if one.state == RunState.DONE else None
    reason = (one.reason or "").partition("\n")[0]
    return Trial(
        directory=one.run.directory,
        parameters=parameters,
        objectives=tuple(found or ()),
        state=one.state,
        reason="" if found else reason,
    )


def _set_to(one: RunStatus) -> dict[str, str]:
    """Key to value of what a run was set to; Hydra's own list of it, else the launcher's."""
    listed = overrides_of(one.run.directory)
    parts = (text.lstrip("+~").partition("=") for text in (one.run.overrides if listed is None else listed))
    return {key: value for key, _, value in parts}


def _judged(made: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """With the standing of each trial that has all objectives."""
    signs = [-1.0 if one == MAXIMIZE else 1.0 for one in directions]
    whole = [one for one in made if len(one.objectives) == len(signs)]
    costs = {id(one): [s * o.value for s, o in zip(signs, one.objectives, strict=True)] for one in whole}
    if len(signs) == 1 and whole:
        best = min(whole, key=lambda one: costs[id(one)])
        return [replace(one, standing=_standing(one, best)) if one in whole else one for one in made]
    front = {
        id(one)
        for one in whole
        if not any(
            costs[id(other)] != costs[id(one)]
            and all(a <= b for a, b in zip(costs[id(other)], costs[id(one)], strict=True))
            for other in whole
        )
    }
    return [replace(one, standing=FRONT) if id(one) in front else one for one in made]


def _standing(one: Trial, best: Trial) -> str:
    if one is best:
        return BEST
    (mine,), (its,) = one.objectives, best.objectives
    if mine.low is None or mine.high is None or its.low is None or its.high is None:
        return ""
    return AS_GOOD if mine.low <= its.high and its.low <= mine.high else ""

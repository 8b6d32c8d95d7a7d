"""Whether two sets of results may be compared: same model, hardware, dtype and runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from vlmbench.analysis.phase_files import ResultSet
from vlmbench.errors import InputError
from vlmbench.records.comparable import differences, identity, with_mixture_named

_NOTED = (("device", "uuid"), ("software", "packages", "torch"), ("software", "packages", "transformers"))


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def remarks(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Differences that do not forbid a comparison, and what could not be checked."""
    said: list[str] = []
    for path in _NOTED:
        ours, theirs = _at(a, path), _at(b, path)
        if ours is not None and theirs is not None and ours != theirs:
            said.append(f"{'.'.join(path)} differs: {ours} against {theirs}")
    left, right = identity(a), identity(b)
    needed = ("model.name", "device.name", "runtime.dtype")
    if unknown := [name for name in needed if name not in left or name not in right]:
        said.append(f"not checked, because a file does not say it: {', '.join(unknown)}")
    return said


def merge_like(sets: Sequence[ResultSet]) -> list[ResultSet]:
    """Sets of equal identity made one (the jobs of a multirun that share a model), others kept apart, order kept."""
    groups: list[list[ResultSet]] = []
    for one in sets:
        home = next((g for g in groups if identity(g[0].provenance) == identity(one.provenance)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return [_merged(group) for group in groups]


def _merged(group: Sequence[ResultSet]) -> ResultSet:
    if len(group) == 1:
        return group[0]
    notes = tuple(dict.fromkeys(note for one in group for note in one.notes))
    runs = tuple(run for one in group for run in one.runs)
    return replace(group[0], frame=concatenated([one.frame for one in group]), notes=notes, merged=runs)


def rows_of_both(a: ResultSet, b: ResultSet) -> pd.DataFrame:
    """All rows of two sets, those of a run that is in both (by its place) once."""
    runs = {run.path.resolve(): run.frame for run in (*a.runs, *b.runs)}
    return concatenated(list(runs.values())) if len(runs) > 1 else a.frame


def concatenated(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of several runs below each other; texts as plain objects, for their categories differ."""
    plain = [f.astype(dict.fromkeys(f.select_dtypes("category").columns, object)) for f in frames]
    return pd.concat(plain, ignore_index=True, sort=False)


def pair(
    left: Sequence[ResultSet], right: Sequence[ResultSet], *, allow_unlike: bool = False
) -> list[tuple[ResultSet, ResultSet]]:
    """Each set on the left with the set on the right that is like it.

    Args:
        left, right: as :func:`merge_like` gives them.
        allow_unlike: pair even unlike sets, when there is one on each side.

    Raises:
        InputError: nothing matches, and the message says what differs between the closest two; or a set is itself a
            mixture of unlike sessions.
    """
    if not allow_unlike:
        _refuse_mixtures([*left, *right])
    pairs = []
    closest: tuple[list[str], ResultSet, ResultSet] | None = None
    for a in left:
        for b in right:
            unlike = differences(a.provenance, b.provenance)
            if not unlike or (allow_unlike and len(left) == len(right) == 1):
                pairs.append((a, b))
                break
            if closest is None or len(unlike) < len(closest[0]):
                closest = (unlike, a, b)
    if pairs:
        return pairs
    assert closest is not None
    unlike, a, b = closest
    raise InputError(
        f"'{a.path}' and '{b.path}' were not measured alike, so a ratio of their costs would mean nothing: "
        f"{'; '.join(unlike)}.\n"
        "Measure both on the same model, device, dtype and runtime, or set allow_unlike=true if you mean it."
    )


def _refuse_mixtures(sets: Sequence[ResultSet]) -> None:
    for one in sets:
        if mixed := with_mixture_named(one.provenance).get("unlike"):
            raise InputError(
                f"'{one.path}' holds rows of unlike sessions: {'; '.join(mixed)}.\n"
                "Measure them in directories of their own, or set allow_unlike=true if you mean it."
            )

"""What two runs differ in besides their times: hardware, model, software, settings, and the work of the same requests.

It stands before every verdict. What only one of the two knows is no difference, as everywhere
(:mod:`vlmbench.records.comparable`); of settings that one of them lacks, the value that stood for nothing then counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from vlmbench.analysis.frames import measured, values
from vlmbench.analysis.results import ResultSet
from vlmbench.records.comparable import identity
from vlmbench.records.config_history import ADDED, flat
from vlmbench.records.provenance import IGNORED
from vlmbench.text import count, plain

KINDS: tuple[str, ...] = ("hardware", "model", "software", "settings", "work")
"""Kinds of differences, in the order in which they are told."""
COUNTS: tuple[str, ...] = ("num_vision_tokens", "num_input_tokens", "num_output_tokens", "batch_size")
"""Counts that are the work of a request."""
_HARDWARE = ("host.cpu", "host.cores_usable", "host.memory_bytes")
_SOFTWARE = ("software.python", "software.os", "device.cuda")
_IDENTITY_SOFTWARE = ("device.driver", "software.torch", "software.cudnn")
# Where these differ, the two did not do the same thing, or not on the same thing.
_REFUSED = ("device.", "model.name", "model.architecture", "model.weights")
# Told by what came of them (identity), or of no meaning for a time.
_NO_SETTINGS = (*IGNORED, "task", "name", "report", "model", "runtime", "load", "dataset.root", "dataset.path",
                "runs", "phase2_results", "phase3_results", "baseline", "candidate", "threshold", "save_baseline",
                "baselines", "probe.kernels")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that the two runs differ in.

    Args:
        kind: of :data:`KINDS`.
        name: ``device.name``, ``packages.torch``, ``output.tokens`` …
        baseline, candidate: what each of them has.
        unlike: whether it forbids a comparison unless the user means it.
    """

    kind: str
    name: str
    baseline: str
    candidate: str
    unlike: bool = False

    def words(self) -> str:
        """``device.name: NVIDIA A100 → NVIDIA H200``."""
        return f"{self.name}: {self.baseline} → {self.candidate}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def differences_of(baseline: ResultSet, candidate: ResultSet) -> tuple[Difference, ...]:
    """Everything that two runs are known to differ in, by kind."""
    sides = baseline.provenance, candidate.provenance
    found = [*_known(*sides), *_facts(*sides), *_packages(*sides), *_code(*sides), *_settings(*sides)]
    found += _work(baseline.frame, candidate.frame)
    return tuple(sorted(found, key=lambda one: KINDS.index(one.kind)))


def _known(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    """Of what makes runs comparable."""
    left, right = identity(a), identity(b)
    for name in left:
        if name not in right or left[name] == right[name] or name == "software.torch":
            continue
        part = name.partition(".")[0]
        software = name in _IDENTITY_SOFTWARE
        kind = "software" if software else {"device": "hardware", "model": "model"}.get(part, "settings")
        unlike = name.startswith(_REFUSED) and not software
        yield Difference(kind=kind, name=name, baseline=str(left[name]), candidate=str(right[name]), unlike=unlike)


def _facts(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for kind, names in (("hardware", _HARDWARE), ("software", _SOFTWARE)):
        for name in names:
            part, key = name.split(".")
            left, right = (_part(side, part).get(key) for side in (a, b))
            if left is not None and right is not None and left != right:
                yield Difference(kind=kind, name=name, baseline=str(left), candidate=str(right))


def _packages(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    left, right = (_part(side, "software", "packages") for side in (a, b))
    for name in left:
        if right.get(name, left[name]) != left[name]:
            yield Difference(kind="software", name=name, baseline=str(left[name]), candidate=str(right[name]))


def _code(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    """The version of vlmbench itself: by its sources, named by commit where there is one."""
    left, right = (_vlmbench(side) for side in (a, b))
    names = [str(side.get("source_sha256")) for side in (left, right)]
    if None not in (left.get("source_sha256"), right.get("source_sha256")) and names[0] != names[1]:
        told = [_version(side) for side in (left, right)]
        if told[0] == told[1]:
            told = [f"{words}, sources {name[:12]}" for words, name in zip(told, names, strict=True)]
        yield Difference(kind="software", name="vlmbench", baseline=told[0], candidate=told[1])


def _vlmbench(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    sessions = provenance.get("sessions")
    last = sessions[-1] if isinstance(sessions, list) and sessions else None
    return _part({"last": last}, "last", "code", "vlmbench")


def _version(code: Mapping[str, Any]) -> str:
    git = _part(code, "git")
    changed = " with local changes" if git.get("dirty") else ""
    return f"commit {str(git['commit'])[:12]}{changed}" if git.get("commit") else f"version {code.get('version')}"


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    left, right = (dict(flat(_part(side, "config"))) for side in (a, b))
    if not left or not right:
        return
    added = dict(flat(ADDED))
    for name in dict.fromkeys([*left, *right]):
        ours, theirs = (side.get(name, added.get(name, "(none)")) for side in (left, right))
        if ours != theirs and not any(name == one or name.startswith(f"{one}.") for one in _NO_SETTINGS):
            yield Difference(kind="settings", name=name, baseline=str(ours), candidate=str(theirs))


def _part(tree: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A mapping inside a provenance; empty where there is none, or something else (files may be damaged)."""
    for name in names:
        found = tree.get(name)
        tree = found if isinstance(found, Mapping) else {}
    return tree


def _work(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[Difference]:
    """Whether the requests that both measured were the same work: tokens as observed."""
    left, right = (_by_request(side) for side in (a, b))
    both = left.index.intersection(right.index)
    for name in COUNTS:
        ours, theirs = left.loc[both, name], right.loc[both, name]
        if unequal := int((ours.notna() & theirs.notna() & (ours != theirs)).sum()):
            of = f" (differs in {unequal:,} of {count(len(both), 'request')})"
            told = [f"{plain(float(side.median()))} at the median" for side in (ours, theirs)]
            yield Difference(kind="work", name=name, baseline=told[0], candidate=told[1] + of)


def _by_request(frame: pd.DataFrame) -> pd.DataFrame:
    rows = measured(frame)
    table = pd.DataFrame({name: values(rows, name) for name in COUNTS})
    keys = [rows[name].astype(str).to_numpy() for name in ("point_id", "sample_id")]
    return table.groupby(keys).median()

"""Two sides of a comparison, each one run or many: read, paired, compared, with one verdict for all of it.

Runs of grids are paired by what differs within a grid and not between the two: the 7B eager run with the 7B eager run.
The p-values of all stages of all pairs are corrected together (Holm): a grid of twenty equal runs has no more false
alarms than one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmbench.analysis.compare import Change, Comparison, StageChange, compare
from vlmbench.analysis.estimate import holm
from vlmbench.analysis.frames import compares, with_turns
from vlmbench.analysis.provenance_changes import Difference, differences_of
from vlmbench.analysis.results import ResultSet, read_results
from vlmbench.errors import BAD_INPUT, FAILED, OK, InputError
from vlmbench.records.comparable import identity, unchecked, varying
from vlmbench.records.config_history import flat
from vlmbench.records.provenance import IGNORED
from vlmbench.schema import DECIDING_TIMES
from vlmbench.text import count, shown

_NEEDED = ("point_id", "sample_id", "mode", "status")
# A grid may run on several machines of a kind: its runs are no different for that.
_NOT_BY = ("device.driver", "device.threads", "device.power_limit_w", "software.")
_NOT_BY_CONFIG = ("model.", "runtime.", *IGNORED)
# What makes a fixed calculation take another time on a machine that keeps still: an engine's threads and memory do.
_OF_THE_PROCESS = ("software.python", "runtime.engine")
_LABELS = ("model.name", "runtime.name", "runtime.dtype", "config.name", "config.dataset.name", "config.sweep.name")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A run of the baseline and the run of the candidate that it is compared with.

    Args:
        label: what sets it apart from the other pairs; empty where there is one.
        baseline, candidate: rows and provenance.
        differences: what they differ in besides times.
        remarks: what could not be checked, and what a reader must know of the rows.
        comparison: times, stage by stage.
    """

    label: str
    baseline: ResultSet
    candidate: ResultSet
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All pairs, and what is said of them together.

    Args:
        pairs: at least one.
        threshold: share by which a stage may be slower.
        uncompared: runs of the baseline that no run of the candidate stands against, a sentence each.
        only_candidate: runs of the candidate alone.
        gate: times that decide; the others are shown.
    """

    pairs: tuple[Pair, ...]
    threshold: float
    gate: tuple[str, ...] = DECIDING_TIMES
    uncompared: tuple[str, ...] = ()
    only_candidate: tuple[str, ...] = ()

    @property
    def regressions(self) -> list[tuple[Pair, StageChange]]:
        """Stages that are slower for sure, and by more than the threshold at the best guess."""
        return [(pair, change) for pair, change in self._changes() if regressed(change, self.threshold)]

    @property
    def unsure(self) -> list[tuple[Pair, StageChange]]:
        """Stages in which a regression beyond the threshold could go unseen."""
        return [
            (pair, change)
            for pair, change in self._changes()
            if not regressed(change, self.threshold)
            and (change.ratio.high is None or change.ratio.high > 1 + self.threshold)
        ]

    @property
    def nothing_told(self) -> bool:
        """Whether the runs allow no verdict on any stage."""
        return all(change.change in (Change.TOO_NOISY, Change.MACHINE) for _, change in self._changes())

    @property
    def by_machine(self) -> list[tuple[Pair, StageChange]]:
        """Stages of which the machine's own change allows no verdict."""
        return [(pair, change) for pair, change in self._changes() if change.change is Change.MACHINE]

    @property
    def exit_status(self) -> int:
        """0: no regression; 1: some; 2: a run of the baseline, a stage beside a machine that changed, or every stage
        could not be compared.
        """
        if self.regressions:
            return FAILED
        return BAD_INPUT if self.by_machine or self.nothing_told or self.uncompared else OK

    def _changes(self) -> Iterator[tuple[Pair, StageChange]]:
        """The times that decide; all of them where the runs have none of those."""
        for pair in self.pairs:
            changes = pair.comparison.changes
            for name in [name for name in changes if name in self.gate] or list(changes):
                yield pair, changes[name]


def regressed(change: StageChange, threshold: float) -> bool:
    """Whether a stage is slower for sure, and by more than ``threshold`` at the best guess, the machine's part off."""
    return change.change is Change.SLOWER and change.at_least > 1 + threshold


def judge(
    baseline: Path | str,
    candidate: Path | str,
    *,
    threshold: float = 0.03,
    allow_unlike: bool = False,
    gate: Sequence[str] = DECIDING_TIMES,
) -> Verdict:
    """Compare what was measured at and below two directories.

    Args:
        baseline, candidate: run directories (packed rows, too), grids, studies, or phase files.
        threshold: share by which a stage may be slower.
        allow_unlike: compare unlike hardware and other models all the same.
        gate: times that decide.

    Raises:
        InputError: nothing to compare, or unlike; the message says why in two lines.
    """
    left, right = (_read(side) for side in (Path(baseline), Path(candidate)))
    found, alone, new = _paired(left, right, Path(baseline), Path(candidate))
    pairs = [_pair(label, a, b, allow_unlike=allow_unlike) for label, a, b in found]
    empty = [pair for pair in pairs if not pair.comparison.changes]
    pairs = [pair for pair in pairs if pair.comparison.changes]
    if not pairs:
        one = max(empty, key=lambda pair: pair.comparison.requests)
        if one.comparison.requests:
            raise InputError(
                f"'{shown(one.baseline.path)}' and '{shown(one.candidate.path)}' have no times to compare: of "
                f"{count(one.comparison.requests, 'request')} in common none has a time above 0 in both\n"
                "A time of 0 has no ratio; look at the rows, or measure again."
            )
        raise InputError(
            f"'{shown(one.baseline.path)}' and '{shown(one.candidate.path)}' have no measured request in common "
            f"({one.comparison.only_baseline:,} and {one.comparison.only_candidate:,} of their own)\n"
            "Compare runs of the same data set, samples and sweep."
        )
    alone += [
        f"{shown(one.baseline.path)}: no {'time above 0' if one.comparison.requests else 'measured request'} in common "
        f"with {shown(one.candidate.path)}"
        for one in empty
    ]
    alone += [f"{shown(Path(baseline))}: left out: {why}" for why in left[0].left_out]
    new += [f"{shown(Path(candidate))}: left out: {why}" for why in right[0].left_out]
    return Verdict(
        pairs=tuple(_corrected(pairs)),
        threshold=threshold,
        uncompared=tuple(alone),
        only_candidate=tuple(new),
        gate=tuple(gate),
    )


def _read(side: Path) -> list[ResultSet]:
    found = read_results(side)
    for one in found:
        if missing := [name for name in _NEEDED if name not in one.frame]:
            raise InputError(
                f"'{shown(one.path)}' cannot be compared: its rows lack {', '.join(missing)}\n"
                "Give run directories with records.jsonl, which name the request of each row."
            )
    return found


def _paired(
    left: Sequence[ResultSet], right: Sequence[ResultSet], top_left: Path, top_right: Path
) -> tuple[list[tuple[str, ResultSet, ResultSet]], list[str], list[str]]:
    """Pairs with their labels, then the runs of either side that have no partner, a sentence each."""
    if len(left) == len(right) == 1:
        return [("", left[0], right[0])], [], []
    ours, theirs = [_features(one) for one in left], [_features(one) for one in right]
    for chosen in _ways(varying(ours), varying(theirs)):
        keys = [[tuple(str(f.get(name)) for name in chosen) for f in side] for side in (ours, theirs)]
        if chosen and all(len(set(side)) == len(side) for side in keys):
            break
    else:
        raise InputError(
            f"'{shown(top_left)}' holds {count(len(left), 'run')} and '{shown(top_right)}' {len(right):,}, and their "
            "settings do not say which belong together\nName a run of each: baseline=DIR/RUN candidate=DIR/RUN."
        )
    partners = dict(zip(keys[1], right, strict=True))
    words = [name for name in _LABELS if name in chosen]
    pairs, alone = [], []
    for key, facts, one in zip(keys[0], ours, left, strict=True):
        label = ", ".join(str(facts.get(name)) for name in words) or one.path.name
        if (partner := partners.pop(key, None)) is None:
            alone.append(f"{shown(one.path)}: the candidate has no such run ({label})")
        else:
            pairs.append((label, one, partner))
    if not pairs:
        raise InputError(
            f"no run of '{shown(top_right)}' is like a run of '{shown(top_left)}' in {', '.join(chosen[:6])}\n"
            "Compare grids over the same settings, or name a run of each: baseline=DIR/RUN candidate=DIR/RUN."
        )
    labels = [label for label, _, _ in pairs]
    pairs = [(label if labels.count(label) == 1 else f"{label}, {a.path.name}", a, b) for label, a, b in pairs]
    return pairs, alone, [f"{shown(one.path)}: the baseline has no such run" for one in partners.values()]


def _ways(ours: Mapping[str, list[Any]], theirs: Mapping[str, list[Any]]) -> Iterator[list[str]]:
    """Names to pair runs by, the surest way first: what takes the same values on both sides, some of them, or any.

    Args:
        ours, theirs: what differs within each side, with its values.
    """
    both = [name for name in ours if name in theirs]
    shared = {name: set(map(str, ours[name])) & set(map(str, theirs[name])) for name in both}
    yield [name for name in both if len(shared[name]) == len(ours[name]) == len(theirs[name])]
    yield [name for name in both if shared[name]]
    yield both
    yield list(dict.fromkeys([*ours, *theirs]))


def _features(one: ResultSet) -> dict[str, Any]:
    """What a run is, in dotted names: its identity and its configuration."""
    config: Mapping[str, Any] = one.provenance.get("config") or {}
    own = {name: value for name, value in flat(config) if not name.startswith(_NOT_BY_CONFIG)}
    known = {name: value for name, value in identity(one.provenance).items() if not name.startswith(_NOT_BY)}
    return {**known, **{f"config.{name}": str(value) for name, value in own.items()}}


def _pair(label: str, baseline: ResultSet, candidate: ResultSet, *, allow_unlike: bool) -> Pair:
    if baseline.path.resolve() == candidate.path.resolve():
        raise InputError(
            f"'{shown(baseline.path)}' is both baseline and candidate: it would be compared with itself\n"
            "Name another run as baseline=DIR or candidate=DIR."
        )
    differences = differences_of(baseline, candidate)
    unlike = [one.words() for one in differences if one.unlike]
    unlike += [f"{shown(side.path)} mixes {'; '.join(map(str, mixed))}"
               for side in (baseline, candidate) if (mixed := side.provenance.get("unlike"))]  # fmt: skip
    if unlike and not allow_unlike:
        raise InputError(
            f"'{shown(baseline.path)}' and '{shown(candidate.path)}' are unlike: {'; '.join(unlike)}\n"
            "Measure both on the same hardware and model, or set allow_unlike=true if you mean it."
        )
    said = unchecked(baseline.provenance, candidate.provenance)
    for name, side in (("baseline", baseline), ("candidate", candidate)):
        said += [f"{name}: {note}" for note in side.notes]
        if compares(side.frame):
            said.append(f"{name}: a comparison of methods, of which the model as it is counts here, no other arm")
    other = [one.name for one in differences if one.kind == "hardware" or one.name in _OF_THE_PROCESS]
    first, second = (with_turns(side.frame, side.provenance) for side in (baseline, candidate))
    comparison = compare(first, second, same_machine=not other)
    if comparison.pairs and other:
        said.append(
            f"what a process makes of the machine is in the ratios, its drift is not: {', '.join(other)} differ"
        )
    elif other:
        said.append(f"the machine's speed is not told from the code's: {', '.join(other)} differ")
    elif not comparison.pairs and not all("yardstick_ms" in side.frame for side in (baseline, candidate)):
        said.append("how fast the machine was is not known of both: what it changed by itself is in the ratios")
    if comparison.pace is not None:
        said.append(comparison.pace.words())
    return Pair(
        label=label,
        baseline=baseline,
        candidate=candidate,
        differences=differences,
        remarks=tuple(said),
        comparison=comparison,
    )


def _corrected(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs with p-values corrected for all stages of all of them."""
    every = [change for pair in pairs for change in pair.comparison.changes.values()]
    corrected = iter(holm([change.shift.p_value for change in every]))
    for pair in pairs:
        changes = {
            name: replace(change, p_value=float(next(corrected))) for name, change in pair.comparison.changes.items()
        }
        yield replace(pair, comparison=replace(pair.comparison, changes=changes))

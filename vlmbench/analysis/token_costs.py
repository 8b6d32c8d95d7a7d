"""Unit costs of tokens against each other: vision, prompt and output tokens, and which stage each of them moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.drift import HalvesCheck, halves_check
from vlmbench.analysis.frames import whole_metric
from vlmbench.analysis.regression import Estimate, Ratio, fieller
from vlmbench.analysis.results import ResultSet
from vlmbench.analysis.scaling import Scaling, fit_scaling
from vlmbench.analysis.slices import KINDS, MIN_POINTS, TOKEN_KINDS, slices, timing_rows
from vlmbench.errors import InputError
from vlmbench.records.comparable import differences, remarks
from vlmbench.records.redact import shareable
from vlmbench.schema import TOTAL_PARTS
from vlmbench.text import count, digits, interval, percent, whole

# The runs behind a comparison: which they are, where they lie, and whether their machine held still.


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
        return {"": _halves(run)}
    of_2, of_3 = ({run.path for run in side.runs} for side in (phase2, phase3))
    numbers = {path: 3 if path in of_3 and (path not in of_2 or "output" in kinds[path]) else 2 for path in used}
    made = {}
    for path, run in used.items():
        several = list(numbers.values()).count(numbers[path]) > 1
        name = f"phase {numbers[path]}" + (f" ({' and '.join(kinds[path])} tokens)" if several else "")
        made[name if name not in made else f"{name}, {path.name}"] = _halves(run)
    return made


def _halves(run: ResultSet) -> HalvesCheck | None:
    return halves_check(run.frame, whole_metric(run.frame))


def aa_words(found: Mapping[str, HalvesCheck | None]) -> str:
    """``A/A of T_total: phase 2 drift 1.050, phase 3 no drift beyond 1.8 % …``: one line; empty where nobody looked."""
    if not found:
        return ""
    said = ", ".join(f"{name} {_verdict(check)}".strip() for name, check in found.items())
    drifts = any(check is not None and check.verdict == "drift" for check in found.values())
    metric = next((check.metric for check in found.values() if check is not None), "T_total")
    return f"A/A of {metric}: {said}{'; a difference of that size may be the machine' if drifts else ''}."


def _verdict(check: HalvesCheck | None) -> str:
    if check is None:
        return "not repeated often enough to tell"
    if check.verdict == "clean":
        return check.beyond()
    return f"drift {check.ratio:.3f}" if check.verdict == "drift" else "too noisy to tell"


_HOW: Mapping[str, str] = {
    "vision": "experiment=phase2 sweep=vision_tokens",
    "prompt": "experiment=phase2 sweep=prompt_tokens",
    "output": "experiment=phase3",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenCost:
    """What one more token of a kind costs, and where.

    Args:
        kind: ``vision``, ``prompt`` or ``output``.
        total: the fit of ``T_total``; of ``T_request`` where a server shows nothing else.
        stages: fits of the stages that exist in the data, by name.
        shares: stage to its share of that slope, with the error of the ratio.
    """

    kind: str
    total: Scaling
    stages: Mapping[str, Scaling]
    shares: Mapping[str, Estimate]

    @property
    def cost(self) -> Estimate:
        """ms per token."""
        return self.total.slope

    @property
    def cost_unflagged(self) -> Estimate | None:
        """The same without the runs that did something for the first time; None where there are none, or too few
        others.
        """
        return None if self.total.unflagged is None else self.total.unflagged.slope

    @property
    def cost_robust(self) -> Estimate:
        """The same with outliers pulled in (:mod:`vlmbench.analysis.curve_shape`)."""
        return self.total.robust_slope

    def moved(self) -> list[str]:
        """Stages that carry 5 % or more of the cost, the largest first."""
        big = [name for name, share in self.shares.items() if share.value >= 0.05]
        return sorted(big, key=lambda name: -self.shares[name].value)

    def words(self) -> str:
        """One sentence: the cost, with outliers pulled in and without runs that did something for the first time, and
        which stages it goes to.
        """
        cost, robust, unit = self.cost, self.cost_robust, KINDS[self.kind].unit
        without = "" if self.total.unflagged is None else f"; {self.total.unflagged.words()}"
        pulled = f"with outliers pulled in {digits(robust.value, 4)}, {interval(robust.low, robust.high, 4)}"
        if not cost.excludes_zero:
            return (
                f"The cost of one {unit} cannot be told from 0 between {whole(self.total.low)} and "
                f"{whole(self.total.high)} tokens (95 % interval {interval(cost.low, cost.high, 4)} ms; "
                f"{pulled}){without}."
            )
        missed = self.total.missed.words()
        without += f"; the fit {missed}" if missed else ""
        inside = f"95 % interval {interval(cost.low, cost.high, 4)}; {pulled}"
        text = f"One more {unit} costs {digits(cost.value, 4)} ms ({inside}){without}"
        moved = self.moved()
        if not moved:
            return f"{text}."
        return f"{text}; it goes to {', '.join(f'{name} ({self._share(name)})' for name in moved)}."

    def _share(self, name: str) -> str:
        """A stage's share of the cost; the slope of one stage may exceed that of the whole where another falls."""
        share = self.shares[name].value
        return percent(share) if share < 1 else "all of it"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        without, robust = self.cost_unflagged, self.cost_robust
        shares = {n: {"value": s.value, "low": s.low, "high": s.high} for n, s in self.shares.items()}
        return {
            "kind": self.kind,
            "unit": f"ms per {KINDS[self.kind].unit}",
            "cost_ms": self.cost.value,
            "low": self.cost.low,
            "high": self.cost.high,
            "cost_robust_ms": robust.value,
            "low_robust": robust.low,
            "high_robust": robust.high,
            "missed_words": self.total.missed.words(),
            "cost_unflagged_ms": None if without is None else without.value,
            "low_unflagged": None if without is None else without.low,
            "high_unflagged": None if without is None else without.high,
            "flagged_rows": 0 if self.total.unflagged is None else self.total.unflagged.flagged,
            "moves": self.moved(),
            "share_of_cost": shares,
            "fits": [fit.as_row() for fit in (self.total, *self.stages.values())],
            "words": self.words(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """The costs of all kinds of tokens of one model on one device.

    Args:
        provenance: of the vision side.
        costs: by kind; ``vision`` and ``output`` always, ``prompt`` where it was swept.
        sources: kind to the run that its tokens were swept in: its path below the output directory or beside it,
            else the name of its folder, for the file may be published; several are joined by ``; ``.
        notes: what a reader must know.
        checks: A/A check of each run that a cost comes from, see :func:`vlmbench.analysis.token_costs.checks`.
    """

    provenance: Mapping[str, Any]
    costs: Mapping[str, TokenCost]
    sources: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())
    checks: Mapping[str, HalvesCheck | None] = field(default_factory=dict)

    def ratio(self, over: str, under: str) -> Ratio:
        """How many tokens of kind ``under`` cost as much as one of kind ``over``."""
        return fieller(self.costs[over].cost, self.costs[under].cost)

    def ratio_robust(self, over: str, under: str) -> Ratio:
        """The same from costs with outliers pulled in."""
        return fieller(self.costs[over].cost_robust, self.costs[under].cost_robust)

    def ratio_unflagged(self, over: str, under: str) -> Ratio | None:
        """The same from costs without the runs that did something for the first time; None where neither side has
        such runs, or one has too few others.
        """
        sides = [self.costs[kind] for kind in (over, under)]
        if all(side.total.unflagged is None for side in sides):
            return None
        a, b = (side.cost if side.total.unflagged is None else side.cost_unflagged for side in sides)
        return None if a is None or b is None else fieller(a, b)

    def ratios(self) -> pd.DataFrame:
        """Columns ``over``, ``under``, ``value``, ``low``, ``high``: every ordered pair of kinds."""
        pairs = permutations(self.costs, 2)
        return pd.DataFrame([{"over": a, "under": b, **vars(self.ratio(a, b))} for a, b in pairs])

    def break_even(self, over: str = "output", under: str = "vision") -> str:
        """One sentence: how many cheaper tokens one dearer token is worth, with outliers pulled in, and without the
        runs that did something for the first time.
        """
        ratio, one, many = self.ratio(over, under), KINDS[over].unit, KINDS[under].unit
        without = self._without(over, under)
        if ratio.bounded:
            pulled = f"with outliers pulled in {self.ratio_robust(over, under).short()}"
            return f"One {one} costs as much as {digits(ratio.value)} {many}s ({ratio.span()}; {pulled}){without}."
        a, b = self.costs[over].cost, self.costs[under].cost
        least = f", but at least {digits(a.low / b.high)}" if a.low > 0 and b.high > 0 else ""
        return (
            f"How many {many}s one {one} costs has no upper bound here{least}: a {many}'s cost cannot be told from 0"
            f"{without}."
        )

    def _without(self, over: str, under: str) -> str:
        ratio = self.ratio_unflagged(over, under)
        if ratio is None:
            return ""
        found = [side.total.unflagged for side in (self.costs[over], self.costs[under])]
        rows = sum(one.flagged for one in found if one is not None)
        flags = dict.fromkeys(flag for one in found if one is not None for flag in one.flags)
        return f"; without the {count(rows, 'row')} flagged {' or '.join(flags)}: {ratio.short()}"

    def words(self) -> list[str]:
        """What the numbers say, a sentence each."""
        said = [cost.words() for cost in self.costs.values()]
        said.append(self.break_even())
        if "prompt" in self.costs:
            said += [self.break_even("output", "prompt"), self.break_even("vision", "prompt")]
        return [*said, *filter(None, [self.aa_words()]), *(f"Note: {note}." for note in self.notes)]

    def aa_words(self) -> str:
        """Whether the machine held still while each side was measured, in one line; empty where nobody looked."""
        return aa_words(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "token_costs": {kind: cost.as_dict() for kind, cost in self.costs.items()},
            "ratios": {f"{a}_over_{b}": self.ratio(a, b).as_dict() for a, b in permutations(self.costs, 2)},
            "ratios_robust": {
                f"{a}_over_{b}": self.ratio_robust(a, b).as_dict() for a, b in permutations(self.costs, 2)
            },
            "ratios_unflagged": {
                f"{a}_over_{b}": ratio.as_dict()
                for a, b in permutations(self.costs, 2)
                if (ratio := self.ratio_unflagged(a, b)) is not None
            },
            "break_even": self.break_even(),
            "aa_check": {name: None if one is None else one.as_dict() for name, one in self.checks.items()},
            "aa_words": self.aa_words(),
            "sources": dict(self.sources),
            "notes": list(self.notes),
            "words": self.words(),
        }


def token_cost(frame: pd.DataFrame, kind: str) -> TokenCost | None:
    """The cost of one kind of token in the slice with most rows; None where fewer than three counts were measured."""
    metric = whole_metric(frame)
    for part in slices(frame, KINDS[kind]):
        total = fit_scaling(part, metric)
        if total is None:
            continue
        parts = TOTAL_PARTS if metric == "T_total" else ("TTFT",)
        stages = {name: fit for name in parts if (fit := fit_scaling(part, name)) is not None}
        shares = {name: _share(fit, metric) for name, fit in stages.items()}
        return TokenCost(kind=kind, total=total, stages=stages, shares=shares)
    return None


def _share(stage: Scaling, metric: str) -> Estimate:
    """Slope of a stage over the slope of the whole; both come from the same runs, so the error is that of the ratio
    itself, by the leave-one-point-out jackknife.
    """
    rows = stage.slice.rows
    known = rows[stage.stage].notna() & rows[metric].notna()
    x, part, total = (rows.loc[known, name].to_numpy(dtype=float) for name in (stage.slice.x, stage.stage, metric))
    clusters = stage.slice.clusters[known].to_numpy()

    def ratio(keep: Any) -> float:
        # the ratio of two least-squares slopes on the same x
        centred = x[keep] - x[keep].mean()
        moved = float(centred @ total[keep])
        return float(centred @ part[keep]) / moved if moved else math.nan

    names = np.unique(clusters)
    value = ratio(np.ones(len(x), dtype=bool))
    left_out = np.array([ratio(clusters != name) for name in names])
    points = len(names)
    se = math.sqrt((points - 1) / points * float(np.sum((left_out - value) ** 2)))
    return Estimate(value=value, se=se, df=points - 1, method="point jackknife")


def compare(phase2: ResultSet, phase3: ResultSet, *, output_dir: Path | None = None) -> Comparison:
    """Compare the costs of tokens that two sets of results hold (both may be the same set).

    Vision and prompt tokens are looked for in ``phase2`` first, output tokens in ``phase3`` first.

    Args:
        output_dir: sources are named as seen from there.

    Raises:
        InputError: vision or output tokens were measured at fewer than three counts.
    """
    costs: dict[str, TokenCost] = {}
    sides: dict[str, ResultSet] = {}
    for kind in TOKEN_KINDS:
        order = (phase3, phase2) if kind == "output" else (phase2, phase3)
        for one in order:
            if (cost := token_cost(one.frame, kind)) is not None:
                costs[kind], sides[kind] = cost, one
                break
        else:
            if kind != "prompt":
                raise InputError(_too_few(order[0], kind))
    runs = {kind: runs_of(sides[kind], cost.total.slice.rows) for kind, cost in costs.items()}
    notes = [*phase2.notes, *phase3.notes, *(f"left out: {why}" for why in (*phase2.left_out, *phase3.left_out))]
    notes += remarks(phase2.provenance, phase3.provenance)
    notes += [f"{kind}: {cost.total.slice.note}" for kind, cost in costs.items() if cost.total.slice.note]
    if unlike := differences(phase2.provenance, phase3.provenance):
        notes.append(f"the two sides are UNLIKE, compared because allow_unlike was set: {'; '.join(unlike)}")
    return Comparison(
        provenance=phase2.provenance,
        costs=costs,
        sources={kind: "; ".join(place(run.path, output_dir) for run in found) for kind, found in runs.items()},
        notes=tuple(dict.fromkeys(str(shareable(note)) for note in notes)),
        checks=checks(runs, phase2, phase3),
    )


def _too_few(one: ResultSet, kind: str) -> str:
    rows = timing_rows(one.frame)
    column = next(iter(KINDS[kind].counts(rows)), KINDS[kind].columns[0])
    seen = int(rows[column].nunique()) if column in rows else 0
    return (
        f"'{one.path}' has {seen} different count(s) of {KINDS[kind].unit}s in {len(rows)} measured rows; a slope "
        f"needs {MIN_POINTS}, with everything else held fixed.\n"
        f"Measure more points, for example: python -m vlmbench {_HOW[kind]}"
    )

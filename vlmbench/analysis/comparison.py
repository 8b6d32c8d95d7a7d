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

from vlmbench.analysis.breakdown import STAGES
from vlmbench.analysis.likeness import differences, merge_like, pair, remarks
from vlmbench.analysis.phase_files import ResultSet, read_results
from vlmbench.analysis.regression import Estimate, Ratio, fieller
from vlmbench.analysis.scaling import Scaling, fit_scaling
from vlmbench.analysis.slices import KINDS, MIN_POINTS, TOKEN_KINDS, slices, timing_rows
from vlmbench.errors import InputError

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
        total: the fit of ``T_total``.
        stages: fits of the stages that exist in the data, by name.
        shares: stage to its share of the slope of ``T_total``, with the error of the ratio.
    """

    kind: str
    total: Scaling
    stages: Mapping[str, Scaling]
    shares: Mapping[str, Estimate]

    @property
    def cost(self) -> Estimate:
        """ms per token."""
        return self.total.slope

    def moved(self) -> list[str]:
        """Stages that carry 5 % or more of the cost, the largest first."""
        big = [name for name, share in self.shares.items() if share.value >= 0.05]
        return sorted(big, key=lambda name: -self.shares[name].value)

    def words(self) -> str:
        """One sentence: the cost, and which stages it goes to."""
        cost, unit = self.cost, KINDS[self.kind].unit
        if not cost.excludes_zero:
            return (
                f"The cost of one {unit} cannot be told from 0 between {self.total.low:g} and {self.total.high:g} "
                f"tokens (95 % interval {cost.low:.4g} to {cost.high:.4g} ms)."
            )
        text = f"One more {unit} costs {cost.value:.4g} ms (95 % interval {cost.low:.4g} to {cost.high:.4g})"
        moved = self.moved()
        if not moved:
            return f"{text}."
        return f"{text}; it goes to {', '.join(f'{name} ({self.shares[name].value:.0%})' for name in moved)}."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shares = {n: {"value": s.value, "low": s.low, "high": s.high} for n, s in self.shares.items()}
        return {
            "kind": self.kind,
            "unit": f"ms per {KINDS[self.kind].unit}",
            "cost_ms": self.cost.value,
            "low": self.cost.low,
            "high": self.cost.high,
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
        sources: kind to the path it was read from.
        notes: what a reader must know.
    """

    provenance: Mapping[str, Any]
    costs: Mapping[str, TokenCost]
    sources: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())

    def ratio(self, over: str, under: str) -> Ratio:
        """How many tokens of kind ``under`` cost as much as one of kind ``over``."""
        return fieller(self.costs[over].cost, self.costs[under].cost)

    def ratios(self) -> pd.DataFrame:
        """Columns ``over``, ``under``, ``value``, ``low``, ``high``: every ordered pair of kinds."""
        pairs = permutations(self.costs, 2)
        return pd.DataFrame([{"over": a, "under": b, **vars(self.ratio(a, b))} for a, b in pairs])

    def break_even(self, over: str = "output", under: str = "vision") -> str:
        """One sentence: how many cheaper tokens one dearer token is worth."""
        ratio, one, many = self.ratio(over, under), KINDS[over].unit, KINDS[under].unit
        if ratio.bounded:
            return (
                f"One {one} costs as much as {ratio.value:.3g} {many}s "
                f"(95 % interval {ratio.low:.3g} to {ratio.high:.3g})."
            )
        a, b = self.costs[over].cost, self.costs[under].cost
        least = f", but at least {a.low / b.high:.3g}" if a.low > 0 and b.high > 0 else ""
        return (
            f"How many {many}s one {one} costs has no upper bound here{least}: a {many}'s cost cannot be told from 0."
        )

    def words(self) -> list[str]:
        """What the numbers say, a sentence each."""
        said = [cost.words() for cost in self.costs.values()]
        said.append(self.break_even())
        if "prompt" in self.costs:
            said += [self.break_even("output", "prompt"), self.break_even("vision", "prompt")]
        return [*said, *(f"Note: {note}." for note in self.notes)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "token_costs": {kind: cost.as_dict() for kind, cost in self.costs.items()},
            "ratios": {f"{a}_over_{b}": self.ratio(a, b).as_dict() for a, b in permutations(self.costs, 2)},
            "break_even": self.break_even(),
            "sources": dict(self.sources),
            "notes": list(self.notes),
            "words": self.words(),
        }


def token_cost(frame: pd.DataFrame, kind: str) -> TokenCost | None:
    """The cost of one kind of token in the slice with most rows; None where fewer than three counts were measured."""
    for part in slices(frame, KINDS[kind]):
        total = fit_scaling(part, "T_total")
        if total is None:
            continue
        stages = {name: fit for name in STAGES if (fit := fit_scaling(part, name)) is not None}
        return TokenCost(kind=kind, total=total, stages=stages, shares={n: _share(fit) for n, fit in stages.items()})
    return None


def _share(stage: Scaling) -> Estimate:
    """Slope of a stage over the slope of the total; both come from the same runs, so the error is that of the ratio
    itself, by the leave-one-point-out jackknife.
    """
    rows = stage.slice.rows
    known = rows[stage.stage].notna() & rows["T_total"].notna()
    x, part, total = (rows.loc[known, name].to_numpy(dtype=float) for name in (stage.slice.x, stage.stage, "T_total"))
    clusters = stage.slice.clusters[known].to_numpy()

    def ratio(keep: Any) -> float:
        # the ratio of two least-squares slopes on the same x
        centred = x[keep] - x[keep].mean()
        moved = float(centred @ total[keep])
        return float(centred @ part[keep]) / moved if moved else math.nan

    names = np.unique(clusters)
    value = ratio(np.ones(len(x), dtype=bool))
    left_out = np.array([ratio(clusters != name) for name in names])
    count = len(names)
    se = math.sqrt((count - 1) / count * float(np.sum((left_out - value) ** 2)))
    return Estimate(value=value, se=se, df=count - 1, method="point jackknife")


def compare(phase2: ResultSet, phase3: ResultSet) -> Comparison:
    """Compare the costs of tokens that two sets of results hold (both may be the same set).

    Vision and prompt tokens are looked for in ``phase2`` first, output tokens in ``phase3`` first.

    Raises:
        InputError: vision or output tokens were measured at fewer than three counts.
    """
    costs: dict[str, TokenCost] = {}
    sources: dict[str, str] = {}
    for kind in TOKEN_KINDS:
        order = (phase3, phase2) if kind == "output" else (phase2, phase3)
        for one in order:
            if (cost := token_cost(one.frame, kind)) is not None:
                costs[kind], sources[kind] = cost, str(one.path)
                break
        else:
            if kind != "prompt":
                raise InputError(_too_few(order[0], kind))
    notes = [*phase2.notes, *phase3.notes, *remarks(phase2.provenance, phase3.provenance)]
    notes += [f"{kind}: {cost.total.slice.note}" for kind, cost in costs.items() if cost.total.slice.note]
    if unlike := differences(phase2.provenance, phase3.provenance):
        notes.append(f"the two sides are UNLIKE, compared because allow_unlike was set: {'; '.join(unlike)}")
    return Comparison(provenance=phase2.provenance, costs=costs, sources=sources, notes=tuple(dict.fromkeys(notes)))


def _too_few(one: ResultSet, kind: str) -> str:
    rows = timing_rows(one.frame)
    column = next((c for c in KINDS[kind].columns if c in rows), KINDS[kind].columns[0])
    count = int(rows[column].nunique()) if column in rows else 0
    return (
        f"'{one.path}' has {count} different count(s) of {KINDS[kind].unit}s in {len(rows)} measured rows; a slope "
        f"needs {MIN_POINTS}, with everything else held fixed.\n"
        f"Measure more points, for example: python -m vlmbench {_HOW[kind]}"
    )


def compare_paths(phase2: Path | str, phase3: Path | str, *, allow_unlike: bool = False) -> list[Comparison]:
    """Read and compare: run directories, phase files or multirun directories; one comparison a model and device.

    Raises:
        InputError: something cannot be read, the sides are unlike, or points are too few.
    """
    left, right = merge_like(read_results(phase2)), merge_like(read_results(phase3))
    return [compare(a, b) for a, b in pair(left, right, allow_unlike=allow_unlike)]


def cost_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row a model and kind of token: ``model``, ``kind``, ``cost_ms``, ``low``, ``high``."""
    return pd.DataFrame(
        [
            {
                "model": str((c.provenance.get("model") or {}).get("name", "")),
                "kind": kind,
                "cost_ms": cost.cost.value,
                "low": cost.cost.low,
                "high": cost.cost.high,
            }
            for c in comparisons
            for kind, cost in c.costs.items()
        ]
    )

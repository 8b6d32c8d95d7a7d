"""Two runs of the same requests: which stage became faster or slower, by how much, and how sure that is.

Times are compared request by request with the dependence of runs in the error (:mod:`vlmbench.analysis.shift`); the
p-values of all times that are compared are corrected for their number (Holm), so that of twenty pairs of equal runs one
at most shows any difference. Two runs are two processes, often on two days: what differs between their provenances must
be said beside this, and what a restart alone changes is in the difference and not in the interval. Runs that took turns
on one machine are compared in pairs of neighbours in time: what the machine did by itself both have seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.estimate import Estimate, Shortfall, holm
from vlmbench.analysis.frames import in_time, took_turns, turns_of, values, workload
from vlmbench.analysis.pace import Pace, pace_between
from vlmbench.analysis.shift import BLIND, Shift, partners, shift_between, shift_in_turns
from vlmbench.schema import COMPARED_TIMES
from vlmbench.text import count, digits, percent, span, worth


class Change(StrEnum):
    """What a comparison says of one time."""

    FASTER = "faster"
    SLOWER = "slower"
    NONE_BEYOND = "no difference beyond"
    TOO_NOISY = "too noisy to tell"
    MACHINE = "the machine changed: cannot be told"


@dataclass(frozen=True, kw_only=True)
class StageChange:
    """One time of the candidate over that of the baseline.

    Args:
        metric: name of the time.
        shift: ratio with its interval and p-value.
        p_value: corrected for the number of times compared.
        baseline_ms, candidate_ms: medians over the runs of the requests that both have.
        pace: change of the machine's pace; None where it is not known, or decides nothing.
    """

    metric: str
    shift: Shift
    p_value: float
    baseline_ms: float
    candidate_ms: float
    pace: Pace | None = None

    @property
    def ratio(self) -> Estimate:
        """Candidate over baseline, with its 95 % interval and what the runs are worth."""
        return self.shift.estimate

    @property
    def change(self) -> Change:
        """The verdict: a difference is one that the machine does not explain, and none is one that it does not hide."""
        low, high = self.of_code
        if self.shift.differs(self.p_value):
            if low <= 1 <= high:
                return Change.MACHINE
            return Change.FASTER if high < 1 else Change.SLOWER
        if self.beyond() <= BLIND:
            return Change.NONE_BEYOND
        return Change.MACHINE if self.shift.beyond() <= BLIND else Change.TOO_NOISY

    @property
    def of_code(self) -> tuple[float, float]:
        """What the ratio may be without the machine's change, with 95 %: (low, high)."""
        low, high = self.ratio.low, self.ratio.high
        if low is None or high is None:
            return 0.0, math.inf
        return (low, high) if self.pace is None else self.pace.beyond(self.ratio)

    @property
    def at_least(self) -> float:
        """The ratio at the best guess, less the most that the machine's change explains of one above 1."""
        return (self.ratio.value or 1.0) / (1.0 if self.pace is None else self.pace.explains)

    def beyond(self) -> float:
        """The largest difference that may be the code's, as a share; infinite where nothing is known of it."""
        low, high = self.of_code
        return max(1 - low, high - 1)

    def verdict(self) -> str:
        """The verdict in words: ``no difference beyond 1.8 %``."""
        if self.change is Change.NONE_BEYOND:
            return f"{self.change.value} {percent(self.beyond(), 2)}"
        if self.change is Change.MACHINE and self.pace is not None and not self.pace.changed:
            return self.change.value.replace("changed", "may have changed")
        if self.change is Change.TOO_NOISY and self.ratio.note:
            return f"{self.change.value} ({self.ratio.note})"
        return self.change.value

    def words(self) -> str:
        """One sentence without its full stop."""
        inside = span(self.ratio.low, self.ratio.high, "×")
        ratio = "" if self.ratio.value is None else f": {digits(self.ratio.value)}×{f' ({inside})' if inside else ''}"
        return f"{self.metric} {self.verdict()}{ratio}{worth(self.ratio.n, self.ratio.effective_n)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "metric": self.metric,
            "change": self.change.name.lower(),
            "verdict": self.verdict(),
            "ratio": self.ratio.as_dict(),
            "no_difference_beyond": beyond if math.isfinite(beyond := self.beyond()) else None,
            "p_value": None if np.isnan(self.p_value) else self.p_value,
            "requests": self.shift.requests,
            "baseline_ms": self.baseline_ms,
            "candidate_ms": self.candidate_ms,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All times that two runs have in common.

    Args:
        changes: metric to its verdict, the whole first.
        requests: requests that both runs measured.
        only_baseline, only_candidate: requests that one run alone measured; they are left out.
        pace: change of the machine's pace between the two; None where it is not known.
        pairs: neighbours in time that were compared, where the two took turns; 0 where too few runs have one, and the
            two are compared as runs that followed each other; None where they took none.
    """

    changes: Mapping[str, StageChange]
    requests: int
    only_baseline: int
    only_candidate: int
    pace: Pace | None = None
    pairs: int | None = None

    @property
    def in_turns(self) -> str:
        """How the turns that the two took count, in words; empty where they took none."""
        if self.pairs is None:
            return ""
        return (
            f"measured in turns: {count(self.pairs, 'pair')}" if self.pairs else "measured in turns, but fewer than "
            "half of the runs have one of the same request beside them: compared like runs that followed each other"
        )  # fmt: skip

    def words(self) -> list[str]:
        """What it says, a sentence each."""
        if not self.changes and self.requests:
            both = count(self.requests, "request")
            return [f"Nothing to compare: of {both} in common none has a time above 0 in both."]
        if not self.changes:
            return ["Nothing to compare: the two runs have no request in common that both measured."]
        left_out = self.only_baseline + self.only_candidate
        said = [
            f"{count(self.requests, 'request')} that both runs measured"
            f"{f'; {left_out:,} that one alone measured are left out' if left_out else ''}"
            f"{f'; {self.in_turns}' if self.in_turns else ''}."
        ]
        said += [] if self.pace is None else [f"{self.pace.words()}.".capitalize()]
        return [*said, *(f"{change.words()}." for change in self.changes.values())]

    def table(self) -> pd.DataFrame:
        """One row a time: ``metric``, ``verdict``, ``baseline_ms``, ``candidate_ms``, ``ratio``, ``low``, ``high``,
        ``n``, ``effective_n``, ``p_value``, ``pairs``.
        """
        return pd.DataFrame(
            [
                {
                    "metric": one.metric,
                    "verdict": one.verdict(),
                    "baseline_ms": one.baseline_ms,
                    "candidate_ms": one.candidate_ms,
                    "ratio": one.ratio.value,
                    "low": one.ratio.low,
                    "high": one.ratio.high,
                    "n": one.ratio.n,
                    "effective_n": one.ratio.effective_n,
                    "p_value": one.p_value,
                    "pairs": self.pairs,
                }
                for one in self.changes.values()
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "requests": self.requests,
            "only_baseline": self.only_baseline,
            "only_candidate": self.only_candidate,
            "machine": None if self.pace is None else self.pace.as_dict(),
            **({} if self.pairs is None else {"in_turns": {"pairs": self.pairs, "words": self.in_turns}}),
            "changes": [change.as_dict() for change in self.changes.values()],
            "words": self.words(),
        }


def compare(
    baseline: pd.DataFrame,
    candidate: pd.DataFrame,
    metrics: Sequence[str] = COMPARED_TIMES,
    *,
    same_machine: bool = True,
    in_turns: bool = False,
) -> Comparison:
    """Compare two runs time by time.

    A request is a sample at a point of a sweep; requests that only one run measured are left out and counted. A single
    request that each run repeated is compared where there is nothing else.

    Args:
        baseline, candidate: rows of a run each (:func:`vlmbench.analysis.frames.load_runs`).
        metrics: names of times; those that a run lacks are left out.
        same_machine: whether the two were meant to run alike; a change of the machine's pace is then none of the code.
        in_turns: whether the two took turns with each other, where the rows do not say so
            (:func:`vlmbench.analysis.frames.with_turns`): each run is then compared with the nearest one of its request
            on the other side, by their columns ``turn``.
    """
    measured = sides = [_in_time(rows) for rows in (baseline, candidate)]
    names = [_requests(rows) for rows in sides]
    alike = set(names[0]) & set(names[1])
    if not alike:
        alone = [len(set(side)) for side in names]
        return Comparison(changes={}, requests=0, only_baseline=alone[0], only_candidate=alone[1])
    kept = [np.array([name in alike for name in side], dtype=np.bool_) for side in names]
    sides = [rows[keep] for rows, keep in zip(sides, kept, strict=True)]
    number = {name: place for place, name in enumerate(sorted(alike))}
    requests = [np.array([number[name] for name in side if name in number]) for side in names]
    pairs: int | None = None
    if in_turns := in_turns or took_turns(*sides):
        ours, theirs = partners(*(part for side in zip(sides, requests, strict=True) for part in turns_of(*side)))
        pairs = len(ours) if 2 * len(ours) >= min(map(len, sides)) else 0
    found: dict[str, tuple[Shift, float, float]] = {}
    for metric in metrics:
        times = [values(rows, metric) for rows in sides]
        if any(np.isnan(side).all() for side in times):
            continue
        if pairs:
            shift = shift_in_turns(times[0][ours], times[1][theirs], requests[0][ours])
        else:
            shift = shift_between(times[0], requests[0], times[1], requests[1])
        if shift.estimate.shortfall is Shortfall.NOTHING_TO_COMPARE:
            continue
        found[metric] = (shift, float(np.nanmedian(times[0])), float(np.nanmedian(times[1])))
    corrected = holm([shift.p_value for shift, _, _ in found.values()])
    pace = pace_between(*measured, in_turns=bool(pairs)) if same_machine else None
    return Comparison(
        pace=pace,
        pairs=pairs,
        changes={
            metric: StageChange(
                metric=metric,
                shift=shift,
                p_value=p,
                baseline_ms=before,
                candidate_ms=after,
                pace=pace if pace is not None and pace.decides else None,
            )
            for (metric, (shift, before, after)), p in zip(found.items(), corrected, strict=True)
        },
        requests=len(alike),
        only_baseline=len(set(names[0]) - alike),
        only_candidate=len(set(names[1]) - alike),
    )


def _in_time(rows: pd.DataFrame) -> pd.DataFrame:
    """The workload in the order measured; the repeated single request where there is none."""
    found = workload(rows)
    if not len(found):
        found = rows[(rows["status"] == "ok") & (rows["mode"] == "instrumented")]
    return in_time(found)


def _requests(rows: pd.DataFrame) -> list[str]:
    return [f"{point}\n{sample}" for point, sample in zip(rows["point_id"], rows["sample_id"], strict=True)]

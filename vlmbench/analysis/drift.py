"""The A/A check: the same requests, first half of their repeats against the second. Anything but 1 is drift.

Where no request was repeated, halves of the workload are compared, which are different samples: within shapes of
requests (:func:`vlmbench.analysis.frames.shapes`), so that a half with more large pictures is no drift.

Runs are compared within their requests and in the order measured, with the dependence of runs next to each other in the
error (:mod:`vlmbench.analysis.shift`): a machine that is slow for a while and then fast again does not drift. That no
drift was found says only that there is none beyond what the interval leaves possible, and the words say how much that
is. Verdicts on stages are corrected for their number (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.estimate import Estimate, holm
from vlmbench.analysis.frames import TOKENS, in_time, shapes, token_counts, workload
from vlmbench.analysis.shift import BLIND, Shift, shift_beside, shift_in_time, shift_within
from vlmbench.analysis.slices import timing_rows
from vlmbench.schema import TOTAL_PARTS
from vlmbench.text import count, percent, worth

MIN_REPEATS = 4
OF_WHOLE = 0.98
"""Share of the level at which the whole is tested among the whole and its stages."""


@dataclass(frozen=True, kw_only=True)
class HalvesCheck:
    """Second half over first half of the repeats, of one metric.

    Args:
        metric: name of the time (``T_total`` …).
        basis: what was compared.
        shift: the comparison.
        p_value: of no drift; corrected for the number of questions where this is one of several.
        worst, worst_ratio: the request, or shape of requests, that is furthest from 1; a shape has no name.
    """

    metric: str
    basis: str
    shift: Shift
    p_value: float
    worst: str
    worst_ratio: float

    @property
    def estimate(self) -> Estimate:
        """Second half over first half (weighted alike over requests), its 95 % interval and the runs behind it."""
        return self.shift.estimate

    @property
    def ratio(self) -> float:
        """Second half over first half; nan where there is nothing to compare."""
        return math.nan if self.estimate.value is None else self.estimate.value

    @property
    def requests(self) -> int:
        """How many requests, or shapes of requests, were compared with themselves."""
        return self.shift.requests

    @property
    def verdict(self) -> str:
        """``clean`` (no drift beyond :meth:`beyond`), ``drift``, or ``too noisy`` where the halves could differ by more
        than 5 % without being seen, or the runs are worth too few independent ones.
        """
        if self.shift.differs(self.p_value):
            return "drift"
        return "clean" if self.shift.beyond() <= BLIND else "too noisy"

    def beyond(self) -> str:
        """``no drift beyond 1.8 %``: how large a drift the interval leaves possible."""
        return f"no drift beyond {percent(self.shift.beyond(), 2)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.estimate
        return {
            "metric": self.metric,
            "basis": self.basis,
            "ratio": found.value,
            "low": found.low,
            "high": found.high,
            "n": found.n,
            "lag1": found.lag1,
            "effective_n": found.effective_n,
            "p_value": None if math.isnan(self.p_value) else self.p_value,
            "no_drift_beyond": None if found.low is None else self.shift.beyond(),
            "requests": self.requests,
            "worst": self.worst,
            "worst_ratio": self.worst_ratio,
            "verdict": self.verdict,
            "words": self.words(),
        }

    def short(self) -> str:
        """Ratio, interval and verdict."""
        low, high = self.estimate.low, self.estimate.high
        inside = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
        said = self.beyond() if self.verdict == "clean" else self.verdict
        return f"{self.ratio:.3f}{inside} {said}"

    def words(self) -> str:
        """One sentence."""
        low, high = self.estimate.low, self.estimate.high
        inside = "" if low is None or high is None else f"95 % interval {low:.4f} to {high:.4f}; "
        basis = f"{self.basis}{worth(self.estimate.n, self.estimate.effective_n)}"
        text = f"A/A of {self.metric}: second half / first half = {self.ratio:.4f} ({inside}{basis})"
        if self.verdict == "clean":
            return f"{text}: {self.beyond()}"
        where = f", worst at {self.worst} ({self.worst_ratio:.3f})" if self.worst and self.requests > 1 else ""
        if self.verdict == "drift":
            return (
                f"{text}: DRIFT{where}. The machine changed or is shared: lock its clocks or take it for yourself, "
                "then measure again before trusting differences of this size"
            )
        why = f" ({self.estimate.note})" if self.estimate.note else ""
        return f"{text}: too noisy to tell{why}{where}; more repeats or a machine of your own would"


_USED = (
    "point_id", "sample_id", "repeat", "session", "started_unix_s", "status", "mode", "intervention",
)  # fmt: skip


def halves_check(frame: pd.DataFrame, metric: str = "T_total") -> HalvesCheck | None:
    """Compare the halves of the repeats of every request that was measured at least four times.

    Where nothing at all was repeated, the halves of the workload are compared, which are different samples: the basis
    says so. Where these are of several shapes, they are compared within those that both halves have, and how many runs
    are of others is said; where these are more than half, what token counts explain is taken out instead.

    Args:
        frame: rows of records; rows that were not measured are left out.
        metric: column, ms.

    Returns:
        The check; None where there is nothing to compare.
    """
    if metric not in frame or "point_id" not in frame:
        return None
    rows = timing_rows(frame[[name for name in (*_USED, *TOKENS) if name in frame] + [metric]])
    rows = in_time(rows[rows[metric] > 0])
    names = [c for c in ("point_id", "sample_id") if c in rows]
    codes = rows.groupby([_numbered(rows[c]) for c in names]).ngroup().fillna(-1).to_numpy(dtype=np.int64) + 1
    repeats = np.bincount(codes, minlength=1)
    repeats[0] = 0  # rows that name no request
    repeated = repeats[codes] >= MIN_REPEATS
    if repeated.any():
        runs, requests = int(repeated.sum()), int((repeats >= MIN_REPEATS).sum())
        basis = f"{count(runs, 'run')} of one request"
        if requests > 1:
            basis = f"the {runs:,} repeats of {count(requests, 'request')}"
        return _check(metric, basis, _halves(rows[repeated], codes[repeated], metric))
    if rows.empty or repeats.max() > 1 or not {"mode", "sample_id"} <= set(rows):
        return None
    work = workload(rows)
    if len(work) < 2 or work["point_id"].nunique() > 1:
        return None
    return _of_workload(metric, work)


def aa_summary(frame: pd.DataFrame, metric: str = "T_total") -> dict[str, Any] | None:
    """The A/A check of a latency for JSON, and under ``by_stage`` that of each stage, corrected for their number.

    A shared host slows what waits for it and leaves what the device does alone, so one verdict for the whole may speak
    against a stage whose own times repeat well.

    Args:
        frame: rows of records.
        metric: column of the latency, ms.

    Returns:
        None where there is nothing to compare. ``stages_in_words`` names each stage with its ratio and verdict.
    """
    whole = halves_check(frame, metric)
    if whole is None:
        return None
    stages = {stage: check for stage in TOTAL_PARTS[:-1] if (check := halves_check(frame, stage)) is not None}
    p_values = correct_family([whole.p_value, *(check.p_value for check in stages.values())])
    whole = replace(whole, p_value=p_values[0])
    stages = {name: replace(check, p_value=p) for (name, check), p in zip(stages.items(), p_values[1:], strict=True)}
    words = "; ".join(f"{stage} {check.short()}" for stage, check in stages.items())
    return {
        **whole.as_dict(),
        "by_stage": {stage: check.as_dict() for stage, check in stages.items()},
        "stages_in_words": f"A/A by stage: {words}" if words else "",
    }


def correct_family(p_values: Sequence[float]) -> list[float]:
    """P-values of the whole and its stages, corrected for their number.

    The whole is the main question and has nearly all the weight (:data:`OF_WHOLE`): it is tested as sharply as alone,
    the stages once it drifts. A stage that drifts without it must do so beyond all doubt.
    """
    stages = len(p_values) - 1
    return holm(p_values, [OF_WHOLE, *([(1 - OF_WHOLE) / max(stages, 1)] * stages)])


def _numbered(texts: pd.Series) -> pd.Series:
    """Numbers for a column of texts, in the order of its categories where it has some: quicker to group by."""
    return texts.cat.codes.where(texts.notna()) if isinstance(texts.dtype, pd.CategoricalDtype) else texts


def _halves(rows: pd.DataFrame, codes: NDArray[np.integer[Any]], metric: str) -> pd.DataFrame:
    """Rows of the first and the last half of each request's repeats (of an odd number the middle one belongs to
    neither), in the order measured: ``request`` (its code), ``time``, ``later``, and what names it.
    """
    place = pd.Series(codes).groupby(codes).cumcount().to_numpy()
    size = np.bincount(codes)[codes]
    half = size // 2
    names = {name: rows[name].array for name in ("point_id", "sample_id") if name in rows}
    time = rows[metric].to_numpy(dtype=float)
    found = pd.DataFrame({"request": codes, "time": time, "later": place >= size - half, **names})
    kept: pd.DataFrame = found[(place < half) | (place >= size - half)]
    return kept


def _of_workload(metric: str, work: pd.DataFrame) -> HalvesCheck | None:
    """Halves of a workload, in the order measured: of one shape, within shapes, or beside token counts."""
    halves, codes = _halves(work, np.zeros(len(work), np.int64), metric), shapes(work)
    basis = "halves of the workload, which are different samples"
    if codes is None or not codes.any():
        return _check(metric, basis if codes is not None else f"{basis} of unknown shapes", halves, named=False)
    halves["request"] = codes[halves.index]
    in_both = halves.groupby("request")["later"].transform("nunique") == 2
    kept = halves[in_both]
    if 2 * len(kept) >= len(halves):
        basis += f", within {count(kept['request'].nunique(), 'shape')} of requests"
        if len(kept) < len(halves):
            others = halves.loc[~in_both, "request"].nunique()
            left = f"{count(len(halves) - len(kept), 'run')} of {count(others, 'shape')}"
            basis += f" ({left} that one half alone has not compared)"
        shift = shift_within(kept["time"], kept["later"], kept["request"])
        return _check(metric, basis, kept, shift, named=False)
    kinds, alone = count(halves["request"].nunique(), "shape"), f"{len(halves) - len(kept):,} of {len(halves):,} runs"
    basis += f" of {kinds}, {alone} of one that one half alone has: what token counts explain is taken out"
    shift = shift_beside(halves["time"], halves["later"], token_counts(work)[halves.index])
    return _check(metric, basis, halves.assign(request=0), shift, named=False)


def _check(
    metric: str, basis: str, halves: pd.DataFrame, shift: Shift | None = None, *, named: bool = True
) -> HalvesCheck | None:
    shift = shift or shift_in_time(halves["time"], halves["later"], halves["request"], clip=named)
    if shift.estimate.value is None:
        return None
    medians = halves.groupby(["request", "later"])["time"].median().unstack("later")
    ratios = medians[True] / medians[False]
    worst = ratios.index[int(np.argmax(np.abs(np.log(ratios.to_numpy()))))]
    return HalvesCheck(
        metric=metric,
        basis=basis,
        shift=shift,
        p_value=shift.p_value,
        worst=_name(halves, worst) if named else "",
        worst_ratio=float(ratios[worst]),
    )


def _name(halves: pd.DataFrame, request: Any) -> str:
    """The point and sample of a request; of a sweep's point, which has one sample, the point alone."""
    row = halves[halves["request"] == request].iloc[0]
    alone = halves.loc[halves["point_id"] == row["point_id"], "request"].nunique() == 1
    return " ".join(str(row[name]) for name in ("point_id", "sample_id")[: 1 if alone else 2] if name in row)

"""What a method saves: each arm against its baseline, in pairs of the same round, with what FLOPs promised beside it.

Arms are measured interleaved: a run of an arm and the baseline's run of the same request and repeat are neighbours in
time: their difference is free of drift that both share. Estimates are medians of such paired differences, positive
where the arm is faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis import frames
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.quantiles import median
from vlmbench.schema import COST_STAGES, TIME_OF_COST

METRICS = (
    "T_request", "T_total", "T_preprocess", "T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill",
    "T_LLM_decode", "TTFT",
)  # fmt: skip
DROWNED = 0.05
"""A saving below this share of a request counts as drowned in its output."""
_PAIR = ["sample_id", "repeat"]
_KERNELS = ("vision_encoder", "LLM_prefill", "LLM_decode")


class Verdict(StrEnum):
    """What can be said of an arm's ``T_total``."""

    FASTER = "faster"
    SLOWER = "slower"
    NO_DIFFERENCE = "no difference"
    TOO_FEW = "too few pairs"


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What an arm saves of one time, ms; negative where it costs.

    Args:
        metric: column of the time.
        saved: median of the paired differences, baseline minus arm.
        baseline_ms: median of the baseline.
    """

    metric: str
    saved: Estimate
    baseline_ms: float

    @property
    def verdict(self) -> Verdict:
        """From the interval of the paired differences."""
        low, high = self.saved.low, self.saved.high
        if low is None or high is None:
            return Verdict.TOO_FEW
        if low > 0:
            return Verdict.FASTER
        return Verdict.SLOWER if high < 0 else Verdict.NO_DIFFERENCE

    @property
    def beyond(self) -> float | None:
        """Share of the baseline that no difference goes beyond: the end of the interval that is further from 0."""
        if self.saved.low is None or self.saved.high is None or not self.baseline_ms:
            return None
        return max(abs(self.saved.low), abs(self.saved.high)) / self.baseline_ms

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        share = None if not self.baseline_ms or self.saved.value is None else self.saved.value / self.baseline_ms
        return {
            "metric": self.metric,
            "saved_ms": self.saved.as_dict(),
            "baseline_ms": self.baseline_ms,
            "share": share,
            "verdict": str(self.verdict),
            "no_difference_beyond": self.beyond,
        }


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm at one point of the sweep against the baseline there.

    Args:
        point: the point's other axes in words; empty where there are none.
        name, arguments, role: of the arm.
        keep: share of vision tokens it was asked to keep; None where that is not what it does.
        pairs: runs that have the baseline's run of the same round beside them.
        savings: by metric.
        method_ms: the method's own time by stage (``total`` too), medians; empty where it sets no marks.
        promised_ms: stage column to what FLOPs promise: the baseline's time there times the share of FLOPs saved.
        vision_tokens, kept: seen by the language model without the method, and kept (mean over layers).
        kept_by_layer: in words.
        kernels_seen: whether the attention kernels of any tower were observed.
        unlike_kernels: towers whose attention kernels are not the baseline's.
        kernel_ms: where kernels differ and the arm was run with all tokens too: what the kernels alone save.
        tokens_equal, tokens_compared: leading tokens of the answer equal to the baseline's, median; how many there are.
        controls: controls of the same share that are as fast, the fastest first; None where none is told of.
        drowned_after: output tokens from which on the saving is below 5 % of ``T_total`` (value, low, high); None where
            it never is, or where nothing is surely saved.
        even_after: output tokens from which on the arm is slower in all, because its decode surely is; None: never.
    """

    point: str
    name: str
    arguments: str
    role: str
    keep: float | None
    pairs: int
    savings: Mapping[str, Saving]
    method_ms: Mapping[str, float] = field(default_factory=dict)
    promised_ms: Mapping[str, float] = field(default_factory=dict)
    vision_tokens: float | None = None
    kept: float | None = None
    kept_by_layer: str = ""
    kernels_seen: bool = False
    unlike_kernels: tuple[str, ...] = ()
    kernel_ms: float | None = None
    tokens_equal: float | None = None
    tokens_compared: int = 0
    controls: tuple[str, ...] | None = ()
    drowned_after: tuple[float, float | None, float | None] | None = None
    even_after: float | None = None

    @property
    def label(self) -> str:
        """Name and arguments in words: ``keep_in_layer (keep=0.5, layer=2)``."""
        return f"{self.name} ({self.arguments.replace(',', ', ')})" if self.arguments else self.name

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "savings"}
        return {
            **found,
            "label": self.label,
            "savings": {metric: saving.as_dict() for metric, saving in self.savings.items()},
        }


def arm_results(frame: pd.DataFrame) -> list[ArmResult]:
    """Every arm but the baselines, point by point; empty where no methods were compared."""
    rows = frames.arms(frame)
    found: list[ArmResult] = []
    for point, group in _points(rows):
        baseline = group[group["intervention_role"].eq("baseline")]
        if not len(baseline):
            continue
        others = group[group["intervention_role"].ne("baseline")]
        by_arm = {str(arm): part for arm, part in others.groupby("point_id", observed=True, sort=False)}
        here = [_result(point, part, baseline, by_arm) for part in by_arm.values()]
        # the larger shares first, a method before its controls
        found += sorted(here, key=lambda arm: (-(arm.keep or 0.0), arm.role != "method", arm.label))
    return found


def _points(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(other axes in words, rows) of each point: what the id says before the arm's own name."""
    ids = rows["point_id"].astype(str)
    before = ids.str.partition("intervention=")[0].str.rstrip(",")
    for point in dict.fromkeys(before):
        yield point, rows[before.eq(point)]


def _result(point: str, rows: pd.DataFrame, baseline: pd.DataFrame, arms: Mapping[str, pd.DataFrame]) -> ArmResult:
    first = rows.iloc[0]
    together = _paired(baseline, rows)
    savings = {metric: saving for metric in METRICS if (saving := _saving(together, metric)) is not None}
    keep = _number(first.get("intervention_keep"))
    unlike = tuple(tower for tower in _KERNELS if _differs(first, baseline.iloc[0], f"attention_kernel_{tower}"))
    equal, compared = _equal_tokens(together)
    drowned, even = _break_even(baseline, rows, savings)
    return ArmResult(
        point=point,
        name=str(first["intervention"]),
        arguments=_text(first.get("intervention_arguments")),
        role=str(first["intervention_role"]),
        keep=keep,
        pairs=len(together),
        savings=savings,
        method_ms=_own_time(rows),
        promised_ms=_promised(rows, baseline),
        vision_tokens=_median(baseline, "num_vision_tokens"),
        kept=_kept(rows, baseline),
        kept_by_layer=_text(first.get("kept_by_layer")),
        kernels_seen=any(_text(first.get(f"attention_kernel_{tower}")) for tower in _KERNELS),
        unlike_kernels=unlike,
        kernel_ms=_kernels_alone(first, baseline, arms) if unlike else None,
        tokens_equal=equal,
        tokens_compared=compared,
        controls=_as_fast(rows, keep, arms) if str(first["intervention_role"]) == "method" else (),
        drowned_after=drowned,
        even_after=even,
    )


def _paired(baseline: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of an arm with the baseline's of the same request and repeat beside them (suffix ``_0``), in time."""
    return frames.in_time(rows.merge(baseline, on=_PAIR, suffixes=("", "_0")))


def _saving(together: pd.DataFrame, metric: str) -> Saving | None:
    if metric not in together or f"{metric}_0" not in together:
        return None
    before = together[f"{metric}_0"].to_numpy(dtype=np.float64)
    saved = before - together[metric].to_numpy(dtype=np.float64)
    known = ~np.isnan(saved)
    if not known.any():
        return None
    return Saving(metric=metric, saved=median(saved[known]), baseline_ms=float(np.median(before[known])))


def _kept(rows: pd.DataFrame, baseline: pd.DataFrame) -> float | None:
    """Vision tokens that the language model works on, mean over layers; None where the arm leaves them alone."""
    observed = _median(rows, "num_vision_tokens_kept_mean")
    seen = _median(rows, "num_vision_tokens")
    return observed if observed is not None or seen == _median(baseline, "num_vision_tokens") else seen


def _own_time(rows: pd.DataFrame) -> dict[str, float]:
    names = [name for name in rows if str(name) == "T_method" or str(name).startswith("T_method_")]
    found = {
        str(name).removeprefix("T_method").removeprefix("_") or "total": _median(rows, str(name)) for name in names
    }
    return {name: value for name, value in found.items() if value is not None}


def _promised(rows: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, float]:
    """By stage: the baseline's median time times the share of its FLOPs that the arm does not do."""
    found: dict[str, float] = {}
    for stage in COST_STAGES:
        column, time = f"flops_{stage}", TIME_OF_COST[stage]
        before, after, spent = _median(baseline, column), _median(rows, column), _median(baseline, time)
        if before and after is not None and spent is not None:
            found[time] = spent * (1 - after / before)
    return found


def _kernels_alone(first: pd.Series, baseline: pd.DataFrame, arms: Mapping[str, pd.DataFrame]) -> float | None:
    """What the method saves of ``T_total`` with all tokens kept: the kernels' part; None where that was not run."""
    for rows in arms.values():
        other = rows.iloc[0]
        if other["intervention"] == first["intervention"] and other.get("intervention_keep") == 1:
            saving = _saving(_paired(baseline, rows), "T_total")
            return None if saving is None else saving.saved.value
    return None


def _as_fast(rows: pd.DataFrame, keep: float | None, arms: Mapping[str, pd.DataFrame]) -> tuple[str, ...] | None:
    """Controls of the same share whose requests take no longer, as far as can be told; the fastest first.

    None where no control was run, or in too few pairs to tell.
    """
    found: list[tuple[float, str]] = []
    told = open_ones = 0
    for control in arms.values():
        first = control.iloc[0]
        if first["intervention_role"] != "control" or keep is None or first.get("intervention_keep") != keep:
            continue
        saving = _saving(_paired(rows, control), "T_request")  # what the control saves beside the method
        if saving is None or saving.verdict is Verdict.TOO_FEW:
            open_ones += 1
            continue
        told += 1
        if saving.verdict in (Verdict.FASTER, Verdict.NO_DIFFERENCE):
            name = "random tokens" if "selector=random" in _text(first["intervention_arguments"]) else "a smaller image"
            found.append((-(saving.saved.value or 0.0), name))
    return None if not found and (open_ones or not told) else tuple(name for _, name in sorted(found))


def _equal_tokens(together: pd.DataFrame) -> tuple[float | None, int]:
    """Leading tokens equal to the baseline's (median over pairs), and how many were compared at most."""
    if "output_ids" not in together or "output_ids_0" not in together:
        return None, 0
    counts, most = [], 0
    for one, other in zip(together["output_ids"], together["output_ids_0"], strict=True):
        ours, theirs = _text(one).split(), _text(other).split()
        most = max(most, len(theirs))
        counts.append(next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs)))
    return (float(np.median(counts)) if counts else None), most


def _break_even(
    baseline: pd.DataFrame, rows: pd.DataFrame, savings: Mapping[str, Saving]
) -> tuple[tuple[float, float | None, float | None] | None, float | None]:
    """Output tokens after which the saving drowns, and after which it turns into a loss.

    With T(n) = first + (n - 1) · step for both arms; the steps are medians of ``T_LLM_decode`` over its steps.
    """
    step, step_0 = _step(rows), _step(baseline)
    first_0 = _median(baseline, "TTFT_model")
    first = _median(rows, "TTFT_model")
    if step is None or step_0 is None or first is None or first_0 is None:
        return None, None
    gain = step_0 - step  # a step

    def drowned(head: float) -> float | None:
        # (head + gain m) = DROWNED (first_0 + step_0 m), m = n - 1
        slope = DROWNED * step_0 - gain
        over = head - DROWNED * first_0
        return over / slope + 1 if over > 0 and slope > 0 else None

    head = first_0 - first
    total, decode = savings.get("T_total"), savings.get("T_LLM_decode")
    slower = decode is not None and decode.verdict is Verdict.SLOWER
    even = head / -gain + 1 if head > 0 and gain < 0 and slower else None
    value = drowned(head) if total is not None and total.verdict is Verdict.FASTER else None
    prefill = savings.get("T_LLM_prefill")
    if value is None or prefill is None or prefill.saved.low is None or prefill.saved.value is None:
        return (None if value is None else (value, None, None)), even
    below = drowned(head - (prefill.saved.value - prefill.saved.low))
    above = drowned(head + ((prefill.saved.high or prefill.saved.value) - prefill.saved.value))
    return (value, below, above), even


def _step(rows: pd.DataFrame) -> float | None:
    if "T_LLM_decode" not in rows:
        return None
    steps = rows["num_output_tokens"].to_numpy(dtype=np.float64) - 1
    times = rows["T_LLM_decode"].to_numpy(dtype=np.float64)
    known: NDArray[np.float64] = times[steps > 0] / steps[steps > 0]
    return float(np.nanmedian(known)) if len(known) else None


def _median(rows: pd.DataFrame, column: str) -> float | None:
    if column not in rows:
        return None
    values = frames.values(rows, column)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def _differs(one: pd.Series, other: pd.Series, column: str) -> bool:
    ours, theirs = _text(one.get(column)), _text(other.get(column))
    return bool(ours and theirs and ours != theirs)


def _number(value: Any) -> float | None:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else float(value)


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def skipped_arms(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Arms that were refused, with the reason: columns ``arm``, ``reason``."""
    rows = frame[frame["status"].eq("skipped")]
    ids: Sequence[str] = rows["point_id"].astype(str).tolist()
    reasons = rows["reason"].astype(str).tolist() if "reason" in rows else [""] * len(ids)
    pairs = [(i, r) for i, r in zip(ids, reasons, strict=True) if "intervention=" in i]
    return [{"arm": arm, "reason": reason} for arm, reason in dict.fromkeys(pairs)]

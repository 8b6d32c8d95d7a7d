"""The A/A check: the same requests, first half of their repeats against the second. Anything but 1 is drift."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.frames import workload
from vlmbench.analysis.quantiles import ratio_of_medians
from vlmbench.analysis.regression import t_quantile
from vlmbench.analysis.slices import timing_rows
from vlmbench.schema import TOTAL_PARTS
from vlmbench.text import count

MIN_REPEATS = 4
TOLERANCE = 0.01
"""A drift smaller than this matters to no conclusion, even where it can be told from none."""
_BLIND = 0.05


@dataclass(frozen=True, kw_only=True)
class HalvesCheck:
    """Second half over first half of the repeats, of one metric.

    Args:
        metric: name of the time (``T_total`` …).
        basis: what was compared.
        ratio: second half over first half; over several requests the geometric mean.
        low, high: its 95 % interval; nan where there are too few to give one.
        requests: how many requests had enough repeats.
        worst, worst_ratio: the request that is furthest from 1.
    """

    metric: str
    basis: str
    ratio: float
    low: float
    high: float
    requests: int
    worst: str
    worst_ratio: float

    @property
    def verdict(self) -> str:
        """``clean``, ``drift``, or ``too noisy`` where the halves could differ by more than 5 % without being seen."""
        if not self.low <= 1 <= self.high and abs(self.ratio - 1) > TOLERANCE and math.isfinite(self.low):
            return "drift"
        known = math.isfinite(self.low) and max(1 - self.low, self.high - 1) <= _BLIND
        return "clean" if known else "too noisy"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "verdict": self.verdict, "words": self.words()}

    def short(self) -> str:
        """Ratio, interval and verdict."""
        inside = f" ({self.low:.3f} to {self.high:.3f})" if math.isfinite(self.low) else ""
        return f"{self.ratio:.3f}{inside} {self.verdict}"

    def words(self) -> str:
        """One sentence."""
        inside = f"95 % interval {self.low:.4f} to {self.high:.4f}; " if math.isfinite(self.low) else ""
        text = f"A/A of {self.metric}: second half / first half = {self.ratio:.4f} ({inside}{self.basis})"
        if self.verdict == "clean":
            return f"{text}: clean"
        where = f", worst at {self.worst} ({self.worst_ratio:.3f})" if self.requests > 1 else ""
        if self.verdict == "drift":
            return (
                f"{text}: DRIFT{where}. The machine changed or is shared: lock its clocks or take it for yourself, "
                "then measure again before trusting differences of this size"
            )
        return f"{text}: too noisy to tell{where}; more repeats or a machine of your own would"


def halves_check(frame: pd.DataFrame, metric: str = "T_total") -> HalvesCheck | None:
    """Compare the halves of the repeats of every request that was measured at least four times.

    Several such requests give the geometric mean of their ratios with Student's interval; a single one (phase 1's
    repeated request) the ratio of its halves' medians with an interval from order statistics. Where nothing at all was
    repeated, the halves of the workload are compared, which are different samples: the basis says so.

    Args:
        frame: rows of records; rows that were not measured are left out.
        metric: column, ms.

    Returns:
        The check; None where there is nothing to compare.
    """
    rows = timing_rows(frame)
    if metric not in rows or "point_id" not in rows:
        return None
    rows = _in_time(rows[rows[metric].notna()])
    names = [c for c in ("point_id", "sample_id") if c in rows]
    repeats = rows.groupby(names, observed=True)[metric].transform("size")
    series = _repeats(rows[repeats >= MIN_REPEATS], names, metric)
    if len(series) > 1:
        return _of_many(metric, series)
    if series:
        ((name, data),) = series.items()
        return _of_one(metric, f"{count(len(data), 'run')} of one request", name, data)
    if rows.empty or repeats.max() > 1 or not {"mode", "sample_id"} <= set(rows):
        return None
    work = workload(rows)
    if len(work) < 2 or work["point_id"].nunique() > 1:
        return None
    data = work[metric].to_numpy(dtype=float)
    return _of_one(metric, "halves of the workload, which are different samples", "", data)


def aa_summary(frame: pd.DataFrame, metric: str = "T_total") -> dict[str, Any] | None:
    """The A/A check of a latency for JSON, and under ``by_stage`` that of each stage.

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
    words = "; ".join(f"{stage} {check.short()}" for stage, check in stages.items())
    return {
        **whole.as_dict(),
        "by_stage": {stage: check.as_dict() for stage, check in stages.items()},
        "stages_in_words": f"A/A by stage: {words}" if words else "",
    }


def _in_time(rows: pd.DataFrame) -> pd.DataFrame:
    order = [c for c in ("started_unix_s", "repeat") if c in rows]
    return rows.sort_values(order, kind="stable") if order else rows


def _repeats(rows: pd.DataFrame, names: list[str], metric: str) -> dict[str, NDArray[np.float64]]:
    """Request to its times, in order of time."""
    groups = rows.groupby(names, observed=True, sort=True)[metric]
    found = {tuple(map(str, key)): part.to_numpy(dtype=float) for key, part in groups}
    samples = Counter(key[0] for key in found)
    # A sweep's point has one sample, and its own name is enough.
    return {key[0] if samples[key[0]] == 1 else " ".join(key): data for key, data in found.items()}


def _of_many(metric: str, series: Mapping[str, NDArray[np.float64]]) -> HalvesCheck | None:
    ratios: dict[str, float] = {}
    for name, data in series.items():
        first, second = (float(np.median(half)) for half in (data[: len(data) // 2], data[-(len(data) // 2) :]))
        if first > 0 and second > 0:
            ratios[name] = second / first
    if not ratios:
        return None
    logs = np.log(list(ratios.values()))
    centre, number = float(logs.mean()), len(logs)
    half_width = t_quantile(number - 1) * float(logs.std(ddof=1)) / math.sqrt(number) if number > 1 else math.nan
    worst = max(ratios, key=lambda name: abs(math.log(ratios[name])))
    return HalvesCheck(
        metric=metric,
        basis=f"the repeats of {count(number, 'request')}",
        ratio=math.exp(centre),
        low=math.exp(centre - half_width),
        high=math.exp(centre + half_width),
        requests=number,
        worst=worst,
        worst_ratio=ratios[worst],
    )


def _of_one(metric: str, basis: str, name: str, data: NDArray[np.float64]) -> HalvesCheck | None:
    half = len(data) // 2
    found = ratio_of_medians(data[-half:], data[:half])
    if found.value is None:
        return None
    low, high = (math.nan if end is None else end for end in (found.low, found.high))
    return HalvesCheck(
        metric=metric, basis=basis, ratio=found.value, low=low, high=high, requests=1, worst=name,
        worst_ratio=found.value,
    )  # fmt: skip

"""The A/A check: the same requests, first half of their repeats against the second. Anything but 1 is drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.regression import t_quantile
from vlmbench.analysis.slices import timing_rows

MIN_REPEATS = 4
TOLERANCE = 0.01
"""A drift smaller than this matters to no conclusion, even where it can be told from none."""
_BLIND = 0.05


@dataclass(frozen=True, kw_only=True)
class HalvesCheck:
    """Second half over first half of the repeats, of one metric.

    Args:
        metric: name of the time (``T_total`` …).
        ratio: geometric mean over the points of median(second half) / median(first half).
        low, high: its 95 % interval; nan with fewer than two points.
        points: how many points had at least four repeats.
        worst_point, worst_ratio: the point that is furthest from 1.
    """

    metric: str
    ratio: float
    low: float
    high: float
    points: int
    worst_point: str
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

    def words(self) -> str:
        """One sentence."""
        span = f"95 % interval {self.low:.4f} to {self.high:.4f}, " if math.isfinite(self.low) else ""
        text = f"A/A of {self.metric}: second half / first half = {self.ratio:.4f} ({span}{self.points} points)"
        if self.verdict == "clean":
            return f"{text}: clean"
        where = f"worst at {self.worst_point} ({self.worst_ratio:.3f})"
        if self.verdict == "drift":
            return (
                f"{text}: DRIFT, {where}. The machine changed or is shared: lock its clocks or take it for yourself, "
                "then measure again before trusting differences of this size"
            )
        return f"{text}: too noisy to tell, {where}; more repeats or a machine of your own would"


def halves_check(frame: pd.DataFrame, metric: str = "T_total") -> HalvesCheck | None:
    """Compare the halves of the repeats of every request; None where no request has four repeats.

    Args:
        frame: rows of records; rows that were not measured are left out.
        metric: column, ms.
    """
    rows = timing_rows(frame)
    if metric not in rows or "point_id" not in rows:
        return None
    rows = rows[rows[metric].notna()]
    order = [c for c in ("started_unix_s", "repeat") if c in rows]
    names = [c for c in ("point_id", "sample_id") if c in rows]
    ratios: dict[str, float] = {}
    for values, part in rows.sort_values(order, kind="stable").groupby(names, observed=True, sort=True):
        half = len(part) // 2
        if len(part) < MIN_REPEATS:
            continue
        first = float(np.median(part[metric].to_numpy(dtype=float)[:half]))
        second = float(np.median(part[metric].to_numpy(dtype=float)[-half:]))
        if first > 0 and second > 0:
            assert isinstance(values, tuple)
            ratios[str(values[0])] = second / first
    if not ratios:
        return None
    logs = np.log(list(ratios.values()))
    centre, count = float(logs.mean()), len(logs)
    half_width = t_quantile(count - 1) * float(logs.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    worst = max(ratios, key=lambda name: abs(math.log(ratios[name])))
    return HalvesCheck(
        metric=metric,
        ratio=math.exp(centre),
        low=math.exp(centre - half_width),
        high=math.exp(centre + half_width),
        points=count,
        worst_point=worst,
        worst_ratio=ratios[worst],
    )

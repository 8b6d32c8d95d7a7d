"""FLOPs against latency: how well one tells the other, and where the same FLOPs cost different time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.regression import Estimate, Fit, Ratio, fieller, least_squares
from vlmbench.analysis.scaling import Unflagged, without_first_times
from vlmbench.analysis.slices import KINDS, MIN_POINTS, Slice, slices
from vlmbench.schema import TOTAL
from vlmbench.text import digits, interval

TERA = 1e12
_FLOPS = "flops_total"
NAMES: Mapping[str, str] = {"vision": "vision scaling", "prompt": "prompt scaling", "output": "language scaling"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FlopsFit:
    """Time against FLOPs within one slice.

    Args:
        slice: its rows.
        flops: TFLOP of each row, shape (n,).
        time: ms of each row, shape (n,).
        fit: line through the raw rows.
        pearson: correlation over the raw rows.
        unflagged: the line without the rows that did something for the first time; None where there are none.
    """

    slice: Slice
    flops: Any
    time: Any
    fit: Fit
    pearson: float
    unflagged: Unflagged | None = None

    @property
    def cost(self) -> Estimate:
        """ms per further TFLOP."""
        return self.fit.estimate([0.0, 1.0])

    def at(self, tflop: float) -> Estimate:
        """ms at that many TFLOP."""
        return self.fit.estimate([1.0, tflop])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        slope = None if self.unflagged is None else self.unflagged.slope
        return {
            "rows": self.fit.rows,
            "points": self.fit.points,
            "tflop_min": float(self.flops.min()),
            "tflop_max": float(self.flops.max()),
            "pearson": self.pearson,
            "r2": self.fit.r2,
            "ms_per_tflop": self.cost.value,
            "ms_per_tflop_low": self.cost.low,
            "ms_per_tflop_high": self.cost.high,
            "flagged_rows": 0 if self.unflagged is None else self.unflagged.flagged,
            "ms_per_tflop_unflagged": None if slope is None else slope.value,
            "ms_per_tflop_unflagged_low": None if slope is None else slope.low,
            "ms_per_tflop_unflagged_high": None if slope is None else slope.high,
            "fixed": dict(self.slice.fixed),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class FlopsLatency:
    """FLOPs against latency for every kind of scaling in the data, and for all of them together.

    Args:
        parts: ``vision``, ``prompt``, ``output`` as far as measured.
        together: one line through all rows; None with a single part.
        pearson_together: correlation over all rows.
    """

    parts: Mapping[str, FlopsFit]
    together: Fit | None
    pearson_together: float

    @property
    def has_both(self) -> bool:
        """Whether output tokens and vision tokens were swept."""
        return {"output", "vision"} <= self.parts.keys()

    def ratio(self) -> Ratio | None:
        """How much dearer a TFLOP is by output tokens than by vision tokens; None unless both were measured."""
        if not self.has_both:
            return None
        return fieller(self.parts["output"].cost, self.parts["vision"].cost)

    def same_flops(self) -> list[tuple[float, Ratio]]:
        """(TFLOP, time ratio) at both ends of the range of FLOPs that the two scalings share; empty without one."""
        if not self.has_both:
            return []
        a, b = self.parts["output"], self.parts["vision"]
        low, high = max(a.flops.min(), b.flops.min()), min(a.flops.max(), b.flops.max())
        if not low < high:
            return []
        return [(float(tflop), fieller(a.at(float(tflop)), b.at(float(tflop)))) for tflop in (low, high)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        cost, same = self.ratio(), self.same_flops()
        return {
            **{NAMES[name].replace(" ", "_"): part.as_dict() for name, part in self.parts.items()},
            "together": None
            if self.together is None
            else {"rows": self.together.rows, "pearson": self.pearson_together, "r2": self.together.r2},
            "language_over_vision_ms_per_tflop": None if cost is None else cost.as_dict(),
            "same_flops": [{"tflop": tflop, "time_ratio": ratio.as_dict()} for tflop, ratio in same],
            "words": self.words(),
        }

    def words(self) -> list[str]:
        """What the numbers say, a sentence each."""
        said = [
            f"{NAMES[name].capitalize()}: {digits(part.cost.value, 4)} ms per TFLOP (95 % interval "
            f"{interval(part.cost.low, part.cost.high, 4)}){_without(part)} "
            f"{correlation_words(part.pearson, part.fit.r2)}."
            for name, part in self.parts.items()
        ]
        if self.together is not None and not math.isnan(self.together.r2):
            said.append(
                f"Together: {correlation_words(self.pearson_together, self.together.r2)}: FLOPs alone "
                + ("tell the latency." if self.together.r2 >= 0.95 else "do not tell the latency.")
            )
        cost = self.ratio()
        if cost is not None:
            said.append(
                f"A further TFLOP costs {digits(cost.value)} times as much time when it is spent on output tokens as "
                f"when it is spent on vision tokens ({cost.span()})."
            )
        for tflop, ratio in self.same_flops():
            if ratio.low <= 0:  # the line of one of them meets 0 within its error: no ratio of times can be negative
                said.append(
                    f"At the same {digits(tflop)} TFLOP the times of requests scaled by output and by vision tokens "
                    "cannot be compared: a fitted line reaches 0 within its error."
                )
                continue
            said.append(
                f"At the same {digits(tflop)} TFLOP a request scaled by output tokens takes {digits(ratio.value)} "
                f"times as long as one scaled by vision tokens ({ratio.span()})."
            )
        return said


def _without(part: FlopsFit) -> str:
    return "," if part.unflagged is None else f"; {part.unflagged.words()};"


def flops_latency(frame: pd.DataFrame) -> FlopsLatency | None:
    """Fit ``T_total`` (ms) against ``flops_total`` for each scaling in the rows; None where the rows hold no FLOPs.

    Of several slices of a kind the one with most rows is taken (the others hold other things fixed).
    """
    if _FLOPS not in frame or TOTAL not in frame:
        return None
    parts: dict[str, FlopsFit] = {}
    for name in NAMES:
        rows = frame[frame[_FLOPS].notna() & frame[TOTAL].notna()]
        for part in slices(rows, KINDS[name])[:1]:
            if part.rows[_FLOPS].nunique() >= MIN_POINTS:
                parts[name] = _fit(part)
    if not parts:
        return None
    x = np.concatenate([part.flops for part in parts.values()])
    y = np.concatenate([part.time for part in parts.values()])
    where = np.concatenate([part.slice.clusters.to_numpy() for part in parts.values()])
    together = least_squares(np.column_stack([np.ones_like(x), x]), y, where) if len(parts) > 1 else None
    return FlopsLatency(parts=parts, together=together, pearson_together=_pearson(x, y))


def _fit(part: Slice) -> FlopsFit:
    x = part.rows[_FLOPS].to_numpy(dtype=float) / TERA
    y = part.rows[TOTAL].to_numpy(dtype=float)
    clusters = part.clusters.to_numpy()
    fit = least_squares(np.column_stack([np.ones_like(x), x]), y, clusters)
    flags = part.rows["flags"].astype(object) if "flags" in part.rows else None
    unflagged = without_first_times(flags, x, y, clusters)
    return FlopsFit(slice=part, flops=x, time=y, fit=fit, pearson=_pearson(x, y), unflagged=unflagged)


def correlation_words(pearson: float, r2: float, name: str = "correlation") -> str:
    """``correlation 0.998, R² 0.996``; why there is neither where the times never varied."""
    return "no correlation (the times never vary)" if math.isnan(r2) else f"{name} {pearson:.3f}, R² {r2:.3f}"


def _pearson(x: Any, y: Any) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan

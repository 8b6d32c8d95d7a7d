"""When enough was measured: criteria beside the measurement, not inside it. Standard library only."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """How long a point is measured.

    Args:
        min_samples: at least this many runs.
        min_time_s: and at least this much measured time, s.
        max_samples: never more runs than this.
        max_time_s: never more measured time than this at one point, s (the wall limit).
        median_interval: stop when the 95 % interval of the median is within ± this share of the median.
        noise_variation: or when the noise (standard deviation over mean) itself varies by less than this share.
    """

    min_samples: int = 10
    min_time_s: float = 0.5
    max_samples: int = 400
    max_time_s: float = 30.0
    median_interval: float = 0.01
    noise_variation: float = 0.05

    def __post_init__(self) -> None:
        if self.min_samples < 2:
            raise ValueError(f"'min_samples' must be 2 or more (got {self.min_samples})")
        if self.max_samples < self.min_samples:
            raise ValueError(f"'max_samples' must be at least min_samples={self.min_samples} (got {self.max_samples})")
        for name in ("min_time_s", "max_time_s", "median_interval", "noise_variation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"'{name}' must be 0 or more (got {getattr(self, name)})")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a point may stop, and what was not met; ``criterion`` is None while it must go on."""

    criterion: str | None
    unmet: tuple[str, ...]


def judge(times_ms: list[float], rule: Stopping) -> Verdict:
    """Judge a point by the T_total of its instrumented runs, in the order measured."""
    n, total_s = len(times_ms), sum(times_ms) / 1e3
    unmet: list[str] = []
    if n < rule.min_samples:
        unmet.append(f"min_samples ({n} of {rule.min_samples})")
    if total_s < rule.min_time_s:
        unmet.append(f"min_time_s ({total_s:.2f} of {rule.min_time_s:g})")
    off = median_reach(times_ms)
    precise = off is not None and off <= rule.median_interval
    if not precise:
        shown = "no interval yet" if off is None else f"±{100 * off:.2f} %"
        unmet.append(f"median_interval ({shown} of ±{100 * rule.median_interval:g} %)")
    variation = noise_variation(times_ms)
    stable = variation is not None and variation < rule.noise_variation
    if not stable:
        shown = "too few" if variation is None else f"{100 * variation:.1f} %"
        unmet.append(f"noise_variation ({shown} of {100 * rule.noise_variation:g} %)")
    enough = n >= rule.min_samples and total_s >= rule.min_time_s
    criterion = None
    if enough and precise:
        criterion = "median_interval"
    elif enough and stable:
        criterion = "noise_stable"
    elif n >= rule.max_samples:
        criterion = "max_samples"
    elif total_s >= rule.max_time_s and n >= 2:
        criterion = "max_time"
    return Verdict(criterion=criterion, unmet=tuple(unmet))


def median_reach(values: list[float], confidence: float = 0.95) -> float | None:
    """How far the order-statistic interval of the median reaches from it, to the farther side, as a share of it.

    The interval lies between the k-th smallest and the k-th largest value, k the largest rank for which
    P(Binomial(n, 1/2) < k) ≤ (1 − confidence) / 2. None below 6 values at 95 %.
    """
    n = len(values)
    limit, tail, k = (1 - confidence) / 2, 0.0, 0
    while k < n:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if tail > limit:
            break
        k += 1
    if k == 0:
        return None
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return max(ordered[n - k] - middle, middle - ordered[k - 1]) / middle


def noise_variation(values: list[float], window: int = 10) -> float | None:
    """How much the noise estimate still moves: its own standard deviation over its mean, over the last ``window`` runs.

    The noise estimate after i runs is their relative standard deviation. None with fewer than ``window`` + 5 values.
    """
    if len(values) < window + 5:
        return None
    noise = [_relative_deviation(values[:i]) for i in range(len(values) - window + 1, len(values) + 1)]
    return _relative_deviation(noise)


def _relative_deviation(values: list[float]) -> float:
    """Standard deviation over mean; plain floats, because this runs after every repeat."""
    mean = math.fsum(values) / len(values)
    if mean == 0:
        return 0.0
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) / mean

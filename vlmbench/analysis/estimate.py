"""An estimate: a value with its interval, or the reason why it has none; p-values of several questions at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmbench.errors import InputError
from vlmbench.text import whole_ones

Array = NDArray[np.float64]

CONFIDENCE = 0.95


def observed(values: ArrayLike, name: str = "values") -> Array:
    """Flatten what runs gave to float64, NaN where a run lacks the metric.

    Args:
        values: numbers, NaN among them.
        name: of them, for the error.

    Raises:
        InputError: one is infinite. No clock shows that (rows have null and a flag there); an interval could not hold
            it, and to leave it out would drop a run without a word.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    if endless := int(np.isinf(array).sum()):
        raise InputError(
            f"'{name}' must be finite, or NaN where a run lacks the metric (got {array[np.isinf(array)][0]} "
            f"in {endless} of {len(array)})"
        )
    return array


class Shortfall(StrEnum):
    """Why an estimate has no interval, or no value."""

    TOO_FEW_RUNS = "n too small"
    TOO_FEW_INDEPENDENT = "too few independent runs"
    NOTHING_TO_COMPARE = "nothing to compare"

    @property
    def key(self) -> str:
        """Its name in JSON: ``too_few_runs``."""
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval and the runs behind it.

    Args:
        value: the estimate; None where there is none to give (``shortfall`` says why).
        low, high: ends of the two-sided 95 % interval; None where the runs do not allow one.
        n: observations behind it (clusters, where observations come in clusters).
        n_needed: the fewest independent ones for an interval with two ends.
        lag1: autocorrelation of neighbouring runs; None where it was not looked for.
        effective_n: how many independent observations the n are worth; None where that was not looked for.
        shortfall: why there is no interval; None where there is one.
        detail: what was short, for a note; empty where ``shortfall`` and the counts say it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    n_needed: int | None = None
    lag1: float | None = None
    effective_n: float | None = None
    shortfall: Shortfall | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"'low' and 'high' must both be given or both be None (got {self.low} and {self.high})")
        if self.n < 0:
            raise ValueError(f"'n' must be 0 or more (got {self.n})")

    @property
    def note(self) -> str:
        """Why there is no interval, in words: ``n too small: 20 of 36``; empty where there is one."""
        if self.detail:
            return self.detail
        if self.shortfall is Shortfall.TOO_FEW_RUNS:
            return f"{self.shortfall.value}: {self.n} of {self.n_needed}"
        if self.shortfall is Shortfall.TOO_FEW_INDEPENDENT:
            worth = whole_ones(self.effective_n or 0)
            return f"{self.shortfall.value}: {self.n} are worth {worth} of {self.n_needed}"
        return "" if self.shortfall is None else self.shortfall.value

    def as_dict(self) -> dict[str, Any]:
        """For JSON: value, low, high, n, lag1, effective_n, and why there is no interval, where there is none."""
        entry: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        if self.effective_n is not None:
            entry |= {"lag1": self.lag1, "effective_n": self.effective_n}
        if self.shortfall is not None:
            entry |= {"n_needed": self.n_needed, "note": self.note, "shortfall": self.shortfall.key}
        return entry


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule (Scandinavian J. Statistics 6, 65, 1979).

    A question without an answer stays nan and counts: which ones have an answer hangs on the same noise.

    Args:
        weights: how much each of them matters, above 0; None: all alike.
    """
    importance = [1.0] * len(p_values) if weights is None else list(weights)
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    found = [math.nan] * len(p_values)
    left, most = sum(importance), 0.0
    for i in sorted(known, key=lambda i: p_values[i] / importance[i]):
        most = max(most, min(1.0, left / importance[i] * p_values[i]))
        found[i] = most
        left -= importance[i]
    return found

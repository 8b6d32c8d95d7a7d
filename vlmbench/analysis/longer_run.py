"""How many requests would do for a percentile that a run is too short for, and how long they would take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from vlmbench.analysis.estimate import Shortfall

LEAST_TO_GO_BY = 35
"""Independent requests, at the median and at the percentile, below which nothing is told."""
SAFELY = 2
"""Times the proportion of what is needed to what there is."""


@dataclass(frozen=True, kw_only=True)
class LongerRun:
    """A run that would do.

    Args:
        requests: how many, to two digits, upwards.
        lasts_s: from the first to the last, at the pace of those measured, s; None where their times are not known.
    """

    requests: int
    lasts_s: float | None


def longer_run(entry: Mapping[str, Any], independent: float | None, lasted_s: float | None) -> LongerRun | None:
    """Tell how many requests would do for a percentile, if more of them resemble each other as these do.

    Twice as many as the proportion says, for how much they do is known from these few alone. Of simulated series (AR(1)
    of 0.5 to 0.98, 100 to 2,000 runs, P90 to P99) as long as that 0.99 gave the percentile, and at least 0.95 of each
    kind of which one in twenty was told anything. Half as many again, told of whatever is worth 20, did in 0.84, and of
    some kinds in 0.2: those that look less dependent than they are.

    Args:
        entry: of a percentile in a summary: ``n``, ``n_needed``, ``effective_n``, ``shortfall``.
        independent: what the requests are worth at the median; a percentile's own is no measure of how well that is
            known.
        lasted_s: how long the requests of the entry took, of :func:`lasted_s`.

    Returns:
        None where dependence is not what the percentile lacks, or where what there is is worth too little to go by.
    """
    if entry.get("shortfall") != Shortfall.TOO_FEW_INDEPENDENT.key or not entry.get("n_needed"):
        return None
    worth = float(entry.get("effective_n") or 0.0)
    if min(worth, independent or 0.0) < LEAST_TO_GO_BY:
        return None
    exact = SAFELY * float(entry["n"]) * float(entry["n_needed"]) / worth
    step = int(10 ** max(math.floor(math.log10(exact)) - 1, 0))
    requests = math.ceil(exact / step) * step
    return LongerRun(requests=requests, lasts_s=None if lasted_s is None else lasted_s * requests / float(entry["n"]))


def lasted_s(sessions: ArrayLike, started_unix_s: ArrayLike) -> float | None:
    """Measure how long runs took from the first to the last of each session, whatever ran in between, s.

    Args:
        sessions: of each run.
        started_unix_s: of each run; NaN where it is not known.

    Returns:
        None where no run's time is known.
    """
    known = pd.DataFrame({"session": np.asarray(sessions), "at": np.asarray(started_unix_s, dtype=float)}).dropna()
    if not len(known):
        return None
    ends = known.groupby("session")["at"].agg(["min", "max"])
    return float((ends["max"] - ends["min"]).sum())

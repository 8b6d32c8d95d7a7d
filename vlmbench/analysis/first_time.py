"""How much a slope owes to runs that did something for the first time: the straight line with and without them.

Nothing is dropped from a main fit. But the first run of a length or after a change of shape holds work that later ones
do not (kernels chosen, graphs captured), and one such run at the end of a sweep tilts its line. Its flag says so
beforehand, whatever its time, so a second fit without these rows is no choice of outliers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.regression import Array, Estimate, Fit, least_squares
from vlmbench.analysis.rows import FIRST_TIME
from vlmbench.analysis.slices import MIN_POINTS
from vlmbench.text import count, digits, interval, whole


@dataclass(frozen=True, kw_only=True, eq=False)
class Unflagged:
    """The straight line without the rows that carry a flag of work done for the first time.

    Args:
        flags: flag to the rows of the main fit that carry it, the commonest first.
        flagged: rows that carry any.
        fit: of the other rows; None where they have fewer than three counts.
        low, high: least and largest count of the other rows.
        narrower: whether these are not those of all rows.
    """

    flags: Mapping[str, int]
    flagged: int
    fit: Fit | None
    low: float
    high: float
    narrower: bool

    @property
    def slope(self) -> Estimate | None:
        """ms per token."""
        return None if self.fit is None else self.fit.estimate([0.0, 1.0])

    def words(self) -> str:
        """``without the 6 rows flagged first_seen_length: 20.2 (19.0 to 21.4)``."""
        rows = f"the {count(self.flagged, 'row')} flagged {' or '.join(self.flags)}"
        if (slope := self.slope) is None:
            return f"too few rows are left to fit without {rows}"
        span = f", from {whole(self.low)} to {whole(self.high)} only" if self.narrower else ""
        return f"without {rows}: {digits(slope.value)} ({interval(slope.low, slope.high)}){span}"


def without_first_times(flags: pd.Series | None, x: Array, y: Array, clusters: NDArray[Any]) -> Unflagged | None:
    """Fit the rows that did nothing for the first time; None where no row did.

    Args:
        flags: names joined by spaces, shape (rows,); None where the rows know no flags.
        x, y: counts and times of the main fit, shape (rows,).
        clusters: sweep point of each row, shape (rows,).
    """
    if flags is None:
        return None
    named = [FIRST_TIME & frozenset(text.split()) if isinstance(text, str) else frozenset() for text in flags]
    flagged = np.array([bool(names) for names in named], dtype=np.bool_)
    if not flagged.any():
        return None
    counts = Counter(name for names in named for name in names)
    kept, times = x[~flagged], y[~flagged]
    fit = None
    if len(np.unique(kept)) >= MIN_POINTS:
        fit = least_squares(np.column_stack([np.ones_like(kept), kept]), times, clusters[~flagged])
    low, high = (float(kept.min()), float(kept.max())) if len(kept) else (np.nan, np.nan)
    return Unflagged(
        flags=dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))),
        flagged=int(flagged.sum()),
        fit=fit,
        low=low,
        high=high,
        narrower=(low, high) != (float(x.min()), float(x.max())),
    )

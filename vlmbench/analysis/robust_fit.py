"""The same line without what slow runs do to it, and whether a fitted line passes through what most runs show.

Least squares follows means, and a few slow runs lift the mean of their point. The outlier-proof fit pulls each run that
lies further than 2.5 robust standard deviations from its point's median in to that distance and fits what results; no
run is dropped, and the errors are those of any other fit. The robust standard deviation is one for all points, relative
to their medians, for a point has few runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.curve_shape import design
from vlmbench.analysis.estimate import Array
from vlmbench.analysis.quantiles import median
from vlmbench.analysis.regression import Fit, least_squares
from vlmbench.text import count, percent

WIDTH = 2.5


def pulled_to_medians(y: Array, clusters: NDArray[Any]) -> Array:
    """The times with those far from their point's median pulled in, shape (rows,)."""
    codes = np.unique(clusters, return_inverse=True)[1].reshape(-1)
    middles = pd.Series(y).groupby(codes).median().to_numpy()[codes]
    size = np.where(middles != 0, np.abs(middles), 1.0)
    spread = 1.4826 * float(np.median(np.abs(y - middles) / size))
    if spread == 0:
        return y
    limit = WIDTH * spread * size
    return np.clip(y, middles - limit, middles + limit)


def robust_fit(x: Array, y: Array, clusters: NDArray[Any]) -> Fit:
    """The straight line through the times with outliers pulled in; rows in the order measured."""
    return least_squares(design(x, "linear"), pulled_to_medians(y, clusters), clusters)


@dataclass(frozen=True, kw_only=True)
class Missed:
    """How many points' medians a fitted curve passes by.

    Args:
        points: points whose median has an interval.
        missed: those of them where the curve lies outside that interval.
        above: those of the missed where it lies above.
        furthest: largest distance between curve and median at a missed point, as a share of the median.
        lifted: largest excess of a point's mean over its median at a missed point, as a share of the median.
        tilted: whether the same line with outliers pulled in passes through most of the medians.
    """

    points: int
    missed: int
    above: int
    furthest: float
    lifted: float
    tilted: bool = False

    @property
    def most(self) -> bool:
        """Whether the curve misses more than half of the medians."""
        return self.missed * 2 > self.points

    def words(self) -> str:
        """``misses the medians of 5 of 6 points by up to 12 %: …``; empty where it passes through most of them."""
        if not self.most:
            return ""
        text = f"misses the medians of {self.missed} of {count(self.points, 'point')} by up to {percent(self.furthest)}"
        if self.tilted:
            return f"{text}: slow runs tilt it, with outliers pulled in it passes through most"
        if self.above * 2 > self.missed and self.lifted * 2 > self.furthest:
            return f"{text}: it follows means, which slow runs lift by up to {percent(self.lifted)}"
        return f"{text}: the points do not lie on a curve of this form"


def missed_medians(x: Array, y: Array, points: pd.DataFrame, fitted: Array) -> Missed:
    """Compare a fitted curve with the points' medians.

    Args:
        x, y: counts and times in the order measured, shape (rows,).
        points: of :func:`vlmbench.analysis.curve_shape.point_table`.
        fitted: the curve at the points, shape (points,).
    """
    seen = missed = above = 0
    furthest = lifted = 0.0
    for place, point in enumerate(points.to_dict("records")):
        found = median(y[x == point["x"]])
        if found.low is None or found.high is None or not found.value:
            continue
        seen += 1
        if found.low <= fitted[place] <= found.high:
            continue
        missed += 1
        above += int(fitted[place] > found.high)
        furthest = max(furthest, abs(float(fitted[place]) / found.value - 1))
        lifted = max(lifted, float(point["mean"]) / found.value - 1)
    return Missed(points=seen, missed=missed, above=above, furthest=furthest, lifted=lifted)

"""How well the median of each point is known, and what knowing it to ±1 % would have cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import in_time, measured, values
from vlmbench.stopping import Stopping, median_reach, missing_s, worth
from vlmbench.text import count, lasting, percent

GOAL = Stopping().median_interval


def precision_summary(frame: pd.DataFrame, metric: str = "T_total") -> dict[str, Any]:
    """What the runs of each point say about its median.

    Args:
        frame: rows of records.
        metric: a time, ms.

    Returns:
        ``goal`` (half the width of the 95 % interval that is aimed at, as a share of the median); ``points``: for each
        ``point_id`` its ``runs``, ``lag1``, ``effective_n`` (independent runs that they are worth), ``reach`` (of the
        interval, as a share of the median; None where there is none, or the median is 0) and ``missing_s`` (measured
        time, s, that the goal would still take; None where that cannot be told); ``words``: a sentence, empty where
        nothing was measured.
    """
    rows = in_time(measured(frame))
    points, nothing = [], 0
    for point in rows["point_id"].astype(object).unique():
        times = values(rows[rows["point_id"] == point], metric)
        times = times[~np.isnan(times)]
        if len(times):
            points.append({"point_id": str(point), **_of(times.tolist())})
            nothing += np.median(times) == 0
    found = {"goal": GOAL, "points": points}
    return found | {"words": precision_words(found, nothing=int(nothing))}


def _of(times: list[float]) -> dict[str, Any]:
    lag1, effective = worth(times)
    reach = median_reach(times, effective)
    missing = missing_s(sum(times) / 1e3, reach, GOAL)
    return {"runs": len(times), "lag1": lag1, "effective_n": effective, "reach": reach, "missing_s": missing}


def precision_words(found: Mapping[str, Any], *, nothing: int) -> str:
    """``The median is known to ±0.8 % at the best point and ±24 % at the worst …``, with what the goal would cost.

    Args:
        found: of :func:`precision_summary`.
        nothing: points whose median is 0: more runs would not tell more of them.
    """
    points, goal = found["points"], percent(found["goal"], 1)
    known = sorted((p for p in points if p["reach"] is not None), key=lambda p: float(p["reach"]))
    few = len(points) - len(known) - nothing
    if not known:
        why = [f"too few independent runs at {count(few, 'point')}"] if few else []
        why += [f"it is 0 at {count(nothing, 'point')}, and 0 has no shares"] if nothing else []
        return f"How well the median is known cannot be told: {'; '.join(why)}." if points else ""
    best, worst = known[0], known[-1]
    text = f"The median is known to ±{percent(best['reach'], 2)}"
    if len(points) > 1 and len(known) == 1:
        text += f" at {best['point_id']}"
    elif len(points) > 1:
        text += (
            f" at {best['point_id']}, the best, and to ±{percent(worst['reach'], 2)} at {worst['point_id']}, the worst"
        )
    text += " (95 %)"
    short = [p for p in known if p["missing_s"]]
    if short:
        lack = "lacks" if len(short) == 1 else "lack"
        at = "" if len(points) == 1 else f" at the {count(len(short), 'point')} that {lack} it"
        more = lasting(sum(p["missing_s"] for p in short))
        text += f"; ±{goal}{at} would have taken another {more} of measured time"
    if few:
        text += f"; {count(few, 'point')} with too few independent runs to tell"
    if nothing:
        text += f"; {count(nothing, 'point')} with a median of 0, which has no shares"
    return f"{text}."

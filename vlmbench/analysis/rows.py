"""Which rows count as what: the workload, the repeated single request, and what went wrong or carries a flag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DATASET, REFERENCE = "dataset", "reference"
"""``point_id`` of requests of a data set, and of one identical request repeated."""


FIRST_TIME = frozenset({"first_seen_length", "shape_changed", "recompiled"})
"""Flags of runs that did more work than later ones of the same request: what they did, they did for the first time."""

_CAUSES = frozenset({"gc_pause", "clock_drop"}) | FIRST_TIME
_CAUSE_KINDS = ("throttled:",)  # then the reason


def is_cause(flag: str) -> bool:
    """Whether a flag can make a run slow.

    The others name a goal or an invariant that the record breaks (``residual_above_goal``, ``negative_…``), or a value
    that it lacks (``energy_below_resolution``, ``not_finite:…``, ``no_costs``).
    """
    return flag in _CAUSES or flag.startswith(_CAUSE_KINDS)


def measured(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The rows that are latencies: status ``ok``, watched as ``mode`` says. Warm-up, cold and trace rows never are."""
    return frame[(frame["status"] == "ok") & (frame["mode"] == mode)]


def _of(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of ``kind`` at any point of a sweep: ``dataset``, ``dataset,resolution=336`` …"""
    names = rows["point_id"].cat.categories if hasattr(rows["point_id"], "cat") else rows["point_id"].unique()
    return rows[rows["point_id"].isin([name for name in names if str(name).split(",")[0] == kind])]


def reference(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The measured runs of the repeated single request; no rows if there was none.

    Where a sweep repeats one request at each of its points, those of the point with the most runs.
    """
    rows = _of(measured(frame, mode), REFERENCE)
    points = rows["point_id"].astype(object).value_counts()
    return rows[rows["point_id"] == points.index[0]] if len(points) > 1 else rows


def workload(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The measured runs of the workload: the data set's requests (at all points of a sweep), or all but the repeated
    single request where there is no data set.
    """
    rows = measured(frame, mode)
    of_dataset = _of(rows, DATASET)
    return of_dataset if len(of_dataset) else rows.drop(index=_of(rows, REFERENCE).index)


def sample_codes(frame: pd.DataFrame) -> NDArray[np.int64]:
    """One number a sample, shape (rows,): runs of one sample are not independent."""
    return np.asarray(pd.factorize(frame["sample_id"])[0], dtype=np.int64)


def values(frame: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """A metric's values, shape (rows,), NaN where a run lacks it or none has it."""
    if metric not in frame:
        return np.full(len(frame), np.nan)
    return frame[metric].to_numpy(dtype=np.float64, na_value=np.nan)


def status_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by status and mode: columns ``status``, ``mode``, ``rows``."""
    counts = frame.groupby(["status", "mode"], observed=True).size()
    return counts.rename("rows").reset_index()


def flag_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """How many of the rows carry each flag: columns ``flag``, ``rows``, the commonest first."""
    found: Counter[str] = Counter()
    for flags, rows in frame["flags"].astype(object).value_counts().items():
        for flag in str(flags).split():
            found[flag] += int(rows)
    return pd.DataFrame(found.most_common(), columns=["flag", "rows"])


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """What failed and why: columns ``status``, ``reason``, ``rows``, the commonest first.

    A request that failed in several sessions counts once, with its last reason; one that a later session measured
    does not count.
    """
    bad = _standing(frame)
    if "reason" not in bad:
        bad = bad.assign(reason="")
    reasons = bad["reason"].astype(object).where(bad["reason"].notna(), "no reason given")
    counts = bad.assign(reason=reasons).groupby(["status", "reason"], observed=True).size()
    return counts.rename("rows").reset_index().sort_values("rows", ascending=False, kind="stable", ignore_index=True)


def _standing(frame: pd.DataFrame) -> pd.DataFrame:
    bad = frame[frame["status"].isin(["error", "oom", "skipped"])]
    key = [name for name in ("point_id", "sample_id", "repeat") if name in frame]
    if len(key) < 3 or bad.empty:  # rows of older files
        return bad
    traced = bad["mode"].eq("trace")
    good = frame[frame["status"].eq("ok") & frame["mode"].ne("trace")]
    last = bad[~traced].drop_duplicates(key, keep="last")
    measured = pd.MultiIndex.from_frame(last[key].astype(object)).isin(
        pd.MultiIndex.from_frame(good[key].astype(object))
    )
    # a point that was skipped as a whole has a row without a sample
    whole = last["sample_id"].astype(object).eq("") & last["point_id"].astype(object).isin(set(good["point_id"]))
    return pd.concat([last[~measured & ~whole], bad[traced]])


def as_counts(table: pd.DataFrame, key: str) -> Mapping[str, int]:
    """A table of counts as a mapping, rows of one key added up."""
    return {str(k): int(v) for k, v in table.groupby(key, observed=True)["rows"].sum().items()}

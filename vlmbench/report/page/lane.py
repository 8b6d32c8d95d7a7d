"""Every row of a run in the order of time, whatever became of it: what the machine did while it measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis import frames
from vlmbench.report.page.cells import rounded, rounded_list
from vlmbench.report.page.sample import flag_bits
from vlmbench.text import count

KINDS = ("workload", "one request repeated", "bare", "traced", "cold, warm-up", "failed", "other arms")
_BINS = 240
_FLAGGED = 300
_FAILED = ("error", "oom", "skipped")
_READINGS = (("temperature_after_c", "°C", "GPU temperature"), ("sm_clock_after_mhz", "MHz", "GPU clock"))


def lane_of(frame: pd.DataFrame, *, limit: int) -> dict[str, Any] | None:
    """The rows of a run over time.

    Args:
        frame: rows of the run.
        limit: the most rows to keep one by one; more are given as least, median and largest of each slice of time.

    Returns:
        ``names`` of kinds; ``at`` (s), ``ms`` of ``generate()``, ``kind``, ``flags`` of rows kept one by one; ``bins``
        (kind, s, least, median, largest, rows) of all rows where they are too many; ``readings`` of the device;
        ``said``. None without times of day.
    """
    if "started_unix_s" not in frame or not frame["started_unix_s"].notna().any():
        return None
    started = frames.values(frame, "started_unix_s")
    at = started - np.nanmin(started)
    metric = "T_total" if np.isfinite(frames.values(frame, "T_total")).any() else "T_request"
    times = frames.values(frame, metric)
    kinds = _kinds(frame)
    names, bits = flag_bits(frame)
    there = np.isfinite(at) & (np.isfinite(times) | (kinds == KINDS.index("failed")))
    index = np.flatnonzero(there)
    made: dict[str, Any] = {"names": list(KINDS), "flag_names": names, "bins": [], "said": "", "session": []}
    if len(index) > limit:
        made["bins"] = _bins(at, times, kinds, index)
        marked = index[(bits[index] > 0) | (kinds[index] == KINDS.index("failed"))]
        slow = index[np.argsort(-np.nan_to_num(times[index]))[:40]]
        index = np.unique(np.concatenate([marked[:_FLAGGED], slow]))
        made["said"] = (
            f"{count(len(frame), 'row')}: bars are least to largest with the median of each slice of time; rows with a "
            f"mark (the first {_FLAGGED}) and the 40 slowest stand one by one."
        )
    return made | {
        "at": rounded_list(at[index], 6),
        "ms": rounded_list(times[index]),
        "kind": kinds[index].tolist(),
        "flags": bits[index].tolist(),
        "row": [str(frame["sample_id"].iat[int(i)]) for i in index] if len(index) <= limit else [],
        "what": "generate()" if metric == "T_total" else "the whole request",
        "readings": _readings(frame, at),
        "counts": [int((kinds == place).sum()) for place in range(len(KINDS))],
    }


def _kinds(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Index into :data:`KINDS` of each row."""
    found = np.zeros(len(frame), dtype=np.int64)
    status, mode = frame["status"].astype(object), frame["mode"].astype(object)
    positions = pd.Series(np.arange(len(frame)), index=frame.index)
    found[positions[frames.repeated(frame).index]] = 1
    if frames.compares(frame):
        found[~frame["intervention"].eq(frames.BASELINE).fillna(True).to_numpy(dtype=bool)] = 6
    found[(mode == "bare").to_numpy()] = 2
    found[(mode == "trace").to_numpy()] = 3
    found[status.isin(["cold", "warmup"]).to_numpy()] = 4
    found[status.isin(_FAILED).to_numpy()] = 5
    return found


def _bins(
    at: NDArray[np.float64], times: NDArray[np.float64], kinds: NDArray[np.int64], index: NDArray[np.int64]
) -> list[list[Any]]:
    edges = np.linspace(at[index].min(), at[index].max(), _BINS + 1)
    slot = np.clip(np.searchsorted(edges, at[index], side="right") - 1, 0, _BINS - 1)
    table = pd.DataFrame({"slot": slot, "kind": kinds[index], "ms": times[index]}).dropna()
    found = table.groupby(["kind", "slot"])["ms"].agg(["min", "median", "max", "size"])
    return [
        [int(kind), rounded((edges[place] + edges[place + 1]) / 2, 6), *rounded_list(line[:3]), int(line[3])]
        for (kind, place), line in zip(found.index, found.to_numpy(), strict=True)
    ]


def _readings(frame: pd.DataFrame, at: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Readings of the device over time: the mean of each slice, at most 240 of them."""
    made = []
    for column, unit, name in _READINGS:
        data = frames.values(frame, column)
        good = np.isfinite(data) & np.isfinite(at)
        if not good.any():
            continue
        edges = np.linspace(at[good].min(), at[good].max() + 1e-9, min(_BINS, int(good.sum())) + 1)
        slot = np.clip(np.searchsorted(edges, at[good], side="right") - 1, 0, len(edges) - 2)
        mean = pd.Series(data[good]).groupby(slot).mean()
        middle = (edges[:-1] + edges[1:]) / 2
        made.append(
            {
                "name": name,
                "unit": unit,
                "low": rounded(data[good].min()),
                "high": rounded(data[good].max()),
                "at": rounded_list(middle[mean.index.to_numpy()], 6),
                "y": rounded_list(mean.to_numpy()),
            }
        )
    return made

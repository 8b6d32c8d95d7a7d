"""Each stage against what the device can do: arithmetic intensity and achieved rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.slices import timing_rows

STAGE_COSTS: Mapping[str, str] = {
    "T_vision_encoder": "vision_encoder",
    "T_projector": "projector",
    "T_LLM_prefill": "llm_prefill",
    "T_LLM_decode": "llm_decode",
}
"""Stage to the suffix of its ``flops_*``, ``bytes_*``, ``floor_ms_*`` and ``launch_bound_*`` columns."""


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a device can do at most.

    Args:
        flops_per_s: FLOP/s in the dtype of the run.
        bytes_per_s: memory bandwidth.
        source: where the numbers come from.
    """

    flops_per_s: float
    bytes_per_s: float
    source: str = ""

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on computing, not memory, is the limit."""
        return self.flops_per_s / self.bytes_per_s

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Peaks | None:
        """From ``device_peaks`` of a provenance (at its top or in ``device``); None where they are not known."""
        for place in (provenance, provenance.get("device") or {}):
            found = place.get("device_peaks")
            if isinstance(found, Mapping) and found.get("flops_per_s") and found.get("bytes_per_s"):
                return cls(
                    flops_per_s=float(found["flops_per_s"]),
                    bytes_per_s=float(found["bytes_per_s"]),
                    source=str(found.get("source") or ""),
                )
        return None


def roofline_table(frame: pd.DataFrame, peaks: Peaks | None = None) -> pd.DataFrame:
    """One row a sweep point and stage, medians over the repeats.

    Returns:
        ``point_id``, ``stage``, ``time_ms``, ``flops``, ``bytes``, ``intensity`` (FLOP per byte), ``flops_per_s``,
        ``bytes_per_s`` achieved, ``launch_bound`` (share of the time that the device idles, from trace rows; NaN
        without), and, with ``peaks``, ``floor_ms``, ``over_floor`` and ``bound``: ``launch`` where the device idles for
        more than half of the time, else ``compute`` or ``memory``, whichever sets the floor.
    """
    rows = timing_rows(frame)
    tables = []
    for stage, suffix in STAGE_COSTS.items():
        names = {stage: "time_ms", f"flops_{suffix}": "flops", f"bytes_{suffix}": "bytes"}
        if "point_id" not in rows or not set(names) <= set(rows.columns):
            continue
        part = rows[["point_id", *names]].rename(columns=names)
        part = part[(part[list(names.values())] > 0).all(axis=1)].astype({"point_id": str})
        if part.empty:
            continue
        table = part.groupby("point_id", sort=False).median().reset_index()
        table.insert(1, "stage", stage)
        table["launch_bound"] = table["point_id"].map(_launch_bound(frame, suffix)).astype(float)
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=["point_id", "stage", "time_ms", "flops", "bytes", "intensity", "flops_per_s"])
    found = pd.concat(tables, ignore_index=True).astype({"time_ms": float, "flops": float, "bytes": float})
    found["intensity"] = found["flops"] / found["bytes"]
    found["flops_per_s"] = found["flops"] / found["time_ms"] * 1e3
    found["bytes_per_s"] = found["bytes"] / found["time_ms"] * 1e3
    if peaks is not None:
        compute, memory = found["flops"] / peaks.flops_per_s * 1e3, found["bytes"] / peaks.bytes_per_s * 1e3
        found["floor_ms"] = np.maximum(compute, memory)
        found["over_floor"] = found["time_ms"] / found["floor_ms"]
        bound = np.where(compute >= memory, "compute", "memory")
        found["bound"] = np.where(found["launch_bound"] > 0.5, "launch", bound)
    return found


def _launch_bound(frame: pd.DataFrame, suffix: str) -> dict[str, float]:
    """Median launch-bound share of each point, from the rows (of any mode) that carry it."""
    name = f"launch_bound_{suffix}"
    if name not in frame:
        return {}
    known = frame[frame[name].notna()]
    found = known.groupby(known["point_id"].astype(str))[name].median()
    return {str(point): float(value) for point, value in found.items()}

"""Each stage against what the device can do: arithmetic intensity and achieved rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.launch import launch_by_point
from vlmbench.analysis.slices import timing_rows
from vlmbench.cost.roofline import StageRoofline, stage_roofline
from vlmbench.machine.peaks import DevicePeaks

STAGE_COSTS: Mapping[str, str] = {
    "T_vision_encoder": "vision_encoder",
    "T_projector": "projector",
    "T_LLM_prefill": "llm_prefill",
    "T_LLM_decode": "llm_decode",
}
"""Stage to the suffix of its ``flops_*``, ``bytes_*``, ``mfu_*`` and ``mbu_*`` columns."""

_SHARES = (("flops", "mfu"), ("bytes", "mbu"))


def peaks_of(provenance: Mapping[str, Any], frame: pd.DataFrame | None = None) -> DevicePeaks | None:
    """What the device can do at most, as the run itself knew it; None where it did not.

    Args:
        provenance: ``device_peaks`` at its top or in ``device``: ``flops_per_s``, ``bytes_per_s``, ``source``.
        frame: rows of records, asked where the provenance says nothing: ``mfu_*`` and ``mbu_*`` are shares of the
            peaks, so they tell them.
    """
    device = provenance.get("device") or {}
    dtype = str((provenance.get("runtime") or {}).get("dtype") or "")
    for found in (provenance.get("device_peaks"), device.get("device_peaks")):
        if isinstance(found, Mapping) and found.get("flops_per_s") and found.get("bytes_per_s"):
            return DevicePeaks(
                device=str(found.get("device") or device.get("name") or ""),
                dtype=str(found.get("dtype") or dtype),
                flops_per_s=float(found["flops_per_s"]),
                bytes_per_s=float(found["bytes_per_s"]),
                source=str(found.get("source") or ""),
            )
    compute, memory = (None if frame is None else _peak_in_rows(frame, *names) for names in _SHARES)
    if compute is None or memory is None:
        return None
    return DevicePeaks(
        device=str(device.get("name") or ""), dtype=dtype, flops_per_s=compute, bytes_per_s=memory, source=""
    )


def _peak_in_rows(frame: pd.DataFrame, work: str, share: str) -> float | None:
    rows = timing_rows(frame)
    for stage, suffix in STAGE_COSTS.items():
        names = [stage, f"{work}_{suffix}", f"{share}_{suffix}"]
        if set(names) <= set(rows.columns):
            known = rows[names].astype(float)
            known = known[(known > 0).all(axis=1)]
            if len(known):
                time, amount, reached = (known[name] for name in names)
                return float((amount / (time / 1e3) / reached).median())
    return None


def roofline_table(frame: pd.DataFrame, peaks: DevicePeaks | None = None) -> pd.DataFrame:
    """One row a sweep point and stage, medians over the repeats.

    Returns:
        ``point_id``, ``stage``, ``time_ms``, ``flops``, ``bytes``, ``intensity`` (FLOP per byte), ``flops_per_s``,
        ``bytes_per_s`` achieved, ``launch_bound`` (share of the time that the device waits for the host, NaN without a
        kernel trace of the point), and, with ``peaks``, ``floor_ms``, ``over_floor`` and ``verdict`` of
        :func:`vlmbench.cost.roofline.stage_roofline`.
    """
    waiting = _launch_bound(frame)
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
        shares = [waiting.get((point, stage), math.nan) for point in table["point_id"]]
        table["launch_bound"] = np.array(shares, dtype=float)
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=["point_id", "stage", "time_ms", "flops", "bytes", "intensity", "flops_per_s"])
    found = pd.concat(tables, ignore_index=True).astype({"time_ms": float, "flops": float, "bytes": float})
    found["intensity"] = found["flops"] / found["bytes"]
    found["flops_per_s"] = found["flops"] / found["time_ms"] * 1e3
    found["bytes_per_s"] = found["bytes"] / found["time_ms"] * 1e3
    if peaks is not None:
        lines = [_judge(row, peaks) for row in found.to_dict("records")]
        for name in ("floor_ms", "over_floor", "verdict"):
            found[name] = [getattr(line, name) for line in lines]
    return found


def _judge(row: Mapping[Any, Any], peaks: DevicePeaks) -> StageRoofline:
    waiting = float(row["launch_bound"])
    return stage_roofline(
        STAGE_COSTS[row["stage"]],
        round(row["flops"]),
        round(row["bytes"]),
        peaks,
        measured_ms=float(row["time_ms"]),
        busy_share=None if math.isnan(waiting) else 1 - waiting,
    )


def _launch_bound(frame: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(point, stage) to the share of its time that the device waits for the host."""
    if not {"point_id", "sample_id", "mode", "busy_total"} <= set(frame.columns):
        return {}
    table = launch_by_point(frame)
    names = {suffix.removeprefix("T_"): suffix for suffix in STAGE_COSTS}
    return {
        (str(row["point_id"]), names[row["stage"]]): float(row["launch_bound"])
        for row in table.to_dict("records")
        if row["stage"] in names
    }

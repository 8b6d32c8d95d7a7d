"""What each stage's work needs at least on its device (its floor), against the time it took; workload runs only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.derived import mbu, mfu, needed
from vlmbench.analysis.frames import sample_codes, values, workload
from vlmbench.analysis.launch_bound import launch_by_point, launch_table
from vlmbench.analysis.quantiles import median
from vlmbench.analysis.slices import timing_rows
from vlmbench.cost.roofline import StageRoofline, stage_roofline
from vlmbench.machine.peaks import DevicePeaks, table_peaks
from vlmbench.schema import TIME_OF_COST
from vlmbench.text import digits, factor, ms, span

# Each stage against what the device can do: arithmetic intensity and achieved rates.

STAGE_COSTS: Mapping[str, str] = {time: suffix for suffix, time in TIME_OF_COST.items()}
"""Stage to the suffix of its ``flops_*``, ``bytes_*``, ``mfu_*`` and ``mbu_*`` columns."""

_SHARES = (("flops", "mfu"), ("bytes", "mbu"))


def peaks_of(provenance: Mapping[str, Any], frame: pd.DataFrame | None = None) -> DevicePeaks | None:
    """What the device can do at most, as the run itself knew it; None where it did not.

    Args:
        provenance: ``device_peaks`` at its top or in ``device``: ``flops_per_s``, ``bytes_per_s``, ``source``.
        frame: rows of records, asked where the provenance says nothing: rows of release 0.1 hold ``mfu_*`` and
            ``mbu_*``, shares of the peaks, from which these follow.
    """
    device = provenance.get("device") or {}
    dtype = str((provenance.get("runtime") or {}).get("dtype") or "")
    for found in (provenance.get("device_peaks"), device.get("device_peaks")):
        if isinstance(found, Mapping) and found.get("flops_per_s") and found.get("bytes_per_s"):
            peaks = DevicePeaks(
                device=str(found.get("device") or device.get("name") or ""),
                dtype=str(found.get("dtype") or dtype),
                flops_per_s=float(found["flops_per_s"]),
                bytes_per_s=float(found["bytes_per_s"]),
                source=str(found.get("source") or ""),
            )
            return replace(peaks, source=_source_today(peaks))
    compute, memory = (None if frame is None else _peak_in_rows(frame, *names) for names in _SHARES)
    if compute is None or memory is None:
        return None
    return DevicePeaks(
        device=str(device.get("name") or ""), dtype=dtype, flops_per_s=compute, bytes_per_s=memory, source=""
    )


def _source_today(peaks: DevicePeaks) -> str:
    """Where peaks come from: what the run stored, or what the table of devices says of the same figures since then."""
    known = table_peaks(peaks.device, peaks.dtype).peaks
    if known is None:
        return peaks.source
    devices = peaks.flops_per_s / known.flops_per_s
    if not devices.is_integer() or devices * known.bytes_per_s != peaks.bytes_per_s:
        return peaks.source
    return known.source if devices == 1 else f"{devices:.0f} x ({known.source})"


def _peak_in_rows(frame: pd.DataFrame, work: str, share: str) -> float | None:
    kinds = [name for name in ("status", "mode") if name in frame]
    for stage, suffix in STAGE_COSTS.items():
        names = [stage, f"{work}_{suffix}", f"{share}_{suffix}"]
        if set(names) <= set(frame.columns) and frame[names].notna().any().all():
            known = timing_rows(frame[[*kinds, *names]])[names].astype(float)
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
        kernel trace of the point), and, with ``peaks``, ``floor_ms``, ``over_floor``, ``mfu``, ``mbu`` and ``verdict``
        of :func:`vlmbench.cost.roofline.stage_roofline`.
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
        for name in ("floor_ms", "over_floor", "mfu", "mbu", "verdict"):
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


COLUMNS: tuple[str, ...] = (
    *(f"{kind}_{stage}" for kind in ("flops", "bytes", "floor_ms") for stage in (*STAGE_COSTS.values(), "total")),
    "flops_llm_prefill_needed",
    *(f"{kind}_{stage}" for kind in ("mfu", "mbu") for stage in STAGE_COSTS.values()),
)
"""What :func:`vlmbench.analysis.frames.load_runs` must read here beside stage times; shares: of old rows only."""

WHOLE = "T_total"
_TIMES: Mapping[str, str] = {**STAGE_COSTS, WHOLE: "total"}
_TABLE = [
    "component", "n", "flops", "bytes", "time_ms", "floor_ms",
    "over_floor", "over_floor_low", "over_floor_high", "mfu", "mbu", "verdict",
]  # fmt: skip


def floor_table(frame: pd.DataFrame, peaks: DevicePeaks | None = None) -> pd.DataFrame:
    """FLOPs, floor and measured time of each stage, and of the whole, over the workload's measured runs.

    Args:
        frame: rows of a run with :data:`COLUMNS`.
        peaks: of the device; without them there is no verdict.

    Returns:
        One row a stage that has FLOPs, and one for ``T_total``: ``component``; ``n`` runs; medians of ``flops``,
        ``bytes`` (the fewest that must move), ``time_ms`` and ``floor_ms``; ``over_floor``, the median of each run's
        own time over its own floor, with interval; ``mfu`` and ``mbu``, medians of the achieved shares of peak compute
        and of peak bandwidth; ``verdict``, what keeps it above its floor. ``floor_ms`` and what follows are None where
        the device's peaks were not known; the whole has neither shares nor verdict.
    """
    rows = workload(frame)
    codes = sample_codes(rows)
    waiting = {f"T_{row['stage']}": float(row["launch_bound"]) for row in launch_table(frame).to_dict("records")}
    table = []
    for component, suffix in _TIMES.items():
        flops, moved, floor = (_median(values(rows, f"{kind}_{suffix}")) for kind in ("flops", "bytes", "floor_ms"))
        time = values(rows, component)
        if flops is None or not flops > 0 or np.isnan(time).all():
            continue
        least = values(rows, f"floor_ms_{suffix}")
        # A floor of 0 is no work, and no factor.
        over = median(time / np.where(least > 0, least, np.nan), clusters=codes)
        middle = _median(time)
        verdict = compute = bandwidth = None
        if peaks is not None and component != WHOLE and moved is not None:
            compute, bandwidth = (_median(share(rows, suffix, peaks)) for share in (mfu, mbu))
            share = waiting.get(component)
            verdict = stage_roofline(
                suffix, round(_median(needed(rows, suffix)) or flops), round(moved), peaks,
                measured_ms=middle, busy_share=None if share is None else 1 - share,
            ).verdict  # fmt: skip
        number = int((~np.isnan(time)).sum())
        table.append(
            (
                component,
                number,
                flops,
                moved,
                middle,
                floor,
                over.value,
                over.low,
                over.high,
                compute,
                bandwidth,
                verdict,
            )
        )
    return pd.DataFrame(table, columns=_TABLE)


def _median(data: Any) -> float | None:
    good = data[~np.isnan(data)]
    return float(np.median(good)) if len(good) else None


def floor_sentences(cost: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """The finding in words.

    Args:
        cost: ``stages`` (rows of :func:`floor_table`) and ``peaks`` (mapping with ``source``, or None).
    """
    stages = [row for row in cost["stages"] if row["over_floor"] is not None]
    if not stages:
        unknown = "the device's peaks are not known" if cost["stages"] else ""
        return [f"How far above the least possible time that is, is not known: {unknown}."] if unknown else []
    sentences = []
    whole = next((row for row in stages if row["component"] == WHOLE), None)
    if whole is not None:
        sentences.append(
            f"At the device's peak rates the work of generate() ({digits(whole['flops'] / 1e9)} GFLOP) needs at least "
            f"{ms(whole['floor_ms'])}, its floor; it takes {_factor(whole)} that."
        )
    parts = [row for row in stages if row["component"] != WHOLE]
    listed = (f"{labels.get(r['component'], r['component'])} {factor(r['over_floor'])}{_why(r)}" for r in parts)
    sentences.append(f"By stage, time over floor: {'; '.join(listed)}.")
    below = [labels.get(r["component"], r["component"]) for r in parts if r["over_floor"] < 1]
    if below:
        sentences.append(
            f"Below its floor: {', '.join(below)}. No work is faster than its device, so the peaks "
            f"({cost['peaks']['source'] or 'as recorded'}) are too low here: take floors as rough."
        )
    return sentences


def _factor(row: Mapping[str, Any]) -> str:
    inside = span(row["over_floor_low"], row["over_floor_high"], "×")
    return f"{factor(row['over_floor'])}{f' ({inside})' if inside else ''}"


def _why(row: Mapping[str, Any]) -> str:
    return f" ({short_verdict(row['verdict'])})" if row["verdict"] else ""


def short_verdict(verdict: str) -> str:
    """A verdict of :mod:`vlmbench.cost.roofline` without the brackets that say what is not told apart."""
    return verdict.partition(" (")[0]

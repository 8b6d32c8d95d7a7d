"""What follows from a row's raw values and the device's peaks: shares of the peaks, intensity, distance to the floor.

Rows hold FLOPs, bytes, times and floors; the provenance holds the peaks. Everything here is computed when rows are
read, so that a better peak, or a trace made later, changes no stored file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.frames import values
from vlmbench.cost.roofline import stage_roofline
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.schema import TIME_OF_COST

Array = NDArray[np.float64]


def intensity(frame: pd.DataFrame, stage: str) -> Array:
    """Compute FLOPs per byte, shape (rows,); NaN where a row lacks either, or moves nothing.

    Args:
        frame: rows of records.
        stage: suffix of ``flops_*``: ``llm_prefill``.
    """
    return _over(values(frame, f"flops_{stage}"), values(frame, f"bytes_{stage}"))


def mfu(frame: pd.DataFrame, stage: str, peaks: DevicePeaks) -> Array:
    """Compute the achieved share of the peak compute rate, by the FLOPs that are needed, shape (rows,).

    Args:
        frame: rows of records.
        stage: suffix of ``flops_*``.
        peaks: of the device, in the dtype of the run.
    """
    return _over(needed(frame, stage) / peaks.flops_per_s * 1e3, values(frame, TIME_OF_COST[stage]))


def needed(frame: pd.DataFrame, stage: str) -> Array:
    """Read the FLOPs that a stage cannot leave out, shape (rows,): all of them where rows say nothing less.

    Causal attention needs half of its square; rows of release 0.1 have the whole only.
    """
    full, least = values(frame, f"flops_{stage}"), values(frame, f"flops_{stage}_needed")
    return np.where(np.isnan(least), full, least)


def mbu(frame: pd.DataFrame, stage: str, peaks: DevicePeaks) -> Array:
    """Compute the achieved share of the peak memory bandwidth, shape (rows,); arguments as of :func:`mfu`."""
    return _over(values(frame, f"bytes_{stage}") / peaks.bytes_per_s * 1e3, values(frame, TIME_OF_COST[stage]))


def over_floor(frame: pd.DataFrame, stage: str) -> Array:
    """Compute how many times its floor a stage took, shape (rows,); NaN without a floor, or where it is 0 (no work)."""
    return _over(values(frame, TIME_OF_COST[stage]), values(frame, f"floor_ms_{stage}"))


def with_derived(
    frame: pd.DataFrame, peaks: DevicePeaks | None, *, busy_share: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Add ``intensity_*``, ``over_floor_*`` and, with peaks, ``mfu_*``, ``mbu_*`` and ``verdict_*`` to rows.

    Args:
        frame: rows of records; columns of these names that old files hold are replaced where they can be computed.
        peaks: of the device, in the dtype of the run; None where they are not known.
        busy_share: stage (``llm_decode``) to the share of its time with a kernel running, 0 … 1, from traced runs.

    Returns:
        A new frame; a stage without FLOPs in any row adds nothing.
    """
    found: dict[str, object] = {}
    for stage in TIME_OF_COST:
        if np.isnan(values(frame, f"flops_{stage}")).all():
            continue
        found[f"intensity_{stage}"] = intensity(frame, stage)
        if not np.isnan(values(frame, f"floor_ms_{stage}")).all():
            found[f"over_floor_{stage}"] = over_floor(frame, stage)
        if peaks is not None:
            found[f"mfu_{stage}"], found[f"mbu_{stage}"] = mfu(frame, stage, peaks), mbu(frame, stage, peaks)
            found[f"verdict_{stage}"] = _verdicts(frame, stage, peaks, (busy_share or {}).get(stage))
    kept = frame.drop(columns=[name for name in found if name in frame])
    return pd.concat([kept, pd.DataFrame(found, index=frame.index)], axis=1)


def _verdicts(frame: pd.DataFrame, stage: str, peaks: DevicePeaks, busy: float | None) -> list[str | None]:
    moved_and_time = (values(frame, name) for name in (f"bytes_{stage}", TIME_OF_COST[stage]))
    columns = zip(needed(frame, stage), *moved_and_time, strict=True)
    return [
        None
        if np.isnan([flops, moved, time]).any()
        else stage_roofline(stage, round(flops), round(moved), peaks, measured_ms=float(time), busy_share=busy).verdict
        for flops, moved, time in columns
    ]


def _over(above: Array, below: Array) -> Array:
    """Divide; NaN where the divisor is not positive."""
    return above / np.where(below > 0, below, np.nan)

"""The roofline of a stage: the least time its work can take, and what keeps the measured time above it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlmbench.cost.bytes import StageBytes
from vlmbench.cost.stage_costs import StageFlops
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.schema import COST_STAGES

NEAR_FLOOR = 0.5
"""A stage that reaches at least this share of its floor is called bound by what sets the floor."""

MOSTLY_BUSY = 0.5
"""Below this share of time with kernels running, a stage far above its floor is called launch-bound."""

COMPUTE, MEMORY, LAUNCH = "compute-bound", "memory-bound", "launch-bound"
UNTOLD = "launch- or latency-bound (not told apart)"


@dataclass(frozen=True, kw_only=True)
class StageRoofline:
    """One stage against its device's peaks.

    Args:
        stage: its name.
        flops, bytes: its work and least traffic.
        floor_ms: ``max(flops / peak, bytes / bandwidth)``.
        floor_by: ``compute-bound`` or ``memory-bound``: which of the two sets the floor.
        intensity: FLOPs per byte; None without traffic.
        measured_ms: time of the stage; None in a prediction.
        mfu: achieved share of the compute peak.
        mbu: achieved share of the bandwidth.
        over_floor: measured time over floor.
        verdict: what the stage is bound by; for a prediction, what it would be at its best.
    """

    stage: str
    flops: int
    bytes: int
    floor_ms: float
    floor_by: str
    intensity: float | None
    measured_ms: float | None
    mfu: float | None
    mbu: float | None
    over_floor: float | None
    verdict: str


def stage_roofline(
    stage: str,
    flops: int,
    moved: int,
    peaks: DevicePeaks,
    *,
    measured_ms: float | None = None,
    busy_share: float | None = None,
) -> StageRoofline:
    """Judge one stage.

    Args:
        flops: its FLOPs.
        moved: the fewest bytes it must move.
        peaks: of the device, in the dtype of the run.
        busy_share: share of that time with a kernel running on the device (from the kernel-trace pass), 0 … 1.
    """
    compute_ms, memory_ms = flops / peaks.flops_per_s * 1e3, moved / peaks.bytes_per_s * 1e3
    floor_ms = max(compute_ms, memory_ms)
    floor_by = COMPUTE if compute_ms >= memory_ms else MEMORY
    timed = measured_ms is not None and measured_ms > 0
    return StageRoofline(
        stage=stage,
        flops=flops,
        bytes=moved,
        floor_ms=floor_ms,
        floor_by=floor_by,
        intensity=flops / moved if moved else None,
        measured_ms=measured_ms,
        mfu=compute_ms / measured_ms if timed and measured_ms else None,
        mbu=memory_ms / measured_ms if timed and measured_ms else None,
        over_floor=measured_ms / floor_ms if timed and measured_ms and floor_ms else None,
        verdict=_verdict(floor_ms, floor_by, measured_ms, busy_share),
    )


def _verdict(floor_ms: float, floor_by: str, measured_ms: float | None, busy_share: float | None) -> str:
    if measured_ms is None:
        return floor_by if floor_ms > 0 else "no work"
    if measured_ms <= 0:
        return "no time measured"
    if floor_ms / measured_ms >= NEAR_FLOOR:
        return floor_by
    if busy_share is None:
        return UNTOLD
    if busy_share < MOSTLY_BUSY:
        return LAUNCH
    return f"{floor_by}, by kernels far from the floor"


def rooflines(
    flops: StageFlops,
    moved: StageBytes,
    peaks: DevicePeaks,
    *,
    measured_ms: Mapping[str, float] | None = None,
    busy_share: Mapping[str, float] | None = None,
) -> dict[str, StageRoofline]:
    """Judge every stage that has work: stage name to its roofline. Arguments as of :func:`stage_roofline`, by stage."""
    work, traffic = flops.by_stage(), moved.by_stage()
    return {
        stage: stage_roofline(
            stage,
            work[stage],
            traffic[stage],
            peaks,
            measured_ms=(measured_ms or {}).get(stage),
            busy_share=(busy_share or {}).get(stage),
        )
        for stage in COST_STAGES
        if work[stage] or traffic[stage]
    }

"""Phase 2 (experiments 2 and 4A): time against vision, prompt tokens, images or batch; FLOPs against latency."""

from __future__ import annotations

from pathlib import Path

from vlmbench.report.scaling_report import ScalingReport, write_scaling

PHASE2_EXPERIMENT = "phase2_scaling"
PHASE2_FILE = f"{PHASE2_EXPERIMENT}.json"


def write_phase2(directory: Path | str) -> ScalingReport:
    """Write ``summary.json``, ``phase2_scaling.json``, the latency model and ``figures/`` of a run directory.

    Raises:
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    return write_scaling(directory, experiment=PHASE2_EXPERIMENT)

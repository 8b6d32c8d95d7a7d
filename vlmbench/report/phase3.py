"""Phase 3 (experiment 4B): time against forced output lengths."""

from __future__ import annotations

from pathlib import Path

from vlmbench.report.scaling_report import ScalingReport, write_scaling

PHASE3_EXPERIMENT = "exp4b_language_tokens"
PHASE3_FILE = f"{PHASE3_EXPERIMENT}.json"


def write_phase3(directory: Path | str) -> ScalingReport:
    """Write ``summary.json``, ``exp4b_language_tokens.json``, the latency model and ``figures/`` of a run directory.

    Raises:
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    return write_scaling(directory, experiment=PHASE3_EXPERIMENT)

"""Reports: tables and pages made of records."""

from __future__ import annotations

from pathlib import Path


def write_report(kind: str, directory: Path) -> str:
    """Write what an experiment promises (summary, phase file, figures); returns the answer in words.

    Args:
        kind: phase1, phase2, phase3 or none.
        directory: a run directory.
    """
    if kind == "phase1":
        from vlmbench.report.phase1 import write_phase1

        return write_phase1(directory).text
    if kind == "phase2":
        from vlmbench.report.phase2 import write_phase2

        return write_phase2(directory).text
    if kind == "phase3":
        from vlmbench.report.phase3 import write_phase3

        return write_phase3(directory).text
    return ""

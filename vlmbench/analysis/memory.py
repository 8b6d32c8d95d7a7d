"""Peak memory of each stage, from the runs that were made for it (mode ``trace``)."""

from __future__ import annotations

import pandas as pd

from vlmbench.analysis import rows

MEMORY_STAGES = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")
KINDS = ("allocated", "reserved")


def column(kind: str, stage: str) -> str:
    """``peak_allocated_LLM_prefill_bytes`` of ``allocated`` and ``T_LLM_prefill``."""
    return f"peak_{kind}_{stage.removeprefix('T_')}_bytes"


COLUMNS: tuple[str, ...] = tuple(column(kind, stage) for kind in KINDS for stage in MEMORY_STAGES)
"""What the probe ``memory_stages`` writes."""


def memory_by_stage(frame: pd.DataFrame) -> pd.DataFrame:
    """The most memory that each stage took in any run.

    Args:
        frame: rows of records.

    Returns:
        One row a stage that was watched, in the order they run: ``stage``, ``runs``, ``allocated_bytes`` (in tensors,
        weights included), ``reserved_bytes`` (held by the allocator), ``point_id`` of the run that allocated most. No
        rows where memory was not watched by stage: on a CPU, or without the probe.
    """
    traced = rows.measured(frame, "trace")
    found = []
    for stage in MEMORY_STAGES:
        allocated, reserved = (column(kind, stage) for kind in KINDS)
        known = traced[traced[allocated].notna()] if allocated in traced else traced.iloc[:0]
        if known.empty:
            continue
        held = known[reserved].max() if reserved in known else None
        found.append(
            {
                "stage": stage,
                "runs": len(known),
                "allocated_bytes": int(known[allocated].max()),
                "reserved_bytes": None if held is None or pd.isna(held) else int(held),
                "point_id": str(known["point_id"].iloc[int(known[allocated].argmax())]),
            }
        )
    names = ("stage", "runs", "allocated_bytes", "reserved_bytes", "point_id")
    return pd.DataFrame(found, columns=list(names)).astype({"reserved_bytes": object})

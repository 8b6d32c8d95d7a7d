"""What is inside a latency that a run prints: the labels that a table of a paper owes its reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from vlmbench.analysis import frames
from vlmbench.analysis.quantiles import median

_KERNELS = ("vision_encoder", "LLM_prefill", "LLM_decode")


def latency_scope(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data for ``tables/latency_scope``: inside and outside, lengths, batch, kernels, clocks, n, interval.

    Args:
        frame: rows of a run.
        provenance: content of ``provenance.json``.
    """
    rows = frames.measured(frame)
    model = provenance.get("model") or {}
    total = median(frames.values(rows, "T_total")) if "T_total" in rows else None
    kernels = {tower: _only(rows, f"attention_kernel_{tower}") for tower in _KERNELS}
    return {
        "model": model.get("name"),
        "weights": model.get("weights"),
        "dtype": model.get("dtype"),
        "attention": model.get("attention"),
        "attention_by_tower": {tower: words for tower, words in kernels.items() if words},
        "output_tokens": _range(rows, "num_output_tokens"),
        "input_tokens": _range(rows, "num_input_tokens"),
        "vision_tokens": _range(rows, "num_vision_tokens"),
        "batch_size": _range(rows, "batch_size"),
        "output_forced": _only(rows, "output_forced"),
        "sm_clock_mhz": _range(rows, "sm_clock_after_mhz"),
        "runs": len(rows),
        "requests": int(rows[["point_id", "sample_id"]].drop_duplicates().shape[0]),
        "warmup_runs": int(frame["status"].isin(["warmup", "cold"]).sum()),
        "T_total": None if total is None else total.as_dict(),
    }


def _range(rows: pd.DataFrame, column: str) -> list[float] | None:
    if column not in rows or not rows[column].notna().any():
        return None
    return [float(rows[column].min()), float(rows[column].max())]


def _only(rows: pd.DataFrame, column: str) -> str:
    """The value that all rows have, those that some have joined; empty where none has one."""
    if column not in rows:
        return ""
    return "; ".join(sorted({str(value) for value in rows[column].dropna().unique()}))

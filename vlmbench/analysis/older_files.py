"""Phase files of the study before this one: top-level ``results`` rows with ``T_total`` and token counts, in ms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.errors import InputError

_OUTPUT_NAMES = ("num_output_tokens", "num_generated_tokens", "max_new_tokens")
_COUNTS = ("num_vision_tokens", *_OUTPUT_NAMES)
_PROVENANCE_NAMES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("model", "name"): ("model_name", "model_path", "model_id", "model"),
    ("device", "name"): ("device_name", "gpu_name", "gpu", "device"),
    ("runtime", "dtype"): ("dtype", "torch_dtype", "precision"),
    ("runtime", "attention"): ("attn_implementation", "attention"),
}


def older_frame(file: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the older shape with the names that analysis knows, and notes on what they cannot tell.

    ``T_total`` and one count are needed; every other key is optional. Rows without a ``T_total`` are left out.

    Raises:
        InputError: no row has what is needed; the message lists the keys that are there.
    """
    frame = pd.DataFrame([{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows])
    counts = [name for name in _COUNTS if name in frame]
    if "T_total" not in frame or not counts:
        raise InputError(
            f"'{file}' has no schema_version, and its rows lack {'T_total' if counts else ' or '.join(_COUNTS[:2])} "
            f"(they have {', '.join(sorted(map(str, frame.columns))[:12])}).\n"
            "Rows of older files need T_total (ms) and num_vision_tokens or max_new_tokens."
        )
    for name in frame.columns:
        if str(name).startswith(("T_", "num_", "flops_", "max_new_tokens")):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    notes = ["older file: its device, weights and runtime are only as well known as it says"]
    timed = frame["T_total"].notna()
    if not timed.all():
        notes.append(f"{int((~timed).sum())} rows without T_total are left out")
    frame = frame[timed].reset_index(drop=True)
    if frame.empty:
        raise InputError(f"'{file}' has no row with a number in T_total; nothing was measured there")
    output = next((name for name in _OUTPUT_NAMES if name in frame), None)
    if output is not None and output != "num_output_tokens":
        frame["num_output_tokens"] = frame[output]
        notes.append(f"output tokens are taken from '{output}', which the older file asked for and did not observe")
    notes.extend(_doubts(frame))
    if "status" not in frame:
        frame["status"] = "ok"
    return frame, notes


def _doubts(frame: pd.DataFrame) -> list[str]:
    doubts = []
    if "T_LLM_decode" in frame and "num_output_tokens" in frame:
        clamped = int(np.sum((frame["T_LLM_decode"] == 0) & (frame["num_output_tokens"] > 1)))
        if clamped:
            doubts.append(f"T_LLM_decode is 0 in {clamped} rows that generated tokens: it was subtracted and clamped")
    if "num_vision_tokens" in frame and "num_vision_patches" not in frame:
        doubts.append("its vision tokens may be encoder patches, of which the language model sees fewer")
    return doubts


def older_provenance(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Model, device and runtime, as far as the top level, ``config``, ``metadata`` or ``args`` of an older file say."""
    places = [content, *(content[k] for k in ("config", "metadata", "args") if isinstance(content.get(k), Mapping))]
    found: dict[str, dict[str, Any]] = {}
    for (part, name), keys in _PROVENANCE_NAMES.items():
        value = next((p[k] for p in places for k in keys if isinstance(p.get(k), str) and p[k]), None)
        if value is not None:
            found.setdefault(part, {})[name] = value.removeprefix("torch.")
    return found

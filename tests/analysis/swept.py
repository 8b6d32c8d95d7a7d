"""Rows of sweeps with planted laws: what was put in is known, so what comes out can be judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PROVENANCE: dict[str, Any] = {
    "model": {"name": "made-7b", "architecture": "Made", "weights": "random", "parameters": 7},
    "device": {"type": "cuda", "name": "Made GPU", "uuid": "GPU-0"},
    "runtime": {"dtype": "bfloat16", "attention": "sdpa", "compile": False},
    "fingerprint": "f",
}
VISION = (64, 128, 192, 256, 384, 512, 640, 768, 1024)
PROMPT = (16, 64, 128, 256, 512)
OUTPUT = (2, 8, 16, 32, 64, 128)
COUNTS = {
    "vision_tokens": "num_vision_tokens",
    "prompt_tokens": "num_prompt_tokens",
    "output_tokens": "num_output_tokens",
}

# The planted laws, ms.
SETUP, ENCODER, ENCODER_TOKEN, PREFILL, PREFILL_TOKEN, STEP = 2.0, 10.0, 0.02, 20.0, 0.03, 15.0


def stages(vision: int, prompt: int, output: int) -> dict[str, float]:
    """The times without noise."""
    return {
        "T_setup": SETUP,
        "T_vision_encoder": ENCODER + ENCODER_TOKEN * vision,
        "T_projector": 0.5,
        "T_LLM_prefill": PREFILL + PREFILL_TOKEN * (vision + prompt),
        "T_LLM_decode": STEP * (output - 1),
    }


def sweep(
    axis: str,
    values: Sequence[int],
    *,
    repeats: int = 6,
    noise: float = 0.002,
    seed: int = 0,
    base: tuple[int, int, int] = (576, 32, 8),
) -> list[dict[str, Any]]:
    """Rows of one sweep, rounds one after another, relative noise on every stage."""
    random, rows = np.random.default_rng(seed), []
    for repeat in range(repeats):
        for place, value in enumerate(values):
            counts = dict(zip(COUNTS.values(), base, strict=True)) | {COUNTS[axis]: value}
            vision, prompt, output = (counts[name] for name in COUNTS.values())
            times = {k: v * random.lognormal(0, noise) for k, v in stages(vision, prompt, output).items()}
            flops = {
                "flops_vision_encoder": 6e8 * vision,
                "flops_llm_prefill": 1.4e10 * (vision + prompt),
                "flops_llm_decode": 1.4e10 * (output - 1),
            }
            rows.append(
                {
                    "schema_version": 1,
                    "point_id": f"{axis}={value}",
                    "sample_id": "s",
                    "repeat": repeat,
                    "mode": "instrumented",
                    "status": "ok",
                    "session": 0,
                    "started_unix_s": 1e9 + repeat * 100 + place,
                    f"axis_{axis}": value,
                    **counts,
                    **times,
                    "T_residual": 0.0,
                    "T_total": sum(times.values()),
                    **flops,
                    "flops_total": sum(flops.values()),
                    "bytes_vision_encoder": 6e8,
                    "bytes_llm_prefill": 1.4e10,
                    "bytes_llm_decode": 1.4e10 * (output - 1),
                    "ITL": [STEP] * (output - 1),
                    "flags": [],
                    "reason": None,
                }
            )
    return rows


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a DataFrame, nested values left out."""
    return pd.DataFrame([{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows])


def one_stage(
    law: Callable[[Any], Any], x: Sequence[float], *, repeats: int, seed: int, noise: float = 0.5, scatter: float = 0.0
) -> pd.DataFrame:
    """``T_total = law(vision tokens)`` with noise on each run and ``scatter`` shared by the runs of a point."""
    random = np.random.default_rng(seed)
    tokens = np.repeat(np.asarray(x, dtype=float), repeats)
    shared = np.repeat(random.standard_normal(len(x)), repeats) * scatter
    time = law(tokens) + noise * random.standard_normal(len(tokens)) + shared
    return pd.DataFrame({"point_id": [f"p{v:g}" for v in tokens], "num_vision_tokens": tokens, "T_total": time})


def write_run(
    directory: Path, rows: list[dict[str, Any]], provenance: dict[str, Any] | None = PROVENANCE, *, torn: bool = False
) -> Path:
    """A run directory with records and provenance."""
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "records.jsonl").write_text(text + ('{"schema_version": 1, "point' if torn else ""))
    if provenance is not None:
        (directory / "provenance.json").write_text(json.dumps(provenance))
    return directory


def write_phase(path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A phase file; ``changes`` replace its top-level entries, None removes one."""
    content = {"schema_version": 1, "experiment_name": "made", "provenance": PROVENANCE, "summary": {}, "results": rows}
    content |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path

"""Run directories with planted times, so that every number of the analysis is known beforehand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmbench.schema import Mode, Record, Status

_ORDER = 0  # of the lengths: one in which neighbours do not resemble each other by chance

PROVENANCE: dict[str, Any] = {
    "model": {
        "name": "planted-vlm",
        "architecture": "planted",
        "weights": "random",
        "parameters": {
            "vision_encoder": 300_000_000,
            "projector": 20_000_000,
            "language_model": 6_500_000_000,
            "head": 130_000_000,
            "other": 0,
            "total": 6_950_000_000,
        },
    },
    "device": {"type": "cuda", "name": "Planted GPU"},
    "runtime": {"dtype": "bfloat16", "attention": "sdpa", "compile": False},
    "dataset": {"name": "planted_vqa"},
}


def row(
    point: str = "dataset",
    sample: str = "s0",
    *,
    repeat: int = 0,
    mode: Mode = Mode.INSTRUMENTED,
    status: Status = Status.OK,
    started: float = 0.0,
    setup: float = 1.0,
    vision: float | None = 8.0,
    projector: float | None = 1.0,
    prefill: float = 20.0,
    gaps: Iterable[float] = (10.0, 10.0, 10.0),
    loop_share: float = 0.3,
    residual: float = 0.0,
    host: float = 5.0,
    tokens: tuple[int, int] = (576, 20),
    scale: float = 1.0,
    flags: tuple[str, ...] = (),
    reason: str | None = None,
) -> dict[str, Any]:
    """One row as the store writes it; the times add up exactly, ``scale`` multiplies T_total of a bare run."""
    gaps = list(gaps)
    decode = sum(gaps)
    stages = {"T_setup": setup, "T_vision_encoder": vision, "T_projector": projector, "T_LLM_prefill": prefill}
    total = sum(v for v in stages.values() if v is not None) + decode + residual
    values: dict[str, Any] = {}
    if status in (Status.OK, Status.WARMUP, Status.COLD):
        values = {"T_total": total * scale, "num_output_tokens": len(gaps) + 1}
        if mode is Mode.INSTRUMENTED:
            first = sum(v for v in stages.values() if v is not None)
            values |= {
                **stages,
                "T_LLM_decode": decode,
                "T_decode_forward": decode * (1 - loop_share),
                "T_decode_loop": decode * loop_share,
                "T_residual": residual,
                "T_preprocess": host,
                "T_transfer": 0.5,
                "T_detokenize": 0.25,
                "T_request": total + host + 0.75,
                "TTFT": host + 0.5 + first,
                "TTFT_model": first,
                "ITL": gaps,
                "num_vision_tokens": tokens[0],
                "num_prompt_tokens": tokens[1],
                "num_input_tokens": sum(tokens),
                "num_cross_attention_tokens": None,
                "peak_rss_bytes": 2 * 2**30,
            }
    record = Record(
        point_id=point, sample_id=sample, repeat=repeat, mode=mode, status=status, started_unix_s=started,
        values=values, flags=flags, reason=reason,
    )  # fmt: skip
    return record.to_row()


def write(directory: Path, rows: Iterable[dict[str, Any]], provenance: dict[str, Any] | None = None) -> Path:
    """A run directory of these rows."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "records.jsonl").open("w") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    content = PROVENANCE if provenance is None else provenance
    (directory / "provenance.json").write_text(json.dumps(content))
    return directory


def usual(samples: int = 400, repeats: int = 400, seed: int = 1) -> Iterable[dict[str, Any]]:
    """A run as it comes out: cold and warm-up rows, a repeated request, a data set, bare runs, an error, a trace row.

    Output tokens from 2 to 33, in random order, at 10 ms a gap decide almost everything; every 100th sample has a pause
    of 500 ms.
    """
    noise = random.Random(seed)
    lengths = random.Random(_ORDER).sample([1 + i % 32 for i in range(samples)], samples)
    yield row("reference", "ref", status=Status.COLD, setup=9000.0)
    yield row("reference", "ref", status=Status.WARMUP, setup=900.0)
    for i in range(repeats):
        for mode in (Mode.INSTRUMENTED, Mode.BARE):
            gaps = [10.0 + noise.gauss(0, 0.05) for _ in range(15)]
            yield row("reference", "ref", repeat=i, mode=mode, gaps=gaps, started=2.0 * i)
    for i in range(samples):
        gaps = [10.0 + noise.gauss(0, 0.05) for _ in range(lengths[i])]
        pause = i % 100 == 50
        yield row(
            "dataset", f"s{i}", gaps=gaps, started=2.0 * i + 1, prefill=20.0 + (500.0 if pause else 0.0),
            tokens=(576, 20 + i % 7), residual=noise.gauss(0, 0.02), flags=("gc_pause",) if pause else (),
        )  # fmt: skip
    yield row("dataset", "broken", status=Status.ERROR, reason="cannot identify image file")
    yield row("dataset", "s0", mode=Mode.TRACE, setup=99999.0)

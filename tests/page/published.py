"""Run directories for the page: published rows, and made ones."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

from vlmbench.records.reading import RECORDS_NAME, opened, records_in
from vlmbench.report import write_report

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def unpack(source: str, target: Path) -> Path:
    """A published directory with its rows, if it has any, and its summary unpacked, without figures."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (RESULTS / source).glob("*.json"):
        shutil.copy(path, target)
    for path in (RESULTS / source).glob("*.gz"):
        (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    if (rows := records_in(RESULTS / source)) is not None:
        with opened(rows) as lines:
            (target / RECORDS_NAME).write_bytes(lines.read())
    return target


def study(target: Path) -> Path:
    """Phase 1, both sweeps and their comparison of one model in eager mode, as ``experiment=all`` leaves them."""
    unpack("archive/h200_llava_eager", target)
    unpack("archive/h200_llava_eager/phase1", target / "phase1")
    for part in ("phase2", "phase3"):
        unpack(f"archive/h200_llava_eager/{part}", target / part)
    return target


def grid(target: Path) -> Path:
    """Three models, as a grid leaves them."""
    eager = {"gemma": "archive/h200_gemma3_eager/phase1", "llava": "archive/h200_llava_eager/phase1"}
    for name, source in {**eager, "vqa_v2_layout": "vqa_v2_layout"}.items():
        unpack(source, target / name)
    return target


def renamed(source: Path, target: Path, **model: Any) -> Path:
    """The summary and provenance of a run under another model's name, without rows."""
    target.mkdir(parents=True)
    shutil.copy(source / "summary.json", target)
    provenance = copy.deepcopy(json.loads((source / "provenance.json").read_text()))
    provenance["model"].update(model)
    provenance["sessions"] = provenance.get("sessions", [])[:1]
    (target / "provenance.json").write_text(json.dumps(provenance))
    return target


def served(target: Path) -> Path:
    """A run against a server under three loads, made of planted rows, with its report."""
    target.mkdir(parents=True)
    lines = []
    for users, ttft in ((1, 40.0), (4, 60.0), (16, 400.0)):
        for i in range(200):
            wobble = 1 + ((i * 7919) % 101 - 50) / 500
            times = {
                "TTFT": ttft * wobble,
                "TPOT": 10.0,
                "T_request": ttft * wobble + 100,
                "T_end": ttft * wobble + 100,
            }
            counts = {
                "num_output_tokens": 11,
                "num_input_tokens": 120,
                "num_prompt_tokens": 20,
                "num_vision_tokens": 100,
            }
            lines.append(
                {
                    "schema_version": 1, "point_id": f"dataset,load.concurrency={users}",
                    "axis_load.concurrency": users, "sample_id": f"s{i}", "repeat": 0, "mode": "instrumented",
                    "status": "ok", "session": 0, "flags": [], "reason": None, "attempt": 0,
                    "started_unix_s": 1e9 + i, "due_s": 1000 + i / users, "T_late": 0.1,
                    "in_flight_at_start": users - 1, "coalesced_share": 0.0, "ITL": [10.0] * 10, **times, **counts,
                }
            )  # fmt: skip
    (target / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    load = {"name": "closed", "concurrency": 1, "rate_per_s": None, "arrivals": "poisson", "ttft_limit_ms": 100.0}
    provenance = {
        "model": {"name": "served-vlm", "endpoint": {"dialect": "vllm", "version": "0", "cache": "defeat"}},
        "config": {
            "load": load,
            "sweep": {"axes": {"load": {"concurrency": [1, 4, 16]}}},
            "runtime": {"devices": 1},
            "report": "phase1",
            "workload": "dataset",
        },
        "device": {"type": "cpu", "name": "client"},
    }
    (target / "provenance.json").write_text(json.dumps(provenance))
    write_report("phase1", target)
    return target

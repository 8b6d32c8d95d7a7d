"""Run directories for the page: published rows, and made ones."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def unpack(source: str, target: Path) -> Path:
    """A published run directory with its rows unpacked, without figures."""
    target.mkdir(parents=True)
    for path in (RESULTS / source).glob("*.json"):
        shutil.copy(path, target)
    packed = RESULTS / source / "records.jsonl.gz"
    if packed.is_file():
        (target / "records.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    return target


def study(target: Path) -> Path:
    """Phase 1, both sweeps and their comparison of one model in eager mode, as ``experiment=all`` leaves them."""
    unpack("h200_scaling_llava_1_5_7b/comparison", target)
    unpack("h200_llava_1_5_7b", target / "phase1")
    for part in ("phase2", "phase3"):
        unpack(f"h200_scaling_llava_1_5_7b/{part}", target / part)
    return target


def grid(target: Path) -> Path:
    """Three models, as a grid leaves them."""
    for name in ("h200_gemma3_4b", "h200_llava_1_5_7b", "vqa_v2_layout"):
        unpack(name, target / name)
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

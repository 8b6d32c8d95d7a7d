"""YAML and code that are edited between submit and start, on a copy of the package that the test may edit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_what_was_submitted_is_what_runs_and_changed_code_is_said(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("vlmbench", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "CUDA_VISIBLE_DEVICES": ""}
    grid = tmp_path / "grid"
    submit = [
        sys.executable, "-m", "vlmbench", "-m", "experiment=smoke", "report=none", "seed=3", "hydra/launcher=local",
        "dataset.num_samples=2", "output.tokens=2", f"output_dir={grid}",
    ]  # fmt: skip
    done = subprocess.run(submit, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = grid / "0_smoke"
    shutil.rmtree(run)  # as if the task had not started yet

    smoke = copy / "conf" / "experiment" / "smoke.yaml"
    smoke.write_text(smoke.read_text().replace("report: phase1", "report: nonsense"))
    config = copy / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: minus"))
    stopping = copy / "vlmbench" / "stopping.py"
    stopping.write_text(stopping.read_text() + "\n# edited while the job waited\n")

    (task,) = grid.glob(".vlmbench/*/tasks/*.json")
    start = f"from vlmbench.cli.node import main; main({str(task)!r})"
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert {row["max_new_tokens"] for row in rows if row["status"] == "ok"} == {2}
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["seed"] == 3
    assert any("code" in warning for warning in provenance["sessions"][0]["warnings"]), provenance["sessions"][0]
    assert "code" in done.stderr

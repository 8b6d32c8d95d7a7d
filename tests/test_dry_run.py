"""A dry run predicts every point and measures nothing."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmbench.dry_run import _uncollected

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_dry_run_of_a_72b_needs_neither_weights_nor_a_gpu(vlmbench: Run, tmp_path: Path) -> None:
    done = vlmbench(
        "experiment=phase2",
        "dry_run=true",
        "model=qwen2_5_vl_72b",
        "target_device=NVIDIA H200",
        "target_memory_gib=139",
        "sweep.axes.vision_tokens=[64,1024]",
        "+sweep.axes.batch_size=[1,64]",
        "output_dir=out",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "dry_run.json").read_text())
    points = {p["point_id"]: p for p in found["points"]}
    assert len(points) == 4
    small, large = points["vision_tokens=64,batch_size=1"], points["vision_tokens=1024,batch_size=64"]
    assert large["flops_total"] > 64 * small["flops_total"]
    assert small["floor_ms_median"] < small["expected_ms_median"]
    assert "do not fit in memory" in done.stdout
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_an_unknown_target_is_said_and_memory_still_predicted(vlmbench: Run, tmp_path: Path) -> None:
    done = vlmbench("experiment=smoke", "dry_run=true", "target_device=Abacus 9", "output_dir=out")
    assert done.returncode == 0, done.stderr
    assert "no times are predicted" in done.stderr
    assert "Abacus 9" in done.stderr
    assert json.loads((tmp_path / "out" / "dry_run.json").read_text())["peaks"] is None


def test_a_study_is_predicted_part_by_part(vlmbench: Run, tmp_path: Path) -> None:
    done = vlmbench("experiment=all", "dry_run=true", "output_dir=out")
    assert done.returncode == 0, done.stderr
    assert {p.parent.name for p in (tmp_path / "out").rglob("dry_run.json")} == {
        "phase1",
        "phase2",
        "prompt_tokens",
        "phase3",
    }


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_is_collected_again_afterwards(was_on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with _uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is was_on
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()

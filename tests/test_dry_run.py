"""A dry run predicts every point and measures nothing."""

from __future__ import annotations

import gc
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmbench.session.dry_run import _uncollected

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_dry_run_of_a_72b_needs_neither_weights_nor_a_gpu(vlmbench_here: Run, tmp_path: Path) -> None:
    done = vlmbench_here(
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


@pytest.mark.parametrize(
    ("device", "named"),
    [("Abacus 9", "allowed: V100-SXM2"), ("H200", "near it: H200-SXM, NVIDIA H200"), ("RTX9999", "RTX 4090")],
)
def test_an_unknown_target_is_refused_with_the_names_near_it(
    vlmbench_here: Run, tmp_path: Path, device: str, named: str
) -> None:
    done = vlmbench_here("experiment=smoke", "dry_run=true", f"target_device={device}", "output_dir=out")
    assert done.returncode == 2
    assert f"(got '{device}'; " in done.stderr
    assert named in done.stderr
    assert not (tmp_path / "out" / "dry_run.json").exists()


def test_skipped_points_stand_below_the_table_and_missing_times_are_explained(
    vlmbench_here: Run, tmp_path: Path
) -> None:
    done = vlmbench_here("experiment=phase2", "dry_run=true", "sweep.axes.vision_tokens=[1,2,64,256]", "output_dir=out")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith(" vision_tokens=")}
    assert len(rows) == 4
    assert rows["vision_tokens=1"][-1] == "skipped"
    assert rows["vision_tokens=64"][1] == "64"
    assert "\nSkipped: vision_tokens=2 cannot be reached within 2 % by" in done.stdout
    assert "No times are predicted: device 'cpu'" in done.stdout
    assert "device_peaks=measured" in done.stdout
    assert "All points: about" not in done.stdout
    assert f"Written to {Path('out', 'dry_run.json')};" in done.stdout
    assert "no slope over vision tokens can be fitted" in done.stderr
    assert "the 4 settings of this sweep make 2 (64, 256)" in done.stderr


def test_points_beyond_the_models_positions_are_noted(vlmbench_here: Run, tmp_path: Path) -> None:
    done = vlmbench_here("experiment=phase3", "dry_run=true", "sweep.axes={output_tokens:[8,40000]}", "output_dir=out")
    assert done.returncode == 0, done.stderr
    assert "\nNote: output_tokens=40000: " in done.stdout
    assert "positions that the model was made for" in done.stdout
    assert "Note: output_tokens=8" not in done.stdout


def test_the_default_sweep_asks_the_model(vlmbench_here: Run, tmp_path: Path) -> None:
    done = vlmbench_here(
        "experiment=phase2", "dry_run=true", "model=llava_1_5_7b", "target_device=H200-SXM", "target_memory_gib=14.5",
        "output_dir=out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no slope" not in done.stderr
    points = json.loads((tmp_path / "out" / "dry_run.json").read_text())["points"]
    assert [p["point_id"] for p in points] == [f"vision_tokens={576 * images}" for images in range(1, 7)]
    assert [p["axes"] for p in points] == [{"vision_tokens": 576 * images} for images in range(1, 7)]
    unfit = sum(not p["fits"] for p in points)
    assert 0 < unfit < 6, "the test means to see both"
    assert f"{unfit} of 6 points do not fit in memory." in done.stdout
    assert f"{6 - unfit} of 6 points: about " in done.stdout


def test_a_study_is_predicted_part_by_part(vlmbench_here: Run, tmp_path: Path) -> None:
    done = vlmbench_here("experiment=all", "dry_run=true", "output_dir=out")
    assert done.returncode == 0, done.stderr
    assert {p.parent.name for p in (tmp_path / "out").rglob("dry_run.json")} == {
        "phase1",
        "phase2",
        "prompt_tokens",
        "phase3",
    }


@pytest.mark.usefixtures("freezing")
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

"""The real command line, in a process of its own: exit status, messages, directories, resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
SMOKE = ("experiment=smoke", "dataset.num_samples=2", "output.tokens=2", "measurement.warmup.max_runs=2")


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The lines of the error output that are vlmbench's own words."""
    return done.stderr[done.stderr.index("vlmbench: ") :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=nope"], "'nope' must be one of the choices of experiment:"),
        (["modle=tiny"], "'modle' is not a key of the configuration; did you mean 'model'?"),
        (["measurement.repeatss=2"], "did you mean 'measurement.repeats'?"),
        (["+surprise=1"], "'surprise' is not a key of the configuration"),
        (["measurement.repeats=many"], "could not be converted to Integer"),
        (["measurement.repeats=0", "output.policy=x"], "'output.policy' must be one of auto, forced, natural (got 'x')\n"
         "'measurement.repeats' must be 1 or more (got 0)"),
        (["dataset.num_samples=-3"], "dataset: 'num_samples' must be 1 or more (got -3)"),
        (["sweep=vision_tokens", "sweep.axes.vision_tokens=[]"], "axis 'vision_tokens' has no values"),
        (["+sweep.axes.nope=[1]"], "axis 'nope' must be one of vision_tokens"),
        (["runtime.device=cuda:7x"], "(got 'cuda:7x')"),
        (["runtime.device=gpu"], "'runtime.device' must be one of auto, cpu, cuda, mps or cuda:N (got 'gpu')"),
        (["model.weights=half"], "model: 'weights' must be one of random, pretrained (got 'half')"),
        (["dataset=vqa_v2", "dataset.root=not/there"], "not/there"),
        (["dataset=image_folder", "dataset.root=."], "no image in"),
        (["model"], "Error parsing override"),
    ],
)  # fmt: skip
def test_bad_input_is_two_lines_and_status_2(vlmbench: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = vlmbench(*arguments, "output_dir=out")
    assert done.returncode == 2, done.stderr
    assert message in said(done)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.weights=pretrained", "model.path=."], "no config.json"),
        (["model.weights=pretrained", "model.hub_id=nobody/nothing"], "model.path=DIR"),
        (["runtime.device=cuda:9"], "cuda:9"),
        (["model=qwen2_5_vl_72b", "runtime.device=cpu", "runtime.dtype=float32"], "GiB"),
        (["workload=controlled", "measurement.base_sample=500"], "'measurement.base_sample' must be below"),
    ],
)
def test_what_shows_only_when_loading_is_status_2_too(vlmbench: Run, arguments: list[str], message: str) -> None:
    done = vlmbench("experiment=smoke", *arguments, "output_dir=out")
    assert done.returncode == 2, done.stderr
    assert message in said(done)
    assert "Traceback" not in done.stderr


def test_help_and_cfg_load_no_torch(vlmbench: Run) -> None:
    done = vlmbench("--help")
    assert done.returncode == 0
    for word in ("experiment:", "phase1", "model:", "tiny", "Examples:", "output_dir=DIR"):
        assert word in done.stdout
    assert vlmbench("--cfg", "job").returncode == 0
    code = "import sys; from vlmbench.cli import main\ntry:\n main()\nfinally:\n print('torch' in sys.modules, file=sys.stderr)"
    shown = subprocess.run([sys.executable, "-c", code, "--cfg", "job"], capture_output=True, text=True, check=False)
    assert shown.stderr.strip().endswith("False")


def test_a_run_leaves_what_it_promises_and_continues(vlmbench: Run, tmp_path: Path) -> None:
    first = vlmbench(*SMOKE, "output_dir=out")
    assert first.returncode == 0, first.stderr
    out = tmp_path / "out"
    for name in (
        ".hydra/config.yaml", ".hydra/overrides.yaml", "records.jsonl", "provenance.json", "summary.json",
        "phase1_dataset_profiling.json", "points.json", "outcome.json",
    ):  # fmt: skip
        assert (out / name).is_file(), name
    figures = {p.stem for p in (out / "figures").glob("*.png")}
    assert figures
    assert figures == {p.stem for p in (out / "figures").glob("*.pdf")}
    phase = json.loads((out / "phase1_dataset_profiling.json").read_text())
    assert list(phase) == ["schema_version", "experiment_name", "provenance", "summary", "results"]
    assert {row["status"] for row in phase["results"]} == {"ok"}
    rows = (out / "records.jsonl").read_text().splitlines()
    assert "How long does a request take?" in first.stdout

    again = vlmbench(*SMOKE, "output_dir=out")
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stderr
    assert (out / "records.jsonl").read_text().splitlines() == rows  # nothing is measured twice

    other = vlmbench(*SMOKE, "output.tokens=3", "output_dir=out")
    assert other.returncode == 2
    assert "output.tokens: 2 → 3" in said(other)
    assert (out / "records.jsonl").read_text().splitlines() == rows
    assert json.loads((out / "outcome.json").read_text())["state"] == "done"  # the earlier run's, untouched


def test_an_interrupted_run_is_130_and_resumes(vlmbench: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlmbench", *SMOKE, "dataset.num_samples=40", "output_dir=out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=environment)
        records = tmp_path / "out" / "records.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (records.exists() and '"ok"' in records.read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 130
    assert json.loads((tmp_path / "out" / "outcome.json").read_text())["state"] == "interrupted"
    done = vlmbench(*SMOKE, "dataset.num_samples=40", "output_dir=out")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    keys = [(r["point_id"], r["sample_id"], r["repeat"], r["mode"]) for r in rows if r["status"] == "ok"]
    assert len(keys) == len(set(keys))
    assert sum(k[0] == "dataset" and k[3] == "instrumented" for k in keys) == 40


def test_a_corrupt_image_is_a_row_and_status_1(vlmbench: Run, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (64, 48), (index * 50, 100, 100)).save(folder / f"{index}.jpg")
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:200])
    done = vlmbench(
        *SMOKE[:1], *SMOKE[2:], "dataset=image_folder", "dataset.root=images", "dataset.num_samples=3", "output_dir=out"
    )
    assert done.returncode == 1, done.stderr
    assert "1.jpg" in said(done)
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [r["sample_id"] for r in rows if r["status"] == "error"] == ["1.jpg"]


def test_multirun_keeps_each_job_apart_and_names_the_failed(vlmbench: Run, tmp_path: Path) -> None:
    done = vlmbench("-m", *SMOKE, "seed=1,2", "output_dir=grid")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "grid").iterdir() if p.is_dir()) == ["0_smoke", "1_smoke"]
    assert "2 of 2 jobs ok" in done.stderr
    bad = vlmbench(
        "-m", *SMOKE, "measurement.base_sample=0,900", "workload=controlled", "report=none", "output_dir=bad"
    )
    assert bad.returncode == 1
    assert "1_smoke: failed: 'measurement.base_sample'" in bad.stderr
    assert "1 of 2 jobs ok" in bad.stderr


@pytest.mark.slow
def test_multirun_with_submitit_local(vlmbench: Run, tmp_path: Path) -> None:
    done = vlmbench("-m", *SMOKE, "seed=1,2", "output_dir=grid", "hydra/launcher=submitit_local")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs ok" in done.stderr
    for name in ("0_smoke", "1_smoke"):
        assert (tmp_path / "grid" / name / "summary.json").is_file()


def test_anatomy_is_a_table(vlmbench: Run) -> None:
    done = vlmbench("experiment=anatomy")
    assert done.returncode == 0, done.stderr
    for word in ("vision_encoder", "projector", "language_model", "head"):
        assert word in done.stdout

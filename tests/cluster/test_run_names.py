"""Run directories are called by what the jobs of a multirun differ in; those begun before keep their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import command_line
from vlmbench.cli import run_names
from vlmbench.cli.run_names import in_a_path
from vlmbench.cluster.grid import Task, new_submission

SCALING = [
    ["experiment=phase2", f"model={model}", f"sweep={sweep}", "output.tokens=4", "hydra.launcher.gpus=1"]
    for model in ("llava_1_5_7b", "qwen2_5_vl_7b")
    for sweep in ("vision_tokens", "language_tokens")
]


@pytest.mark.parametrize(
    ("jobs", "names"),
    [
        (SCALING, [
            "llava_1_5_7b_vision_tokens", "llava_1_5_7b_language_tokens", "qwen2_5_vl_7b_vision_tokens",
            "qwen2_5_vl_7b_language_tokens",
        ]),
        ([["seed=1", "model=tiny"]], [""]),
        ([["seed=1"], ["seed=2"]], ["seed-1", "seed-2"]),
        ([["dataset.root=/data/a b"], ["dataset.root='/c/d'"]], ["root-a-b", "root-d"]),
        ([["~probe.memory"], ["+probe=kernels"], []], ["without-memory", "kernels", ""]),
        ([["+sweep.axes.images=[1,2]"], ["+sweep.axes.images=[4]"]], ["images-1-2", "images-4"]),
        ([["experiment=phase1", "model.path=~/x"], ["experiment=phase2", "model.path=~/x"]], ["", ""]),
        ([["runtime.compile=true"], ["runtime.compile=false"]], ["compile-true", "compile-false"]),
    ],
)  # fmt: skip
def test_what_differs(jobs: list[list[str]], names: list[str]) -> None:
    assert run_names.differences(jobs) == names


def test_names_are_short_and_plain() -> None:
    (name, _) = run_names.differences([[f"dataset.k{i}={'é/x' * 200}" for i in range(40)], []])
    assert len(name) <= 100
    assert name.isascii()
    assert "/" not in name


def test_a_directory_begun_before_keeps_its_name(tmp_path: Path) -> None:
    old = tmp_path / "0_phase2"
    old.mkdir()
    (old / "provenance.json").touch()
    (tmp_path / "1_notes").mkdir()
    queued = Task(index=2, directory="2_phase2", overrides=())
    new_submission(tmp_path, cluster="slurm", job_name="x", tasks={2: (queued, {})}, settings={})
    run_names.choose(tmp_path, [[f"seed={i}"] for i in range(4)], 0)
    assert [run_names.run_name(i, "phase2") for i in range(4)] == [
        "0_phase2", "1_phase2_seed-1", "2_phase2", "3_phase2_seed-3",
    ]  # fmt: skip
    run_names.choose(tmp_path / "elsewhere", [["seed=1"]], 0)
    assert run_names.run_name(0, "phase2") == "0_phase2"


def test_a_name_becomes_one_level_of_100_bytes() -> None:
    assert in_a_path("a/b") == "a-b"
    assert run_names.run_name(0, "x" * 300) == "0_" + "x" * 100
    assert len(in_a_path("é" * 300).encode()) == 100


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_multirun_without_a_job_is_refused(tmp_path: Path, launcher: str) -> None:
    """It ended with 0, or with the status of what an earlier command had left in the directory."""
    done = command_line("-m", "seed=glob(*)", f"hydra/launcher={launcher}", f"output_dir={tmp_path / 'm'}")
    assert done.status == 2
    assert done.own[0] == "vlmbench: this multirun has no job: a key=glob(…) of it matches nothing"
    assert len(done.own) == 2

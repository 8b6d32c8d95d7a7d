"""Jobs are composed as Hydra composes them, and run on this machine as they would on a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from vlmbench.cli import config as schema
from vlmbench.cli.compose import compose_tasks, quicken
from vlmbench.cluster.local import slots
from vlmbench.cluster.settings import LocalSettings, SlurmSettings, parse
from vlmbench.cluster.states import RunState
from vlmbench.cluster.status import status
from vlmbench.errors import ConfigError
from vlmbench.machine.installation import conf_dir
from vlmbench.records.provenance import read_provenance

JOBS = [
    ["experiment=smoke", "seed=1", "model=tiny"],
    ["experiment=smoke", "seed=2", "model=tiny"],
    ["experiment=phase2", "seed=2", "sweep=vision_tokens", "measurement.stopping.min_samples=3"],
    ["experiment=phase2", "seed=3", "sweep=none", "output.tokens=5", "+sweep.axes.images=[1,2]"],
    ["experiment=smoke", "dataset=image_folder", "dataset.root='/a b'", "dataset.num_samples=null", "name=x"],
    ["experiment=smoke", "hydra.job.num=3", "seed=4"],
    ["experiment=smoke", "~probe.memory", "seed=5"],
]


@pytest.fixture
def loader():
    schema.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = GlobalHydra.instance().config_loader()
        yield found, found.load_configuration("config", ["experiment=smoke"], run_mode=RunMode.MULTIRUN)


def test_quick_composition_is_hydras_own(loader) -> None:
    config_loader, config = loader
    plain = [config_loader.load_sweep_config(config, job) for job in JOBS]
    quicken(config_loader)
    for _ in range(2):
        for job, expected in zip(JOBS, plain, strict=True):
            found = config_loader.load_sweep_config(config, job)
            assert OmegaConf.to_container(found) == OmegaConf.to_container(expected), job
            assert OmegaConf.get_type(found) == OmegaConf.get_type(expected)


def test_tasks_hold_what_a_job_would_get(loader) -> None:
    config_loader, config = loader
    tasks = compose_tasks(config_loader, config, JOBS[:2], 7)
    assert [task.index for task, _ in tasks.values()] == [7, 8]
    assert [task.directory for task, _ in tasks.values()] == ["7_smoke", "8_smoke"]
    assert tasks[8][0].overrides == tuple(JOBS[1])
    assert tasks[8][1]["seed"] == 2
    assert "hydra" not in tasks[8][1]
    assert not HydraConfig.initialized()
    with_files = compose_tasks(config_loader, config, [["+probe=kernels", "experiment=smoke", "output_dir=grid"]], 0)
    assert with_files[0][1]["probe"]["kernels"]["trace_dir"] == str(Path.cwd() / "grid" / "0_smoke" / "traces")
    json.dumps(tasks[8][1])


def test_a_wrong_value_is_refused_before_anything_is_submitted(loader) -> None:
    config_loader, config = loader
    with pytest.raises(ConfigError, match="repeats"):
        compose_tasks(config_loader, config, [*JOBS[:1], ["experiment=smoke", "measurement.repeats=0"]], 0)


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b, GPU-c")
    assert slots(LocalSettings()) == [["GPU-a"], ["GPU-b"], ["GPU-c"]]
    assert slots(LocalSettings(gpus_per_task=2)) == [["GPU-a", "GPU-b"]]
    assert slots(LocalSettings(parallel=2)) == [["GPU-a"], ["GPU-b"]]
    assert slots(LocalSettings(gpus_per_task=0, parallel=2)) == [None, None]
    with pytest.raises(ConfigError, match="at most the 3 GPUs"):
        slots(LocalSettings(gpus_per_task=4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots(LocalSettings()) == [None]


def command(folder: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, "-W", "ignore", "-m", "vlmbench", "-m", "experiment=smoke", "report=none", "hydra/launcher=local",
        "dataset.num_samples=2", "output.tokens=2", f"output_dir={folder}", *arguments,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_grid_on_this_machine(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = command(tmp_path, "seed=1,2", "hydra.launcher.parallel=2")
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [one.state for one in status(tmp_path)] == [RunState.DONE] * 2
    assert read_provenance(tmp_path / "1_smoke_seed-2")["seed"] == 2
    again = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "nothing to start" in again.stderr


@pytest.mark.slow
def test_interrupting_the_launcher_ends_its_tasks_resumably(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = command(tmp_path, "seed=1,2", "measurement.repeats=2000")
    # A test run that was put into the background hands on an ignored SIGINT.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    parent = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)  # noqa: PLW1509
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("0_smoke_seed-1/records.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(2)
        parent.send_signal(signal.SIGINT)
        _, said = parent.communicate(timeout=300)
    finally:
        parent.kill()
    assert parent.returncode == 130, said
    first, second = status(tmp_path)
    assert first.state == RunState.INTERRUPTED, said
    assert second.state == RunState.NOT_BEGUN
    assert "its turn did not come" in second.reason


def test_the_presets_are_what_the_launchers_take(loader) -> None:
    config_loader, _ = loader
    for name, kind in (("slurm", SlurmSettings), ("anvil", SlurmSettings), ("local", LocalSettings)):
        config = config_loader.load_configuration("config", [f"hydra/launcher={name}"], run_mode=RunMode.MULTIRUN)
        values = OmegaConf.to_container(config.hydra.launcher)
        values.pop("_target_")
        values["detach"] = False  # follows the command line's own `detach`
        settings = parse(kind, values)
        assert set(values) == {field.name for field in fields(kind)}, "every knob stands in the YAML"
        if name != "anvil":
            assert settings == kind(), "the YAML's defaults are the code's"


def test_sbatch_that_cannot_be_reached_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool, code in (("srun", "exit 0"), ("sbatch", "echo 'sbatch: error: no way' >&2; exit 1"), ("scontrol", "exit 1"),
                       ("squeue", "exit 0"), ("sacct", "exit 0")):  # fmt: skip
        (tools / tool).write_text(f"#!/bin/sh\n{code}\n")
        (tools / tool).chmod(0o755)
    line = [*command(tmp_path / "grid", "seed=1"), "hydra/launcher=slurm"]
    line.remove("hydra/launcher=local")
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Slurm refused the jobs: sbatch: error: no way\n0 of 1 tasks were submitted" in done.stderr
    assert [path.name for path in (tmp_path / "grid" / ".vlmbench").iterdir()] == [".run.lock"]

"""The wheel, installed somewhere else, runs with its own YAML."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_carries_what_it_needs(wheel: Path) -> None:
    assert wheel.name.startswith("vlmbench_latency-")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "vlmbench/conf/config.yaml",
        "vlmbench/conf/model/tiny.yaml",
        "vlmbench/conf/hydra/launcher/slurm.yaml",
        "vlmbench/machine/devices.json",
        "vlmbench/models/words.txt",
        "vlmbench/py.typed",
        "hydra_plugins/vlmbench_launchers/__init__.py",
    ):
        assert needed in names, needed
    assert not [n for n in names if n.startswith(("tests/", "docs/", "conf/"))]


@pytest.mark.slow
def test_the_wheel_runs_where_no_checkout_is(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    where = "from vlmbench import config; print(config.conf_dir())"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()) == site / "vlmbench" / "conf"
    command = [
        sys.executable,
        "-m",
        "vlmbench",
        "experiment=smoke",
        "dataset.num_samples=2",
        "output.tokens=2",
        "output_dir=out",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").is_file()

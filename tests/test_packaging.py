"""What an index would serve: the wheel that is made from the sdist, installed where no checkout is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = (
    "vlmbench/conf/config.yaml",
    "vlmbench/conf/model/tiny.yaml",
    "vlmbench/conf/hydra/launcher/slurm.yaml",
    "vlmbench/machine/devices.json",
    "vlmbench/models/words.txt",
    "vlmbench/py.typed",
    "hydra_plugins/vlmbench_launchers/__init__.py",
)


def run(command: list[str], *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**clean, **environment}, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made from it."""
    out = tmp_path_factory.mktemp("built")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)], cwd=out)
    return out


def wheel_of(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_from_the_sdist_carries_what_it_needs(built: Path) -> None:
    wheel = wheel_of(built)
    assert wheel.name.startswith("vlmbench_latency-")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [needed for needed in NEEDED if needed not in names]
    assert not [n for n in names if n.startswith(("tests/", "docs/", "conf/"))]
    packaged = {n.removeprefix("vlmbench/conf/") for n in names if n.startswith("vlmbench/conf/")}
    assert packaged == {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}


def test_the_sdist_holds_the_checkout(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if kept.returncode:
        pytest.skip("not a checkout: there is nothing to compare the sdist with")
    there = [name for name in kept.stdout.splitlines() if (ROOT / name).is_file()]
    missing = [name for name in there if name not in names and not name.startswith((".ci/", ".git"))]
    assert not missing


def test_all_that_setup_installs_has_its_hashes() -> None:
    """hashes.txt is made from constraints.txt (scripts/hashes.py): the same versions, each with at least one file."""

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~; ]", name)[0]).lower()

    def wanted(extra: str) -> set[str]:
        named = project["optional-dependencies"][extra]
        own = {name for one in named if one.startswith("vlmbench-latency[") for name in re.split(r"[\[\],]", one)[1:-1]}
        return {plain(one) for one in named if not one.startswith("vlmbench-latency[")}.union(*map(wanted, own))

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "hashes.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.search(r"==.* --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    hashed = {plain(line): line.split()[0].partition("==")[2].removesuffix("+cpu") for line in lines}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    other = {name: version for name, version in pinned.items() if hashed.get(plain(name), version) != version}
    assert not other, "python scripts/hashes.py makes hashes.txt anew"
    missing = {*map(plain, project["dependencies"]), *wanted("all")} - set(hashed)
    assert not missing, "python scripts/hashes.py makes hashes.txt anew"


@pytest.mark.slow
def test_the_wheel_and_a_plug_in_run_a_local_multirun_where_no_checkout_is(built: Path, tmp_path: Path) -> None:
    """A new environment that sees the dependencies, not the checkout; two jobs through the launcher of the wheel."""
    environment = tmp_path / "environment"
    run([sys.executable, "-m", "venv", str(environment)], cwd=tmp_path)
    python = str(environment / "bin" / "python")
    site = next((environment / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q"]
    plugin = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    run([*plugin, str(ROOT / "docs" / "plugin_example")], cwd=tmp_path)
    wheels = [str(wheel_of(built)), str(wheel_of(tmp_path))]
    run([*pip, "install", "--no-deps", "--no-index", "--ignore-installed", *wheels], cwd=tmp_path)
    where = "import vlmbench; from vlmbench.machine.installation import conf_dir; print(conf_dir())"
    assert Path(run([python, "-c", where], cwd=tmp_path).stdout.strip()) == site / "vlmbench" / "conf"
    run(
        [
            python, "-m", "vlmbench", "-m", "experiment=smoke", "seed=0,1", "dataset=grey", "dataset.num_samples=2",
            "+probe@probe=[cpu_time]", "output.tokens=2", "runtime.threads=1", "device_peaks=none",
            "hydra/launcher=local", "output_dir=out",
        ],
        cwd=tmp_path, OMP_NUM_THREADS="1",
    )  # fmt: skip
    jobs = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir() and path.name[0].isdigit())
    assert len(jobs) == 2
    for job in jobs:
        assert json.loads((job / "outcome.json").read_text())["state"] == "done"
        rows = [json.loads(line) for line in (job / "records.jsonl").read_text().splitlines()]
        assert any("cpu_time_ms" in row for row in rows)

"""Plug-ins: the example package, built as a wheel, installed beside vlmbench, and used by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlmbench import plugins

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "plugin_example"
RUN = ["experiment=smoke", "output.tokens=2", "runtime.threads=1", "device_peaks=none", "progress=false"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the example in it, installed from its wheel."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)], check=True)
    wheel = next(folder.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(site: Path | None, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *([str(site)] if site else [])])
    return subprocess.run(
        [sys.executable, "-m", "vlmbench", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_a_probe_a_data_set_and_a_figure_of_another_package(site: Path, tmp_path: Path) -> None:
    done = run(
        site, *RUN, "report=phase1", "dataset=grey", "+probe@probe=[cpu_time]", "figures.extra=[cpu_share]",
        "output_dir=out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row["status"] == "ok" and row["mode"] == "instrumented"]
    assert measured
    assert all(row["cpu_time_ms"] > 0 and row["T_LLM_decode"] > 0 for row in measured)
    assert (tmp_path / "out" / "figures" / "cpu_share.pdf").is_file()


def test_what_is_not_installed_is_refused_and_what_is_installed_is_named(site: Path, tmp_path: Path) -> None:
    target = "vlmbench_cpu_time.dataset.GreyImages"
    refused = run(None, *RUN, "dataset._target_=" + target, cwd=tmp_path)
    assert refused.returncode == 2
    assert target in refused.stderr
    assert "no plug-in is installed" in refused.stderr
    other = run(site, *RUN, "dataset._target_=os.system", cwd=tmp_path)
    assert other.returncode == 2
    assert "vlmbench_cpu_time (probes: cpu_time, datasets: grey, figures: cpu_share)" in other.stderr
    unknown = run(site, *RUN, "report=phase1", "figures.extra=[nothing]", "output_dir=out", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "installed: cpu_share" in unknown.stderr
    assert not (tmp_path / "out" / "records.jsonl").exists()  # refused before anything is measured


def test_nothing_is_imported_before_it_is_named(site: Path) -> None:
    code = (
        "import sys\nfrom vlmbench import plugins\n"
        "assert plugins.may_name('vlmbench_cpu_time.probe.CpuTimeProbe')\n"
        "assert not plugins.may_name('os.system') and not plugins.may_name('vlmbench_cpu_time')\n"
        "print(plugins.described(), [str(folder.name) for _, folder in plugins.config_folders()])\n"
        "assert 'vlmbench_cpu_time' not in sys.modules"
    )
    path = os.pathsep.join([str(ROOT), str(site)])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_an_unknown_entry_point_is_named() -> None:
    with pytest.raises(plugins.ConfigError, match=r"'mine' is no entry point of vlmbench\.figures"):
        plugins.load("vlmbench.figures", "mine")


def test_a_data_set_without_the_field_that_experiments_set_is_told_of_it(tmp_path: Path) -> None:
    """Nobody gave ``num_samples``, and the message named a wrong key; a type is named as people write it."""
    place = tmp_path / "site"
    (place / "theirs-1.dist-info").mkdir(parents=True)
    (place / "theirs-1.dist-info" / "METADATA").write_text("Name: theirs\nVersion: 1\n")
    (place / "theirs-1.dist-info" / "entry_points.txt").write_text("[vlmbench.datasets]\ntheirs = theirs:Theirs\n")
    (place / "theirs.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True, kw_only=True)\nclass Theirs:\n"
        "    name: str = 'theirs'\n    side: int = 56\n\n    def open(self):\n        return []\n"
    )
    (tmp_path / "own" / "dataset").mkdir(parents=True)
    (tmp_path / "own" / "dataset" / "theirs.yaml").write_text("_target_: theirs.Theirs\nname: theirs\nside: 56\n")
    done = run(place, "--config-dir", "own", *RUN, "dataset=theirs", "dataset.side=wide", cwd=tmp_path)
    assert done.returncode == 2
    assert "experiments say how many samples they take: the data set's class needs this field" in done.stderr
    assert "'side' must be int (got 'wide')" in done.stderr

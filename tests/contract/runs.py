"""The commands of the contract, and what there is to see after each."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml

from tests import forks
from tests.contract.trees import Section, Sections, tree

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden"
OLD_RUNS = HERE / "old_runs"

# What every measuring command here says: the smallest run of which a report can be made.
SMALL = (
    "runtime.device=cpu", "runtime.threads=1", "progress=false", "output.tokens=3", "measurement.warmup.max_runs=2",
    "measurement.stopping.min_samples=3", "measurement.stopping.max_samples=3", "measurement.stopping.min_time_s=0",
    "dataset.num_samples=6",
)  # fmt: skip
VISION = "sweep.axes.vision_tokens=[16,64,144]"
OUTPUT = "sweep.axes.output_tokens=[4,8,16]"
Made = dict[str, Sections]  # golden file → its sections


def run(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m vlmbench`` in a folder, as a user does."""
    return forks.run(*arguments, cwd=where, COLUMNS="120")


def passed(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same for a command that must succeed."""
    done = run(where, *arguments)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stderr[-3000:]}"
    return done


def directory(folder: Path) -> Sections:
    """Sections of a run directory: its files, the keys of each JSON, the columns of its rows."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    found: Sections = {"files": dict.fromkeys(files, "file")}
    for name in files:
        if name.endswith(".json"):
            found[name] = tree([json.loads((folder / name).read_text())])
        elif name.endswith("records.jsonl"):
            found |= {f"{name} {group}": section for group, section in columns(folder / name).items()}
        elif name.endswith(".parquet"):
            found[name] = dict.fromkeys(pyarrow.parquet.read_schema(folder / name).names, "column")
    return found


def columns(records: Path) -> Sections:
    """Columns of the rows of each mode and status."""
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in records.read_text().splitlines():
        row = json.loads(line)
        groups[f"{row['mode']}/{row['status']}"].append(row)
    return {group: tree(rows) for group, rows in sorted(groups.items())}


def choices(help_text: str) -> Section:
    """What ``--help`` names: groups with their choices, launchers, and the lines of advice."""
    found: Section = {}
    for line in help_text.splitlines():
        group, colon, rest = line.partition(": ")
        if colon and re.fullmatch(r"[a-z_/]+", group):
            found |= {f"{group}={choice}": "choice" for choice in rest.split(", ")}
    return found


def settings(text: str) -> Section:
    """Keys and values of a configuration in YAML, as ``--cfg job`` prints it."""
    found: Section = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        else:
            found[path] = json.dumps(node, ensure_ascii=False)

    walk(yaml.safe_load(text), "")
    return found


def _options(where: Path) -> Made:
    """Fast: no torch is imported by any of these."""
    default = settings(passed(where, "--cfg", "job").stdout)
    sections: Sections = {"--help": choices(passed(where, "--help").stdout), "--cfg job": default}
    for chosen in (
        "experiment=phase2", "experiment=phase3", "experiment=all", "experiment=token_comparison", "experiment=anatomy",
        "dataset=hub", "dataset=image_folder", "dataset=vqa_v2", "runtime=compiled",
        "probe=[timeline,memory,clocks,recompiles,kernels,memory_stages,energy]",
    ):  # fmt: skip
        found = settings(passed(where, "--cfg", "job", chosen).stdout)
        gone = {key: "(absent)" for key in default if key not in found}
        sections[f"--cfg job {chosen}"] = gone | {k: v for k, v in found.items() if default.get(k) != v}
    return {"options": sections}


def _run_of(name: str, *arguments: str) -> Callable[[Path], Made]:
    def measure(where: Path) -> Made:
        passed(where, f"experiment={name}", *SMALL, *arguments, "output_dir=run")
        return {name: directory(where / "run")}

    return measure


def _comparison(where: Path) -> Made:
    """From results that are there, as stored at the commit of the contract."""
    passed(where, "experiment=phase3", *SMALL, OUTPUT, "report=phase3", "output_dir=phase3")
    old = OLD_RUNS / "phase2_done"
    given = (f"phase2_results={old}", "phase3_results=phase3", "allow_unlike=true")
    passed(where, "experiment=token_comparison", *SMALL, *given, "output_dir=run")
    return {"token_comparison": directory(where / "run")}


def _study(where: Path) -> Made:
    """All parts; the keys of those that have a golden file of their own stand there."""
    passed(where, "experiment=all", *SMALL, "output_dir=run")
    found = directory(where / "run")
    alone = ("phase1/", "phase2/", "phase3/")
    return {"all": {name: section for name, section in found.items() if not name.startswith(alone)}}


def _several(where: Path) -> Made:
    """A multirun of two jobs, then what reads it: status, collect."""
    smoke = ("experiment=smoke", *SMALL, "dataset.num_samples=2", "report=none", "device_peaks=measured")
    passed(where, "-m", *smoke, "seed=1,2", "output_dir=grid")
    passed(where, "experiment=status", "runs=grid")
    passed(where, "experiment=collect", "runs=grid", "output_dir=collected")
    for number in range(2):  # what the jobs differ in came into their names later
        (where / "grid" / f"{number}_smoke_seed-{number + 1}").rename(where / "grid" / f"{number}_smoke")
    grid = directory(where / "grid")  # the second job is as the first
    found = {"multirun": {name: section for name, section in grid.items() if not name.startswith("1_smoke/")}}
    found["collect"] = directory(where / "collected")
    passed(where, "experiment=anatomy", "output_dir=anatomy")
    found["anatomy"] = directory(where / "anatomy")
    passed(where, *smoke, "dry_run=true", "output_dir=dry")
    found["dry_run"] = directory(where / "dry")
    return found


COMMANDS: dict[str, Callable[[Path], Made]] = {
    "options": _options,
    "phase1": _run_of("phase1"),
    "phase2": _run_of("phase2", VISION),
    "phase3": _run_of("phase3", OUTPUT),
    "token_comparison": _comparison,
    "all": _study,
    "several": _several,
}


@cache
def exceptions(name: str) -> list[dict[str, str]]:
    """Entries of ``added.yaml``, ``removed.yaml`` or ``changed.yaml``."""
    entries: list[dict[str, str]] = yaml.safe_load((HERE / f"{name}.yaml").read_text()) or []
    return entries


@cache
def golden(name: str) -> Sections:
    """A golden file."""
    found: Sections = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())
    return found

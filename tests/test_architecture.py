"""Who may import whom, and what importing costs. The layers stand in ``pyproject.toml``, held by import-linter."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import vlmbench
import vlmbench.runner

PACKAGE = Path(vlmbench.__file__).parent
ROOT = PACKAGE.parent
HEAVY = {"torch", "transformers", "datasets", "torchvision", "accelerate"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "/conf/" not in str(p))
TOP = {"__init__", "__main__", "errors", "plugins", "request", "schema", "stopping", "sweep", "text"}
LIGHT = [
    "vlmbench", "vlmbench.cli.main", "vlmbench.cli.tasks", "vlmbench.session.profile", "vlmbench.models.spec",
    "vlmbench.data.synthetic", "vlmbench.probes.timeline", "vlmbench.report.phase1", "vlmbench.analysis.frames",
    "vlmbench.runner.loop", "vlmbench.cluster.status",
]  # fmt: skip


@cache
def parsed(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, wherever in it."""
    for node in parsed(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_imports_go_one_way_down() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_analysis_figures_and_reports_import_nothing_heavy() -> None:
    heavy = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for room in ("analysis", "figures", "report")
        for path in (PACKAGE / room).rglob("*.py")
        for name in imported(path)
        if name.partition(".")[0] in HEAVY
    }
    assert not heavy


def test_importing_takes_no_torch() -> None:
    code = f"import importlib, sys\nfor m in {LIGHT}: importlib.import_module(m)\n"
    code += f"print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_name_that_stored_configurations_have_for_warmup_stays() -> None:
    from vlmbench.runner.warmup import Warmup

    assert vlmbench.runner.Warmup is Warmup


def test_instantiate_is_called_in_one_place() -> None:
    assert [p.name for p in MODULES if "hydra.utils" in imported(p)] == ["validate.py"]


def test_the_top_level_holds_few_modules_and_none_is_called_utils() -> None:
    assert {p.stem for p in PACKAGE.glob("*.py")} <= TOP
    assert not [p for p in MODULES if p.stem in ("utils", "helpers", "common", "misc")]


def test_no_time_is_clamped() -> None:
    """No call of ``max`` with a zero: it would hide a negative time."""
    clamped = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in MODULES
        for node in parsed(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "max"
        if len(node.args) == 2 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
    ]
    assert not clamped

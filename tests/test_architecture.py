"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlmbench.runner.loop
import vlmbench.runner.warmup

PACKAGE = Path(vlmbench.__file__).parent
HEAVY = {"torch", "transformers", "datasets", "torchvision", "accelerate"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "/conf/" not in str(p))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_only: bool) -> set[str]:
    """Imported module names; ``top_only`` leaves out those inside functions and under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if top_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(a.name for a in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.add(child.module)
                found.update(f"{child.module}.{a.name}" for a in child.names)
            visit(child)

    visit(tree)
    return found


def own(names: set[str]) -> set[str]:
    return {n for n in names if n.startswith("vlmbench.")}


def roots(names: set[str]) -> set[str]:
    return {n.partition(".")[0] for n in names}


@pytest.mark.parametrize(
    "module", ["errors", "request", "sweep", "records/record", "data/protocol", "stopping", "workload", "series_state"]
)
def test_the_ground_floor_is_standard_library(module: str) -> None:
    path = PACKAGE / f"{module}.py"
    assert roots(imports(path, top_only=False)) <= set(sys.stdlib_module_names) | {"vlmbench", "__future__"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_hydra_stays_in_the_entry(path: Path) -> None:
    # session writes .hydra/*.yaml; the cluster's launcher is a Hydra plugin
    allowed = {"cli", "arguments", "complaints", "config", "validate", "session"}
    if path.stem in allowed or "cluster" in path.parts:
        return
    assert not roots(imports(path, top_only=False)) & {"hydra", "omegaconf"}


@pytest.mark.parametrize("folder", ["analysis", "figures", "report"])
def test_analysis_knows_neither_torch_nor_models(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        names = imports(path, top_only=False)
        assert not roots(names) & HEAVY, path
        for name in own(names):
            assert not name.startswith(
                ("vlmbench.models", "vlmbench.data", "vlmbench.runner.loop", "vlmbench.session.profile")
            ), path
    order = ["analysis", "figures", "report"]
    for path in (PACKAGE / folder).rglob("*.py"):
        for later in order[order.index(folder) + 1 :]:
            assert not any(n.startswith(f"vlmbench.{later}") for n in own(imports(path, top_only=False))), path


@pytest.mark.parametrize("folder", ["models", "data", "probes", "cost", "records"])
def test_measuring_knows_no_analysis(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        for name in own(imports(path, top_only=False)):
            assert not name.startswith(
                ("vlmbench.analysis", "vlmbench.figures", "vlmbench.report", "vlmbench.cli.main")
            ), path


@pytest.mark.parametrize("module", ["runner", "warmup", "failures", "rows", "execution"])
def test_the_runner_sees_protocols_only(module: str) -> None:
    for name in own(imports(PACKAGE / f"{module}.py", top_only=False)):
        assert not name.startswith(
            ("vlmbench.analysis", "vlmbench.cli.main", "vlmbench.cli.config", "vlmbench.models.loading")
        )


@pytest.mark.parametrize(
    "module",
    ["vlmbench", "vlmbench.cli.main", "vlmbench.cli.tasks", "vlmbench.session.profile", "vlmbench.models.spec", "vlmbench.data.synthetic",
     "vlmbench.probes.timeline", "vlmbench.report.phase1", "vlmbench.analysis.frames", "vlmbench.runner.loop"],
)  # fmt: skip
def test_importing_takes_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_name_that_stored_configurations_have_for_warmup_stays() -> None:
    assert vlmbench.runner.Warmup is vlmbench.runner.warmup.Warmup


def test_instantiate_is_called_in_one_place() -> None:
    users = [p.name for p in MODULES if "hydra.utils" in imports(p, top_only=False)]
    assert users == ["validate.py"]


def test_no_module_is_called_utils() -> None:
    assert not [p for p in MODULES if p.stem in ("utils", "helpers", "common", "misc")]


def test_no_time_is_clamped() -> None:
    for path in MODULES:
        assert "max(0," not in path.read_text().replace("max(0.0,", "max(0,"), path

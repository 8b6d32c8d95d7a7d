"""Scripts work with the code of the checkout that they lie in, whatever vlmbench the environment has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
if not SCRIPTS.is_dir():
    pytest.skip("a source distribution has no scripts", allow_module_level=True)
IMPORTED = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
TEXTS = {path: path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.rglob("*.py"))}
HOOKS = ("site_pages",)  # mkdocs runs them
FIRST = [
    path
    for path, text in TEXTS.items()
    if "vlmbench" in IMPORTED.findall(text) and ("__main__" in text or path.stem in HOOKS)
]
NAMED = [path for path in FIRST if "argparse" in IMPORTED.findall(TEXTS[path])]


@pytest.mark.parametrize("path", FIRST, ids=lambda path: path.name)
def test_a_script_puts_its_checkout_first(path: Path) -> None:
    up = len(path.relative_to(SCRIPTS).parts)
    line = f"\nsys.path.insert(0, str(Path(__file__).resolve().parents[{up}]))"
    before, found, _ = TEXTS[path].partition(line)
    assert found, "it would import the vlmbench that the environment has"
    assert "vlmbench" not in IMPORTED.findall(before)


@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.name)
def test_another_vlmbench_on_the_path_is_not_imported(path: Path, tmp_path: Path) -> None:
    (tmp_path / "vlmbench").mkdir()
    (tmp_path / "vlmbench" / "__init__.py").write_text("raise SystemExit('of another checkout')\n")
    command, environment = [sys.executable, str(path), "--help"], {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")


def test_those_that_are_run_are_looked_at() -> None:
    assert {"findings.py", "publish_results.py", "kills.py", "truth.py", "site_pages.py"} <= {one.name for one in FIRST}
    assert len(NAMED) > 5

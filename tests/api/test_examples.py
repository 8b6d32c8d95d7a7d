"""The examples in docstrings of the public names run as they stand."""

from __future__ import annotations

import doctest
import importlib
import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name", ["vlmbench", *(f"vlmbench.api.{m}" for m in ("measuring", "models", "run", "watching"))]
)
def test_examples_in_docstrings_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_notebook_is_the_one_that_the_script_makes_and_was_executed() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "notebook.py"))
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    assert [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]] == list(script["CELLS"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("data:image/png" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs)

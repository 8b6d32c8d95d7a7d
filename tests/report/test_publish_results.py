"""scripts/regenerate_results.py: published files made anew from the rows beside them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, usual, write
from tests.analysis.swept import OUTPUT, VISION, sweep
from vlmbench.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "regenerate_results.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="a source distribution has no scripts")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("regenerate_results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(folder: Path, rows: Any, config: dict[str, str], *, files: tuple[str, ...]) -> Path:
    """A folder of results whose files are stale."""
    write(folder, rows, PROVENANCE | {"config": config})
    plain = folder / "records.jsonl"
    (folder / "records.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stale")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    published(
        root / "one", usual(30, 10), {"report": "phase1", "name": "mine"},
        files=("summary.json", "words.txt", "figures/over_time.png", "tables/latency.md", "tables/old.md"),
    )  # fmt: skip
    published(
        root / "two" / "phase2", sweep("vision_tokens", VISION), {"report": "none", "name": "phase2"},
        files=("summary.json", "figures/vision_tokens_latency.png", "latency_model.json"),
    )  # fmt: skip
    published(root / "two" / "phase3", sweep("output_tokens", OUTPUT), {"name": "phase3"}, files=("words.txt",))
    (root / "two" / "comparison" / "figures").mkdir(parents=True)
    for name in ("summary.json", "words.txt", "figures/break_even.png"):
        (root / "two" / "comparison" / name).write_text("stale")
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_published_is_written_again_and_nothing_else(
    script: ModuleType, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    before = content(results)
    assert script.main(["--results", "results"]) == 0
    after = content(results)
    assert after.keys() == before.keys(), "no file appears, none goes"
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name, old in before.items() if old == b"stale"} - {"one/tables/old.md"}
    assert json.loads(after["one/summary.json"])["experiment_name"] == "phase1_dataset_profiling"
    assert json.loads(after["two/phase2/summary.json"])["experiment_name"] == "phase2_scaling"
    assert b"What does one more output token cost?" in after["two/phase3/words.txt"]
    assert b"costs as much as" in after["two/comparison/words.txt"]
    assert after["one/figures/over_time.png"].startswith(b"\x89PNG")
    assert after["one/words.txt"].endswith(b"tables/.\n")
    for name, text in after.items():
        assert str(results.parent).encode() not in text, name
    said = capsys.readouterr().out
    assert "  changed figures/over_time.png" in said
    assert "  no longer written, left as it is: tables/old.md" in said
    assert "  new, not published: tables/components.md" in said
    assert script.main(["--results", "results", "one", "two/phase3"]) == 0
    again = capsys.readouterr().out
    assert "two/phase2" not in again
    assert "changed" not in again, "the same rows give the same bytes"
    assert content(results) == after


def test_folders_are_chosen_by_name(script: ModuleType, results: Path) -> None:
    assert [str(name) for name in script.folders(results)] == ["one", "two/phase2", "two/phase3", "two/comparison"]
    assert [str(name) for name in script.folders(results, ["two"])] == ["two/phase2", "two/phase3", "two/comparison"]
    assert [str(name) for name in script.folders(results, ["two/phase3"])] == ["two/phase3"]
    with pytest.raises(InputError, match=r"'three' is no folder of results .* there are: one, two/phase2"):
        script.folders(results, ["three"])


def test_arms_of_first_steps_are_written_as_one(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(script.RESULTS / "h200_first_steps", tmp_path / "first")
    (tmp_path / "first" / "figures" / "first_steps.png").write_text("stale")
    before = content(tmp_path)
    assert script.main(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "first:\n  changed figures/first_steps.png\n", (
        "the numbers are the published ones"
    )
    assert content(tmp_path).keys() == before.keys()


def test_a_run_of_no_phase_changes_nothing(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published(tmp_path / "odd", usual(5, 5), {"report": "none", "name": "odd"}, files=("summary.json",))
    before = content(tmp_path)
    assert script.main(["--results", str(tmp_path)]) == 1
    assert content(tmp_path) == before
    said = capsys.readouterr().out
    assert "FAILED, nothing changed" in said
    assert "must name a phase as 'report' or 'name' of its config: phase1, phase2, phase3 (got none and odd)" in said


def test_it_says_how_to_use_it() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "python scripts/regenerate_results.py h200_gemma3_4b" in done.stdout
    wrong = subprocess.run([sys.executable, str(SCRIPT), "nowhere"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "'nowhere' is no folder of results" in wrong.stderr

"""The benchmarks are programs: each can be imported and says what it does. Their figures are not tested."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text())

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="a source distribution has no benchmarks")


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_all_are_there() -> None:
    assert {
        "startup",
        "measured_share",
        "memory_growth",
        "report_speed",
        "mark_cost",
        "peer",
        "vqa_index",
        "molmoe_decode",
    } <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_answers_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(name).main
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", PROGRAMS)
def test_readme_tells_how_to_read_it(name: str) -> None:
    assert f"python benchmarks/{name}.py" in (FOLDER / "README.md").read_text()


def test_cost_of_a_child_is_its_own() -> None:
    child = importlib.import_module("child")
    code = "import sys; block = bytearray(200 * 2**20); sys.stdout.write('out'); sys.exit(3)"
    cost = child.run([sys.executable, "-c", code])
    assert (cost.status, cost.out) == (3, "out")
    assert cost.peak_mib > 200
    assert cost.wall_s > 0 < cost.cpu_s


def test_a_child_that_takes_too_long_is_ended() -> None:
    child = importlib.import_module("child")
    with pytest.raises(subprocess.TimeoutExpired):
        child.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.5)


def test_what_the_instrument_costs_is_measured() -> None:
    """The model that takes no time has all that the loop asks of one."""
    mark_cost = importlib.import_module("mark_cost")
    lines = mark_cost.probe_lines(8, "cpu")
    assert {line.name: len(mark_cost.timed([line], 1)[line.name]) for line in lines} == {line.name: 1 for line in lines}


def test_the_dry_run_in_full_takes_no_short_cut(tmp_path: Path) -> None:
    """Its row must not measure the short cuts that it is compared with."""
    benchmark = importlib.import_module("dry_run")
    code = benchmark.IN_FULL.partition("sys.argv")[0] + (
        "from inspect import signature\n"
        "given = signature(count_generate).parameters['every_block'].default, "
        "signature(Preparer.__init__).parameters['kept_bytes'].default\n"
        "sys.exit(given != (True, 0))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
    assert set(benchmark.commands("python", "tiny", tmp_path)) == {
        "a single point",
        "1,000 points",
        "1,000 points in full",
    }


def test_rows_made_for_the_report_are_rows_the_report_reads(tmp_path: Path) -> None:
    from vlmbench.analysis.frames import load_runs
    from vlmbench.report.phase1_summary import COLUMNS

    everything, head = importlib.import_module("report_speed").write(tmp_path, 300, 30)
    frame = load_runs(everything, COLUMNS)
    assert len(frame) == 300
    assert len(load_runs(head)) == 30
    assert not frame.duplicated(["point_id", "sample_id", "repeat", "mode"]).any()
    named = ["T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "T_residual"]
    watched = frame[frame["mode"] == "instrumented"]
    assert (watched[named].sum(axis=1) - watched["T_total"]).abs().max() < 1e-3

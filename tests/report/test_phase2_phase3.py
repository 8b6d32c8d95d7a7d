from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.swept import OUTPUT, PROMPT, PROVENANCE, STEP, VISION, sweep, write_run
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.latency_model import LatencyModel
from vlmbench.analysis.results import read_results
from vlmbench.errors import InputError
from vlmbench.report.narrative.scaling import as_text
from vlmbench.report.phase_file import Written
from vlmbench.report.scaling import EXPERIMENTS, find, summarise, write_scaling

Made = tuple[Path, Written, dict[str, bytes]]


def write_phase2(run: Path) -> Written:
    return write_scaling(run, experiment=EXPERIMENTS["phase2"])


def write_phase3(run: Path) -> Written:
    return write_scaling(run, experiment=EXPERIMENTS["phase3"])


def extra(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that are no latencies, and must change none."""
    first = rows[0]
    return [
        first | {"status": "warmup", "T_total": 1e6},
        first | {"status": "cold", "T_total": 1e6},
        first | {"mode": "trace", "busy_total": 50.0, "busy_LLM_prefill": 0.3 * first["T_LLM_prefill"]},
        first | {"point_id": "vision_tokens=9999", "status": "skipped", "reason": "1,024 at most", "T_total": None},
        *(row | {"mode": "bare", "T_total": row["T_total"] / 1.002} for row in rows),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Run directory, report, and the bytes of all files as first written."""
    rows = sweep("vision_tokens", VISION) + sweep("prompt_tokens", PROMPT, seed=1)
    peaks = {"flops_per_s": 1e15, "bytes_per_s": 1e12, "source": "sheet"}
    run = write_run(tmp_path_factory.mktemp("phase2"), extra(rows) + rows, PROVENANCE | {"device_peaks": peaks})
    report = write_phase2(run)
    return run, report, {path.name: path.read_bytes() for path in report.files}


def test_phase2_writes_what_it_promises(written: Made) -> None:
    phase2, report, _ = written
    names = {path.relative_to(phase2).as_posix() for path in report.files}
    assert {"summary.json", "phase2_scaling.json", "latency_model.json"} <= names
    for figure in (
        "vision_tokens_latency",
        "vision_tokens_components",
        "prompt_tokens_latency",
        "flops_latency",
        "roofline",
    ):
        assert {f"figures/{figure}.png", f"figures/{figure}.pdf"} <= names
    assert all(path.stat().st_size for path in report.files)
    assert not [p for p in phase2.rglob("*") if p.name.endswith(".part")]

    summary = json.loads((phase2 / "summary.json").read_text())
    assert summary == report.summary
    assert summary["experiment_name"] == "phase2_scaling"
    assert summary["headline"]["vision"]["slope_ms"] == pytest.approx(0.05, rel=0.05)
    assert summary["headline"]["prompt"]["slope_ms"] == pytest.approx(0.03, rel=0.1)
    assert summary["instrument_overhead"]["value"] == pytest.approx(0.002, abs=1e-6)
    waiting = {row["stage"]: row["launch_bound"] for row in summary["launch_bound"]["stages"]}
    assert waiting["LLM_prefill"] == pytest.approx(0.7, abs=0.01)
    assert summary["aa_check"]["verdict"] == "clean"
    assert summary["runs"]["status"]["skipped"] == 1
    assert LatencyModel.load(phase2 / "latency_model.json").inside(vision=576, prompt=32, output=8)


def test_phase2_says_it_in_words(written: Made) -> None:
    text = written[1].text
    for said in (
        "made-7b (random weights)",
        "What does one more vision token cost?",
        "Held fixed: output tokens 8",
        "ms per vision token (95 % interval",
        "No measurable dependence in this range",
        "ms per TFLOP",
        "LLM prefill 70",
        "(host-bound)",
        "times its floor",
        "left out of the fit",
        "no drift beyond 0.",
        "1 row skipped: 1,024 at most.",
    ):
        assert said in text, said
    assert "output token cost" not in text


def test_the_phase_file_holds_every_measured_run_and_can_be_read_back(written: Made) -> None:
    phase2 = written[0]
    content = json.loads((phase2 / "phase2_scaling.json").read_text())
    assert list(content) == ["schema_version", "experiment_name", "provenance", "summary", "results"]
    assert content["provenance"]["model"]["name"] == "made-7b"
    assert {row["status"] for row in content["results"]} == {"ok", "skipped"}
    assert {row["mode"] for row in content["results"]} == {"instrumented"}
    ok = [row for row in content["results"] if row["status"] == "ok"]
    assert len(ok) == (len(VISION) + len(PROMPT)) * 6
    assert {"T_total", "num_vision_tokens", "ITL"} <= set(ok[0])
    (back,) = read_results(phase2 / "phase2_scaling.json")
    assert len(back.frame) == len(content["results"])


def test_writing_again_changes_nothing(written: Made) -> None:
    phase2, _, before = written
    assert {path.name: path.read_bytes() for path in write_phase2(phase2).files} == before


def test_phase3(tmp_path: Path) -> None:
    run = write_run(tmp_path, sweep("output_tokens", OUTPUT))
    report = write_phase3(run)
    names = {path.name for path in report.files}
    assert {"exp4b_language_tokens.json", "output_tokens_latency.png", "output_tokens_components.pdf"} <= names
    assert report.summary["headline"]["output"]["slope_ms"] == pytest.approx(STEP, rel=0.01)
    assert report.summary["headline"]["output"]["unit"] == "ms per output token"
    assert "What does one more output token cost?" in report.text
    assert "What watching itself costs is not known" in report.text


def test_two_points_give_a_report_without_a_slope(tmp_path: Path) -> None:
    report = write_phase2(write_run(tmp_path, sweep("vision_tokens", VISION[:2])))
    assert report.summary["headline"] == {}
    assert report.summary["too_few_points"] == {"vision": 2}
    assert report.summary["latency_model"]["file"] is None
    assert "No slope: 2 counts measured, three are needed." in report.text
    assert not (tmp_path / "latency_model.json").exists()


def test_a_run_where_nothing_could_be_measured_is_reported(tmp_path: Path) -> None:
    rows = [
        {k: v for k, v in row.items() if k[:2] not in ("T_", "fl", "by", "nu")}
        | {"status": "error", "reason": "broken"}
        for row in sweep("vision_tokens", VISION[:4], repeats=1)
    ]
    report = write_phase2(write_run(tmp_path, rows))
    assert "Nothing was swept" in report.text
    assert "4 rows error: broken." in report.text
    assert len(json.loads((tmp_path / "phase2_scaling.json").read_text())["results"]) == 4


def test_a_grid(tmp_path: Path) -> None:
    rows = []
    for output in (2, 8, 32):
        for row in sweep("vision_tokens", VISION[:5], base=(576, 32, output), repeats=4):
            rows.append(row | {"axis_output_tokens": output, "point_id": f"{row['point_id']},output_tokens={output}"})
    summary = summarise(find(load_runs(write_run(tmp_path, rows)), PROVENANCE), "phase2_scaling")
    text = as_text(summary, PROVENANCE)
    kinds = {entry["kind"] for entry in summary["scaling"]}
    assert kinds == {"vision", "output"}
    assert "Held fixed: output tokens 8" in text
    assert "Over 3 settings of what is held fixed" in text


def test_an_output_sweep_that_came_out_in_an_older_schema_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, [row | {"schema_version": 0} for row in sweep("output_tokens", OUTPUT)])
    with pytest.raises(InputError, match="schema_version"):
        write_phase3(run)
    assert not (run / "summary.json").exists()

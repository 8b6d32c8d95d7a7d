from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.swept import OUTPUT, PROMPT, PROVENANCE, STEP, VISION, sweep, write_phase, write_run
from vlmbench.analysis.latency_model import LatencyModel
from vlmbench.errors import InputError
from vlmbench.figures.style import FigureStyle, drawn_as
from vlmbench.report.page import write_page
from vlmbench.report.token_comparison import write_exp5

VISION_ROWS = sweep("vision_tokens", VISION) + sweep("prompt_tokens", PROMPT, seed=1)
OUTPUT_ROWS = sweep("output_tokens", OUTPUT, seed=2)


@pytest.fixture(autouse=True)
def small_figures() -> Iterator[None]:
    """Each figure in one small file, but where a test asks for more."""
    with drawn_as(FigureStyle(formats=("png",), dpi=72)):
        yield


def of_model(name: str) -> dict[str, object]:
    return PROVENANCE | {"model": PROVENANCE["model"] | {"name": name}}


def test_it_writes_the_comparison_its_model_figures_and_words(tmp_path: Path) -> None:
    phase2 = write_run(tmp_path / "p2", VISION_ROWS)
    phase3 = write_phase(tmp_path / "exp4b_language_tokens.json", OUTPUT_ROWS)
    out = tmp_path / "out"
    with drawn_as(FigureStyle()):
        report = write_exp5(phase2, phase3, out)
    names = {p.relative_to(out).as_posix() for p in report.files}
    assert {"summary.json", "exp5_token_comparison.json", "latency_model.json"} <= names
    assert {"figures/token_costs.png", "figures/break_even.pdf", "figures/flops_latency.png"} <= names
    content = json.loads((out / "exp5_token_comparison.json").read_text())
    assert list(content) == ["schema_version", "experiment_name", "provenance", "summary", "results"]
    (row,) = content["results"]
    ratio = row["ratios"]["output_over_vision"]
    assert ratio["low"] <= STEP / 0.05 <= ratio["high"]
    assert row["token_costs"]["output"]["moves"] == ["T_LLM_decode"]
    assert "One output token costs as much as" in report.text
    assert "Together: correlation" in report.text
    model = LatencyModel.load(out / "latency_model.json")
    assert model.inside(vision=1000, prompt=500, output=100)
    assert row["latency_model"]["held_out_error"]["median"] < 0.01


def test_several_models_are_kept_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / "p2" / name, VISION_ROWS, of_model(name))
        write_run(tmp_path / "p3" / name, OUTPUT_ROWS, of_model(name))
    report = write_exp5(tmp_path / "p2", tmp_path / "p3", tmp_path / "out")
    names = {p.name for p in report.files}
    for expected in (
        "token_costs_one_random_weights.png",
        "latency_model_two_random_weights.json",
        "break_even_models.png",
    ):
        assert expected in names
    assert len(report.summary["comparisons"]) == 2
    assert report.text.count("What do tokens cost against each other?") == 2


def test_unlike_runs_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    phase2 = write_run(tmp_path / "p2", VISION_ROWS)
    phase3 = write_run(tmp_path / "p3", OUTPUT_ROWS, PROVENANCE | {"device": {"type": "cuda", "name": "Other GPU"}})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="Made GPU against Other GPU"):
        write_exp5(phase2, phase3, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    report = write_exp5(phase2, phase3, tmp_path / "out", allow_unlike=True)
    assert "UNLIKE" in report.text


@pytest.mark.parametrize("text", ["", '{"schema_version": 1, "results": [{', '{"schema_version": 7, "results": [{}]}'])
def test_bad_input_leaves_earlier_results_alone(tmp_path: Path, text: str) -> None:
    phase2 = write_run(tmp_path / "p2", VISION_ROWS)
    bad = tmp_path / "exp4b_language_tokens.json"
    bad.write_text(text)
    out = tmp_path / "out"
    out.mkdir()
    (out / "exp5_token_comparison.json").write_text("earlier")
    with pytest.raises(InputError):
        write_exp5(phase2, bad, out)
    assert [p.name for p in out.iterdir()] == ["exp5_token_comparison.json"]
    assert (out / "exp5_token_comparison.json").read_text() == "earlier"
    assert bad.read_text() == text


def test_too_few_points(tmp_path: Path) -> None:
    phase2 = write_run(tmp_path / "p2", sweep("vision_tokens", VISION[:2]))
    phase3 = write_run(tmp_path / "p3", OUTPUT_ROWS)
    with pytest.raises(InputError, match="a slope needs 3"):
        write_exp5(phase2, phase3, tmp_path / "out")


def test_one_study_directory_keeps_its_own_summary(tmp_path: Path) -> None:
    study = write_run(tmp_path / "study", VISION_ROWS + OUTPUT_ROWS)
    (study / "summary.json").write_text('{"experiment_name": "phase2_scaling"}')
    report = write_exp5(study, study, study)
    assert json.loads((study / "summary.json").read_text()) == {"experiment_name": "phase2_scaling"}
    assert (study / "exp5_token_comparison.json").exists()
    assert report.summary["comparisons"][0]["token_costs"]["vision"]["cost_ms"] == pytest.approx(0.05, rel=0.05)
    again = write_exp5(study, study, study)  # its own output is not read as input
    assert again.summary == report.summary


def drifting(rows: list[dict[str, Any]], by: float) -> list[dict[str, Any]]:
    """The second half of the repeats slower by a factor."""
    times = [name for name in rows[0] if name.startswith("T_")]
    return [row | ({name: row[name] * by for name in times} if row["repeat"] >= 3 else {}) for row in rows]


def test_the_ratio_comes_with_the_drift_of_each_side(tmp_path: Path) -> None:
    phase2 = write_run(tmp_path / "p2", drifting(sweep("vision_tokens", VISION), 1.05))
    phase3 = write_run(tmp_path / "p3", OUTPUT_ROWS)
    report = write_exp5(phase2, phase3, tmp_path / "out")
    said = "A/A of T_total: phase 2 drift 1.050, phase 3 no drift beyond 0."
    assert said in report.text
    assert "; a difference of that size may be the machine." in report.text
    assert report.summary["comparisons"][0]["aa_check"]["phase 2"]["verdict"] == "drift"
    page = write_page(tmp_path / "out").read_text(encoding="utf-8")
    assert said in page
    assert "the goal of 3 %" in report.text
    assert "Can the latency be predicted?" in page


def test_a_source_is_the_run_itself_and_may_be_published(tmp_path: Path) -> None:
    folders = tmp_path / "study" / "phase2", tmp_path / "elsewhere" / "prompts"
    write_run(folders[0], sweep("vision_tokens", VISION))
    write_run(folders[1], sweep("prompt_tokens", PROMPT, seed=1))
    phase3 = write_run(tmp_path / "study" / "phase3", OUTPUT_ROWS)
    report = write_exp5(folders, phase3, tmp_path / "study")
    (row,) = report.summary["comparisons"]
    assert row["sources"] == {"vision": "phase2", "prompt": "../elsewhere/prompts", "output": "phase3"}
    assert list(row["aa_check"]) == ["phase 2 (vision tokens)", "phase 2 (prompt tokens)", "phase 3"]
    report = write_exp5(folders, phase3, tmp_path / "study" / "a" / "b")
    assert set(report.summary["comparisons"][0]["sources"].values()) == {"phase2", "prompts", "phase3"}
    assert str(tmp_path) not in (tmp_path / "study" / "exp5_token_comparison.json").read_text()


def test_notes_name_no_place_of_this_machine(tmp_path: Path) -> None:
    write_run(tmp_path / "p2" / "0", VISION_ROWS)
    (tmp_path / "p2" / "1").mkdir()
    (tmp_path / "p2" / "1" / "records.jsonl").write_text("")
    report = write_exp5(tmp_path / "p2", write_run(tmp_path / "p3", OUTPUT_ROWS), tmp_path / "out")
    (note,) = (note for note in report.summary["comparisons"][0]["notes"] if "left out" in note)
    assert "records.jsonl" in note
    assert str(tmp_path) not in note


def test_one_run_for_both_sides_has_one_check(tmp_path: Path) -> None:
    study = write_run(tmp_path / "study", VISION_ROWS + OUTPUT_ROWS)
    (row,) = write_exp5(study, study, tmp_path / "out").summary["comparisons"]
    assert row["aa_words"].startswith("A/A of T_total: no drift beyond 0.")

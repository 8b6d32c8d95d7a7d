"""Sessions of one run directory: time limits end as what can be continued, unlike hardware is not mixed unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from tests.analysis.swept import OUTPUT, PROMPT, STEP, VISION, sweep, write_run
from vlmbench.records.outcome import OutcomeFile, State
from vlmbench.request import Output
from vlmbench.runner.plan import Series, SeriesState
from vlmbench.session.ending import conclude, stopped, to_continue
from vlmbench.session.study import _together
from vlmbench.stopping import Stopping

Vlmbench = Callable[..., CompletedProcess[str]]
SMOKE = ("experiment=smoke", "output_dir=out", "probe=[timeline]", "runtime.device=cpu", "report=none")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------------------------- time limits


def series(name: str, **changes: Any) -> Series:
    return Series(**{"point_id": name, "size": 6, "request": lambda _: Output(max_new_tokens=1)} | changes)


def ended(name: str, by: str, measured: int, failed: int = 0, **changes: Any) -> SeriesState:
    return SeriesState(
        series=series(name, **changes), jobs=iter(()), ended=by, measured=measured, failed=failed, reason="planted"
    )


def test_the_last_line_counts_failures_by_reason(tmp_path: Path) -> None:
    state = ended("dataset", "all_measured", 10)
    for name in ("a.jpg", "b.jpg"):
        state.fail(f"cannot read '{name}'")
    state.fail("'c.jpg' is a strip")
    said: list[str] = []
    assert conclude(OutcomeFile(tmp_path), [state], said.append) == 1
    assert said == ["dataset: 3 of 13 failed (2: cannot read 'a.jpg', for example; 1: 'c.jpg' is a strip)"]


def test_a_second_signal_ends_at_once_and_the_truth_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(*_: Any) -> str:
        assert read(tmp_path / "outcome.json")["state"] == "interrupted", "before any page is made"
        raise KeyboardInterrupt

    monkeypatch.setattr("vlmbench.report.write_quick_report", again)
    job = SimpleNamespace(
        outcome=OutcomeFile(tmp_path), directory=tmp_path, settings=SimpleNamespace(report="phase1", output_dir=None)
    )
    assert stopped(job, "69 of 200 runs, about 4 minutes left", again="run it again") == 130
    assert read(tmp_path / "outcome.json")["exit_status"] == 130
    said = capsys.readouterr().err
    assert "interrupted after 69 of 200 runs, about 4 minutes left; run it again" in said
    assert f"experiment=report runs={tmp_path}" in said


@pytest.mark.parametrize(
    ("states", "status", "state"),
    [
        ([ended("dataset", "all_measured", 6), ended("reference", "all_measured", 6)], 0, State.DONE),
        ([ended("dataset", "time_limit", 1), ended("reference", "time_limit", 0)], 130, State.INTERRUPTED),
        ([ended("dataset", "time_limit", 6)], 0, State.DONE),  # the last run was over just before the limit
        ([ended("dataset", "time_limit", 5, failed=1)], 1, State.FAILED),  # each request was run: nothing to continue
        ([ended("dataset", "time_limit", 1, failed=1)], 130, State.INTERRUPTED),
        ([ended("p", "median_interval", 12, size=1, stopping=Stopping())], 0, State.DONE),
        ([ended("p", "time_limit", 300, size=1, stopping=Stopping())], 130, State.INTERRUPTED),
        ([ended("p", "skipped", 0, failed=1), ended("q", "all_measured", 6)], 0, State.DONE),
        ([ended("p", "oom", 2, failed=1)], 1, State.FAILED),
        ([ended("p", "skipped", 0, failed=1)], 1, State.FAILED),
        ([ended("p", "skipped", 0, failed=1), ended("none", "median_interval", 6, beside=True)], 1, State.FAILED),
        ([ended("p", "median_interval", 6), ended("control", "skipped", 0, failed=1, beside=True)], 0, State.DONE),
    ],
)
def test_how_a_run_ends(tmp_path: Path, states: list[SeriesState], status: int, state: State) -> None:
    said: list[str] = []
    assert conclude(OutcomeFile(tmp_path), states, said.append) == status
    found = read(tmp_path / "outcome.json")
    assert (found["state"], found["exit_status"]) == (state, status)
    if state is State.INTERRUPTED:
        for one in states:
            assert one.series.point_id in found["reason"]
        assert "run the same command again" in found["reason"]
    assert said == [text for text in (found["reason"],) if text]


def test_a_trace_that_the_time_limit_left_out_is_work_left(tmp_path: Path) -> None:
    states = [ended("a", "all_measured", 6), ended("b", "all_measured", 6)]
    assert conclude(OutcomeFile(tmp_path), states, lambda _: None, untraced={"b"}) == 130
    assert "not finished: b (not traced);" in read(tmp_path / "outcome.json")["reason"]


def test_a_time_limit_ends_as_interrupted_and_the_same_command_finishes(
    vlmbench_forked: Vlmbench, tmp_path: Path
) -> None:
    grid = (*SMOKE, "dataset.num_samples=3", "report=phase1")
    cut = vlmbench_forked(*grid, "measurement.time_limit_s=0")
    assert cut.returncode == 130, cut.stderr
    assert "No report yet: " in cut.stdout, "nothing to report is no failure: there will be"
    outcome = read(tmp_path / "out/outcome.json")
    assert (outcome["state"], outcome["exit_status"]) == ("interrupted", 130)
    assert "dataset (0 measured of 3), reference (0 measured of 3)" in outcome["reason"]
    done = vlmbench_forked(*grid)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out/outcome.json")["state"] == "done"
    assert sum(r["status"] == "ok" and r["mode"] == "instrumented" for r in rows(tmp_path / "out")) == 6


def test_how_a_run_is_continued_depends_on_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    single = tmp_path / "outputs" / "day" / "time_phase2"
    of_a_multirun = tmp_path / "multirun" / "day" / "time" / "0_phase2"
    of_a_multirun.mkdir(parents=True)
    (of_a_multirun.parent / "multirun.yaml").touch()
    assert to_continue(single, "out") == "run the same command again to continue"
    assert to_continue(single, None) == "run the same command with output_dir=outputs/day/time_phase2 to continue"
    assert to_continue(of_a_multirun, None) == "run the same command with output_dir=multirun/day/time to continue"
    cut = [ended("p", "time_limit", 3, stopping=Stopping())]
    assert conclude(OutcomeFile(single), cut, lambda _: None, again=to_continue(single, None)) == 130
    assert "output_dir=outputs/day/time_phase2 to continue" in read(single / "outcome.json")["reason"]


# ------------------------------------------------------------------------------------------------------ unlike sessions


def test_a_run_of_another_device_is_not_continued_unless_told_to(vlmbench_forked: Vlmbench, tmp_path: Path) -> None:
    grid = (*SMOKE, "dataset.num_samples=2", "report=phase1")
    assert vlmbench_forked(*grid).returncode == 0
    path = tmp_path / "out/provenance.json"
    stored = read(path)
    here = stored["device"]["name"]
    for place in (stored, stored["sessions"][0]):
        place["device"] |= {"type": "cuda", "name": "NVIDIA H200"}
        place["model"] |= {"dtype": "bfloat16", "attention": "flash_attention_2"}
    stored["runtime"] |= {"dtype": "bfloat16", "attention": "flash_attention_2"}
    path.write_text(json.dumps(stored))
    records, outcome = (tmp_path / "out/records.jsonl").read_bytes(), (tmp_path / "out/outcome.json").read_bytes()

    refused = vlmbench_forked(*grid)
    assert refused.returncode == 2
    for part in ("device.name: NVIDIA H200, then", "runtime.dtype: bfloat16, then float32", "allow_unlike=true"):
        assert part in refused.stderr
    assert "weights in" not in refused.stderr, "found before the model was loaded"
    assert read(path) == stored
    assert (tmp_path / "out/records.jsonl").read_bytes() == records
    assert (tmp_path / "out/outcome.json").read_bytes() == outcome

    allowed = vlmbench_forked(*grid, "allow_unlike=true")
    assert allowed.returncode == 0, allowed.stderr
    whole = read(path)
    assert whole["device"]["name"] == f"NVIDIA H200 + {here}"
    assert whole["runtime"]["attention"] == "flash_attention_2 + sdpa"
    page = (tmp_path / "out/report.html").read_text()
    for text in (allowed.stdout, page):
        assert f"NVIDIA H200 + {here}" in text
        assert "bfloat16 + float32" in " ".join(text.split())


# ----------------------------------------------------------------------------------------------------------- the study


def test_a_study_counts_each_part_once(tmp_path: Path) -> None:
    """Phase 2 is the vision and the prompt sweep; neither phase 1 nor phase 3, which lie beside them."""
    parts = {
        "phase1": sweep("vision_tokens", [576], seed=3),
        "phase2": sweep("vision_tokens", VISION),
        "prompt_tokens": sweep("prompt_tokens", PROMPT, seed=1),
        "phase3": sweep("output_tokens", OUTPUT, seed=2),
    }
    jobs: Any = [SimpleNamespace(directory=write_run(tmp_path / name, found)) for name, found in parts.items()]
    job: Any = SimpleNamespace(directory=tmp_path, settings=SimpleNamespace(allow_unlike=False))
    text = _together(job, jobs, {"phase2": None, "phase3": None})
    (row,) = read(tmp_path / "exp5_token_comparison.json")["results"]
    ratio = row["ratios"]["output_over_vision"]
    assert ratio["low"] <= STEP / 0.05 <= ratio["high"]
    counted = row["flops_latency"]
    assert counted["language_scaling"]["rows"] == len(parts["phase3"])
    assert counted["together"]["rows"] == sum(len(parts[name]) for name in ("phase2", "prompt_tokens", "phase3"))
    assert row["sources"] == {"vision": "phase2", "prompt": "prompt_tokens", "output": "phase3"}
    assert "What do tokens cost against each other?" in text

"""Floors of stages from planted FLOPs, bytes and times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, row, write
from tests.analysis.test_launch import trace
from vlmbench.analysis.floors import floor_table
from vlmbench.analysis.frames import load_runs
from vlmbench.figures.theme import COMPONENT_LABELS
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.report import table_cells, terminal_tables
from vlmbench.report.narrative.latency import WHICH_PART, answers
from vlmbench.report.phase1_summary import summarise

# 1 TFLOP/s and 1 TB/s: 1 GFLOP or 1 GB takes 1 ms.
PEAKS = DevicePeaks(device="Planted GPU", dtype="bfloat16", flops_per_s=1e12, bytes_per_s=1e12, source="planted")
WORK = {"vision_encoder": (2e9, 1e9), "projector": (2e9, 1e6), "llm_prefill": (16e9, 4e9), "llm_decode": (1e9, 3e9)}


def costly(floors: bool = True, **changed: Any) -> dict[str, Any]:
    """8, 1, 20 and 30 ms of 60, over floors of 2, 2, 16 and 3 of 23 ms."""
    columns: dict[str, Any] = {"flops_total": 21e9, "bytes_total": 8.001e9}
    for stage, (flops, moved) in WORK.items():
        columns |= {f"flops_{stage}": flops, f"bytes_{stage}": moved}
        columns |= {f"floor_ms_{stage}": max(flops, moved) / 1e9} if floors else {}
    return row(**changed) | columns | ({"floor_ms_total": 23.0} if floors else {})


def test_each_run_is_held_against_its_own_floor(tmp_path: Path) -> None:
    table = floor_table(load_runs(write(tmp_path, [costly(sample=f"s{i}") for i in range(20)])), PEAKS)
    found = table.set_index("component")
    assert found["over_floor"].to_dict() == pytest.approx(
        {"T_vision_encoder": 4, "T_projector": 0.5, "T_LLM_prefill": 1.25, "T_LLM_decode": 10, "T_total": 60 / 23}
    )
    assert found.loc["T_LLM_decode", ["flops", "bytes", "floor_ms", "time_ms", "n"]].tolist() == [1e9, 3e9, 3, 30, 20]
    assert found.loc["T_LLM_decode", "over_floor_low"] == pytest.approx(10)
    assert found.loc["T_LLM_prefill", "mfu"] == pytest.approx(0.8)
    assert found.loc["T_LLM_decode", "mbu"] == pytest.approx(0.1)
    assert found.loc["T_total", ["mfu", "mbu", "verdict"]].isna().all()
    assert found.loc["T_LLM_prefill", "verdict"] == "compute-bound"
    assert found.loc["T_LLM_decode", "verdict"] == "launch- or latency-bound (not told apart)"


def test_a_trace_tells_what_keeps_a_stage_above_its_floor(tmp_path: Path) -> None:
    rows = [*(costly(repeat=i) for i in range(10)), trace()]
    found = floor_table(load_runs(write(tmp_path, rows)), PEAKS).set_index("component")["verdict"]
    assert found["T_LLM_decode"] == "launch-bound"
    assert found["T_vision_encoder"] == "compute-bound, by kernels far from the floor"


def test_without_peaks_there_are_flops_and_no_floor(tmp_path: Path) -> None:
    table = floor_table(load_runs(write(tmp_path, [costly(floors=False)] * 3)))
    assert table["flops"].tolist() == [2e9, 2e9, 16e9, 1e9, 21e9]
    assert table[["floor_ms", "over_floor", "verdict"]].isna().all(axis=None)
    assert not len(floor_table(load_runs(write(tmp_path / "none", [row()]))))


def said(directory: Path, provenance: dict[str, Any]) -> str:
    summary = summarise(directory)
    json.dumps(summary, allow_nan=False)
    return " ".join(dict(answers(summary, provenance))[WHICH_PART])


def test_no_cell_of_the_components_is_cut(tmp_path: Path) -> None:
    peaks = {"device_peaks": {"flops_per_s": 1e12, "bytes_per_s": 1e12, "source": "planted"}}
    directory = write(tmp_path, [costly(sample=f"s{i}") for i in range(20)], PROVENANCE | peaks)
    assert "…" not in terminal_tables.as_text(terminal_tables.Fitted(table_cells.components(summarise(directory))))


def test_the_words_of_phase_1(tmp_path: Path) -> None:
    peaks = {"device_peaks": {"flops_per_s": 1e12, "bytes_per_s": 1e12, "source": "planted"}}
    rows = [*(costly(sample=f"s{i}") for i in range(20)), trace()]
    text = said(write(tmp_path / "a", rows, PROVENANCE | peaks), PROVENANCE)
    assert (
        "The device is busy 27.6 ms (1 trace, decoding scaled 1.50×) of the 60.0 ms that generate() takes (20" in text
    )
    assert "(21.0 GFLOP) needs at least 23.0 ms, its floor; it takes 2.61×" in text
    assert f"{COMPONENT_LABELS['T_LLM_decode']} 10.0× (launch-bound)" in text
    assert "Below its floor: Projector." in text
    assert "the peaks (planted) are too low" in text


def test_a_device_that_was_not_traced_is_said_and_a_cpu_is_not(tmp_path: Path) -> None:
    provenance = PROVENANCE | {"device": {"type": "cpu"}}
    assert "was not traced: measure with probe=[" in said(write(tmp_path / "a", [row()] * 3), PROVENANCE)
    assert "traced" not in said(write(tmp_path / "b", [row()] * 3, provenance), provenance)
    text = said(write(tmp_path / "c", [costly(floors=False)] * 3), PROVENANCE)
    assert "not known: the device's peaks are not known" in text

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.analysis.made import PROVENANCE, row, write
from vlmbench.analysis.breakdown import component_table, parameter_table, residual_summary, time_and_parameters
from vlmbench.analysis.frames import load_runs
from vlmbench.report.narrative.latency import HOW_SURE, answers
from vlmbench.report.phase1_summary import summarise
from vlmbench.schema import Status


def table_of(path: Path, rows):
    return component_table(load_runs(write(path, rows))).set_index("component")


def test_planted_times_come_out(tmp_path: Path) -> None:
    # 1 + 8 + 1 + 20 + 30 = 60 ms of generate(), 5.75 ms around it
    table = table_of(tmp_path, [row(sample=f"s{i}") for i in range(20)])
    shares = {
        "T_setup": 1 / 60,
        "T_vision_encoder": 8 / 60,
        "T_projector": 1 / 60,
        "T_LLM_prefill": 20 / 60,
        "T_LLM_decode": 0.5,
        "T_residual": 0,
    }
    for name, share in shares.items():
        assert table.loc[name, "share"] == pytest.approx(share)
        assert table.loc[name, "median"] == pytest.approx(60 * share)
        assert table.loc[name, "share_of_request"] == pytest.approx(60 * share / 65.75)
    assert table.loc["T_decode_loop", "share"] == pytest.approx(0.3)
    assert table.loc["T_preprocess", "share"] == pytest.approx(5 / 65.75)
    assert table[table["part_of"] == "T_total"]["share"].sum() == pytest.approx(1)


def test_shares_are_of_all_time_not_means_of_shares(tmp_path: Path) -> None:
    short, long = row(sample="a", gaps=[]), row(sample="b", gaps=[10.0] * 97)
    table = table_of(tmp_path, [short, long])
    assert table.loc["T_LLM_decode", "share"] == pytest.approx(970 / 1030)


def test_a_stage_that_the_model_lacks_has_no_row(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(vision=None, projector=None)])
    assert "T_vision_encoder" not in table.index
    assert table[table["part_of"] == "T_total"]["share"].sum() == pytest.approx(1)


def test_a_stage_that_some_requests_lack(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(sample="a", vision=None), row(sample="b")])
    vision = table.loc["T_vision_encoder"]
    assert (vision["n"], vision["median"], vision["mean"]) == (1, 8, 8)
    assert vision["share"] == pytest.approx(8 / 112)
    assert table[table["part_of"] == "T_total"]["share"].sum() == pytest.approx(1)


def test_residual_is_signed_in_the_table_and_absolute_in_the_summary(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", residual=(-1) ** i * 0.06) for i in range(100)]
    frame = load_runs(write(tmp_path, rows))
    assert component_table(frame).set_index("component").loc["T_residual", "mean"] == pytest.approx(0, abs=1e-6)
    found = residual_summary(frame)
    assert found["median_abs_share"]["value"] == pytest.approx(0.001, rel=2e-3)
    assert (found["runs"], found["runs_with_negative"], found["sum_mismatch"], found["negative_stages"]) == (
        100,
        0,
        0,
        {},
    )


@pytest.mark.parametrize(
    ("gaps", "residual", "goal", "met"),
    [(30, 0.004, 0.01, True), (31, 0.004, 0.002, False), (31, 0.0015, 0.002, True), (1, 0.02, 0.01, False)],
)
def test_the_goal_for_the_residual_goes_by_the_length(
    tmp_path: Path, gaps: int, residual: float, goal: float, met: bool
) -> None:
    # 30 ms and 10 ms a gap, of which the residual is the planted share
    whole = (30 + 10 * gaps) / (1 - residual)
    rows = [row(sample=f"s{i}", gaps=[10.0] * gaps, residual=whole * residual) for i in range(8)]
    directory = write(tmp_path, rows)
    found = residual_summary(load_runs(directory))
    assert found["median_abs_share"]["value"] == pytest.approx(residual, rel=1e-3)
    assert (found["median_output_tokens"], found["goal"], found["goal_met"]) == (gaps + 1, goal, met)
    said = " ".join(dict(answers(summarise(directory), {}))[HOW_SURE])
    assert f"at {gaps + 1} output tokens, the median (0.20 % from 32 tokens on, 1.00 % below): " in said
    assert f"below): {'met' if met else 'missed'}." in said


def test_broken_invariants_are_counted_not_repaired(tmp_path: Path) -> None:
    negative = row(sample="a", setup=-0.5)
    wrong = row(sample="b") | {"T_total": 75.0}
    frame = load_runs(write(tmp_path, [negative, wrong, row(sample="c")]))
    found = residual_summary(frame)
    assert found["negative_stages"] == {"T_setup": 1}
    assert found["runs_with_negative"] == 1
    assert found["sum_mismatch"] == 1
    assert component_table(frame).set_index("component").loc["T_setup", "mean"] == pytest.approx(0.5)


def test_a_whole_of_nothing_has_no_shares_and_is_counted(tmp_path: Path) -> None:
    """A residual was infinitely much of it, and the report of all rows ended in an IndexError."""
    rows = [row(sample=f"s{i}") for i in range(12)]
    frame = load_runs(write(tmp_path, [*rows, row(sample="z") | {"T_total": 0.0}]))
    found, whole = residual_summary(frame), residual_summary(load_runs(write(tmp_path / "whole", rows)))
    assert (found["runs"], found["sum_mismatch"]) == (12, 1)
    assert found["median_abs_share"] == whole["median_abs_share"]


def test_nothing_measured(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, [row(status=Status.ERROR, reason="x")]))
    assert component_table(frame).empty
    found = residual_summary(frame)
    assert found["median_abs_share"]["value"] is None
    assert (found["goal"], found["goal_met"]) == (None, None)


def test_parameters_and_time_beside_them(tmp_path: Path) -> None:
    parameters = parameter_table(PROVENANCE)
    assert parameters["share"].sum() == pytest.approx(1)
    assert parameters.set_index("component").loc["language_model", "share"] == pytest.approx(6.5 / 6.95)
    both = time_and_parameters(component_table(load_runs(write(tmp_path, [row()]))), parameters).set_index("component")
    assert both.loc["language_model", "parameters"] == 6_630_000_000
    assert both.loc["language_model", "time_share"] == pytest.approx(50 / 60)
    assert both.loc["vision_encoder", "ms_per_billion"] == pytest.approx(8 / 0.3)


@pytest.mark.parametrize("provenance", [{}, {"model": None}, {"model": {"parameters": {}}}])
def test_no_parameters_counted(provenance: dict, tmp_path: Path) -> None:
    assert parameter_table(provenance).empty
    components = component_table(load_runs(write(tmp_path, [row()])))
    assert time_and_parameters(components, parameter_table(provenance)).empty


def test_what_parts_lack_of_the_total_is_other() -> None:
    table = parameter_table({"model": {"parameters": {"vision_encoder": 10, "total": 40}}})
    assert table.to_dict("records") == [
        {"component": "vision_encoder", "parameters": 10, "share": 0.25},
        {"component": "other", "parameters": 30, "share": 0.75},
    ]


def test_share_interval_covers_the_planted_share(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    hits = 0
    for trial in range(40):
        gaps = random.integers(1, 30, 60)
        table = table_of(tmp_path / str(trial), [row(sample=f"s{i}", gaps=[10.0] * int(g)) for i, g in enumerate(gaps)])
        truth = 150 / 180  # mean of 1 … 29 gaps is 15, of 10 ms, beside 30 ms
        hits += table.loc["T_LLM_decode", "share_low"] <= truth <= table.loc["T_LLM_decode", "share_high"]
    assert hits >= 33

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.swept import (
    ENCODER_TOKEN,
    OUTPUT,
    PREFILL_TOKEN,
    PROMPT,
    PROVENANCE,
    STEP,
    VISION,
    frame_of,
    sweep,
    write_phase,
    write_run,
)
from vlmbench.analysis.floors import peaks_of, roofline_table
from vlmbench.analysis.regression import Estimate, fieller
from vlmbench.analysis.results import ResultSet, merge_like, pair, read_results
from vlmbench.analysis.scaling import fit_scaling
from vlmbench.analysis.slices import KINDS, slices
from vlmbench.analysis.token_costs import Comparison, compare, token_cost
from vlmbench.errors import InputError
from vlmbench.machine.peaks import DevicePeaks

VISION_COST = ENCODER_TOKEN + PREFILL_TOKEN


def result(rows: list[dict[str, object]], name: str = "run") -> ResultSet:
    return ResultSet(path=Path(name), frame=frame_of(rows), provenance=PROVENANCE)


def compare_paths(phase2: Path, phase3: Path) -> list[Comparison]:
    return [compare(a, b) for a, b in pair(merge_like(read_results(phase2)), merge_like(read_results(phase3)))]


P2 = result(sweep("vision_tokens", VISION) + sweep("prompt_tokens", PROMPT, seed=1), "p2")
P3 = result(sweep("output_tokens", OUTPUT, seed=2), "p3")


def test_unit_costs_ratios_and_break_even_are_the_planted_ones() -> None:
    found = compare(P2, P3)
    planted = {"vision": VISION_COST, "prompt": PREFILL_TOKEN, "output": STEP}
    for kind, cost in planted.items():
        assert found.costs[kind].cost.low <= cost <= found.costs[kind].cost.high
    ratio = found.ratio("output", "vision")
    assert ratio.low <= STEP / VISION_COST <= ratio.high
    assert ratio.value == pytest.approx(300, rel=0.05)
    assert found.break_even().startswith("One output token costs as much as ")
    assert f"{ratio.low:.3g} to {ratio.high:.3g}" in found.break_even()
    table = found.ratios()
    assert len(table) == 6
    assert {"over", "under", "value", "low", "high"} <= set(table.columns)
    assert found.sources == {"vision": "p2", "prompt": "p2", "output": "p3"}


def test_each_kind_moves_its_stages() -> None:
    found = compare(P2, P3)
    assert set(found.costs["vision"].moved()) == {"T_LLM_prefill", "T_vision_encoder"}
    assert found.costs["prompt"].moved() == ["T_LLM_prefill"]
    assert found.costs["output"].moved() == ["T_LLM_decode"]
    share = found.costs["vision"].shares["T_vision_encoder"]
    assert share.low <= ENCODER_TOKEN / VISION_COST <= share.high
    for cost in found.costs.values():
        assert sum(s.value for s in cost.shares.values()) == pytest.approx(1, abs=1e-6)


def slope_of(axis: str, values: tuple[int, ...], kind: str, seed: int) -> Estimate:
    frame = frame_of(sweep(axis, values, noise=0.02, seed=seed))
    fit = fit_scaling(slices(frame, KINDS[kind])[0], "T_total")
    assert fit is not None
    return fit.slope


def test_intervals_of_the_ratio_hold_the_truth() -> None:
    held, runs = 0, 60
    for seed in range(runs):
        vision = slope_of("vision_tokens", VISION, "vision", 2 * seed)
        output = slope_of("output_tokens", OUTPUT, "output", 2 * seed + 1)
        ratio = fieller(output, vision)
        held += ratio.low <= STEP / VISION_COST <= ratio.high
    assert held / runs >= 0.87  # three standard errors below 0.95


def test_a_cost_that_is_not_there_has_no_break_even() -> None:
    frame = frame_of(sweep("vision_tokens", VISION, noise=0.02))
    frame["T_total"] = 100 + np.random.default_rng(0).standard_normal(len(frame))
    found = compare(ResultSet(path=Path("p2"), frame=frame, provenance=PROVENANCE), P3)
    assert not found.ratio("output", "vision").bounded
    assert "no upper bound" in found.break_even()
    assert "cannot be told from 0" in found.costs["vision"].words()


def test_one_run_with_both_sweeps_is_enough(tmp_path: Path) -> None:
    rows = sweep("vision_tokens", VISION) + sweep("output_tokens", OUTPUT)
    run = write_run(tmp_path, rows)
    (found,) = compare_paths(run, run)
    assert found.ratio("output", "vision").value == pytest.approx(300, rel=0.05)


def test_jobs_of_a_multirun_and_phase_files_mix(tmp_path: Path) -> None:
    write_run(tmp_path / "multi" / "0", sweep("vision_tokens", VISION[:4]))
    write_run(tmp_path / "multi" / "1", sweep("vision_tokens", VISION[4:], seed=5))
    phase3 = write_phase(tmp_path / "exp4b_language_tokens.json", sweep("output_tokens", OUTPUT))
    (found,) = compare_paths(tmp_path / "multi", phase3)
    assert found.costs["vision"].total.high == max(VISION)
    assert set(found.costs) == {"vision", "output"}


def test_older_files_are_compared(tmp_path: Path) -> None:
    keys = ("T_total", "num_vision_tokens", "max_new_tokens")
    rows2 = [r | {"max_new_tokens": 8} for r in sweep("vision_tokens", VISION)]
    rows3 = [r | {"max_new_tokens": r["num_output_tokens"]} for r in sweep("output_tokens", OUTPUT)]
    old = {"schema_version": None, "provenance": None, "summary": None}
    phase2 = write_phase(tmp_path / "phase2_scaling.json", [{k: r[k] for k in keys} for r in rows2], **old)
    phase3 = write_phase(tmp_path / "exp4b.json", [{k: r[k] for k in keys} for r in rows3], **old)
    (found,) = compare_paths(phase2, phase3)
    assert found.ratio("output", "vision").value == pytest.approx(300, rel=0.05)
    assert any("not checked" in note for note in found.notes)
    assert any("max_new_tokens" in note for note in found.notes)


@pytest.mark.parametrize(
    ("vision", "output", "named"), [(VISION[:2], OUTPUT, "vision"), (VISION, OUTPUT[:2], "output")]
)
def test_fewer_than_three_points_are_refused(
    tmp_path: Path, vision: tuple[int, ...], output: tuple[int, ...], named: str
) -> None:
    a = write_run(tmp_path / "a", sweep("vision_tokens", vision))
    b = write_run(tmp_path / "b", sweep("output_tokens", output))
    with pytest.raises(InputError, match=rf"2 different count\(s\) of {named} tokens") as caught:
        compare_paths(a, b)
    assert "needs 3" in str(caught.value)
    assert "python -m vlmbench experiment=" in str(caught.value)


def test_swapped_inputs_work_all_the_same() -> None:
    assert compare(P3, P2).ratio("output", "vision").value == pytest.approx(
        compare(P2, P3).ratio("output", "vision").value
    )


def test_unlike_runs_are_marked_when_allowed() -> None:
    other = ResultSet(path=Path("p3"), frame=P3.frame, provenance={**PROVENANCE, "device": {"name": "X"}})
    assert any("UNLIKE" in note for note in compare(P2, other).notes)


def test_a_single_run_a_point_still_has_a_cost() -> None:
    cost = token_cost(frame_of(sweep("vision_tokens", VISION, repeats=1)), "vision")
    assert cost is not None
    assert cost.cost.value == pytest.approx(VISION_COST, rel=0.1)


PEAKS = DevicePeaks(device="Made GPU", dtype="bfloat16", flops_per_s=1e15, bytes_per_s=1e12, source="sheet")


def test_roofline_rates_floors_and_verdicts() -> None:
    rows = sweep("output_tokens", OUTPUT, noise=0.0)
    busy = {"busy_LLM_decode": 7 * 3.0, "busy_total": 40.0}
    trace = next(r for r in rows if r["num_output_tokens"] == 8) | {"mode": "trace"} | busy
    table = roofline_table(frame_of([*rows, trace]), PEAKS).set_index(["stage", "point_id"])
    row = table.loc[("T_LLM_decode", "output_tokens=8")]
    assert row["intensity"] == pytest.approx(1)
    assert row["flops_per_s"] == pytest.approx(1.4e10 / (STEP / 1e3))
    assert row["floor_ms"] == pytest.approx(7 * 14.0)
    assert row["over_floor"] == pytest.approx(STEP / 14)
    assert row["verdict"] == "memory-bound"
    assert row["launch_bound"] == pytest.approx(1 - 3 / STEP)
    assert pd.isna(table.loc[("T_LLM_decode", "output_tokens=2"), "launch_bound"])
    assert table.loc[("T_vision_encoder", "output_tokens=8"), "verdict"].startswith("launch- or latency-bound")


def test_roofline_without_costs_is_empty() -> None:
    frame = frame_of(sweep("output_tokens", OUTPUT))
    assert roofline_table(frame[[c for c in frame if not c.startswith("bytes_")]]).empty


def test_peaks_come_from_the_provenance_or_the_rows() -> None:
    peaks = {"flops_per_s": 1.0, "bytes_per_s": 2.0, "source": "sheet"}
    for provenance in ({"device_peaks": peaks}, {"device": {"device_peaks": peaks}}):
        found = peaks_of(provenance)
        assert found is not None
        assert found.source == "sheet"
    assert peaks_of({}) is None
    frame = frame_of(sweep("output_tokens", OUTPUT))
    assert peaks_of({}, frame) is None
    seconds = frame["T_LLM_prefill"] / 1e3
    frame["mfu_llm_prefill"] = frame["flops_llm_prefill"] / seconds / 1e15
    frame["mbu_llm_prefill"] = frame["bytes_llm_prefill"] / seconds / 1e12
    found = peaks_of({}, frame)
    assert found is not None
    assert (found.flops_per_s, found.bytes_per_s) == pytest.approx((1e15, 1e12))

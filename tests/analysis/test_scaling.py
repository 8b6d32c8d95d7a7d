from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.swept import ENCODER_TOKEN, OUTPUT, PREFILL_TOKEN, PROMPT, STEP, VISION, frame_of, one_stage, sweep
from vlmbench.analysis.flops_latency import flops_latency
from vlmbench.analysis.scaling import Scaling, describe, scalings
from vlmbench.analysis.slices import KINDS, slices

X = tuple(round(v) for v in np.linspace(64, 1024, 12))


def only(frame: pd.DataFrame, kind: str = "vision", stage: str = "T_total") -> Scaling:
    (found,) = scalings(frame, kinds=[kind], stages=[stage])
    return found


def test_planted_slopes_of_every_stage_come_back() -> None:
    found = {s.stage: s for s in scalings(frame_of(sweep("vision_tokens", VISION)), kinds=["vision"])}
    planted = {
        "T_vision_encoder": ENCODER_TOKEN,
        "T_LLM_prefill": PREFILL_TOKEN,
        "T_total": ENCODER_TOKEN + PREFILL_TOKEN,
    }
    for stage, slope in planted.items():
        estimate = found[stage].slope
        assert estimate.low <= slope <= estimate.high, stage
        assert estimate.value == pytest.approx(slope, rel=0.05)
        assert found[stage].shape == "linear"
        assert found[stage].held_out_error < 0.005
    for stage in ("T_setup", "T_projector", "T_LLM_decode"):
        assert abs(found[stage].slope.value) * 1000 < 0.01 * found[stage].points["mean"].mean()
        assert "no measurable dependence" in describe(found[stage]) or "nothing to act on" in describe(found[stage])


def test_output_slope_is_the_step() -> None:
    found = only(frame_of(sweep("output_tokens", OUTPUT)), "output", "T_LLM_decode")
    assert found.slope.value == pytest.approx(STEP, rel=0.01)
    assert found.slice.fixed == {"num_vision_tokens": 576, "num_prompt_tokens": 32}


def test_planted_bend() -> None:
    found = only(one_stage(lambda x: 20 + 0.03 * x + 2e-5 * x**2, X, repeats=10, seed=1))
    assert found.shape == "quadratic"
    assert found.aic["quadratic"] < found.aic["linear"]
    assert found.slope_at(64).value == pytest.approx(0.03 + 4e-5 * 64, abs=0.004)
    assert found.slope_at(1024).value == pytest.approx(0.03 + 4e-5 * 1024, abs=0.004)
    assert "bends" in describe(found)


def test_planted_kink() -> None:
    found = only(one_stage(lambda x: 20 + 0.05 * np.maximum(0, x - 400), X, repeats=10, seed=1))
    assert found.shape == "kink"
    assert found.knot == pytest.approx(400, abs=25)
    assert found.slope_at(100).value == pytest.approx(0, abs=0.005)
    assert found.slope_at(900).value == pytest.approx(0.05, abs=0.003)
    assert "kinks at" in describe(found)


@pytest.mark.parametrize("scatter", [0.0, 2.0])
def test_a_straight_line_is_seldom_called_bent(scatter: float) -> None:
    shapes = [
        only(one_stage(lambda x: 20 + 0.05 * x, X, repeats=10, seed=seed, scatter=scatter)).shape for seed in range(60)
    ]
    assert shapes.count("linear") >= 52  # 87 %: three standard errors below 97 %


def test_no_dependence_is_said() -> None:
    found = only(one_stage(lambda x: 20 + 0 * x, X, repeats=10, seed=3))
    assert not found.measurable
    assert "no measurable dependence" in describe(found)
    assert "at most" in describe(found)


def test_a_negligible_slope_is_said() -> None:
    found = only(one_stage(lambda x: 1000 + 0.005 * x, X, repeats=50, seed=3, noise=0.1))
    assert found.measurable
    assert "nothing to act on" in describe(found)


def test_the_median_slope_is_deaf_to_outliers() -> None:
    frame = one_stage(lambda x: 20 + 0.05 * x, X, repeats=11, seed=4, noise=0.1)
    frame.loc[frame["num_vision_tokens"] == 1024, "T_total"] += np.tile([400.0, *[0.0] * 10], 1)
    found = only(frame)
    assert abs(found.median_slope.value - 0.05) < 0.001
    assert found.slope.low < 0.05 < found.slope.high


def test_what_slow_runs_hide_is_said() -> None:
    frame = one_stage(lambda x: 20 + 0.05 * x, X, repeats=11, seed=4, noise=0.1)
    slow = frame.groupby("point_id").head(2).index
    frame.loc[slow, "T_total"] += np.random.default_rng(0).exponential(2000, len(slow))
    found = only(frame)
    assert not found.measurable
    assert found.median_slope.value == pytest.approx(0.05, abs=0.002)
    assert "slow runs hide it" in describe(found)


def test_held_out_points_are_every_other_one() -> None:
    found = only(one_stage(lambda x: 20 + 0.05 * x, (10, 20, 30, 40, 50), repeats=4, seed=0))
    assert found.held_out == (20.0, 40.0)


@given(
    slope=st.floats(0.01, 10),
    start=st.floats(0, 500),
    x=st.lists(st.integers(1, 5000), min_size=4, max_size=12, unique=True),
)
@settings(max_examples=40, deadline=None)
def test_any_exact_line_is_found_and_predicted(slope: float, start: float, x: list[int]) -> None:
    frame = one_stage(lambda v: start + slope * v, x, repeats=3, seed=0, noise=0.0)
    found = only(frame)
    assert found.slope.value == pytest.approx(slope, rel=1e-6)
    assert found.held_out_error < 1e-6
    mean, low, high = found.predict([min(x), max(x)])
    assert mean == pytest.approx([start + slope * min(x), start + slope * max(x)], rel=1e-5)
    assert (low <= high).all()


@given(st.permutations(range(36)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_matters_to_the_interval_alone(order: list[int]) -> None:
    frame = one_stage(lambda x: 20 + 0.05 * x, X, repeats=3, seed=0)
    first, second = only(frame).as_row(), only(frame.iloc[order]).as_row()
    for name in ("slope_ms", "slope_robust_ms", "slope_hc3_low", "r2", "held_out_error"):
        assert second[name] == pytest.approx(first[name], rel=1e-9)


def test_rows_that_are_no_latencies_do_not_enter() -> None:
    frame = frame_of(sweep("vision_tokens", VISION))
    spoilt = frame.assign(T_total=1e6)
    noise = [spoilt.assign(status=s) for s in ("warmup", "cold", "oom", "error")]
    noise += [spoilt.assign(mode=m) for m in ("bare", "trace")]
    noise.append(spoilt.assign(point_id="reference"))
    assert only(pd.concat([frame, *noise])).slope.value == pytest.approx(only(frame).slope.value)


def test_fewer_than_three_counts_give_no_slope() -> None:
    assert scalings(frame_of(sweep("vision_tokens", (64, 128)))) == []


def test_a_grid_is_cut_into_slices() -> None:
    rows = []
    for output in (8, 64):
        for row in sweep("vision_tokens", VISION, base=(576, 32, output)):
            rows.append(row | {"axis_output_tokens": output, "point_id": f"{row['point_id']},output_tokens={output}"})
    found = slices(frame_of(rows), KINDS["vision"])
    assert [s.fixed["output_tokens"] for s in found] == [8, 64]
    assert all(s.rows["num_output_tokens"].nunique() == 1 for s in found)
    fits = scalings(frame_of(rows), kinds=["vision"], stages=["T_total"])
    assert [f.slope.value for f in fits] == pytest.approx([0.05, 0.05], rel=0.3)


def test_only_the_axis_that_turns_a_kind_counts() -> None:
    """In a run with two sweeps, rows of the output sweep are no vision sweep though they hold vision tokens."""
    frame = frame_of(sweep("vision_tokens", VISION) + sweep("output_tokens", OUTPUT))
    (found,) = slices(frame, KINDS["vision"])
    assert len(found.rows) == len(VISION) * 6


def test_natural_lengths_are_mixed_with_a_note() -> None:
    frame = frame_of(sweep("vision_tokens", VISION))
    frame["num_output_tokens"] = np.random.default_rng(0).integers(2, 200, len(frame))
    (found,) = slices(frame, KINDS["vision"])
    assert "output tokens vary" in found.note


def test_cross_attention_and_resamplers_find_their_own_count() -> None:
    frame = frame_of(sweep("vision_tokens", VISION))
    crossed = frame.assign(num_cross_attention_tokens=frame["num_vision_tokens"], num_vision_tokens=0)
    assert slices(crossed, KINDS["vision"])[0].x == "num_cross_attention_tokens"
    resampled = frame.assign(num_vision_patches=frame["num_vision_tokens"], num_vision_tokens=64)
    assert slices(resampled, KINDS["vision"])[0].x == "num_vision_patches"


def test_categories_of_the_loader_are_understood() -> None:
    frame = frame_of(sweep("vision_tokens", VISION)).astype(dict.fromkeys(("point_id", "status", "mode"), "category"))
    assert len(scalings(frame)) >= 5


def test_prompt_sweep() -> None:
    found = only(frame_of(sweep("prompt_tokens", PROMPT)), "prompt", "T_LLM_prefill")
    assert found.slope.value == pytest.approx(PREFILL_TOKEN, rel=0.05)


def test_same_flops_other_time() -> None:
    frame = frame_of(sweep("vision_tokens", VISION) + sweep("output_tokens", OUTPUT))
    found = flops_latency(frame)
    assert found is not None
    per_vision, per_output = 1.46e10 / 1e12, 1.4e10 / 1e12
    assert found.parts["vision"].cost.value == pytest.approx(0.05 / per_vision, rel=0.05)
    assert found.parts["output"].cost.value == pytest.approx(STEP / per_output, rel=0.02)
    ratio = found.ratio()
    assert ratio is not None
    assert ratio.low <= (STEP / per_output) / (0.05 / per_vision) <= ratio.high
    (low, at_low), (high, at_high) = found.same_flops()
    assert low < high
    assert at_low.value < 1 < at_high.value
    assert found.together is not None
    assert found.together.r2 < 0.9
    assert any("do not tell the latency" in sentence for sentence in found.words())


def test_no_flops_no_answer() -> None:
    assert flops_latency(frame_of(sweep("vision_tokens", VISION)).drop(columns="flops_total")) is None


def test_float32_columns_and_missing_values() -> None:
    frame = frame_of(sweep("vision_tokens", VISION)).astype({"T_total": "float32", "num_vision_tokens": "float32"})
    frame.loc[::7, "T_total"] = math.nan
    assert only(frame).slope.value == pytest.approx(0.05, rel=0.1)

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.swept import OUTPUT, PROMPT, PROVENANCE, STEP, VISION, frame_of, stages, sweep
from vlmbench.analysis.latency_fit import fit_latency_model
from vlmbench.analysis.latency_model import LatencyModel
from vlmbench.errors import InputError

ROWS = sweep("vision_tokens", VISION) + sweep("prompt_tokens", PROMPT, seed=1) + sweep("output_tokens", OUTPUT, seed=2)
MODEL = fit_latency_model(frame_of(ROWS), provenance=PROVENANCE)


def test_predicts_requests_that_were_never_measured() -> None:
    """Three one-dimensional sweeps; asked in the middle of the cube."""
    for vision, prompt, output in ((100, 200, 100), (900, 40, 5), (300, 400, 60)):
        planted = stages(vision, prompt, output)
        found = MODEL.predict(vision=vision, prompt=prompt, output=output)
        assert found["T_total"] == pytest.approx(sum(planted.values()), rel=0.01)
        for stage, time in planted.items():
            assert found[stage] == pytest.approx(time, rel=0.03), stage
        assert found["TTFT_model"] == pytest.approx(sum(planted.values()) - planted["T_LLM_decode"], rel=0.01)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vision": -5, "prompt": 40, "output": 16}, "'vision' must be 0 or more tokens .got -5"),
        ({"vision": [576, 10], "prompt": [40, -1], "output": 16}, "'prompt' must be 0 or more tokens .got -1"),
        ({"vision": 576, "prompt": 40, "output": 0}, "'output' must be 1 or more tokens .got 0"),
    ],
)
def test_counts_that_no_request_has_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MODEL.predict(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vision": 576, "prompt": 32, "output": 4096}, "'output' was measured from 2 to 128 tokens .got 4096"),
        ({"vision": [576, 32], "prompt": 32, "output": 8}, "'vision' was measured from 64 to 1,024 tokens .got 32"),
    ],
)
def test_counts_that_were_never_measured_are_refused_unless_asked_for(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MODEL.predict(**given)
    found = MODEL.predict(**given, extrapolate=True)["T_total"]
    planted = [sum(stages(v, given["prompt"], given["output"]).values()) for v in np.ravel(given["vision"])]
    assert np.ravel(found) == pytest.approx(planted, rel=0.02)


def test_intervals_hold_single_requests_and_their_typical_time() -> None:
    """A machine that changes slowly (AR(1), 0.8): where requests were never measured, at many draws of the noise."""
    asked = [(100, 200, 100), (900, 40, 5), (300, 400, 60), (576, 32, 8)]
    held = {"typical": 0, "request": 0}
    draws = 8
    for seed in range(draws):
        random = np.random.default_rng(seed)
        frame = _slowly_changing(random)
        model = fit_latency_model(frame)
        for vision, prompt, output in asked:
            typical = sum(stages(vision, prompt, output).values())
            one = typical * float(np.exp(random.normal(0, 0.02)))
            low, high = model.interval(vision=vision, prompt=prompt, output=output, typical=True)
            held["typical"] += low <= typical <= high
            low, high = model.interval(vision=vision, prompt=prompt, output=output)
            held["request"] += low <= one <= high
            assert high - low < 0.2 * typical
    assert min(held.values()) >= 0.9 * draws * len(asked)


def _slowly_changing(random: np.random.Generator) -> pd.DataFrame:
    rows = []
    for axis, values in (("vision_tokens", VISION), ("prompt_tokens", PROMPT), ("output_tokens", OUTPUT)):
        rows += sweep(axis, values, repeats=25, noise=0.0)
    frame = frame_of(rows)
    noise = np.zeros(len(frame))
    for i, step in enumerate(random.normal(0, 0.02 * math.sqrt(1 - 0.8**2), len(frame))):
        noise[i] = 0.8 * noise[i - 1] + step
    times = [name for name in frame if str(name).startswith("T_")]
    frame[times] = frame[times].mul(np.exp(noise), axis=0)
    return frame


def test_too_few_runs_have_no_interval() -> None:
    with pytest.raises(InputError, match=r"no intervals.*\nMeasure five points"):
        MODEL.interval(vision=576, prompt=32, output=8)


def test_numbers_and_arrays_are_answered_alike() -> None:
    request = {"vision": 300, "prompt": 50, "output": 20}
    one, many = MODEL.predict(**request), MODEL.predict(**{name: np.array([n]) for name, n in request.items()})
    assert one == {name: pytest.approx(float(values[0])) for name, values in many.items()}


def test_it_says_what_it_is_of_and_how_far_off_it_was() -> None:
    said = str(MODEL).splitlines()
    assert said[0] == ("T_total of made-7b, Made GPU for 64 to 1,024 vision, 16 to 512 prompt, 2 to 128 output tokens")
    assert "each of 20 points left out in turn, the others foretell it within 0." in said[1]


def test_rows_of_several_runtimes_are_refused() -> None:
    frame = frame_of(ROWS)
    frame["runtime"] = np.where(frame["repeat"] % 2, "eager", "cudagraph")
    with pytest.raises(InputError, match=r"one runtime, and the rows are of cudagraph, eager\n"):
        fit_latency_model(frame)


def test_held_out_error_is_that_of_points_not_seen() -> None:
    assert MODEL.held_out["points"] == 20
    assert MODEL.held_out["median"] < 0.005
    assert MODEL.held_out["median"] <= MODEL.held_out["p90"] <= MODEL.held_out["max"]


def test_held_out_error_is_large_where_no_law_holds() -> None:
    frame = frame_of(sweep("vision_tokens", VISION))
    random = np.random.default_rng(0)
    frame["T_LLM_decode"] *= frame["num_vision_tokens"].map({v: random.uniform(0.3, 3) for v in VISION})
    frame["T_total"] = frame[["T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode"]].sum(
        axis=1
    )
    assert fit_latency_model(frame).held_out["median"] > 0.1


def test_stages_add_up() -> None:
    found = MODEL.predict(vision=VISION, prompt=32, output=8)
    parts = [v for k, v in found.items() if k not in ("T_total", "TTFT_model")]
    assert np.sum(parts, axis=0) == pytest.approx(found["T_total"])


def test_arrays_broadcast_and_numbers_stay_numbers() -> None:
    grid = MODEL.predict(vision=np.array(VISION)[:, None], prompt=32, output=np.array(OUTPUT)[None, :])
    assert grid["T_total"].shape == (len(VISION), len(OUTPUT))
    one = MODEL.predict(vision=VISION[2], prompt=32, output=OUTPUT[3])
    assert isinstance(one["T_total"], float)
    assert grid["T_total"][2, 3] == pytest.approx(one["T_total"])


def test_range() -> None:
    assert MODEL.inside(vision=576, prompt=32, output=8)
    assert not MODEL.inside(vision=576, prompt=32, output=4096)
    assert MODEL.inside(vision=[64, 5000], prompt=32, output=8).tolist() == [True, False]


def test_saved_and_loaded_it_predicts_the_same(tmp_path: Path) -> None:
    path = MODEL.save(tmp_path / "latency_model.json")
    loaded = LatencyModel.load(path)
    request = {"vision": 300, "prompt": 50, "output": 20}
    assert loaded.predict(**request) == MODEL.predict(**request)
    assert loaded.to_dict() == MODEL.to_dict()
    assert json.loads(path.read_text())["provenance"]["device"]["name"] == "Made GPU"


def test_a_controller_needs_numpy_and_nothing_else(tmp_path: Path) -> None:
    path = MODEL.save(tmp_path / "latency_model.json")
    code = (
        "import sys; from vlmbench.analysis.latency_model import LatencyModel\n"
        f"print(LatencyModel.load({str(path)!r}).predict(vision=576, prompt=32, output=8)['T_total'])\n"
        "heavy = {'pandas', 'scipy', 'torch', 'matplotlib', 'seaborn', 'hydra', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(MODEL.predict(vision=576, prompt=32, output=8)["T_total"])


def test_a_plateau_is_fitted() -> None:
    frame = frame_of(ROWS)
    context = frame["num_vision_tokens"] + frame["num_prompt_tokens"]
    change = 20 + 0.06 * (context - 400).clip(lower=0) - frame["T_LLM_prefill"]
    frame["T_LLM_prefill"] += change
    frame["T_total"] += change
    model = fit_latency_model(frame)
    assert "context_above" in model.stages["T_LLM_prefill"].features
    assert model.stages["T_LLM_prefill"].knot == pytest.approx(400, abs=60)
    assert model.predict(vision=100, prompt=32, output=8)["T_LLM_prefill"] == pytest.approx(20, rel=0.05)
    assert model.predict(vision=768, prompt=32, output=8)["T_LLM_prefill"] == pytest.approx(44, rel=0.05)


def test_growing_caches_are_fitted() -> None:
    frame = frame_of(sweep("output_tokens", (2, 32, 64, 128, 256, 512, 1024), noise=0.0))
    steps = frame["num_output_tokens"] - 1
    grown = 0.01 * (steps * 608 + steps * (steps + 1) / 2)
    frame["T_LLM_decode"] += grown
    frame["T_total"] += grown
    model = fit_latency_model(frame)
    planted = STEP * 799 + 0.01 * (799 * 608 + 799 * 800 / 2)
    assert model.predict(vision=576, prompt=32, output=800)["T_LLM_decode"] == pytest.approx(planted, rel=1e-3)


def test_requests_without_images_have_no_vision_cost() -> None:
    frame = frame_of(ROWS + sweep("output_tokens", OUTPUT, base=(0, 32, 8), seed=9))
    text_only = frame["num_vision_tokens"] == 0
    for stage in ("T_vision_encoder", "T_projector"):
        frame.loc[text_only, "T_total"] -= frame.loc[text_only, stage]
        frame.loc[text_only, stage] = math.nan
    found = fit_latency_model(frame).predict(vision=0, prompt=32, output=8)
    assert found["T_vision_encoder"] == 0
    assert found["T_total"] == pytest.approx(sum(stages(0, 32, 8).values()) - 10.5, rel=0.02)


def test_cross_attention_counts_stand_in() -> None:
    frame = frame_of(ROWS)
    frame = frame.assign(num_cross_attention_tokens=frame["num_vision_tokens"], num_vision_tokens=0)
    model = fit_latency_model(frame)
    assert model.vision_column == "num_cross_attention_tokens"
    found = model.predict(vision=300, prompt=32, output=8)["T_total"]
    assert found == pytest.approx(sum(stages(300, 32, 8).values()), rel=0.02)


def test_files_without_stages_give_a_model_of_the_total() -> None:
    frame = frame_of(ROWS)[["T_total", "num_vision_tokens", "num_prompt_tokens", "num_output_tokens"]]
    model = fit_latency_model(frame)
    assert set(model.stages) == {"T_total"}
    assert model.predict(vision=300, prompt=32, output=8)["T_total"] == pytest.approx(
        sum(stages(300, 32, 8).values()), rel=0.02
    )
    assert "TTFT_model" not in model.predict(vision=300, prompt=32, output=8)


def test_slow_runs_do_not_move_it() -> None:
    frame = frame_of(ROWS)
    slow = frame.index[frame["repeat"] == 0]
    frame.loc[slow, "T_LLM_decode"] += 500
    frame.loc[slow, "T_total"] += 500
    found = fit_latency_model(frame).predict(vision=576, prompt=32, output=8)["T_total"]
    assert found == pytest.approx(sum(stages(576, 32, 8).values()), rel=0.01)


def test_plain_mappings_of_arrays_do() -> None:
    frame = frame_of(ROWS)
    model = fit_latency_model({name: frame[name].to_numpy() for name in frame})
    assert model.to_dict()["stages"] == fit_latency_model(frame).to_dict()["stages"]


def test_other_batch_sizes_stay_out() -> None:
    frame = frame_of(ROWS)
    frame["axis_batch_size"] = 1
    other = frame.iloc[:10].assign(axis_batch_size=8, T_total=1e5)
    model = fit_latency_model(pd.concat([frame, other]))
    assert model.held_out["median"] < 0.005


def test_too_few_requests() -> None:
    with pytest.raises(InputError, match="at least 3 different requests"):
        fit_latency_model(frame_of(sweep("vision_tokens", (64, 128))))
    with pytest.raises(InputError, match="T_total"):
        fit_latency_model({"num_vision_tokens": np.array([1.0])})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema_version": 2, "kind": "latency_model"}', '{"schema_version": 1, "kind": "x"}'],
)
def test_what_is_no_latency_model_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "latency_model.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a latency model"):
        LatencyModel.load(path)


def test_unknown_features_are_refused(tmp_path: Path) -> None:
    content = MODEL.to_dict()
    content["stages"]["T_setup"]["features"] = ["moon_phase"]
    path = tmp_path / "m.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="moon_phase"):
        LatencyModel.load(path)


@given(
    per_token=st.floats(0.001, 1),
    step=st.floats(0.1, 50),
    fixed=st.floats(1, 100),
    vision=st.integers(64, 1024),
    output=st.integers(2, 128),
)
@settings(max_examples=25, deadline=None)
def test_any_law_of_its_own_kind_is_recovered(
    per_token: float, step: float, fixed: float, vision: int, output: int
) -> None:
    v = np.array([*VISION, *[576] * len(OUTPUT)], dtype=float)
    o = np.array([*[8] * len(VISION), *OUTPUT], dtype=float)
    columns = {
        "num_vision_tokens": v,
        "num_prompt_tokens": np.full_like(v, 32),
        "num_output_tokens": o,
        "T_LLM_prefill": fixed + per_token * (v + 32),
        "T_LLM_decode": step * (o - 1),
    }
    columns["T_total"] = columns["T_LLM_prefill"] + columns["T_LLM_decode"]
    model = fit_latency_model(columns)
    expected = fixed + per_token * (vision + 32) + step * (output - 1)
    assert model.predict(vision=vision, prompt=32, output=output)["T_total"] == pytest.approx(expected, rel=1e-3)

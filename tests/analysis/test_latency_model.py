from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
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


def test_held_out_error_is_that_of_points_not_seen() -> None:
    assert MODEL.held_out["points"] >= 8
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
    import pandas as pd

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

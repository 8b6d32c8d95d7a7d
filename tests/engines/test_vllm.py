"""``runtime=vllm`` on vLLM itself, in this process: ``make test-vllm`` (its CPU build) or any machine that has vLLM.

Structure, counts, sums and tokens; no time is bounded.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.endpoint.test_transformers_server import tiny_llava
from tests.models.test_export import FLOAT, request_of, spec_of
from vlmbench.engines.vllm.marks import wrapped
from vlmbench.engines.vllm.start import runner_of
from vlmbench.errors import ModelError, UnreachablePointError
from vlmbench.models.loading import load
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.records.reading import iter_rows
from vlmbench.request import Output, Request
from vlmbench.runner.execution import collector_at_rest, complete, in_memory, prepare

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make test-vllm)"),
    pytest.mark.filterwarnings("default"),  # vLLM's own warnings are its own affair
]
NAMED = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "T_answer_out")


@pytest.fixture(scope="module")
def model() -> Any:
    from vlmbench.engines.vllm.model import load_model
    from vlmbench.engines.vllm.start import VllmSettings

    settings = VllmSettings(
        enforce_eager=True,
        max_model_len=1024,
        same_weights=True,
        encoder_stats=True,
        engine_options={"max_num_seqs": 4},
    )
    return load_model(spec_of("tiny"), FLOAT, asdict(settings), 0)


def run(model: Any, request: Request, *, watched: bool = True) -> dict[str, Any]:
    with collector_at_rest() as collected:
        prepared = prepare(model, in_memory(request))
        return complete(model, prepared, [TimelineProbe()] if watched else [], collected).values


def test_stages_of_one_request_and_the_engines_own_figures(model: Any) -> None:
    for tokens in (1, 6):
        values = run(model, request_of(tokens))
        assert values["num_output_tokens"] == tokens
        assert len(values["ITL"]) == tokens - 1
        named = sum(values[name] for name in NAMED)
        assert values["T_total"] == pytest.approx(named + values["T_residual"])
        assert all(values[name] > 0 for name in NAMED if tokens > 1 or name != "T_LLM_decode")
        assert "undone_step" not in values.get("flags", ())
        assert values["T_transfer"] is None, "within generate()"
        assert values["T_detokenize"] is None, "within generate()"
        assert values["T_request"] == pytest.approx(values["T_preprocess"] + values["T_total"])
        # what vLLM measures itself holds what is marked here, and is held by the whole
        encoder = values["T_vision_encoder"] + values["T_projector"]
        assert encoder <= values["engine_encoder_forward"] <= values["T_total"]
        assert encoder <= values["engine_prefill_time"] <= values["engine_inference_time"] <= values["T_total"]
        assert values["engine_encoder_runs"] == 1
        assert values["T_schedule"] + values["T_sampling"] + values["T_engine_output"] < values["T_total"]


def test_inputs_and_tokens_are_those_of_eager_transformers(model: Any) -> None:
    eager, request = load(spec_of("tiny"), FLOAT, seed=0), request_of(8)
    ours, theirs = eager.prepare(request), model.prepare(request)
    assert theirs.inputs["input_ids"].tolist() == ours.inputs["input_ids"].tolist()
    assert theirs.counts == ours.counts
    assert model.generate(theirs).tolist() == eager.generate(eager.transfer(ours)).tolist()


def test_no_cache_serves_a_repeat(model: Any) -> None:
    prepared = model.prepare(in_memory(request_of(2)))
    for _ in range(3):
        model.generate(prepared)
        assert model.own_columns()["engine_encoder_runs"] == 1
    assert run(model, request_of(2), watched=False)["engine_encoder_runs"] == 1


def test_equal_images_of_a_batch_are_each_encoded(model: Any) -> None:
    seen = []

    def make(call: Callable[..., Any]) -> Callable[..., Any]:
        def embed(**inputs: Any) -> Any:
            seen.append(len(inputs["image_grid_thw"]))
            return call(**inputs)

        return embed

    with wrapped(runner_of(model.engine).get_model(), "embed_multimodal", make):
        assert run(model, replace(request_of(2), batch_size=3))["num_output_tokens"] == 2
    assert sum(seen) == 3


def test_a_batch_of_different_requests(model: Any) -> None:
    first = in_memory(request_of(5))
    other = replace(first.sample, sample_id="two", question="And what is it made of, in a few words?")
    values = run(model, replace(first, batch_size=2, companions=(other,)))
    assert values["batch_size"] == 2
    assert values["num_output_tokens"] == 5
    assert len(values["ITL"]) == 4
    assert values["input_tokens_each"][0] < values["input_tokens_each"][1]
    text = run(model, replace(first, sample=replace(first.sample, images=())))
    assert text.get("T_vision_encoder") is None
    assert text["engine_encoder_runs"] == 0


def test_what_is_too_long_or_unknown_is_refused(model: Any) -> None:
    words = "word " * 1200
    long = request_of(2)
    with pytest.raises(UnreachablePointError, match=r"longer than runtime.max_model_len"):
        model.prepare(replace(long, sample=replace(long.sample, question=words)))
    with pytest.raises(UnreachablePointError, match=r"longer than runtime.max_model_len: 1,0\d\d tokens of 1,024"):
        model.prepare(replace(long, output=Output(max_new_tokens=1020, forced=True)))
    from vlmbench.engines.vllm.start import VllmSettings, start_engine

    with pytest.raises(ModelError, match=r"has no model class 'NoSuchModel' in its registry\nchoose another"):
        start_engine(
            "/nope", architecture="NoSuchModel", device=model.device.type, dtype="float32", load_format="dummy", seed=0,
            settings=VllmSettings(),
        )  # fmt: skip
    answer = model.prepare(replace(long, output=Output(max_new_tokens=3, forced=False)))
    assert 1 <= model.generate(answer).shape[1] <= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["experiment=phase1", "dataset.num_samples=12"], "phase1_dataset_profiling.json"),
        (["experiment=phase2", "sweep.axes.vision_tokens=[16,36,64,100]"], "phase2_scaling.json"),
        (["experiment=phase3", "sweep.axes.output_tokens=[2,4,8]"], "exp4b_language_tokens.json"),
    ],
    ids=["phase1", "phase2", "phase3"],
)
def test_the_phases(
    words: list[str], file: str, vlmbench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = vlmbench(
        *words,
        "runtime=vllm",
        "runtime.enforce_eager=true",
        "runtime.dtype=float32",
        "runtime.encoder_stats=true",
        "output.tokens=8",
        "measurement.stopping.max_samples=12",
        "measurement.stopping.max_time_s=5",
        f"output_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "run" / file).read_text())
    measured = [row for row in content["results"] if row["status"] == "ok"]
    assert len(measured) >= 12
    rows = [row for row in iter_rows(tmp_path / "run") if row["status"] == "ok" and row["mode"] == "instrumented"]
    assert {row["runtime"] for row in rows} == {"vllm"}
    for row in rows:
        assert row["engine_encoder_runs"] == 1
        assert row["T_vision_encoder"] + row["T_projector"] <= row["engine_encoder_forward"]
        assert not [flag for flag in row["flags"] if flag.startswith(("negative", "probe_failed"))]
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    engine = provenance["sessions"][0]["engine"]
    assert engine["prefix_caching"] is False
    assert engine["marked"]["projector"] == ["visual.merger"]
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "axis", "points"),
    [
        (["load=closed", "sweep.axes.load.concurrency=[1,3]"], "axis_load.concurrency", [1, 3]),
        (["load=open", "load.warmup_requests=2", "sweep.axes.load.rate_per_s=[2,20]"], "axis_load.rate_per_s", [2, 20]),
    ],
    ids=["closed", "open"],
)
def test_loads(
    words: list[str],
    axis: str,
    points: list[float],
    vlmbench: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    done = vlmbench(
        "experiment=phase1", "runtime=vllm", "runtime.enforce_eager=true", "runtime.dtype=float32", *words,
        "dataset.num_samples=10", "output.tokens=8", "measurement.reference=false", "load.ttft_limit_ms=60000",
        f"output_dir={run}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(iter_rows(run))
    measured = [row for row in rows if row["status"] == "ok"]
    assert len(measured) == 20
    assert {row["status"] for row in rows} == {"ok", "warmup"}
    assert sorted({row[axis] for row in measured}) == points
    for row in measured:
        assert row["runtime"] == "vllm"
        assert row["num_output_tokens"] == 8
        assert len(row["ITL"]) == 7
        assert 0 <= row["T_late"] < row["TTFT"] <= row["T_request"] <= row["T_end"]
        assert row["T_request"] == pytest.approx(row["TTFT"] + sum(row["ITL"]), abs=0.01)
        assert row["engine_prefill_time"] <= row["T_end"]
        assert 8 <= row["engine_steps"] >= row["engine_steps_shared"]
        assert "T_vision_encoder" not in row
        assert not row["flags"]
    if axis == "axis_load.concurrency":
        assert not any(row["engine_steps_shared"] for row in rows if row[axis] == 1)
        assert all(row["engine_steps_shared"] for row in measured if row[axis] == 3)
    summary = json.loads((run / "summary.json").read_text())["serving"]
    assert [point["requests"] for point in summary["points"]] == [10, 10]
    assert all(point["good_share"] == 1 and not point["client_in_the_way"] for point in summary["points"])
    assert (run / "figures" / "pareto.png").is_file()
    loads = json.loads((run / "loads.json").read_text())["loads"]
    assert [load["sent"]["measured"] for load in loads] == [10, 10]


def test_another_architecture_with_dummy_weights(model: Any) -> None:
    from vlmbench.engines.vllm.model import load_model
    from vlmbench.engines.vllm.start import VllmSettings

    settings = VllmSettings(enforce_eager=True, max_model_len=256)
    llava = load_model(spec_of("llava_1_5_7b", **tiny_llava()), FLOAT, asdict(settings), 0)
    values = run(llava, request_of(3))
    assert values["num_vision_tokens"] == 16
    assert llava.closing_facts["engine"]["marked"]["projector"] == ["multi_modal_projector"]
    assert all(values[name] > 0 for name in NAMED)

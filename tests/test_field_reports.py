"""Faults that users of other instruments reported, planted here: each is a kind of error, kept out by a known answer."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.analysis.made import write
from tests.analysis.test_floors import PEAKS, costly
from tests.models.shipped import loaded, request, shrunken, spec
from tests.test_runner import FAST, measure, sweep
from vlmbench.analysis.floors import floor_table
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.quantiles import quantile
from vlmbench.cost.flop_sharing import Counter
from vlmbench.errors import SampleError
from vlmbench.models.loading import build_config
from vlmbench.models.protocol import Prepared
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.records.comparable import differences
from vlmbench.runner.execution import complete, prepare
from vlmbench.runner.warmup import Warmup
from vlmbench.testing.planted import PlantedModel


@pytest.fixture(scope="module")
def tiny() -> TransformersModel:
    return loaded(spec("tiny"), device="cpu")


def test_tokens_are_counted_from_ids_not_from_text(tiny: TransformersModel) -> None:
    """flexible-inference-bench#66: output tokens counted by re-tokenising the text. These ids decode to no word."""

    class Unreadable(TransformersModel):
        def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
            del prepared, stopping_criteria
            return torch.tensor([[self.processor.tokenizer.eos_token_id or 0] * 7])

    model = Unreadable(**{name: value for name, value in vars(tiny).items() if name in _fields()})
    outcome = complete(model, prepare(model, request(new_tokens=7)), [], [])
    assert outcome.values["num_output_tokens"] == 7


def _fields() -> set[str]:
    return {name for name in TransformersModel.__dataclass_fields__ if not name.startswith("_")}


@pytest.mark.parametrize("name", ["qwen2_5_vl_7b", "gemma3_4b"])
def test_flops_do_not_depend_on_the_attention_kernel(name: str) -> None:
    """pytorch#177169: the FLOP formula of scaled-dot-product attention miscounts grouped queries."""
    one = shrunken(name)
    inputs = None
    counted = []
    for attention in ("sdpa", "eager"):
        model = loaded(one, device="cpu", attn_implementation=attention)
        inputs = model.prepare(request(size=(224, 224))).inputs
        counter = Counter.of_config(_config(one, attention))
        counted.append(counter.count(inputs, output_tokens=3))
    assert counted[0] == counted[1]


def _config(one: Any, attention: str) -> Any:
    config = build_config(one)
    config._attn_implementation = attention
    return config


def test_a_question_that_holds_the_image_token_is_refused_by_its_name(tiny: TransformersModel) -> None:
    """aiperf#667, and questions of MMMU: a literal image token in the text must not become an image."""
    token = tiny.processor.image_token
    with pytest.raises(SampleError, match=re.escape(token)):
        prepare(tiny, request(question=f"What does {token} show?"))


@pytest.mark.parametrize("changed", [{"packages": {"torch": "2.9.1"}}, {"cudnn": 91002}])
def test_another_torch_or_cudnn_makes_two_runs_unlike(changed: dict[str, Any]) -> None:
    """pytorch#174051, transformers#45750: a version of torch or cuDNN made the patch embedding many times slower."""
    here = {"model": {"name": "m"}, "software": {"packages": {"torch": "2.13.0"}, "cudnn": 91900}}
    there = {**here, "software": {**here["software"], **changed}}
    assert differences(here, here) == []
    (said,) = differences(here, there)
    assert said.startswith("software.torch: 2.13.0" if "packages" in changed else "software.cudnn: 91900")


def test_a_stage_a_hundred_times_over_its_floor_is_said_to_be(tmp_path: Path) -> None:
    """pytorch#174051: an encoder on a slow path. Its distance to the floor names the stage."""
    rows = [costly(sample=f"s{i}", vision=400.0) for i in range(20)]
    table = floor_table(load_runs(write(tmp_path, rows)), PEAKS).set_index("component")
    assert table.loc["T_vision_encoder", "over_floor"] == pytest.approx(200)
    assert table["over_floor"].idxmax() == "T_vision_encoder"


def test_the_largest_of_few_runs_is_no_p99() -> None:
    """GuideLLM#1163: the P99 of 71 requests was their largest."""
    times = np.random.default_rng(0).lognormal(0, 0.05, 367)
    assert quantile(times, 0.99).value is None
    assert quantile(np.random.default_rng(0).lognormal(0, 0.05, 800), 0.99).low is not None


def test_without_warm_up_the_first_run_of_a_shape_says_so(tmp_path: Path) -> None:
    """tt-inference-server#4179: two runs a shape, the first of them cold."""
    series = sweep({"vision_tokens": [4, 16]}, min_samples=2, max_samples=2)
    _, rows = measure(tmp_path, PlantedModel(FAST), series, warmup=Warmup(max_runs=0))
    for point in ("vision_tokens=4", "vision_tokens=16"):
        runs = [r for r in rows if r["point_id"] == point]
        flagged = [r["status"] == "cold" or "first_seen_length" in r["flags"] for r in runs]
        assert flagged == [True, *[False] * (len(runs) - 1)]


def test_what_the_first_run_of_a_size_costs_is_in_no_measured_row(tmp_path: Path) -> None:
    """llama.cpp#27147: the warm-up did not run the encoder, so that the first image was half as slow again."""
    seen = set()

    def slow_at_first(request: Any) -> None:
        if request.vision_tokens not in seen:
            seen.add(request.vision_tokens)
            time.sleep(0.5)

    model = PlantedModel(FAST, fail=slow_at_first)
    _, rows = measure(tmp_path, model, sweep({"vision_tokens": [4, 16, 64]}))
    assert len(seen) == 3
    assert max(r["T_total"] for r in rows if r["status"] == "ok") < 500
    assert max(r["T_total"] for r in rows if r["status"] != "ok") >= 500

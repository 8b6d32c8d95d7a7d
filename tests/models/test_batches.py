"""Batches of different requests: the answers of each request by itself, and what the batch cost beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engines.test_cudagraph import narrow_molmo, talkative
from tests.models.shipped import loaded, shrunken, source
from vlmbench.cost.run_costs import Costs
from vlmbench.engines.cudagraph import GraphLoop, GraphSettings
from vlmbench.errors import ConfigError
from vlmbench.machine.peaks import PeaksAnswer
from vlmbench.models.spec import ModelSpec
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.request import Output, Request, Sample, TokenCounts
from vlmbench.runner.batches import batch_columns
from vlmbench.runner.execution import complete, prepare
from vlmbench.runner.plan import Knobs, filled

NAMES = (
    "llava_1_5_7b",
    "llava_v1_6_vicuna_7b",
    "qwen2_5_vl_7b",
    "internvl3_8b",
    "smolvlm_256m",
    "molmo_7b_d",
    "llama_3_2_11b_vision",
)
QUESTIONS = ("What color is the cat?", "Where?", "How many people sit at the long table behind the window, and why?")
SIZES = ((336, 336), (120, 80), (200, 300))


def small(name: str) -> ModelSpec:
    return narrow_molmo(name) if name.startswith("molmo") else shrunken(name)


def three(tokens: int = 5, *, forced: bool = True, **knobs: Any) -> Request:
    samples = [
        Sample(sample_id=str(row), question=question, images=(source(*size),))
        for row, (question, size) in enumerate(zip(QUESTIONS, SIZES, strict=True))
    ]
    output = Output(max_new_tokens=tokens, forced=forced)
    return Request(sample=samples[0], companions=tuple(samples[1:]), batch_size=3, output=output, **knobs)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> TransformersModel:
    made = loaded(small(request.param), dtype="float32", attn_implementation="sdpa")
    talkative(made.module)
    return made


def answers(model: TransformersModel, asked: Request) -> torch.Tensor:
    return model.generate(model.transfer(model.prepare(asked)))


def test_each_request_gets_the_answer_that_it_gets_alone(model: TransformersModel) -> None:
    together = answers(model, three())
    for row, alone in enumerate(three().rows):
        assert together[row].tolist() == answers(model, alone)[0].tolist()


def test_counts_are_those_of_each_request_alone(model: TransformersModel) -> None:
    asked = three()
    prepared = model.prepare(asked)
    alone = tuple(model.prepare(row).counts for row in asked.rows)
    assert prepared.each == alone
    assert prepared.counts == TokenCounts.mean(alone)
    values = complete(model, prepare(model, asked), [], []).values
    assert values["batch_of"] == "different"
    assert values["sample_ids"] == ["0", "1", "2"]
    lengths = [counts.num_input_tokens for counts in alone]
    assert values["input_tokens_each"] == lengths
    assert values["padding_tokens"] == 3 * max(lengths) - sum(lengths) > 0
    assert values["output_tokens_each"] == [5, 5, 5]
    assert values["tokens_after_end"] == 0


@pytest.mark.parametrize("name", ["llava_1_5_7b", "qwen2_5_vl_7b"])
def test_the_captured_loop_gives_the_same_answers(name: str) -> None:
    model = loaded(small(name), dtype="float32", attn_implementation="sdpa")
    talkative(model.module)
    eager = answers(model, three())
    model.loop = GraphLoop(
        module=model.module, anatomy=model.anatomy, device=model.device, settings=GraphSettings(cache_step=8)
    )
    assert answers(model, three()).tolist() == eager.tolist()


def test_answers_that_end_apart_are_counted_to_their_own_end() -> None:
    model = loaded(small("llava_1_5_7b"), dtype="float32")
    talkative(model.module)
    forced = answers(model, three(8))
    ends = int(forced[1, 2])
    model.module.generation_config.eos_token_id = [ends]
    asked = three(8, forced=False)
    values = complete(model, prepare(model, asked), [], []).values
    expected = [next((at + 1 for at, token in enumerate(row) if token == ends), 8) for row in forced.tolist()]
    assert values["output_tokens_each"] == expected
    assert values["tokens_after_end"] == 3 * values["num_output_tokens"] - sum(expected)


def test_a_batch_of_copies_says_so_and_a_single_request_says_nothing() -> None:
    model = loaded(small("llava_1_5_7b"), dtype="float32")
    copies = replace(three().rows[0], batch_size=2)
    assert complete(model, prepare(model, copies), [], []).values["batch_of"] == "copies"
    assert "batch_of" not in complete(model, prepare(model, three().rows[0]), [], []).values


def test_random_words_differ_from_row_to_row() -> None:
    model = loaded(small("llava_1_5_7b"), dtype="float32")
    resolved = model.resolve(three(prompt_tokens=9))
    texts = {row.sample.question for row in resolved.rows}
    assert len(texts) == 3
    assert {counts.num_prompt_tokens for counts in model.prepare(resolved).each} == {9}


@pytest.mark.parametrize("name", ["llava_1_5_7b", "qwen2_5_vl_7b"])
def test_closed_and_counted_flops_agree_and_floors_leave_padding_out(name: str) -> None:
    model = loaded(small(name), dtype="float32")
    prepared = model.prepare(three())
    costs = Costs(model.module.config, dtype="float32", peaks=PeaksAnswer(peaks=None, reason="none"))
    row = costs.columns(prepared.inputs, prepared.counts, output_tokens=5, batch_size=3, each=prepared.each)
    assert row["flops_llm_prefill"] == pytest.approx(row["flops_llm_prefill_closed"], rel=0.01)
    assert row["flops_vision_encoder"] == pytest.approx(row["flops_vision_encoder_closed"], rel=0.01)
    alone = 0
    for one in three().rows:
        own = model.prepare(one)
        alone += costs.columns(own.inputs, own.counts, output_tokens=5)["flops_llm_prefill_needed"]
    assert row["flops_llm_prefill_needed"] == pytest.approx(alone, rel=0.001)
    assert row["flops_llm_prefill_needed"] < row["flops_llm_prefill"]


def test_copies_visit_the_experts_of_one_request_and_what_was_not_seen_is_marked_as_expected() -> None:
    model = loaded(small("molmoe_1b"), dtype="float32")
    config = model.module.config
    costs = Costs(config, dtype="float32", peaks=PeaksAnswer(peaks=None, reason="none"), counted=False)
    asked = three()
    prepared, one = model.prepare(asked), model.prepare(asked.rows[0])
    rows = {
        "alone": costs.columns(one.inputs, one.counts, output_tokens=9),
        "copies": costs.columns(one.inputs, one.counts, output_tokens=9, batch_size=3),
        "different": costs.columns(prepared.inputs, prepared.counts, output_tokens=9, batch_size=3, each=prepared.each),
    }
    weights = {name: row["bytes_llm_decode"] for name, row in rows.items()}
    assert weights["alone"] < weights["copies"] < weights["different"]
    assert "expected" in rows["different"]["flops_note"]
    assert rows["copies"]["flops_note"] == rows["alone"]["flops_note"]  # both expect the prefill's alone
    assert rows["copies"]["flops_note"] != rows["different"]["flops_note"]


def test_a_batch_needs_as_many_samples_as_requests() -> None:
    samples: Any = [row.sample for row in three().rows]
    base = Knobs(output=Output(max_new_tokens=2, forced=True)).request(samples[2])
    full = filled(replace(base, batch_size=3), samples, 2, "different")
    assert [row.sample.sample_id for row in full.rows] == ["2", "0", "1"]
    assert filled(replace(base, batch_size=3), samples, 2, "copies").companions == ()
    with pytest.raises(ConfigError, match=r"a batch of 4 different requests needs as many samples.*data set has 3"):
        filled(replace(base, batch_size=4), samples, 2, "different")
    with pytest.raises(ConfigError, match=r"measurement\.batch=copies"):
        filled(replace(base, batch_size=2, intervention=object()), samples, 2, "different")
    with pytest.raises(ValueError, match="needs 3 companions"):
        replace(base, batch_size=4, companions=(samples[0],))
    assert batch_columns(base, None, None, None) == {}  # type: ignore[arg-type]  # looks at nothing for one request

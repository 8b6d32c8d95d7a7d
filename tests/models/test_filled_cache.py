"""Decoding over a cache that no prefill filled: the tokens of a real one, the layout of a real one, and its rows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import vlmbench
from tests.engines.test_cudagraph import loop_of, talkative
from tests.models.shipped import loaded, request, shrunken, spec
from vlmbench.errors import UnreachablePointError
from vlmbench.models.filled_cache import fill_random, first_tokens, prefilled, prove
from vlmbench.models.protocol import Cached, Prepared
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes.stages import Kind, cut, segments
from vlmbench.request import Output, TokenCounts
from vlmbench.sweep import KNOBS
from vlmbench.testing.tiny_models import text_ids, tiny_model

LENGTH = 40


@cache
def tiny() -> TransformersModel:
    model = loaded(spec("tiny"), device="cpu", dtype="float32")
    talkative(model.module)
    return model


def over_cache(model: TransformersModel, length: int = LENGTH) -> Prepared:
    return model.transfer(model.prepare(KNOBS["kv_length"][1](request(new_tokens=6), length)))


def test_over_a_real_cache_the_tokens_are_those_of_a_prefill() -> None:
    model = tiny()
    model.generate(model.transfer(model.prepare(request(size=(112, 84), new_tokens=1))))  # leaves an image's positions
    asked = over_cache(model)
    model.ready(asked)
    assert model.generate(asked).shape == (1, 6)
    real = prefilled(model.module, first_tokens(asked.inputs, LENGTH - 1))
    loop = loop_of(model)
    loop.ready(asked, lambda: asked.inputs)
    for fixed, layer in zip(loop._states[1].cache.fixed, real.layers, strict=True):
        fixed.keys[:, :, : LENGTH - 1], fixed.values[:, :, : LENGTH - 1] = layer.keys, layer.values
    model._cache = real
    answer = model.generate(replace(asked, cached=None)).tolist()
    assert answer == model.generate(asked).tolist() == loop.generate(asked).tolist()
    assert len({*answer[0]}) > 2, "an answer of one token would hide a wrong position"
    assert loop.ready(asked, lambda: asked.inputs) == 0.0, "captured once"


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "qwen3_vl"])  # windows, shared keys, positions
def test_every_layer_holds_what_it_would_after_a_prefill(name: str) -> None:
    module = tiny_model(name)
    ids = text_ids(LENGTH)[None]
    asked = Prepared(
        inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        count=lambda: TokenCounts(num_input_tokens=LENGTH, num_prompt_tokens=LENGTH, num_vision_tokens=0),
        output=Output(max_new_tokens=2, forced=True),
        cached=Cached(tokens=LENGTH - 1),
    )
    real = prefilled(module, first_tokens(asked.inputs, LENGTH - 1))
    filled = fill_random(module, asked)
    assert [_shape(layer) for layer in filled.layers] == [_shape(layer) for layer in real.layers]
    assert prove(module, asked.inputs, asked.inputs, real) is None
    assert prove(module, asked.inputs, asked.inputs, filled) is not None, "random keys are no text"


def test_a_prompt_that_sees_itself_whole_is_no_cache_and_a_step() -> None:
    module, ids = tiny_model("paligemma"), text_ids(LENGTH)[None]
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    said = prove(module, whole, whole, prefilled(module, first_tokens(whole, LENGTH - 1)))
    assert said is not None
    assert "over a cache differ" in said


def _shape(layer: Any) -> Any:
    return (tuple(layer.keys.shape), layer.get_seq_length()) if layer.is_initialized else None


def test_what_cannot_be_done_is_a_reason() -> None:
    with pytest.raises(UnreachablePointError, match="reads the image by cross-attention"):
        over_cache(loaded(shrunken("llama_3_2_11b_vision"), device="cpu", dtype="float32"))
    with pytest.raises(UnreachablePointError, match="needs a dynamic cache in one process: runtime=eager"):
        over_cache(replace(tiny(), compile=True))


def test_without_a_prefill_setup_lasts_until_the_first_token() -> None:
    marks = [
        (Kind.START, 0.0),
        (Kind.ENTER_FORWARD, 1.0),
        (Kind.EXIT_FORWARD, 3.0),
        (Kind.TOKEN, 4.0),
        (Kind.ENTER_FORWARD, 5.0),
        (Kind.EXIT_FORWARD, 8.0),
        (Kind.TOKEN, 9.0),
        (Kind.END, 9.5),
    ]
    stages = cut(marks, num_output_tokens=2, prefill=False)
    assert (stages.T_setup, stages.T_LLM_prefill, stages.TTFT_model) == (4.0, None, None)
    assert (stages.T_LLM_decode, stages.T_decode_forward, stages.ITL, stages.named) == (5.0, 3.0, (5.0,), 9.0)
    assert [piece.stage for piece in segments(marks, num_output_tokens=2, prefill=False)] == [
        "setup",
        "LLM_decode",
        "residual",
    ]


def test_rows_say_that_no_prefill_was_run_and_cost_a_decode() -> None:
    model = loaded(spec("tiny"), device="cpu")
    run = vlmbench.measure(
        model.module,
        model.processor,
        [request().sample],
        output_tokens=3,
        sweep={"kv_length": [32, 40_000]},
        stopping={"min_samples": 2, "max_samples": 2},
        warmup={"max_runs": 0},
        bare_every=0,
        trace_requests=0,
        rows="all",
    )
    row = run.frame[run.frame["status"] == "ok"].iloc[0]
    assert (row["num_cached_tokens"], row["num_input_tokens"], row["num_vision_tokens"]) == (31, 32, 0)
    assert row["cache_filled_with"] == "random"
    assert {"T_LLM_prefill", "TTFT", "TTFT_model", "flops_llm_prefill", "T_vision_encoder"} & {*run.frame} == set()
    assert row["flops_total"] == row["flops_llm_decode"] > 0
    skipped = run.frame[run.frame["status"] == "skipped"].iloc[0]
    assert "32,768 positions" in skipped["reason"]

"""A later turn of a conversation: encoded again, or on the cache of those before, with the same tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

import vlmbench
from tests.engines.test_cudagraph import loop_of, talkative
from tests.models.shipped import loaded, processor_only, request, shrunken, spec
from vlmbench.errors import UnreachablePointError
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.sweep import Sweep


@cache
def tiny() -> TransformersModel:
    model = loaded(spec("tiny"), device="cpu", dtype="float32")
    talkative(model.module)
    return model


def test_on_the_cache_of_the_earlier_turns_the_tokens_are_those_of_encoding_again() -> None:
    model = tiny()
    again = model.resolve(request(size=(112, 84), new_tokens=6, turns=3))
    whole = model.transfer(model.prepare(again))
    goes_on = model.transfer(model.prepare(model.resolve(replace(again, reuse_cache=True))))
    assert goes_on.cached is not None
    assert "pixel_values" not in goes_on.inputs
    assert goes_on.counts == whole.counts
    model.generate(model.transfer(model.prepare(request(size=(56, 56), new_tokens=1))))  # leaves other positions
    model.ready(goes_on)
    assert model._cache.get_seq_length() == goes_on.cached.tokens > whole.counts.num_vision_tokens
    answer = model.generate(goes_on).tolist()
    assert answer == model.generate(whole).tolist()
    assert len({*answer[0]}) > 2, "an answer of one token would hide a wrong position"
    with pytest.raises(UnreachablePointError, match="begins with an empty cache"):
        loop_of(model).ready(goes_on, lambda: goes_on.inputs)


def test_an_answer_stands_in_the_prompt_between_two_questions() -> None:
    for name, words in {
        "llava_1_5_7b": "USER: <image>\nWhat? ASSISTANT: Grey cats USER: What? ASSISTANT:",
        "paligemma2_3b_224": "<image>answer en What?\nGrey cats\nanswer en What?",  # no chat template
    }.items():
        text = processor_only(name).prompter.render("What?", num_images=1, earlier_answers=("Grey cats",))
        assert text == words


def test_a_model_whose_image_is_not_in_the_cache_encodes_it_again() -> None:
    model = loaded(shrunken("llama_3_2_11b_vision_instruct"), device="cpu", dtype="float32")
    with pytest.raises(UnreachablePointError, match="reads the image by cross-attention"):
        model.resolve(request(turns=2, reuse_cache=True))


def test_rows_say_whether_the_image_was_encoded_again() -> None:
    with pytest.raises(ValueError, match="must be 0 or 1"):
        Sweep(name="s", axes={"reuse_cache": [2]})
    model = tiny()
    run = vlmbench.measure(
        model.module,
        model.processor,
        [request(size=(112, 84)).sample],
        output_tokens=3,
        sweep={"turns": [1, 2], "reuse_cache": [0, 1]},
        stopping={"min_samples": 2, "max_samples": 2},
        warmup={"max_runs": 0},
        bare_every=0,
        trace_requests=0,
    )
    points = {point: rows.iloc[0] for point, rows in run.frame.groupby("point_id", observed=True)}
    again, goes_on = points["turns=2,reuse_cache=0"], points["turns=2,reuse_cache=1"]
    assert (again["num_turns"], again["vision_encoded"], goes_on["vision_encoded"]) == (2, True, False)
    assert goes_on["T_vision_encoder"] != goes_on["T_vision_encoder"], "a stage that did not run is absent"
    assert again["num_input_tokens"] == goes_on["num_input_tokens"] > goes_on["num_cached_tokens"]
    assert goes_on["cache_filled_with"] == "earlier turns"
    assert goes_on["T_LLM_prefill"] > 0
    for first in (points["turns=1,reuse_cache=0"], points["turns=1,reuse_cache=1"]):
        assert first["num_cached_tokens"] != first["num_cached_tokens"], "nothing to go on from"

"""Bytes: against real parameter counts, by hand, and in bounds."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cost.dims import NAMES, config_of, counts_of, parameters_of
from vlmbench.cost.bytes import Bytes, Parameters, distinct_experts
from vlmbench.cost.decoder_formula import ClosedForm
from vlmbench.models.weightless import ghost_of_config
from vlmbench.request import TokenCounts


def bytes_of(name, element=2):
    closed = ClosedForm.of(config_of(name))
    return Bytes(closed=closed, parameters=Parameters.of_closed(closed), element=element)


def text(tokens):
    return TokenCounts(num_input_tokens=tokens, num_prompt_tokens=tokens, num_vision_tokens=0)


@pytest.mark.parametrize("name", [n for n in NAMES if parameters_of(n)])
def test_parameters_of_the_closed_form_are_within_one_percent(name):
    closed = Parameters.of_closed(ClosedForm.of(config_of(name)))
    assert closed.total == pytest.approx(parameters_of(name), rel=0.01)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2-vl-2b", "molmo2-4b", "molmoe-1b"])
def test_parameters_of_a_model_are_exact(name):
    exact = Parameters.of_model(ghost_of_config(config_of(name)))
    assert exact.total == parameters_of(name)
    closed = Parameters.of_closed(ClosedForm.of(config_of(name)))
    assert (exact.head, exact.embedding) == (closed.head, closed.embedding)


def test_cache_by_hand():
    # LLaVA-1.5-7B: 32 layers x keys and values x 4096 x 2 bytes
    assert bytes_of("llava-1.5-7b").kv_per_token() == 32 * 2 * 4096 * 2
    # Qwen2-VL-2B: 28 layers, 2 key heads of 128
    assert bytes_of("qwen2-vl-2b").kv_cache(1000) == 1000 * 28 * 2 * 2 * 128 * 2


def test_cache_of_windowed_layers_stops_growing():
    gemma = bytes_of("gemma3-4b")
    windows = gemma.closed.decoder.windows
    full = windows.count(None)
    assert 0 < full < len(windows)
    growth = gemma.kv_cache(3000) - gemma.kv_cache(2000)
    assert growth == 1000 * full * 2 * 4 * 256 * 2


def test_decode_reads_weights_once_a_step_and_the_cache():
    llava = bytes_of("llava-1.5-7b")
    two = llava.stages(text(612), 2).llm_decode
    weights = 2 * (llava.parameters.language_model + llava.parameters.head)
    assert two > weights + llava.kv_cache(613)
    assert two == pytest.approx(weights + llava.kv_cache(613), rel=1e-3)
    batch = llava.stages(text(612), 2, batch_size=8).llm_decode
    assert batch < 2 * weights  # weights are shared, the cache is not


@given(count=st.integers(1, 256), tokens=st.integers(1, 5000), data=st.data())
def test_distinct_experts_in_bounds(count, tokens, data):
    active = data.draw(st.integers(1, count))
    expected = distinct_experts(count, active, tokens)
    assert active - 1e-9 <= expected <= min(count, active * tokens) + 1e-9
    assert distinct_experts(count, active, 1) == pytest.approx(active)


def test_experts_that_no_token_visits_are_not_read():
    moe = bytes_of("molmoe-1b")
    step, prefill = moe.stages(text(600), 2).llm_decode, moe.stages(text(600), 1).llm_prefill
    assert step < 0.35 * prefill
    assert prefill > 2 * 0.95 * (moe.parameters.language_model + moe.parameters.head)


def test_memory_need_grows_with_everything():
    qwen = bytes_of("qwen2.5-vl-7b")
    counts = dataclasses.replace(counts_of("qwen2.5-vl-7b"), num_input_tokens=500)
    base = qwen.memory_need(counts, 32)
    assert base.weights == pytest.approx(2 * 8_292_166_656, rel=0.001)
    assert qwen.memory_need(counts, 512).kv_cache > base.kv_cache
    assert qwen.memory_need(counts, 32, batch_size=4).total > base.total
    assert base.total == base.weights + base.kv_cache + base.activations


def test_stages_without_images_move_nothing():
    found = bytes_of("llava-1.5-7b").stages(text(10), 1)
    assert (found.vision_encoder, found.projector, found.llm_decode) == (0, 0, 0)
    assert found.columns()["bytes_total"] == found.llm_prefill

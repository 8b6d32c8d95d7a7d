"""Targets of vision tokens are reached through the model's own processor, or refused with the nearest counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.shipped import processor_only, request
from vlmbench.errors import UnreachablePointError
from vlmbench.models.vision.target_settings import TOLERANCE, candidates_of, reach_vision_tokens

# Some processors of transformers still treat tensors as arrays the old way; 5.17 renames an argument of Mllama.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*hidden_state:FutureWarning"),
]


@pytest.fixture(scope="module")
def tiny():
    return processor_only("tiny")


@pytest.fixture(scope="module")
def llava():
    return processor_only("llava_1_5_7b")


def observed(model, **knobs):
    return model.prepare(request(**knobs)).counts


@pytest.mark.parametrize("target", [4, 5, 6, 16, 64, 144, 256, 391, 576, 1024])
def test_native_resolution_is_exact(tiny, target):
    counts = observed(tiny, vision_tokens=target)
    assert counts.num_vision_tokens == target
    assert counts.num_vision_patches == 4 * target


def test_a_prime_prefers_a_natural_shape_within_the_tolerance(tiny):
    found = tiny.resolve(request(vision_tokens=97))
    assert abs(tiny.prepare(found).counts.num_vision_tokens - 97) <= 97 * TOLERANCE
    assert max(found.image_size) <= 3 * min(found.image_size)
    assert sorted(reach_vision_tokens(tiny, 47, request(), tolerance=0)["image_size"]) == [28, 47 * 28]
    with pytest.raises(UnreachablePointError, match="nearest: 96 and 98"):
        reach_vision_tokens(tiny, 97, request(), tolerance=0)


def test_the_image_stays_as_it_is_where_it_fits(tiny, llava):
    assert tiny.resolve(request(vision_tokens=391)).image_size == (640, 480)
    assert llava.resolve(request(vision_tokens=576)).image_size == (640, 480)


@given(target=st.integers(4, 900))
@settings(max_examples=25, deadline=None)
def test_what_is_promised_is_observed(tiny, target):
    wanted = request(vision_tokens=target)
    try:
        found = tiny.resolve(wanted)
    except UnreachablePointError:
        pytest.fail(f"{target} tokens are reachable as one row of patches at least within the tolerance")
    assert abs(tiny.prepare(found).counts.num_vision_tokens - target) <= TOLERANCE * target


def test_below_the_least_size(tiny):
    with pytest.raises(UnreachablePointError, match=r"vision_tokens=1 cannot be reached.*nearest: 4"):
        tiny.prepare(request(vision_tokens=1))


def test_fixed_size_models_take_more_images(llava):
    found = llava.resolve(request(vision_tokens=1728))
    assert found.num_images == 3
    assert llava.prepare(found).counts.num_vision_tokens == 1728
    with pytest.raises(UnreachablePointError, match="nearest: 576 and 1152"):
        llava.prepare(request(vision_tokens=700))


def test_a_set_number_of_images_is_kept(llava, tiny):
    with pytest.raises(UnreachablePointError):
        llava.prepare(request(vision_tokens=1152, num_images=1))
    two = tiny.resolve(request(vision_tokens=512, num_images=2))
    assert two.num_images == 2
    assert tiny.prepare(two).counts.num_vision_tokens == 512


def test_a_failed_search_is_remembered(tiny):
    wanted = request(vision_tokens=2)
    for _ in range(2):
        with pytest.raises(UnreachablePointError):
            tiny.resolve(wanted)


def test_processor_arguments_of_the_request_stay(tiny):
    limited = {"size": {"shortest_edge": 3136, "longest_edge": 100 * 784}}
    found = tiny.resolve(request(vision_tokens=64, processor_kwargs=limited))
    assert found.processor_kwargs["size"] == limited["size"]
    with pytest.raises(UnreachablePointError):
        tiny.resolve(request(vision_tokens=200, processor_kwargs=limited))


def test_without_an_image(tiny):
    with pytest.raises(UnreachablePointError, match="needs a sample with an image"):
        tiny.resolve(request(vision_tokens=64, images=0))


def test_cross_attention_is_aimed_at_by_its_keys():
    model = processor_only("llama_3_2_11b_vision")
    with pytest.raises(UnreachablePointError, match="nearest: 4100"):
        model.resolve(request(vision_tokens=64))
    counts = observed(model, vision_tokens=8200)
    assert (counts.num_vision_tokens, counts.num_cross_attention_tokens, counts.num_images) == (0, 8200, 2)


def test_of_two_sizes_with_one_count_the_large_one_comes_last():
    model = processor_only("internvl3_1b")
    width, height = model.resolve(request(vision_tokens=1792)).image_size
    assert width * height <= 4_000_000


@pytest.mark.parametrize(
    ("name", "target", "counts"),
    [
        ("llava_v1_6_mistral_7b", 2340, {2340}),
        ("llava_onevision_qwen2_0_5b", 2929, {2929}),
        ("internvl3_1b", 768, {768}),
        ("smolvlm_256m", 64, {64}),
        ("smolvlm_256m", 320, {320}),
        ("idefics3_8b", 845, {845}),
        ("smolvlm_256m", 1088, {1088}),
        ("paligemma2_3b_224", 512, {512}),
    ],
)
def test_other_families(name, target, counts):
    model = processor_only(name)
    assert counts <= {model.prepare(request(vision_tokens=target)).counts.num_vision_tokens}


@pytest.mark.slow
def test_pan_and_scan():
    model = processor_only("gemma3_4b")
    found = model.resolve(request(vision_tokens=768))
    assert found.processor_kwargs == {"do_pan_and_scan": True}
    assert model.prepare(found).counts.num_vision_tokens == 768


def test_reachable_counts(tiny, llava):
    def reachable(model):
        return sorted({way.tokens for way in candidates_of(model, request()).ways})

    counts = reachable(tiny)
    assert counts == sorted(set(counts))
    assert {4, 64, 391, 1024} <= set(counts)
    assert reachable(llava) == [576]


def test_prompt_and_vision_targets_go_together(tiny):
    found = tiny.resolve(replace(request(vision_tokens=64), prompt_tokens=20))
    counts = tiny.prepare(found).counts
    assert (counts.num_vision_tokens, counts.num_prompt_tokens) == (64, 20)

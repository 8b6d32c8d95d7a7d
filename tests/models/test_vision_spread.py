"""A sweep that leaves vision tokens to the model gets counts that the model's processor really makes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.shipped import processor_only, request
from vlmbench.errors import ConfigError
from vlmbench.models.vision.auto_counts import spread_vision_tokens
from vlmbench.models.vision.candidates import seen_tokens
from vlmbench.sweep import spread

# Some processors of transformers still treat tensors as arrays the old way; 5.17 renames an argument of Mllama.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*hidden_state:FutureWarning"),
]


@pytest.mark.parametrize(
    ("name", "expected", "most_images"),
    [
        ("tiny", [16, 32, 66, 136, 280, 576], 1),
        ("llava_1_5_7b", [576, 1152, 1728, 2304, 2880, 3456], 6),
        ("paligemma2_3b_224", [256, 512, 768, 1024, 1280, 1536], 6),
        ("molmoe_1b", [288, 384, 480, 704, 864, 1184], 1),
        ("internvl3_1b", [256, 768, 1024, 1280, 1792, 2304], 1),
        ("llama_3_2_11b_vision", [4100, 8200, 12300, 16400, 20500, 24600], 6),
        pytest.param("gemma3_4b", [256, 512, 768, 1024, 1280, 1536], 6, marks=pytest.mark.slow),
        pytest.param("idefics3_8b", [169, 507, 676, 845, 1183, 1521], 1, marks=pytest.mark.slow),
        pytest.param("smolvlm_256m", [64, 192, 256, 320, 448, 576], 1, marks=pytest.mark.slow),
    ],
)
def test_known_models(name: str, expected: list[int], most_images: int) -> None:
    model = processor_only(name)
    found = model.vision_counts(request(), 6)
    assert found == expected
    observed = [model.prepare(request(vision_tokens=count)).counts for count in found]
    assert [seen_tokens(counts) for counts in observed] == found
    assert max(counts.num_images for counts in observed) == most_images


def test_another_process_finds_the_same_and_fewer_are_a_selection() -> None:
    assert processor_only("tiny").vision_counts(request(), 6) == processor_only("tiny").vision_counts(request(), 6)
    assert processor_only("tiny").vision_counts(request(), 3) == [16, 96, 576]


def test_the_sequence_limits_the_counts() -> None:
    llava = processor_only("llava_1_5_7b")
    assert spread_vision_tokens(llava, request(new_tokens=8), 6, positions=2048) == [576, 1152, 1728]
    with pytest.raises(ConfigError, match=r"reaches only 576 .*sweep=prompt_tokens or sweep=language_tokens"):
        spread_vision_tokens(llava, request(new_tokens=8), 6, positions=1024)


def test_a_request_that_leaves_no_choice_is_refused_with_what_is_reachable() -> None:
    with pytest.raises(ConfigError, match="only 1152"):
        processor_only("llava_1_5_7b").vision_counts(request(num_images=2), 6)
    with pytest.raises(ConfigError, match="needs a sample with an image"):
        processor_only("tiny").vision_counts(request(images=0), 6)


@given(counts=st.sets(st.integers(1, 9000), min_size=1, max_size=200), most=st.integers(3, 12))
def test_a_selection_is_distinct_ascending_and_as_long_as_it_can_be(counts: set[int], most: int) -> None:
    ordered = sorted(counts)
    found = spread(ordered, most)
    assert found == sorted(set(found))
    assert set(found) <= counts
    low = [count for count in ordered if count >= 16] or ordered
    assert found[0] == low[0]
    assert len(found) == min(most, len(low))


@given(low=st.integers(1, 400), most=st.integers(3, 8))
def test_where_every_count_can_be_reached_the_steps_are_equal_ratios(low: int, most: int) -> None:
    found = spread(range(low, 9000), most)
    ideal = (found[-1] / found[0]) ** (1 / (most - 1))
    for small, large in pairwise(found):
        assert math.log(large / small) == pytest.approx(math.log(ideal), abs=2 / small)

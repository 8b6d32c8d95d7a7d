"""Tiny configurations: what shrinks, what must stay, and that the result builds and runs."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForImageTextToText, Gemma3Config, LlavaConfig, Qwen2_5_VLConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vlmbench.testing.shrink import shrink_config
from vlmbench.testing.shrink_layers import _layers_to_keep, _split

QWEN_7B = {
    "text_config": {
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584, "depth": 32},
}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_7b_configuration_becomes_a_model_that_answers() -> None:
    config = Qwen2_5_VLConfig(**copy.deepcopy(QWEN_7B))
    before = config.to_dict()
    tiny = shrink_config(config)
    assert config.to_dict() == before
    assert type(tiny) is Qwen2_5_VLConfig
    assert tiny.text_config.rope_parameters["mrope_section"] == [4, 6, 6]
    assert tiny.vision_config.out_hidden_size == tiny.text_config.hidden_size
    for field in ("patch_size", "spatial_merge_size", "window_size", "temporal_patch_size"):
        assert getattr(tiny.vision_config, field) == getattr(config.vision_config, field)
    model = AutoModelForImageTextToText.from_config(tiny).eval()
    assert size(model) < 1e6
    with torch.no_grad():
        tokens = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert tokens.shape == (1, 5)


def test_every_kind_of_layer_survives() -> None:
    config = Gemma3Config()
    tiny = shrink_config(config)
    assert set(tiny.text_config.layer_types) == set(config.text_config.layer_types)
    assert len(tiny.text_config.layer_types) == tiny.text_config.num_hidden_layers == 2


def test_special_tokens_stay_apart_and_inside_the_vocabulary() -> None:
    config = CONFIG_MAPPING["qwen2_vl"]()
    tiny = shrink_config(config, vocab_size=200)
    names = [n for n in vars(config) if n.endswith("_token_id") and getattr(config, n) is not None]
    ids = [getattr(tiny, n) for n in names]
    assert names
    assert len(set(ids)) == len({getattr(config, n) for n in names})
    assert all(0 <= i < 200 for i in ids)
    assert tiny.text_config.vocab_size == 200


def test_used_layers_of_the_tower_exist() -> None:
    tiny = shrink_config(LlavaConfig(vision_feature_layer=[-2, -5, 6]))
    assert tiny.vision_config.num_hidden_layers == 2
    assert tiny.vision_feature_layer == [-2, -2, 1]


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'vocab_size' must be \d+ or more for these special tokens \(got 8\)"):
        shrink_config(LlavaConfig(), vocab_size=8)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_kept_layers_show_every_kind(kinds: list[str]) -> None:
    keep = _layers_to_keep(len(kinds), [kinds])
    assert {kinds[i] for i in keep} == set(kinds)
    assert keep == sorted(set(keep))
    assert len(keep) >= min(2, len(kinds))


@given(st.integers(8, 256), st.lists(st.integers(1, 64), min_size=1, max_size=4))
def test_sections_sum_to_the_whole(total: int, shares: list[int]) -> None:
    parts = _split(total, shares)
    assert sum(parts) == total
    assert all(part >= 1 for part in parts)

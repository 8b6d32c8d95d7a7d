"""Watching one real generate() of tiny random models: every kind of layout, wrong starts, hooks, invariants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmbench.errors import AnatomyError
from vlmbench.models.anatomy.find import find_anatomy
from vlmbench.models.anatomy.watch import record_calls, watch_anatomy
from vlmbench.models.protocol import Anatomy
from vlmbench.testing import stage_checks, tiny_models

NEW_TOKENS = 3
# One of each kind of layout.
SAMPLE = {
    "llava": "standard",
    "gemma3": "pooling in the projector",
    "qwen2_vl": "merger in the tower",
    "qwen3_vl": "deepstack mergers in the tower",
    "glm4v": "downsampling and merger in the tower",
    "minicpmv4_6": "a merger between two layers of the tower",
    "llama4": "adapter in the tower, causal model as language model",
    "idefics3": "pixel shuffle",
    "granite4_vision": "lists of projectors",
    "inkling_mm_model": "the tower's last layer projects",
    "mllama": "cross-attention, vision inside forward",
    "idefics": "cross-attention, vision inside the language model",
    "git": "vision and projector inside the language model",
    "blip": "cross-attention decoder with a BERT head, own generate",
    "blip-2": "Q-former, own generate past the wrapper's forward",
    "kosmos-2": "own generate on the inner causal model",
    "florence2": "encoder-decoder",
    "t5gemma2": "encoder that wraps the tower",
    "pix2struct": "vision encoder as encoder",
    "vision-encoder-decoder": "projection in front of the decoder",
    "fuyu": "no encoder",
    "udop": "patch embedding inside the text encoder",
    "chameleon": "vector-quantised image tokens",
    "video_llava": "a tower that no image reaches",
    "mistral4": "no images at all",
}

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own deprecations are not this package's


@pytest.mark.parametrize("name", SAMPLE, ids=lambda name: f"{name}: {SAMPLE[name]}")
def test_static_rules_and_watching_agree_with_what_reading_says(name: str) -> None:
    if name not in tiny_models.ARCHITECTURES:
        pytest.skip(f"this transformers has no {name}")
    model = tiny_models.tiny_model(name)
    inputs = tiny_models.tiny_inputs(name, model)
    static = find_anatomy(model)
    watched = watch_anatomy(model, lambda: tiny_models.generate(model, inputs, NEW_TOKENS), static)
    expected = stage_checks.expected_stages()[name]
    assert stage_checks.general(watched) == expected
    assert stage_checks.general(static) == expected
    calls = record_calls(model, lambda: tiny_models.generate(model, inputs, NEW_TOKENS))
    assert stage_checks.violations(name, model, watched, calls, NEW_TOKENS) == []


@pytest.fixture(scope="module")
def llava() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model = tiny_models.tiny_model("llava")
    return model, tiny_models.tiny_inputs("llava", model)


def stages(anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
    return dict(anatomy.stages())


@pytest.mark.parametrize(
    "start",
    [
        Anatomy(),
        Anatomy(vision_encoder=("model.vision_tower",), language_model=("model.vision_tower",), head=("lm_head",)),
        Anatomy(vision_encoder=("model.vision_tower",), language_model=("model.language_model",), head=("lm_head",)),
    ],
    ids=["nothing", "a tower taken for the language model", "no projector"],
)
def test_watching_finds_what_the_start_misses(llava: tuple[nn.Module, dict[str, torch.Tensor]], start: Anatomy) -> None:
    model, inputs = llava
    watched = watch_anatomy(model, lambda: tiny_models.generate(model, inputs, NEW_TOKENS), start)
    assert stages(watched) == stages(find_anatomy(model))
    assert watched.how["projector"] == "watching"


def test_calls_are_nested_and_carry_shapes(llava: tuple[nn.Module, dict[str, torch.Tensor]]) -> None:
    model, inputs = llava
    calls = record_calls(model, lambda: tiny_models.generate(model, inputs, NEW_TOKENS))
    text = [call for call in calls if call.path == "model.language_model"]
    length = inputs["input_ids"].shape[1]
    assert [call.length for call in text] == [length, 1, 1]
    tower = next(call for call in calls if call.path == "model.vision_tower")
    assert tuple(inputs["pixel_values"].shape) in tower.inputs.values()
    assert all(call.enter < call.leave and call.enter_ns <= call.leave_ns for call in calls)
    within = [call for call in calls if call.path.startswith("model.vision_tower.")]
    assert within
    assert all(tower.enter < call.enter < call.leave < tower.leave for call in within)


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_removed_also_after_an_error(llava: tuple[nn.Module, dict[str, torch.Tensor]]) -> None:
    model, inputs = llava
    before = hook_count(model)

    def broken() -> None:
        tiny_models.generate(model, inputs, NEW_TOKENS)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        record_calls(model, broken)
    watch_anatomy(model, lambda: tiny_models.generate(model, inputs, NEW_TOKENS))
    assert hook_count(model) == before


def test_a_run_without_a_language_model_is_an_error(llava: tuple[nn.Module, dict[str, torch.Tensor]]) -> None:
    model, inputs = llava
    with pytest.raises(AnatomyError, match="cannot tell which module"):
        watch_anatomy(model, lambda: model.model.get_image_features(inputs["pixel_values"]))

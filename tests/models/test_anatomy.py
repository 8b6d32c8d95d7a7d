"""Static rules on real architectures (on the meta device), on a plain module tree, overrides, counts and messages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vlmbench.errors import AnatomyError
from vlmbench.models.anatomy.find import anatomy_table, find_anatomy, module_tree, stage_parameters
from vlmbench.models.protocol import Anatomy
from vlmbench.testing.tiny_models import full_config

QWEN_MERGERS = (*(f"model.visual.deepstack_merger_list.{i}" for i in range(3)), "model.visual.merger")
BASIC = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
EXPECTED: dict[str, tuple[str | tuple[str, ...], ...]] = {
    "llava": BASIC,
    "llava_next": BASIC,
    "llava_onevision": BASIC,
    "internvl": BASIC,
    "paligemma": BASIC,
    "gemma3": BASIC,
    "molmo2": BASIC,
    "mistral3": BASIC,
    "qwen2_vl": ("model.visual", "model.visual.merger", "model.language_model", "lm_head"),
    "qwen2_5_vl": ("model.visual", "model.visual.merger", "model.language_model", "lm_head"),
    "qwen3_vl": ("model.visual", QWEN_MERGERS, "model.language_model", "lm_head"),
    "glm4v": ("model.visual", ("model.visual.downsample", "model.visual.merger"), "model.language_model", "lm_head"),
    "idefics3": ("model.vision_model", "model.connector", "model.text_model", "lm_head"),
    "smolvlm": ("model.vision_model", "model.connector", "model.text_model", "lm_head"),
    "mllama": ("model.vision_model", "model.multi_modal_projector", "model.language_model", "lm_head"),
    "llama4": (
        "vision_model",
        ("vision_model.vision_adapter", "multi_modal_projector"),
        "language_model.model",
        "language_model.lm_head",
    ),
    "blip-2": (
        "vision_model",
        ("qformer", "language_projection"),
        "language_model.model.decoder",
        "language_model.lm_head",
    ),
    "kosmos-2": ("vision_model", "image_to_text_projection", "text_model.model", "text_model.lm_head"),
    "florence2": (
        "model.vision_tower",
        "model.multi_modal_projector",
        ("model.language_model.encoder", "model.language_model.decoder"),
        "lm_head",
    ),
    "fuyu": ((), "model.vision_embed_tokens", "model.language_model", "lm_head"),
    "pix2struct": ("encoder", (), "decoder", "decoder.lm_head"),
    "vision-encoder-decoder": ("encoder", (), "decoder.bert", "decoder.cls"),
    "mistral4": ((), (), "model", "lm_head"),
}


def on_meta(name: str) -> nn.Module:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(full_config(name))


@pytest.mark.parametrize("name", EXPECTED)
def test_static_rules_find_the_stages(name: str) -> None:
    model = on_meta(name)
    anatomy = find_anatomy(model)
    expected = tuple((part,) if isinstance(part, str) else part for part in EXPECTED[name])
    assert tuple(parts for _, parts in anatomy.stages()) == expected
    counts = stage_parameters(model, anatomy)
    assert counts["total"] == sum(p.numel() for p in model.parameters()) == sum(counts.values()) - counts["total"]
    assert counts["other"] <= 0.004 * counts["total"]
    rows = anatomy_table(model, anatomy)
    assert sum(row.parameters for row in rows) == counts["total"] - counts["other"]
    assert all(row.rule for row in rows)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(12, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(x)
        for block in self.blocks:
            x = block(x)
        return x


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_vit = Tower()
        self.image_pooling_2d = nn.Linear(8, 8)
        self.image_projector = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.image_vit(x)
        return self.image_projector(self.image_pooling_2d(features))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))


class PlainModel(nn.Module):
    """No transformers class, no config: only the names and the code are there."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_backbone = Backbone()
        self.transformer = Decoder()
        self.lm_head = nn.Linear(16, 32, bias=False)
        self.lm_head.weight = self.transformer.embed_tokens.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def test_a_plain_module_with_a_pooling_backbone() -> None:
    model = PlainModel()
    anatomy = find_anatomy(model)
    assert anatomy.vision_encoder == ("vision_backbone",)
    assert set(anatomy.projector) == {"vision_backbone.image_pooling_2d", "vision_backbone.image_projector"}
    assert anatomy.language_model == ("transformer",)
    counts = stage_parameters(model, anatomy)
    vit = 12 * 8 + 8 + 3 * (64 + 8)
    # The tied head hangs in the model twice and counts once, with the embedding it shares.
    assert counts == {
        "vision_encoder": vit,
        "projector": 72 + 8 * 16 + 16,
        "language_model": 32 * 16 + 2 * (256 + 16),
        "head": 0,
        "other": 0,
        "total": vit + 72 + 144 + 512 + 544,
    }


def test_override_replaces_what_the_rules_find() -> None:
    model = PlainModel()
    anatomy = find_anatomy(model, {"vision_encoder": ["vision_backbone.image_vit"], "projector": []})
    assert anatomy.vision_encoder == ("vision_backbone.image_vit",)
    assert anatomy.projector == ()
    assert anatomy.how["vision_encoder"] == "override"


def test_rules_start_from_what_an_override_says() -> None:
    model = PlainModel()
    anatomy = find_anatomy(model, {"vision_encoder": ["vision_backbone.image_vit"]})
    assert set(anatomy.projector) == {"vision_backbone.image_pooling_2d", "vision_backbone.image_projector"}


def test_a_list_of_modules_in_an_override_stands_for_its_items() -> None:
    anatomy = find_anatomy(PlainModel(), {"projector": ["vision_backbone.image_vit.blocks"]})
    assert anatomy.projector == tuple(f"vision_backbone.image_vit.blocks.{i}" for i in range(3))


def test_a_single_path_may_stand_without_brackets() -> None:
    assert find_anatomy(PlainModel(), {"head": "lm_head"}).head == ("lm_head",)


def test_an_override_settles_what_no_rule_tells() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    anatomy = find_anatomy(model, {"language_model": ["0"], "vision_encoder": [], "projector": []})
    assert anatomy.language_model == ("0",)
    assert "no output embedding" in anatomy.notes


def test_override_with_an_unknown_path_lists_near_names() -> None:
    with pytest.raises(
        AnatomyError, match=r"'vision_backbone.vit', which is no module; near: .*vision_backbone.image_vit"
    ):
        find_anatomy(PlainModel(), {"vision_encoder": ["vision_backbone.vit"]})


def test_override_with_an_unknown_stage() -> None:
    with pytest.raises(AnatomyError, match="'eyes' must be one of vision_encoder, projector, language_model, head"):
        find_anatomy(PlainModel(), {"eyes": ["vision_backbone"]})


def test_a_model_that_cannot_be_told_shows_its_tree_and_what_to_write() -> None:
    with pytest.raises(AnatomyError) as error:
        find_anatomy(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    message = str(error.value)
    assert "cannot tell which module of Sequential is the language_model" in message
    assert "language_model: [PATH]" in message
    assert "0: Linear (9 parameters)" in message


def test_module_tree_is_limited_in_depth_and_shows_lists_once() -> None:
    tree = module_tree(PlainModel(), depth=2)
    assert "vision_backbone.image_vit: Tower" in tree
    assert "vision_backbone.image_vit.blocks" not in tree
    assert "transformer.layers: ModuleList × 2" in tree


def test_packed_weights_are_counted_as_what_they_stand_for() -> None:
    packed = nn.Linear(16, 1, bias=False)
    packed.weight.quant_state = SimpleNamespace(shape=torch.Size([4, 8]))  # as bitsandbytes keeps it
    model = nn.ModuleDict({"tower": nn.Linear(8, 4, bias=False), "text": packed})
    parts = Anatomy(vision_encoder=("tower",), language_model=("text",))
    assert stage_parameters(model, parts)["language_model"] == stage_parameters(model, parts)["vision_encoder"] == 32

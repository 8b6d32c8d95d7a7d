"""An override is believed where it can be true: one stage a module, none out of its place."""

from __future__ import annotations

import pytest

from tests.models.test_anatomy import EXPECTED, PlainModel, on_meta
from vlmbench.errors import AnatomyError
from vlmbench.models.anatomy.find import find_anatomy

TOWER, TEXT = "vision_backbone", "transformer"


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_rules_find_is_accepted_as_an_override(name: str) -> None:
    model = on_meta(name)
    plain = find_anatomy(model)
    stages = dict(plain.stages())
    assert dict(find_anatomy(model, stages).stages()) == stages
    for stage, parts in stages.items():
        assert dict(find_anatomy(model, {stage: parts}).stages()) == stages


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"projector": [TOWER]}, rf"'projector' names '{TOWER}', which is the vision_encoder \(found by .*\); a module"),
        ({"projector": ["lm_head"]}, r"'projector' names 'lm_head', which is the head \(found by get_output_embeddings"),
        ({"projector": ["lm_head"], "head": []}, r"'projector' names 'lm_head', which is the head"),
        ({"vision_encoder": ["lm_head"]}, r"'vision_encoder' names 'lm_head', which is the head"),
        ({"head": ["vision_backbone.image_projector"]}, r"'head' names .* which lies inside the vision_encoder"),
        ({"projector": [TEXT]}, r"'projector' names 'transformer', which is the language_model"),
        ({"projector": ["transformer.layers.0"]}, r"which lies inside the language_model 'transformer'"),
        ({"head": ["transformer.layers.1"]}, r"which lies inside the language_model 'transformer'"),
        ({"vision_encoder": ["transformer.embed_tokens"]}, r"which lies inside the language_model 'transformer'"),
        ({"vision_encoder": ["vision_backbone.image_projector"]}, r"which is the projector"),
        ({"vision_encoder": [TOWER], "projector": [TOWER]}, r"\(named in the override, too\).*\nName each module once"),
        ({"vision_encoder": ["vision_backbone.image_vit"], "projector": [TOWER]}, r"which lies inside the projector"),
        ({"projector": [TOWER], "vision_encoder": ["vision_backbone.image_vit.blocks"]}, r"holds the vision_encoder"),
        ({"vision_encoder": [TOWER, "vision_backbone.image_vit"]}, r"names 'vision_backbone.image_vit' twice"),
        ({"head": ["lm_head", "lm_head"]}, r"names 'lm_head' twice"),
    ],
)  # fmt: skip
def test_a_module_in_two_stages_or_out_of_place_is_refused(override: dict[str, list[str]], message: str) -> None:
    with pytest.raises(AnatomyError, match=message) as refused:
        find_anatomy(PlainModel(), override)
    assert str(refused.value).count("\n") <= 1


@pytest.mark.parametrize(
    "override",
    [
        {"projector": ["vision_backbone.image_pooling_2d"]},  # inside the tower: allowed
        {"vision_encoder": [], "projector": [TOWER]},  # the rules took the connector of a model without encoder for one
        {"vision_encoder": [TOWER], "language_model": [TEXT], "head": ["transformer.layers.1"]},  # both named: it is meant
        {"vision_encoder": ["vision_backbone.image_vit", "vision_backbone.image_pooling_2d"],
         "projector": ["vision_backbone.image_projector"]},
    ],
)  # fmt: skip
def test_what_can_be_true_is_believed(override: dict[str, list[str]]) -> None:
    found = dict(find_anatomy(PlainModel(), override).stages())
    for stage, parts in override.items():
        assert found[stage] == tuple(parts)


def test_a_language_model_around_the_tower_only_where_the_model_is_built_so() -> None:
    git = on_meta("git")
    assert find_anatomy(git, {"language_model": ["git"]}).language_model == ("git",)
    llava = on_meta("llava")
    with pytest.raises(AnatomyError, match="'language_model' names 'model', which holds the vision_encoder"):
        find_anatomy(llava, {"language_model": ["model"]})

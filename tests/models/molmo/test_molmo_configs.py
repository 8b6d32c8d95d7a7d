"""The shipped model files: real dimensions, real token counts, built by the loader that every model uses."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from vlmbench.models.loading import build_config, count_parameters, load, module_on_meta
from vlmbench.models.processors import build_processor
from vlmbench.models.runtime import Runtime
from vlmbench.models.spec import ModelSpec
from vlmbench.request import ImageSource, Output, Request, Sample

CONF = Path(__file__).parents[3] / "conf" / "model"
# total; decoder with head, connector, vision tower
PARAMETERS = {
    "molmoe_1b": (7_221_875_712, 6_919_424_000, 11_542_528, 290_909_184),
    "molmo_7b_o": (7_665_032_192, 7_299_141_632, 74_981_376, 290_909_184),
    "molmo_7b_d": (8_021_025_280, 7_616_075_264, 114_040_832, 290_909_184),
    "molmo_72b": (73_308_285_952, 72_707_252_224, 310_124_544, 290_909_184),
}
models = pytest.mark.parametrize("name", sorted(PARAMETERS))


def spec_of(name: str, **change: Any) -> ModelSpec:
    raw = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    assert raw.pop("_target_") == "vlmbench.models.spec.ModelSpec"
    return ModelSpec(**{**raw, **change})


@models
def test_parameters(name: str) -> None:
    spec = spec_of(name)
    module = module_on_meta(build_config(spec))
    decoder = count_parameters(module.model.language_model) + count_parameters(module.lm_head)
    parts = (decoder, count_parameters(module.model.multi_modal_projector), count_parameters(module.model.vision_tower))
    assert (count_parameters(module), *parts) == PARAMETERS[name]
    assert spec.params_counted == PARAMETERS[name][0]


def test_active_parameters_of_molmoe() -> None:
    config = build_config(spec_of("molmoe_1b")).text_config
    experts = config.num_hidden_layers * config.num_experts * 3 * config.hidden_size * config.intermediate_size
    idle = experts * (config.num_experts - config.num_experts_per_tok) // config.num_experts
    assert PARAMETERS["molmoe_1b"][0] - idle == 1_584_731_136


@models
def test_tokens_of_a_photograph(name: str) -> None:
    spec = spec_of(name)
    config = build_config(spec)
    processor = build_processor(spec.processor, model_type="molmo", vocab_size=config.text_config.vocab_size)
    made = processor(images=Image.new("RGB", (640, 480)), text="What is it?")
    ids = made["input_ids"][0]
    assert (ids == config.image_token_id).sum() == spec.vision_tokens_640x480 == 704
    rows = config.text_config.vocab_size + config.additional_vocab_size
    assert ids.max() < rows
    assert made["pixel_values"].shape == (1, 7, 576, 588)
    ids_of = processor.tokenizer.convert_tokens_to_ids
    for role, token in (("start", "<im_start>"), ("end", "<im_end>"), ("col", "<im_col>")):
        assert ids_of(token) == getattr(config, f"image_{role}_token_id")
    assert ids[0] == config.bos_token_id == processor.bos_token_id
    assert ids_of("<|image|>") == config.image_col_token_id + 1


SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SMALL_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 9}


@pytest.mark.parametrize("name", ["molmoe_1b", "molmo_7b_o", "molmo_7b_d"])
@pytest.mark.parametrize("size", [(640, 480), (100, 100)])
def test_a_narrow_copy_runs_through_the_loader(name: str, size: tuple[int, int]) -> None:
    real = spec_of(name)
    experts = {"num_experts": 4, "num_experts_per_tok": 2} if name == "molmoe_1b" else {}
    config = {
        **real.config,
        "projector_hidden_size": 32,
        "text_config": {**real.config["text_config"], **SMALL_TEXT, **experts},
        "vision_config": {**real.config["vision_config"], **SMALL_VISION},
    }
    model = load(spec_of(name, config=config), Runtime(device="cpu"))
    stages = dict(model.anatomy.stages())
    assert stages == {
        "vision_encoder": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language_model": ("model.language_model",),
        "head": ("lm_head",),
    }
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    source = ImageSource(name="black", read=buffer.getvalue)
    request = Request(
        sample=Sample(sample_id="0", question="What is it?", images=(source,)),
        output=Output(max_new_tokens=3, forced=True),
        batch_size=2,
    )
    prepared = model.prepare(request)
    crops, vectors = (7, 704) if size == (640, 480) else (2, 288)
    assert prepared.counts.num_vision_tokens == vectors
    assert prepared.counts.num_crops == crops
    assert prepared.counts.num_vision_patches == crops * 576
    assert model.generate(model.transfer(prepared)).shape == (2, 3)

"""The shipped models for tests: their YAML, shrunken to a size that runs here, and requests with real JPEG bytes."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vlmbench.models.loading import TransformersModel, load
from vlmbench.models.runtime import Runtime
from vlmbench.models.spec import ModelSpec
from vlmbench.request import ImageSource, Output, Request, Sample

CONF = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
WIDTH = 64


def raw(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))


def spec(name: str, **changes: Any) -> ModelSpec:
    fields = raw(name)
    assert fields.pop("_target_") == "vlmbench.models.spec.ModelSpec"
    return ModelSpec(**{**fields, **changes})


def loaded(model: ModelSpec, *, seed: int = 0, **options: Any) -> TransformersModel:
    """The model, with the options of a runtime."""
    return load(model, Runtime(**options), seed=seed)


def shrunken(name: str) -> ModelSpec:
    """The same layout, image sizes and vocabulary, two narrow layers a stage."""
    full = spec(name)
    config = copy.deepcopy(full.config)
    kind, text, vision = config["model_type"], config["text_config"], config["vision_config"]
    text.update(
        hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    if "head_dim" in text or kind.startswith(("gemma3", "qwen3")):
        text["head_dim"] = 16
    if kind.startswith("qwen"):
        text["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    if kind == "mllama":
        text.update(num_hidden_layers=3, cross_attention_layers=[1])
        vision.update(hidden_size=WIDTH, attention_heads=4, num_hidden_layers=2, num_global_layers=1)
        vision.update(intermediate_size=128, intermediate_layers_indices=[0, 1], vision_output_dim=3 * WIDTH)
    elif kind == "qwen2_vl":
        vision.update(embed_dim=WIDTH, hidden_size=WIDTH, depth=2, num_heads=4)
    elif kind.startswith("qwen"):
        vision.update(hidden_size=WIDTH, intermediate_size=128, depth=2, num_heads=4, out_hidden_size=WIDTH)
        vision.update({"fullatt_block_indexes": [1]} if kind == "qwen2_5_vl" else {"deepstack_visual_indexes": [0]})
    else:
        vision.update(hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    if kind == "paligemma":
        config.update(projection_dim=WIDTH, hidden_size=WIDTH)
        vision["projection_dim"] = WIDTH
        text["query_pre_attn_scalar"] = 16
    return replace(full, config=config)


def jpeg(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def source(width: int = 640, height: int = 480) -> ImageSource:
    data = jpeg(width, height)
    return ImageSource(name=f"made/{width}x{height}", read=lambda: data, size=(width, height))


def request(
    *,
    size: tuple[int, int] = (640, 480),
    images: int = 1,
    new_tokens: int = 4,
    forced: bool = True,
    question: str = "What color is the cat?",
    **knobs: Any,
) -> Request:
    sample = Sample(sample_id="1", question=question, images=(source(*size),) * images)
    return Request(sample=sample, output=Output(max_new_tokens=new_tokens, forced=forced), **knobs)


def processor_only(name: str) -> Any:
    """The model without its module: what prepares requests."""
    import torch

    from vlmbench.models import loading
    from vlmbench.models.inputs import Prompter
    from vlmbench.models.processors import build_processor
    from vlmbench.models.token_counts import ImageMarks
    from vlmbench.models.transformers_model import TransformersModel

    model = spec(name)
    config = loading.build_config(model)
    processor = build_processor(
        model.processor,
        model_type=config.model_type,
        vocab_size=config.get_text_config(decoder=True).vocab_size,
    )
    token = model.processor.get("vision_token")
    index = None if token is None else processor.tokenizer.convert_tokens_to_ids(token)
    return TransformersModel(
        module=None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        processor=processor,
        prompter=Prompter.of(
            processor,
            prompt_format=model.processor.get("prompt_format"),
            image_placeholder=model.processor.get("image_placeholder"),
        ),
        marks=ImageMarks.from_config(config, image_token_id=index),
    )


def save_checkpoint(model: Any, folder: Path) -> Path:
    """The files of a checkpoint whose processor has no class of its own to save: what a hub folder holds."""
    model.module.save_pretrained(folder)
    model.processor.image_processor.save_pretrained(folder)
    model.processor.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(model.processor.chat_template, encoding="utf-8")
    return folder

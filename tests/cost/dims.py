"""Real models' dimensions, and requests that fit them."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlmbench.request import TokenCounts

_DIMS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("dims.json").read_text())
NAMES = tuple(_DIMS)
# One of each family, the smallest.
FAMILIES = (
    "llava-1.5-7b", "llava-v1.6-mistral-7b", "llava-onevision-qwen2-0.5b", "qwen2-vl-2b", "qwen2.5-vl-3b", "qwen3-vl-2b",
    "internvl3-1b", "smolvlm-256m", "idefics3-8b", "paligemma2-3b-224", "gemma3-4b", "llama-3.2-11b-vision-instruct",
    "molmo2-4b", "molmoe-1b", "molmo-7b-d", "qwen3-vl-30b-a3b-like",
)  # fmt: skip


def parameters_of(name: str) -> int | None:
    return _DIMS[name].get("parameters")


def config_of(name: str, layers: int | None = None) -> Any:
    """The model's configuration; with ``layers``, only that many decoder layers (all other dimensions are real)."""
    from transformers import AutoConfig

    import vlmbench.models.molmo  # noqa: F401 - makes the Auto classes know Molmo

    fields = json.loads(json.dumps(_DIMS[name]["config"]))
    kind = fields.pop("model_type")
    if layers is not None:
        text = fields["text_config"]
        text["num_hidden_layers"] = layers
        if kind == "mllama":  # whose layers with cross-attention are named by number
            text["cross_attention_layers"] = list(range(3, layers, 5))
    try:
        return AutoConfig.for_model(kind, **fields)
    except ValueError as error:
        if "Unrecognized" not in str(error):
            raise
        pytest.skip(f"this release of transformers does not know {kind}")


def counts_of(name: str, tokens: int = 0) -> TokenCounts:
    """One image that this family's processor would make of an ordinary photo, with ``tokens`` input tokens."""
    kind = _DIMS[name]["config"]["model_type"]
    more: dict[str, Any] = {"num_crops": 3}
    vision_tokens = 0
    if kind in ("qwen2_vl", "qwen2_5_vl"):
        more = {"num_vision_patches": 46 * 34, "num_crops": 1}
    elif kind.startswith("qwen3_vl"):
        more = {"num_vision_patches": 40 * 30, "num_crops": 1}
    elif kind in ("llava_next", "llava_onevision"):
        more = {"num_crops": 5}
    elif kind in ("llava", "paligemma"):
        more = {"num_crops": 1}
    elif kind == "molmo2":
        vision_tokens = 196 + 14 * 21
    elif kind == "mllama":
        side = _DIMS[name]["config"]["vision_config"]["image_size"] // 14
        more = {"num_crops": 2, "num_cross_attention_tokens": 4 * (side * side + 1)}
    return TokenCounts(
        num_input_tokens=tokens, num_prompt_tokens=8, num_vision_tokens=vision_tokens, num_images=1, **more
    )

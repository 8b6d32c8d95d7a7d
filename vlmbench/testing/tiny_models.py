"""Tiny random models of every image-text-to-text architecture of transformers, with inputs for one ``generate()``.

Configurations come from the classes' defaults through :func:`vlmbench.testing.shrink.shrink_config`; ``COMPLETE`` fills
what a class leaves open (a few defaults build no model at all). Inputs need no processor: pixels are random, the number
of image positions is asked of the model's own ``get_image_features``, and the layouts that no rule covers have a
function of their own below.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlmbench.testing.shrink import shrink_config

ARCHITECTURES: tuple[str, ...] = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
VOCAB = 1024
TEXT_TOKENS = 8

# Why an architecture has no timeline of an image-text generate() at all.
MROPE: dict[str, Any] = {"text_config.rope_parameters.mrope_section": [4, 6, 6]}
OMNI: dict[str, Any] = {"vision_start_token_id": 901, "vision_end_token_id": 902, "audio_start_token_id": 903}
CHAMELEON_VOCAB = {"<image>": 900} | {
    "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z": 700 + code for code in range(64)
}
EMU3_VOCAB = {"<image>": 900, "<|extra_200|>": 901} | {f"<|visual token {code:06d}|>": 700 + code for code in range(64)}

# What the classes' defaults leave open.
COMPLETE: dict[str, dict[str, Any]] = {
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        }
    },
    "gemma4": {"vision_config": {}},
    "granite4_vision": {
        "text_config": {"model_type": "granite4_vision_text"},
        "vision_config": {"model_type": "siglip_vision_model"},
        "vision_feature_select_strategy": "full",
    },
    "idefics3": {"pad_token_id": 0},
    "smolvlm": {"pad_token_id": 0},
    "vision-encoder-decoder": {
        "encoder": {"model_type": "vit"},
        "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
    },
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_pe_core_tiny_patch16_384",
            "model_args": {"embed_dim": 192, "img_size": [224, 224], "depth": 2, "global_pool": ""},
        }
    },
    "gemma4_unified": {"vision_config": {}},
}
# Changes to the tiny configuration, as "sub.config.field": value.
ADJUST: dict[str, dict[str, Any]] = {
    "aria": {"vision_config.image_size": 490, "vision_config.patch_size": 14},
    "aya_vision": {"vision_config.image_size": 364, "vision_config.patch_size": 14},
    "blip-2": {"image_token_index": 900},
    "chameleon": {
        "vq_config.num_embeddings": 64,
        "vq_config.resolution": 64,
        "vocabulary_map": CHAMELEON_VOCAB,
        "image_token_id": 900,
    },
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse"],
        "text_config.num_experts_per_tok": 2,
        "vision_config.sam_config.downsample_channels": [32, 32],
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "emu3": {
        "vq_config.codebook_size": 64,
        "vq_config.hidden_size": 128,
        "vocabulary_map": EMU3_VOCAB,
        "image_token_id": 900,
    },
    "ernie4_5_vl_moe": MROPE | {"text_config.rope_parameters.mrope_section": [5, 5, 6]},
    "gemma3": {"vision_config.patch_size": 14, "mm_tokens_per_image": 16},
    "glm46v": MROPE,
    "glm4v": MROPE,
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [2, 3, 3]},
    "glm_ocr": MROPE,
    "glmga": MROPE,
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "downsample_rate": "1/2",
        "image_grid_pinpoints": [[224, 224]],
        "spatial_target_layers": [0, 1, 0, 1],
        "vision_config.patch_size": 16,
    },
    "hunyuan_vl": {"text_config.head_dim": 32, "text_config.rope_parameters.mrope_section": [4, 4, 4, 4]},
    "idefics2": {"vision_config.image_size": 256},
    "idefics3": {"vision_config.image_size": 256},
    "smolvlm": {"vision_config.image_size": 256},
    "instructblip": {"image_token_index": 900},
    "instructblipvideo": {"video_token_index": 900},
    "kosmos-2.5": {"latent_query_num": 16},
    "lighton_ocr": {"vision_config.image_size": 224},
    "llama4": {
        "vision_config.intermediate_size": 128,
        "vision_config.projector_input_dim": 64,
        "vision_config.vision_output_dim": 64,
    },
    "inkling_mm_model": {"vision_config.n_layers": 4},
    "minicpm_ocr": {"image_token_id": 900},
    "minicpmv4_6": {"image_token_id": 900},
    "minicpmv4_7": {"image_token_id": 900},
    "pix2struct": {"vision_config.hidden_size": 64},
    "mllama": {"vision_config.vision_output_dim": 64},
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "nemotron_h_omni": {"image_token_id": 900},
    "mistral3": {"vision_config.image_size": 224},
    "mistral_large4": {"vision_config.image_size": 224},
    "paddleocr_vl": MROPE,
    "qwen2_5_omni_thinker": MROPE | OMNI,
    "qwen2_5_vl": MROPE,
    "qwen2_vl": MROPE,
    "qwen3_omni_moe_thinker": OMNI,
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 32,
        "text_config.indexer_budget": 16,
        "text_config.indexer_compress_ratio": 4,
    },
    "shieldgemma2": {"vision_config.patch_size": 14, "mm_tokens_per_image": 16},
    "step3p7": {"text_config.sliding_window": 64},
    "t5gemma2": {"encoder.vision_config.patch_size": 14, "encoder.mm_tokens_per_image": 16},
    "unlimited_ocr": {"vision_config.sam_config.downsample_channels": (32, 32)},
}


def full_config(name: str) -> Any:
    """The configuration of an architecture with its class's defaults, completed where they build no model."""
    return CONFIG_MAPPING[name](**copy.deepcopy(COMPLETE.get(name, {})))


def tiny_config(name: str) -> Any:
    """The tiny configuration of an architecture."""
    config = shrink_config(full_config(name), vocab_size=VOCAB)
    for path, value in ADJUST.get(name, {}).items():
        *owners, field = path.split(".")
        part = config
        for owner in owners:
            part = getattr(part, owner)
        if isinstance(part, dict):
            part[field] = value
        else:
            setattr(part, field, value)
    return config


def tiny_model(name: str) -> Any:
    """The tiny model with seeded random weights, float32, on the CPU, in eval mode."""
    torch.manual_seed(0)
    config = tiny_config(name)
    model_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return model_class(config).eval()


def tiny_inputs(name: str, model: Any) -> dict[str, Any]:
    """Keyword arguments of ``generate`` for one image and a short text."""
    torch.manual_seed(1)
    if name in INPUTS:
        return INPUTS[name](model)
    return generic_inputs(model)


def generate(model: Any, inputs: dict[str, Any], new_tokens: int = 4) -> torch.Tensor:
    """One greedy ``generate()`` of exactly ``new_tokens`` tokens."""
    with torch.no_grad():
        answer: Any = model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    tokens: torch.Tensor = getattr(answer, "sequences", answer)
    return tokens


# ------------------------------------------------------------------------------------------- generic


def text_ids(count: int = TEXT_TOKENS) -> torch.Tensor:
    """Ordinary token ids, shape (count,): past the low special ids, below the renumbered ones."""
    return torch.randint(100, 600, (count,))


def image_token(config: Any) -> int:
    """The id that stands for one image position."""
    for field in ("image_token_id", "image_token_index", "image_patch_id"):
        value = getattr(config, field, None)
        if isinstance(value, int):
            return value
    raise LookupError("no image token in the configuration")


def generic_inputs(model: Any) -> dict[str, Any]:
    """Pixels in the first layout that ``get_image_features`` takes, and as many image tokens as it answers features."""
    errors = []
    for pixels in pixel_layouts(model):
        try:
            count = feature_count(model, pixels)
        except Exception as error:  # the next layout is tried; all errors are shown when none fits
            errors.append(
                f"{ {k: tuple(v.shape) for k, v in pixels.items()} }: {type(error).__name__} {str(error)[:120]}"
            )
            continue
        return with_text(model, pixels, count)
    raise LookupError("no pixel layout fits:\n" + "\n".join(errors))


def with_text(model: Any, pixels: dict[str, Any], count: int) -> dict[str, Any]:
    """Pixels plus ``input_ids`` with ``count`` image tokens, the mask and the token types that the model asks for."""
    text = text_ids()
    ids = torch.cat([text[:2], torch.full((count,), image_token(model.config)), text[2:]])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    arguments = inspect.signature(type(model).forward).parameters
    for types in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if types in arguments:
            inputs[types] = (ids == image_token(model.config)).long()
    return inputs


def feature_count(model: Any, pixels: dict[str, Any]) -> int:
    """How many positions the model makes of these pixels."""
    owner = model.base_model if hasattr(model.base_model, "get_image_features") else model
    if not hasattr(owner, "get_image_features"):
        owner = next(m for m in model.modules() if hasattr(m, "get_image_features"))
    wanted = inspect.signature(owner.get_image_features).parameters.values()
    settings = {p.name for p in wanted if p.default is p.empty and p.kind is not p.VAR_KEYWORD} - pixels.keys()
    with torch.no_grad():
        answer = owner.get_image_features(**pixels, **{name: _setting(model.config, name) for name in settings})
    features = getattr(answer, "pooler_output", None)
    if hasattr(answer, "deepstack_features") and features is None:
        features = answer.deepstack_features[0][1]
    features = getattr(answer, "last_hidden_state", answer) if features is None else features
    parts = features if isinstance(features, list | tuple) else [features]
    return sum(part.numel() // part.shape[-1] for part in parts)


def _setting(config: Any, name: str) -> Any:
    return getattr(config, name) if hasattr(config, name) else getattr(vision_config(config), name)


def pixel_layouts(model: Any) -> Iterator[dict[str, Any]]:
    """Layouts in use: patches with a grid; whole images; tiles of images."""
    vision = vision_config(model.config)
    arguments = set(inspect.signature(type(model).forward).parameters)
    if "image_grid_thw" in arguments:
        yield from grid_layouts(vision)
    size = image_size(vision)
    for shape in ((1, 3, size, size), (1, 1, 3, size, size), (1, 3, 3, size, size), (2, 3, size, size)):
        pixels: dict[str, Any] = {"pixel_values": torch.randn(shape)}
        if "image_sizes" in arguments:
            pixels["image_sizes"] = torch.tensor([[size, size]])
        if "pixel_attention_mask" in arguments:
            pixels["pixel_attention_mask"] = torch.ones(*shape[:-3], size, size, dtype=torch.bool)
        yield pixels
        pixels.pop("image_sizes", None)
        yield pixels


def grid_layouts(vision: Any) -> Iterator[dict[str, Any]]:
    """Give the ways in which towers of patches take one image."""
    patch = getattr(vision, "patch_size", 14)
    frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
    grid = torch.tensor([[1, 8, 8]])
    for t, shape in itertools.product((frames, 1), ((64, -1), (64, 3, -1))):
        yield {
            "pixel_values": torch.randn(64, 3, t, patch, patch).reshape(
                shape if len(shape) == 2 else (64, 3, patch * t, patch)
            ),
            "image_grid_thw": grid,
        }


def vision_config(config: Any) -> Any:
    """The sub-configuration of the vision part, the configuration itself where there is none."""
    for field in ("vision_config", "encoder", "vq_config"):
        if getattr(config, field, None) is not None:
            return getattr(config, field)
    return config


def image_size(vision: Any) -> int:
    """Side of a square image, pixels."""
    size = getattr(vision, "image_size", None) or 224
    return size if isinstance(size, int) else size[0]


# ------------------------------------------------------------------------------------------- special


def _text(count: int = TEXT_TOKENS) -> dict[str, Any]:
    ids = text_ids(count)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image(model: Any) -> torch.Tensor:
    size = image_size(vision_config(model.config))
    return torch.randn(1, 3, size, size)


def _counted(make: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Inputs of an architecture whose pixel layout is its own but whose image tokens are counted as usual."""

    def inputs(model: Any) -> dict[str, Any]:
        pixels = make(model)
        return with_text(model, pixels, feature_count(model, pixels))

    return inputs


def _queries(model: Any, pixels: dict[str, Any]) -> dict[str, Any]:
    """Q-former models: as many image tokens as queries; the question goes to the Q-former as well."""
    config = model.config
    token = getattr(config, "image_token_index", None) or config.video_token_index
    ids = torch.cat([torch.full((config.num_query_tokens,), token), text_ids()])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}


def _instruct(model: Any, frames: int | None = None) -> dict[str, Any]:
    question = text_ids()[None]
    pixels = {
        "pixel_values": _image(model),
        "qformer_input_ids": question,
        "qformer_attention_mask": torch.ones_like(question),
    }
    if frames:
        pixels["pixel_values"] = pixels["pixel_values"][:, None].repeat(1, frames, 1, 1, 1)
    return _queries(model, pixels)


def _kosmos2(model: Any) -> dict[str, Any]:
    count = model.config.latent_query_num
    ids = text_ids(count + TEXT_TOKENS)[None]
    mask = torch.zeros_like(ids)
    mask[:, 1 : count + 1] = 1
    return {
        "pixel_values": _image(model),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_embeds_position_mask": mask,
    }


def _flattened(model: Any) -> torch.Tensor:
    rows = torch.stack([torch.arange(16) // 4 + 1, torch.arange(16) % 4 + 1], dim=-1).float()
    return torch.cat([rows, torch.randn(16, model.config.vision_config.patch_embed_hidden_size)], dim=-1)[None]


def _placed_patches(width: Callable[[Any], int]) -> Callable[[Any], dict[str, Any]]:
    """36 patches with their (x, y) places; ``width`` gives a patch's length from the vision configuration."""
    return _counted(
        lambda m: {
            "pixel_values": torch.rand(1, 36, width(m.config.vision_config)),
            "image_position_ids": torch.cartesian_prod(torch.arange(6), torch.arange(6))[None],
        }
    )


def _minicpm(model: Any) -> dict[str, Any]:
    patch = model.config.vision_config.patch_size
    return {"pixel_values": torch.randn(1, 3, patch, patch * 64), "target_sizes": torch.tensor([[8, 8]])}


def _kosmos25(model: Any) -> dict[str, Any]:
    inputs = _kosmos2(model)
    inputs.pop("pixel_values")
    return inputs | {"flattened_patches": _flattened(model), "width": torch.tensor([64]), "height": torch.tensor([64])}


def _mllama(model: Any) -> dict[str, Any]:
    vision = model.config.vision_config
    tiles, size = vision.max_num_tiles, vision.image_size
    ids = torch.cat([torch.tensor([image_token(model.config)]), text_ids()])[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 1, tiles, 3, size, size),
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": torch.ones(1, 1, tiles, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, ids.shape[1], 1, tiles, dtype=torch.long),
    }


def _molmo2(model: Any) -> dict[str, Any]:
    vision = model.config.vision_config
    patches = model.config.vision_config.image_num_pos if hasattr(vision, "image_num_pos") else 27 * 27
    pooled = 14 * 14
    index = torch.arange(pooled * 4).reshape(pooled, 4) % patches
    return {
        "pixel_values": torch.randn(1, patches, 3 * vision.patch_size**2),
        "image_token_pooling": index,
        "image_grids": torch.tensor([[14, 14, 0, 0]]),
    }


def _fuyu(model: Any) -> dict[str, Any]:
    patch = model.config.patch_size
    count = 12
    names = inspect.signature(type(model).forward).parameters
    name = "pixel_values" if "pixel_values" in names else "image_patches"  # the older name
    return with_text(model, {name: torch.randn(1, count, 3 * patch * patch)}, count)


def _video_llava(model: Any) -> dict[str, Any]:
    names = inspect.signature(type(model).forward).parameters
    pixels = "pixel_values" if "pixel_values" in names else "pixel_values_images"
    patches = (image_size(model.config.vision_config) // model.config.vision_config.patch_size) ** 2
    skipped = model.config.vision_feature_select_strategy == "default"
    return with_text(model, {pixels: _image(model)}, patches + (not skipped))


INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "blip": lambda m: {"pixel_values": _image(m), **_text()},
    "blip-2": lambda m: _queries(m, {"pixel_values": _image(m)}),
    "deepseek_vl_hybrid": _counted(
        lambda m: {"pixel_values": _image(m), "high_res_pixel_values": torch.randn(1, 3, 1024, 1024)}
    ),
    "evolla": lambda _: {
        **_text(),
        "protein_input_ids": text_ids()[None] % 30,
        "protein_attention_mask": torch.ones(1, 8),
    },
    "fuyu": _fuyu,
    "diffusion_gemma": _placed_patches(lambda v: 3 * v.patch_size**2),
    "gemma4": _placed_patches(lambda v: 3 * v.patch_size**2),
    "gemma4_unified": _placed_patches(lambda v: 3 * v.model_patch_size**2),
    "git": lambda m: {"pixel_values": _image(m), **_text()},
    "gemma3n": _counted(lambda _: {"pixel_values": torch.rand(1, 3, 768, 768)}),
    "granite4_vision": _counted(
        lambda _: {"pixel_values": torch.rand(1, 2, 3, 224, 224), "image_sizes": torch.tensor([[224, 224]])}
    ),
    "granite_docling": _counted(
        lambda m: {"pixel_values": _image(m)[None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    ),
    "idefics": lambda m: {
        "pixel_values": _image(m)[None],
        "image_attention_mask": torch.ones(1, TEXT_TOKENS, 1, dtype=torch.long),
        **_text(),
    },
    "inkling2": _counted(
        lambda _: {"pixel_values": torch.rand(16, 40, 40, 3), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    ),
    "inkling_mm_model": _counted(lambda _: {"pixel_values": torch.rand(16, 2, 40, 40, 3)}),
    "instructblip": _instruct,
    "instructblipvideo": lambda m: _instruct(m, frames=1),
    "kosmos-2": _kosmos2,
    "kosmos-2.5": _kosmos25,
    "lfm2_vl": _counted(
        lambda m: {
            "pixel_values": torch.randn(1, 64, 3 * m.config.vision_config.patch_size**2),
            "spatial_shapes": torch.tensor([[8, 8]]),
            "pixel_attention_mask": torch.ones(1, 64, dtype=torch.long),
        }
    ),
    "minicpm_ocr": _counted(_minicpm),
    "minicpmv4_6": _counted(_minicpm),
    "minicpmv4_7": _counted(_minicpm),
    "mistral4": lambda _: _text(),
    "mllama": _mllama,
    "molmo2": _counted(_molmo2),
    "nemotron_h_omni": _counted(
        lambda m: {
            "pixel_values": torch.randn(64, m.config.vision_config.patch_dim),
            "image_grid_hw": torch.tensor([[8, 8]]),
        }
    ),
    "pix2struct": lambda m: {"flattened_patches": _flattened(m), "attention_mask": torch.ones(1, 16)},
    "pp_formulanet": lambda m: {"pixel_values": _image(m)},
    "udop": lambda m: {
        **_text(),
        "decoder_start_token_id": 0,
        "pixel_values": torch.randn(1, 3, m.config.image_size, m.config.image_size),
        "bbox": torch.tensor([[[0.1, 0.1, 0.2, 0.2]] * TEXT_TOKENS]),
    },
    "video_llava": _video_llava,
    "video_llama_3": _counted(
        lambda m: {
            "pixel_values": torch.randn(64, 3 * m.config.vision_config.patch_size**2),
            "image_grid_thw": torch.tensor([[1, 8, 8]]),
            "image_merge_sizes": torch.tensor([2]),
        }
    ),
    "vision-encoder-decoder": lambda m: {"pixel_values": _image(m), "decoder_start_token_id": 101},
}

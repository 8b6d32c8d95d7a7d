"""Inputs of the right shapes for a model, made from token counts alone: what a processor would have handed over.

Pixels have shapes only (``meta``); ids and grids are real. An independent way to the inputs
that a processor makes, to hold counts against closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from vlmbench.cost.flop_counting import text_inputs
from vlmbench.cost.flop_sharing import Counter
from vlmbench.cost.stage_costs import ClosedFormError, StageFlops
from vlmbench.cost.vision_families import vision_of
from vlmbench.cost.vision_formula import Vision
from vlmbench.request import TokenCounts

FAMILIES = (
    "gemma3, idefics3, internvl, llava, llava_next, llava_onevision, mllama, molmo, molmo2, paligemma, qwen2_vl, "
    "qwen2_5_vl, qwen3_vl, qwen3_vl_moe, smolvlm"
)


def count_of(
    counter: Counter, config: Any, counts: TokenCounts, output_tokens: int, *, batch_size: int = 1
) -> StageFlops:
    """FLOPs of a batch of equal requests known by their counts only, with images made up to fit them."""
    missing = counts.num_input_tokens - synthetic_inputs(config, counts)["input_ids"].shape[1]
    inputs = synthetic_inputs(config, counts, padding=8 + missing)
    return counter.count(inputs, output_tokens=output_tokens) * batch_size


def synthetic_inputs(
    config: Any, counts: TokenCounts, *, grids: Sequence[tuple[int, int]] | None = None, padding: int = 8
) -> dict[str, Any]:
    """Inputs of one row with the images that ``counts`` describe and ``padding`` text tokens.

    The number of image tokens is the one that the model makes of these images; it equals ``num_vision_tokens`` except
    where an image's aspect ratio decides (LLaVA-NeXT, LLaVA-OneVision), whose vision cost depends on tiles only.

    Raises:
        ClosedFormError: a family that is not in :data:`FAMILIES`, or counts that lack what its tower needs.
    """
    vision = vision_of(config)
    if vision is None or not counts.num_images:
        return text_inputs(config, max(counts.num_input_tokens, 1))
    pixels, image_tokens = _pixels(config, vision, counts, grids)
    inputs = text_inputs(config, image_tokens + padding)
    ids = inputs["input_ids"]
    ids[0, 1 : 1 + image_tokens] = config.image_token_id
    kinds = (ids == config.image_token_id).long()
    kind = config.model_type
    if kind in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = kinds
    elif kind.startswith("qwen"):
        inputs["mm_token_type_ids"] = kinds.int()
    elif kind == "mllama":
        shape = (1, ids.shape[1], counts.num_images, vision.tower.tiles_joined)
        inputs["cross_attention_mask"] = torch.ones(shape, dtype=torch.long, device="cpu")
    return {**inputs, **pixels}


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _ints(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long, device="cpu")


def _pixels(
    config: Any, vision: Vision, counts: TokenCounts, grids: Sequence[tuple[int, int]] | None
) -> tuple[dict[str, Any], int]:
    """The image part of the inputs and the number of image tokens that it makes."""
    kind, tower = config.model_type, vision.tower
    if kind.startswith("qwen"):
        shapes = list(grids) if grids is not None else vision.grids(counts)
        patches = sum(h * w for h, w in shapes)
        grid = _ints([[1, h, w] for h, w in shapes])
        pixels = {"pixel_values": _meta(patches, tower.patch_elements), "image_grid_thw": grid}
        return pixels, patches // tower.merge**2
    tiles = vision.tiles(counts)
    side = getattr(config.vision_config, "image_size", None) or 1
    height, width = (side, side) if isinstance(side, int) else side
    flat = _meta(tiles, 3, height, width)
    match kind:
        case "llava":
            made = {"pixel_values": flat}, tiles * (tower.tile_patches + vision.projector.class_rows)
        case "paligemma":
            made = {"pixel_values": flat}, tiles * tower.tile_patches
        case "internvl":
            made = {"pixel_values": flat}, tiles * round(tower.tile_patches * config.downsample_ratio**2)
        case "gemma3":
            made = {"pixel_values": flat}, tiles * config.mm_tokens_per_image
        case "idefics3" | "smolvlm":
            cells = (math.isqrt(tower.tile_patches) // config.scale_factor) ** 2
            made = {"pixel_values": flat[None]}, tiles * cells
        case "mllama":
            made = _mllama(counts.num_images, tower.tiles_joined, height), counts.num_images
        case "llava_next" | "llava_onevision":
            made = _anyres(config, tiles, counts.num_images, height)
        case "molmo":
            made = _molmo(config, tiles, tower.tile_patches, tower.patch_elements)
        case "molmo2":
            made = _molmo2(tiles, tower.tile_patches, tower.patch_elements, counts), counts.num_vision_tokens
        case other:
            raise ClosedFormError(f"no synthetic inputs for '{other}' (known: {FAMILIES}); count a prepared request")
    return made


def _mllama(images: int, tiles: int, side: int) -> dict[str, Any]:
    return {
        "pixel_values": _meta(1, images, tiles, 3, side, side),
        "aspect_ratio_ids": torch.ones((1, images), dtype=torch.long, device="cpu"),
        "aspect_ratio_mask": torch.ones((1, images, tiles), dtype=torch.long, device="cpu"),
    }


def _molmo2(tiles: int, patches: int, elements: int, counts: TokenCounts) -> dict[str, Any]:
    tokens = counts.num_vision_tokens
    pooled = torch.arange(tokens * 4, device="cpu").reshape(tokens, 4) % (tiles * patches)
    return {
        "pixel_values": _meta(tiles, patches, elements),
        "image_token_pooling": pooled,
        "image_grids": _ints([[tokens, 1, 0, 0]]),
        "image_num_crops": _ints([tiles]),
    }


def _molmo(config: Any, tiles: int, patches: int, elements: int) -> tuple[dict[str, Any], int]:
    # Every pooled vector gets a token: what overlap drops is computed all the same.
    vectors = patches // (config.pooling_size[0] * config.pooling_size[1])
    positions = 1 + torch.arange(tiles * vectors, device="cpu").reshape(1, tiles, vectors)
    pixels = {
        "pixel_values": _meta(1, tiles, patches, elements),
        "image_masks": _meta(1, tiles, patches),
        "image_input_idx": positions,
    }
    return pixels, tiles * vectors


def _anyres(config: Any, tiles: int, images: int, side: int) -> tuple[dict[str, Any], int]:
    """One image of the most square grid of tiles (or several images of one tile each)."""
    patches = side // config.vision_config.patch_size
    if config.model_type == "llava_onevision" and images > 1:
        # Several images are not tiled.
        sizes = _ints([[side, side]] * images)
        counted = {"pixel_values": _meta(images, 1, 3, side, side), "image_sizes": sizes}
        return {**counted, "batch_num_images": _ints([images])}, images * (patches * patches + 1)
    if images > 1 and tiles % images:
        raise ClosedFormError(
            f"{tiles} tiles are not shared evenly by {images} images; count a prepared request instead"
        )
    each = tiles // images - 1
    fitting = [(h, w) for h, w in config.image_grid_pinpoints if h * w == each * side * side]
    if not fitting:
        raise ClosedFormError(f"no entry of 'image_grid_pinpoints' makes {each} tiles and a thumbnail")
    height, width = min(fitting, key=lambda hw: (abs(hw[0] - hw[1]), hw))
    rows, columns = height // side * patches, width // side * patches
    if config.model_type == "llava_onevision":
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * patches**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    pixels = {
        "pixel_values": _meta(images, each + 1, 3, side, side),
        "image_sizes": _ints([[height, width]] * images),
    }
    return pixels, images * (patches * patches + rows * (columns + 1))

"""Reads :class:`~vlmbench.cost.vision_formula.Vision` from the configurations of known model families.

One function a family; facts are those of the modelling files of transformers (5.17 to 5.23).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from vlmbench.cost.stage_costs import ClosedFormError
from vlmbench.cost.vision_formula import Projector, Tower, Vision

_ONE = Fraction(1)


def vision_of(config: Any) -> Vision | None:
    """Tower and projector of a model; None for a model without vision.

    Raises:
        ClosedFormError: a family whose vision part is not known here.
    """
    match config.model_type:
        case "llava" | "llava_next" | "llava_onevision":
            read = _llava
        case "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "qwen3_vl_moe":
            read = _qwen
        case "internvl":
            read = _internvl
        case "idefics3" | "smolvlm":
            read = _idefics3
        case "paligemma":
            read = _paligemma
        case "gemma3":
            read = _gemma3
        case "mllama":
            read = _mllama
        case "molmo2":
            read = _molmo2
        case "molmo":
            read = _molmo
        case other:
            if getattr(config, "vision_config", None) is None:
                return None
            raise ClosedFormError(f"no closed form for the vision part of '{other}'")
    return read(config)


def _side(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _vit(vision: Any, *, layers: int | None = None, extra: int | None = None) -> Tower:
    """CLIP, SigLIP, InternViT and their like: tiles of one size, a two-matrix feed-forward."""
    (height, width), (ph, pw) = _side(vision.image_size), _side(vision.patch_size)
    if extra is None:
        extra = 1 if vision.model_type in ("clip_vision_model", "internvl_vision") else 0
    return Tower(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        layers=layers or vision.num_hidden_layers,
        attention_width=vision.hidden_size,
        patch_elements=getattr(vision, "num_channels", 3) * ph * pw,
        tile_patches=(height // ph) * (width // pw),
        tile_extra=extra,
    )


def _text_hidden(config: Any) -> int:
    return int(config.get_text_config(decoder=True).hidden_size)


def _llava(config: Any) -> Vision:
    if config.vision_config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise ClosedFormError(f"no closed form for the tower '{config.vision_config.model_type}'")
    tower, out = _vit(config.vision_config), _text_hidden(config)
    layers = getattr(config, "vision_feature_layer", -2)
    wide = tower.hidden * (1 if isinstance(layers, int) else len(layers))
    # strategy "full" keeps the class token, which then passes the projector
    keeps = tower.tile_extra if getattr(config, "vision_feature_select_strategy", "default") == "full" else 0
    return Vision(tower=tower, projector=Projector(matrices=((_ONE, wide * out), (_ONE, out * out)), class_rows=keeps))


def _qwen(config: Any) -> Vision:
    vision = config.vision_config
    hidden = int(vision.embed_dim if config.model_type == "qwen2_vl" else vision.hidden_size)
    out = int(vision.hidden_size if config.model_type == "qwen2_vl" else vision.out_hidden_size)
    merge, patch = int(vision.spatial_merge_size), int(vision.patch_size)
    gated = config.model_type == "qwen2_5_vl"
    windowed = vision.depth - len(vision.fullatt_block_indexes) if gated else 0
    tower = Tower(
        hidden=hidden,
        intermediate=int(hidden * vision.mlp_ratio if config.model_type == "qwen2_vl" else vision.intermediate_size),
        layers=int(vision.depth),
        attention_width=hidden,
        patch_elements=int(getattr(vision, "in_channels", None) or 3) * int(vision.temporal_patch_size) * patch * patch,
        mlp_matrices=3 if gated else 2,
        windowed_layers=windowed,
        window=vision.window_size // merge // patch * merge if windowed else 0,
        merge=merge,
    )
    wide = hidden * merge * merge
    # Qwen3-VL has one merger at the end and one for each layer that it feeds deep into the language model.
    mergers = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    share = Fraction(1, merge * merge)
    return Vision(tower=tower, projector=Projector(matrices=((share, wide * wide), (share, wide * out)) * mergers))


def _internvl(config: Any) -> Vision:
    tower, out = _vit(config.vision_config), _text_hidden(config)
    factor = round(1 / config.downsample_ratio) ** 2
    wide, share = tower.hidden * factor, Fraction(1, factor)
    return Vision(tower=tower, projector=Projector(matrices=((share, wide * out), (share, out * out))))


def _idefics3(config: Any) -> Vision:
    tower, factor = _vit(config.vision_config), int(config.scale_factor) ** 2
    wide = tower.hidden * factor * _text_hidden(config)
    return Vision(tower=tower, projector=Projector(matrices=((Fraction(1, factor), wide),)))


def _paligemma(config: Any) -> Vision:
    tower = _vit(config.vision_config)
    return Vision(tower=tower, projector=Projector(matrices=((_ONE, tower.hidden * int(config.projection_dim)),)))


def _gemma3(config: Any) -> Vision:
    tower = _vit(config.vision_config)
    share = Fraction(int(config.mm_tokens_per_image), tower.tile_patches)
    return Vision(tower=tower, projector=Projector(matrices=((share, tower.hidden * _text_hidden(config)),)))


def _mllama(config: Any) -> Vision:
    vision = config.vision_config
    one = _vit(vision, layers=vision.num_hidden_layers + vision.num_global_layers, extra=1)
    # A tile is padded to a multiple of 8 positions; all tiles of an image attend to each other, empty ones too.
    padded = -(-(one.tile_patches + 1) // 8) * 8
    tower = Tower(**{**vars(one), "tile_extra": padded - one.tile_patches, "tiles_joined": int(vision.max_num_tiles)})
    matrix = int(vision.vision_output_dim) * _text_hidden(config)
    return Vision(tower=tower, projector=Projector(matrices=((_ONE, matrix),), class_rows=1))


def _molmo2(config: Any) -> Vision:
    vision, adapter = config.vision_config, config.adapter_config
    patch = int(vision.patch_size)
    tower = Tower(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        layers=vision.num_hidden_layers,
        attention_width=vision.num_attention_heads * vision.head_dim,
        patch_elements=3 * patch * patch,
        tile_patches=int(vision.num_position_embeddings),
    )
    wide = adapter.hidden_size * len(adapter.vision_feature_layer)
    width = adapter.num_attention_heads * adapter.head_dim
    pool = 4  # 2 × 2 patches make a token of an image
    matrices = (
        (_ONE, wide * width),  # query: their mean
        (Fraction(pool), wide * adapter.num_key_value_heads * adapter.head_dim * 2),
        (_ONE, width * adapter.hidden_size),
        (_ONE, 2 * adapter.hidden_size * adapter.intermediate_size),
        (_ONE, adapter.intermediate_size * adapter.text_hidden_size),
    )
    return Vision(
        tower=tower,
        projector=Projector(matrices=matrices, attention_per_patch=4 * pool * width, rows_are_tokens=True),
    )


def _molmo(config: Any) -> Vision:
    tower, out = _vit(config.vision_config), _text_hidden(config)
    pool = int(config.pooling_size[0]) * int(config.pooling_size[1])
    wide, width, inner = tower.hidden * len(config.vision_feature_layers), tower.hidden, config.projector_hidden_size
    share = Fraction(1, pool)
    matrices = (
        (share, wide * width),  # query: the mean of a group
        (_ONE, 2 * wide * width),
        (share, width * width),
        (share, 2 * width * inner),
        (share, inner * out),
    )
    # One query meets `pool` keys: 4 · pool · width a group, hence 4 · width a patch.
    return Vision(tower=tower, projector=Projector(matrices=matrices, attention_per_patch=4 * width))

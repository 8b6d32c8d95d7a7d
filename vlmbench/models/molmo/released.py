"""Loads a released Molmo 1 checkpoint of the hub as it is, through transformers' conversion mapping.

``from_pretrained`` renames tensors by regular expressions (``key_mapping``), then runs at most one converter on each,
which is registered for a class name. Two steps that Molmo needs are no operation of transformers 5.17: rows split in
unequal parts (queries, keys and values of grouped attention; ``Split`` came later) and patches that a convolution takes
flattened. Both are here, as operations of the same interface. The mapping belongs to a class of its own, so that it
touches neither converted checkpoints nor models with random weights.

What this does not take is left to :mod:`vlmbench.models.molmo.convert`: allenai/molmo's own layout and torch files, and
tensor-parallel or quantised loading (a split weight is cut before an operation sees it).
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call, misc, override, no-any-return, untyped-decorator"

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter, WeightRenaming

from vlmbench.models.checkpoint import needs_converter
from vlmbench.models.molmo.checkpoint_config import convert_config, read_released_config
from vlmbench.models.molmo.checkpoint_plan import detect_layout, make_plan
from vlmbench.models.molmo.checkpoint_source import TensorSource
from vlmbench.models.molmo.configuration import MolmoConfig
from vlmbench.models.molmo.convert import check_tokenizer, generation_config, processor_of, special_ids
from vlmbench.models.molmo.modeling import MolmoForConditionalGeneration
from vlmbench.models.molmo.processing import MolmoProcessor

_VISION, _TOWER, _PROJECTOR = r"^model\.vision_backbone\.", "model.vision_tower.", "model.multi_modal_projector."


class ReleasedMolmo(MolmoForConditionalGeneration):
    """The same model under the class name that the mapping is registered for."""


class SplitRows(ConversionOps):
    """Rows of one tensor to several parameters, as many rows as each has."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], *, target_patterns: list[str], full_layer_name: str, model: Any, **_: Any
    ) -> dict[str, Any]:
        """Cut the tensor; the names are the target patterns."""
        names = [full_layer_name.replace(target_patterns[0], target) for target in target_patterns]
        rows = [model.get_parameter(name).shape[0] for name in names]
        parts = _only(input_dict).split(rows)
        return {target: part.contiguous() for target, part in zip(target_patterns, parts, strict=True)}


class PatchesToConvolution(ConversionOps):
    """(out, dy * dx * channel) to (out, channel, dy, dx)."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], *, target_patterns: list[str], full_layer_name: str, model: Any, **_: Any
    ) -> dict[str, Any]:
        """Rearrange the tensor; the name is the target pattern."""
        _, channels, high, wide = model.get_parameter(full_layer_name).shape
        tensor = _only(input_dict).view(-1, high, wide, channels).permute(0, 3, 1, 2)
        return {target_patterns[0]: tensor.contiguous()}


def _only(given: dict[str, Any]) -> torch.Tensor:
    """The one tensor that a converter with one source collects; transformers gives it alone or in a list."""
    (value,) = given.values()
    return value[0] if isinstance(value, list) else value


def converters() -> list[WeightConverter | WeightRenaming]:
    """What changes more than the name; sources are named as :func:`renamings` leaves them."""
    table = r"model\.transformer\.wte\."
    return [
        WeightConverter(
            [table + "embedding", table + "new_embedding"],
            "model.language_model.embed_tokens.weight",
            [Concatenate(dim=0)],
        ),
        WeightConverter("att_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], [SplitRows()]),
        # The fused projection holds the plain half first: x, gate = halves; x * silu(gate).
        WeightConverter("ff_proj", ["mlp.up_proj", "mlp.gate_proj"], [SplitRows()]),
        WeightConverter(
            _VISION.removeprefix("^") + r"image_vit\.patch_embedding\.weight",
            _TOWER + "embeddings.patch_embedding.weight",
            [PatchesToConvolution()],
        ),
    ]


def renamings(config: MolmoConfig) -> dict[str, str]:
    """Patterns to names, applied in this order; they depend on where the decoder has its norms."""
    after = config.text_config.model_type == "olmo2"  # norms what a sublayer gives back, the others what it gets
    decoder = {
        r"^model\.transformer\.ff_out\.": "lm_head.",
        r"^model\.transformer\.ln_f\.": "model.language_model.norm.",
        r"^model\.transformer\.blocks\.": "model.language_model.layers.",
        r"\.attn\.": ".",  # MolmoE
        r"\.mlp\.ff_norm\.": ".ff_norm.",  # MolmoE
        r"\.attn_out\.": ".self_attn.o_proj.",
        r"\.ff_out\.": ".mlp.down_proj.",
        r"\.q_norm\.": ".self_attn.q_norm.",
        r"\.k_norm\.": ".self_attn.k_norm.",
        r"\.attn_norm\.": ".post_attention_layernorm." if after else ".input_layernorm.",
        r"\.ff_norm\.": ".post_feedforward_layernorm." if after else ".post_attention_layernorm.",
    }
    tower = {
        _VISION + r"image_vit\.class_embedding": _TOWER + "embeddings.class_embedding",
        _VISION + r"image_vit\.positional_embedding": _TOWER + "embeddings.position_embedding.weight",
        _VISION + r"image_vit\.pre_ln\.": _TOWER + "pre_layrnorm.",
        _VISION + r"image_vit\.transformer\.resblocks\.": _TOWER + "encoder.layers.",
        **{rf"\.attention\.w{n}\.": f".self_attn.{n}_proj." for n in "qkv"},
        r"\.attention\.wo\.": ".self_attn.out_proj.",
        r"\.feed_forward\.w1\.": ".mlp.fc1.",
        r"\.feed_forward\.w2\.": ".mlp.fc2.",
        r"\.attention_norm\.": ".layer_norm1.",
        r"\.ffn_norm\.": ".layer_norm2.",
    }
    pooling = {"wq": "q", "wk": "k", "wv": "v", "wo": "out"}
    projector = {"w1": "gate", "w3": "up", "w2": "down"}
    connector = {
        _VISION + "pad_embed": _PROJECTOR + "pad_embed",
        **{_VISION + rf"image_pooling_2d\.{a}\.": f"{_PROJECTOR}pooling.{b}_proj." for a, b in pooling.items()},
        **{_VISION + rf"image_projector\.{a}\.": f"{_PROJECTOR}projector.{b}_proj." for a, b in projector.items()},
    }
    return {**decoder, **tower, **connector}


def read_released(folder: Path) -> tuple[MolmoConfig, MolmoProcessor]:
    """The configuration and the processor of a released checkpoint's folder; no weights.

    Raises:
        ModelError: a file is missing, or is not Molmo 1's.
    """
    processor = processor_of(folder)
    config = convert_config(read_released_config(folder), special_ids(processor))
    check_tokenizer(processor, config)
    return config, processor


def load_released(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load the weights of a released checkpoint's folder.

    Every tensor's name and shape is checked by the headers of the files first.

    Args:
        folder: of the hub's layout, weights as safetensors.
        options: of ``from_pretrained``.

    Returns:
        The model, and what ``from_pretrained(output_loading_info=True)`` tells.

    Raises:
        ModelError: the folder's files do not belong together, or are of a layout that needs the converter.
    """
    config, _ = read_released(folder)
    tensors = TensorSource(folder)
    layout = detect_layout(tensors.shapes)
    experts = config.text_config.model_type == "olmoe"
    if layout == "original" or (experts and layout == "hub") or any(f.suffix != ".safetensors" for f in tensors.files):
        raise needs_converter(folder, f"with tensors in a layout that only the converter reads ({layout})")
    make_plan(config, layout).check(tensors)
    del tensors
    register_checkpoint_conversion_mapping(ReleasedMolmo.__name__, converters(), overwrite=True)
    options = {**options, "config": config, "key_mapping": renamings(config), "output_loading_info": True}
    released: Any = ReleasedMolmo
    module, info = released.from_pretrained(str(folder), **options)
    module.__class__ = MolmoForConditionalGeneration
    # So that it is saved as a converted checkpoint: what stays is the decoder's own way with its experts.
    module._weight_conversions = [step for step in module._weight_conversions if step.scope_prefix is not None]
    module.generation_config = generation_config(config)
    return module, info

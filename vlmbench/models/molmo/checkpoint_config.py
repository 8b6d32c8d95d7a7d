"""The configuration of a released checkpoint as a :class:`~vlmbench.models.molmo.configuration.MolmoConfig`.

Three notations exist: ``config.json`` of the hub's 7B models (``hidden_size``, ``num_hidden_layers`` …), that of MolmoE
(``d_model``, ``n_layers`` …), and ``config.yaml`` of allenai/molmo (the second notation below ``model:``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmbench.errors import ModelError
from vlmbench.models.molmo.configuration import MolmoConfig
from vlmbench.text import parse_json

# Names in allenai/molmo's notation -> names in the hub's.
_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
}
# What only one value of is implemented here (and released); absent means that value.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "layer_norm_type": ("rms",),
    "clip_qkv": (None,),
    "weight_tying": (False,),
    "tie_word_embeddings": (False,),
    "rope": (True,),
    "rope_full_precision": (True,),
    "activation_type": ("swiglu",),
    "include_bias": (False,),
    "bias_for_layer_norm": (False, None),
    "moe_normalize_expert_weights": (False,),
    "moe_shared_expert": (False,),
    "image_padding_embed": ("pad_and_partial_pad",),
    "image_pooling_2d": ("attention_meanq", "attention-meanq"),
    "image_projector": ("mlp",),
    "embedding_dropout": (0, 0.0),
}


def read_released_config(folder: Path) -> dict[str, Any]:
    """The raw configuration in a checkpoint folder.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    hub, original = folder / "config.json", folder / "config.yaml"
    try:
        if hub.is_file():
            raw = parse_json(hub.read_text(encoding="utf-8"))
        elif original.is_file():
            import yaml

            raw = yaml.safe_load(original.read_text(encoding="utf-8"))
            raw = raw.get("model", raw) if isinstance(raw, dict) else raw
        else:
            raise ModelError(f"no configuration in '{folder}': looked for config.json and config.yaml")
    except (ValueError, OSError) as error:
        raise ModelError(f"the configuration in '{folder}' cannot be read: {error}") from error
    except Exception as error:  # PyYAML's errors have a root of their own, which is not imported without need
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the configuration in '{folder}' cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"the configuration in '{folder}' must be a mapping (got {type(raw).__name__})")
    return raw


def convert_config(raw: Mapping[str, Any], special: Mapping[str, Any] | None = None) -> MolmoConfig:
    """The configuration of the converted model.

    Args:
        raw: as :func:`read_released_config` gives it.
        special: token ids for the result (``image_token_id``, ``bos_token_id`` …), from the tokenizer.

    Raises:
        ModelError: a field is missing, or has a value of which no released model is.
    """
    if "text_config" in raw:
        raise ModelError("this checkpoint is converted already: load it as it is")
    backbone = raw.get("vision_backbone") or {}
    for holder in (raw, backbone, raw.get("config") or {}):
        for name, allowed in _FIXED.items():
            if name in holder and holder[name] not in allowed:
                raise ModelError(f"'{name}' must be {' or '.join(map(repr, allowed))} (got {holder[name]!r})")
    text = _text(raw)
    projector = 1024 if text["model_type"] == "olmoe" else text["intermediate_size"]
    if text["model_type"] == "olmoe":
        projector = int(_get(raw, "mlp_hidden_size", default=text["hidden_size"] * int(raw.get("mlp_ratio") or 1))) // 2
    try:
        return MolmoConfig(
            text_config=text,
            vision_config=_vision(backbone),
            additional_vocab_size=int(raw.get("additional_vocab_size") or 128),
            vision_feature_layers=[int(n) for n in raw.get("vit_layers") or (-2, -9)],
            pooling_size=[int(raw.get("image_pooling_h") or 2), int(raw.get("image_pooling_w") or 2)],
            projector_hidden_size=projector,
            **(special or {}),
        )
    except (ValueError, TypeError) as error:
        raise ModelError(f"the configuration is not that of a Molmo 1 model: {error}") from error


def _get(raw: Mapping[str, Any], name: str, **default: Any) -> Any:
    """A field by its hub name or allenai/molmo's."""
    for key in (name, _NAMES.get(name)):
        if key is not None and raw.get(key) is not None:
            return raw[key]
    if "default" in default:
        return default["default"]
    other = f" (or '{_NAMES[name]}')" if name in _NAMES else ""
    raise ModelError(f"the configuration lacks '{name}'{other}")


def _family(raw: Mapping[str, Any]) -> str:
    """Which decoder: by experts, by biases, by where the norms stand."""
    if raw.get("block_type") == "moe" or (raw.get("moe_num_experts") and raw.get("block_type") in (None, "moe")):
        return "olmoe"
    if raw.get("qkv_bias"):
        return "qwen2"
    if raw.get("norm_after") and raw.get("attention_layer_norm"):
        return "olmo2"
    raise ModelError(
        "the decoder is none of Molmo's: neither experts (MolmoE), nor 'qkv_bias' (7B-D, 72B), nor 'norm_after' with "
        "'attention_layer_norm' (7B-O)"
    )


def _text(raw: Mapping[str, Any]) -> dict[str, Any]:
    family = _family(raw)
    heads = int(_get(raw, "num_attention_heads"))
    text: dict[str, Any] = {
        "model_type": family,
        "hidden_size": int(_get(raw, "hidden_size")),
        "num_hidden_layers": int(_get(raw, "num_hidden_layers")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(_get(raw, "num_key_value_heads", default=heads)),
        "vocab_size": int(raw.get("embedding_size") or _get(raw, "vocab_size")),
        "max_position_embeddings": int(_get(raw, "max_position_embeddings", default=4096)),
        "rms_norm_eps": float(_get(raw, "layer_norm_eps", default=1e-5)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(_get(raw, "rope_theta", default=10000.0))},
    }
    if family == "olmoe":
        text["num_experts"] = int(_get(raw, "moe_num_experts"))
        text["num_experts_per_tok"] = int(_get(raw, "moe_top_k"))
        text["norm_topk_prob"] = False
        # mlp_hidden_size holds gate and up projection of one expert; where it is absent, mlp_ratio gives it.
        fused = _get(raw, "mlp_hidden_size", default=int(raw.get("mlp_ratio") or 1) * text["hidden_size"])
        text["intermediate_size"] = int(fused) // 2
    else:
        text["intermediate_size"] = int(_get(raw, "intermediate_size")) // 2
    return text


def _vision(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the tower that the configuration names; the others are ViT-L/14-336's."""
    names = {
        "image_emb_dim": "hidden_size",
        "image_num_heads": "num_attention_heads",
        "image_num_layers": "num_hidden_layers",
        "image_mlp_dim": "intermediate_size",
        "image_patch_size": "patch_size",
        "image_mlp_activations": "hidden_act",
        "image_norm_eps": "layer_norm_eps",
    }
    vision = {to: backbone[name] for name, to in names.items() if backbone.get(name) is not None}
    if (size := backbone.get("image_default_input_size")) is not None:
        vision["image_size"] = int(size[0])
    return vision

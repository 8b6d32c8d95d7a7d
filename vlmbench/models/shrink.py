"""Make any transformers configuration tiny, so that its architecture runs on a CPU in seconds.

Widths, depths, experts and vocabulary shrink; what decides the *number* of positions stays as it is (image and patch
sizes, merges, pooling, grids), so that a tiny model sees as many vision tokens as the real one. Every kind of layer
that the configuration names survives at least once. The rules go by the names that transformers' configurations share;
none names an architecture.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT_WIDTH = 64
VISION_WIDTH = 32
HEADS = 2
MAX_LAYERS = 8

_VISION = re.compile(r"vision|visual|image|sam_|vq|qformer|audio|encoder$|adapter")
_DEPTH = re.compile(
    r"^(num_hidden_layers|num_layers|depth|n_layers?|layers|(en|de)coder_layers|num_(en|de)coder_layers"
    r"|num_global_layers|resampler_depth|conf_num_hidden_layers)$"
)
_HEADS = re.compile(r"^((\w+_)?num_(\w+_)?heads|(\w+_)?attention_heads|resampler_(n_)?heads|index_n_heads)$")
_KV_HEADS = re.compile(r"num_key_value_heads|num_kv_heads|key_value_heads")
_WIDTH = re.compile(r"^(hidden_size|d_model|embed_dim|hidden_sizes|moe_hidden_size|word_embed_proj_dim|n_embd)$")
_TEXT_WIDTH = re.compile(
    r"^(out_hidden_size|text_hidden_size|output_dim|adapter_out_dim|decoder_hidden_size|projector_output_dim|text_width"
    r"|cross_attention_hidden_size|lm_hidden_size|projection_dim|post_conv_out_channels)$"
)
_VISION_WIDTH = re.compile(r"^(encoder_hidden_size|vision_hidden_size|adapter_in_dim|projection_hidden_size)$")
_FFN = re.compile(
    r"intermediate_size|ffn_dim|mlp_dim|^d_ff$|ffn_hidden|expert_dim$|projector_hidden|projection_hidden_dim"
)
_EXPERTS = re.compile(r"^(n_routed_experts|(moe_)?num_(local_)?experts)$")
_TOP_K = re.compile(r"^(num_experts_per_tok|moe_topk|moe_k|top_k_experts|num_experts_per_token)$")
_CHANNELS = re.compile(r"^(base_channels|latent_channels)$")
_ONE = re.compile(r"^(n_groups?|topk_group|n_shared_experts|moe_num_shared_experts|num_shared_experts)$")
_ZERO = re.compile(r"^(num_kv_shared_layers|first_k_dense_replace|num_nextn_predict_layers)$")
_SMALL = re.compile(r"^(\w*lora_rank|hidden_size_per_layer_input|laurel_rank|ssm_state_size|d_rel|hc_lowrank)$")
_HEAD_DIM = re.compile(r"^((\w+_)?head_dim|d_kv|v_head_dim|qk_nope_head_dim|qk_rope_head_dim|qk_head_dim)$")
_VOCAB = re.compile(r"^(\w+_)?vocab_size(_per_layer_input)?$|^codebook_size$")
_TOKEN_ID = re.compile(r"token_ids?$|token_index$|_patch_id$|_(start|end|newline)_id$")
_LAYER_INDEX = re.compile(r"ind(ex|ic)e?s$|_idxs$|cross_attention_layers$|feature_layers?$|insert_layer_id$|_layers$")


def shrink_config(config: Any, *, vocab_size: int = 1024) -> Any:
    """A tiny copy of a configuration.

    Args:
        config: a ``PreTrainedConfig`` with its sub-configurations; left unchanged.
        vocab_size: of the copy; special token ids are renumbered below it, equal ids stay equal.

    Returns:
        a configuration of the same class.
    """
    tiny = copy.deepcopy(config)
    token_ids = _renumbering(tiny, vocab_size)
    text_width = _width_of(_text_part(config))
    # A timm tower is named, not described: its widths are those of the name.
    parts = [(part, seen) for part, seen in _parts(tiny, vision=False) if "architecture" not in vars(part)]
    for part, is_vision in parts:
        width = VISION_WIDTH if is_vision else TEXT_WIDTH
        _Shrinker(part, width=width, vocab_size=vocab_size, token_ids=token_ids, text_width=text_width).apply()
    _renumber_features(tiny, [part for part, _ in parts])
    return tiny


def _renumber_features(tiny: Any, parts: list[Any]) -> None:
    """Layers of the tower whose output is used are named in other configurations than the tower's own."""
    tower = getattr(tiny, "vision_config", None)
    depth = next((v for n, v in vars(tower).items() if _DEPTH.search(n) and _is_int(v)), 0) if tower else 0
    for part in parts if depth else ():
        for name, value in list(vars(part).items()):
            if re.search(r"vision_feature_layers?$", name) and value is not None:
                many = isinstance(value, list | tuple)
                fit = [max(min(v, depth - 1), -depth) for v in (value if many else [value])]
                setattr(part, name, type(value)(fit) if many else fit[0])


def _parts(config: Any, *, vision: bool) -> Iterable[tuple[Any, bool]]:
    """(configuration, whether it is of a vision or audio part), the given one first, then those inside it."""
    from transformers import PretrainedConfig

    yield config, vision
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            yield from _parts(value, vision=(vision or bool(_VISION.search(name))) and "text" not in name)


def _text_part(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _width_of(config: Any) -> int | None:
    width = vars(config).get("hidden_size") or vars(config).get("d_model")
    return width if isinstance(width, int) else None


def _renumbering(config: Any, vocab_size: int) -> dict[int, int]:
    """Old to new special token ids: those past the new vocabulary move to its upper end, in order, none on another."""
    ids: set[int] = set()
    for part, _ in _parts(config, vision=False):
        for name, value in vars(part).items():
            if _TOKEN_ID.search(name):
                ids.update(v for v in (value if isinstance(value, list | tuple) else [value]) if _is_int(v))
    keep = {i for i in ids if 0 <= i < 32}
    moved = sorted(i for i in ids if i >= 32)
    return {i: i for i in keep} | {old: vocab_size - len(moved) + n for n, old in enumerate(moved)}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(kw_only=True)
class _Shrinker:
    """Shrinks one configuration in place (its sub-configurations are others' work)."""

    config: Any
    width: int
    vocab_size: int
    token_ids: Mapping[int, int]
    text_width: int | None
    old: dict[str, Any] = field(init=False)

    def __init__(self, config: Any, **kwargs: Any) -> None:
        self.config = config
        self.old = dict(vars(config))
        self.__dict__.update(kwargs)

    def apply(self) -> None:
        self._cut_layers()
        for name, value in self.old.items():
            if value is None or isinstance(value, bool | str) or name.startswith("_"):
                continue
            new = self._new_value(name, vars(self.config)[name])
            if new is not value:
                setattr(self.config, name, new)
        self._fit_rope()
        self._shrink_overrides()

    # ------------------------------------------------------------------------------------------- values

    def _new_value(self, name: str, value: Any) -> Any:
        if isinstance(value, list | tuple) and not (_LAYER_INDEX.search(name) and not _TOKEN_ID.search(name)):
            if value and all(_is_int(v) for v in value):
                return type(value)(self._new_int(name, v) for v in value)
            return value
        return self._new_int(name, value) if _is_int(value) else value

    def _new_int(self, name: str, value: int) -> int:
        if value <= 0:
            return value
        if name == "hidden_size" and _is_int(self.old.get("embed_dim")):
            return TEXT_WIDTH  # a tower that calls its own width embed_dim means its output by hidden_size
        for pattern, rule in self._rules():
            if pattern.search(name):
                return rule(value)
        return self._other(name, value)

    def _rules(self) -> tuple[tuple[re.Pattern[str], Callable[[int], int]], ...]:
        head_dim = self.width // HEADS
        return (
            (_TOKEN_ID, lambda v: self.token_ids.get(v, v)),
            (_VOCAB, lambda _: self.vocab_size),
            (_KV_HEADS, lambda v: 1 if v < self._heads() else HEADS),
            (_HEADS, lambda _: HEADS),
            (_TEXT_WIDTH, lambda _: TEXT_WIDTH),
            (_VISION_WIDTH, lambda _: VISION_WIDTH),
            (_WIDTH, lambda _: self.width),
            (_FFN, lambda _: 2 * self.width),
            (_EXPERTS, lambda v: min(v, 4)),
            (_TOP_K, lambda v: min(v, 2)),
            (_CHANNELS, lambda v: min(v, 32)),  # group norms have 32 groups
            (_ONE, lambda _: 1),
            (_ZERO, lambda _: 0),
            (_SMALL, lambda v: min(v, 16)),
            (re.compile("^qk_head_dim$"), lambda _: self._sum_of_head_parts(head_dim)),
            (_HEAD_DIM, lambda _: head_dim),
        )

    def _sum_of_head_parts(self, head_dim: int) -> int:
        parts = [self.old.get(n) or 0 for n in ("qk_nope_head_dim", "qk_rope_head_dim")]
        return head_dim * sum(part > 0 for part in parts) or head_dim

    def _heads(self) -> int:
        for name in ("num_attention_heads", "num_heads", "attention_heads"):
            if _is_int(self.old.get(name)):
                return int(self.old[name])
        return HEADS

    def _other(self, name: str, value: int) -> int:
        """A width under another name: recognised as a small multiple of the old width."""
        if not re.search(r"dim$|_size$|hidden|width|channels$", name) or re.search(
            r"image|patch|window|kernel|merge_size", name
        ):
            return value
        mine = self.old.get("hidden_size") or self.old.get("d_model") or self.old.get("embed_dim")
        mine = mine if _is_int(mine) else None
        for old, new in ((mine, self.width), (self.text_width, TEXT_WIDTH)):
            if old and value % old == 0 and value // old <= 16:
                return new * (value // old)
        return value

    # ------------------------------------------------------------------------------------------- layers

    def _cut_layers(self) -> None:
        """Keep the first layer of every kind, at least two; renumber what refers to layers."""
        depths = {n: v for n, v in self.old.items() if _DEPTH.search(n) and _is_int(v) and v > 0}
        for name, depth in depths.items():
            lists = {
                n: v
                for n, v in self.old.items()
                if isinstance(v, list | tuple) and len(v) == depth and not _is_pairs(v)
            }
            overrides = self._overrides()
            kinds = [v for n, v in lists.items() if not _points_to_layers(n)]
            keep = _layers_to_keep(depth, [*kinds, [overrides.get(layer) for layer in range(depth)]])
            setattr(self.config, name, len(keep))
            if overrides:
                kept = {new: overrides[old] for new, old in enumerate(keep) if old in overrides}
                overrides.clear()
                overrides.update(kept)
            for n, v in lists.items():
                chosen = [v[i] for i in keep]
                setattr(
                    self.config,
                    n,
                    type(v)(_position(i, keep) for i in chosen) if _points_to_layers(n) else type(v)(chosen),
                )
            for n, v in self.old.items():
                if n not in lists and n not in depths and _LAYER_INDEX.search(n) and not _TOKEN_ID.search(n):
                    setattr(self.config, n, _renumbered(v, keep))

    def _overrides(self) -> dict[int, dict[str, Any]]:
        """Attributes that differ from layer to layer, where the configuration keeps them so (transformers >= 5.18)."""
        spec = vars(self.config).get("_heterogeneity_spec")
        return getattr(spec, "per_layer_overrides", None) or {}

    def _shrink_overrides(self) -> None:
        for layer in self._overrides().values():
            grouped = layer.get("num_key_value_heads") != layer.get("num_attention_heads")
            layer.update({name: self._new_value(name, value) for name, value in layer.items()})
            if not grouped and "num_key_value_heads" in layer:
                layer["num_key_value_heads"] = layer["num_attention_heads"]

    # --------------------------------------------------------------------------------------------- rope

    def _fit_rope(self) -> None:
        """Sections of a multi-axis rotary embedding sum to half of the rotated part of a head."""
        for name in ("rope_parameters", "rope_scaling"):
            parameters = vars(self.config).get(name)
            if isinstance(parameters, dict):
                setattr(self.config, name, self._fitted(parameters))

    def _fitted(self, parameters: dict[str, Any]) -> dict[str, Any]:
        head_dim = vars(self.config).get("head_dim") or self.width // HEADS
        rotated = vars(self.config).get("qk_rope_head_dim")
        if rotated and parameters.get("partial_rotary_factor"):
            parameters["partial_rotary_factor"] = rotated / head_dim
        half = int(head_dim * (parameters.get("partial_rotary_factor") or 1)) // 2
        fitted: dict[str, Any] = {k: self._fitted(v) if isinstance(v, dict) else v for k, v in parameters.items()}
        sections = fitted.get("mrope_section")
        if isinstance(sections, list | tuple):
            fitted["mrope_section"] = _split(half, list(sections))
        for key in ("short_factor", "long_factor"):
            factors = fitted.get(key)
            if isinstance(factors, list):
                fitted[key] = factors[:half]
        return fitted


def _is_pairs(values: Any) -> bool:
    return any(isinstance(v, list | tuple | dict) for v in values)


def _points_to_layers(name: str) -> bool:
    return bool(re.search(r"source_layers$", name))


def _layers_to_keep(depth: int, kinds: list[Any]) -> list[int]:
    first: dict[tuple[Any, ...], int] = {}
    for layer in range(depth):
        first.setdefault(tuple(str(kind[layer]) for kind in kinds), layer)
    keep = sorted(first.values())[:MAX_LAYERS]
    rest = (layer for layer in range(depth) if layer not in keep)
    while len(keep) < min(2, depth):
        keep = sorted([*keep, next(rest)])
    return keep


def _position(layer: int, keep: list[int]) -> int:
    """Where an old layer, or the last kept one before it, stands now."""
    return max(sum(k <= layer for k in keep) - 1, 0)


def _renumbered(value: Any, keep: list[int]) -> Any:
    if _is_int(value):
        return max(value, -len(keep)) if value < 0 else min(value, len(keep) - 1)
    if isinstance(value, list | tuple) and all(_is_int(v) for v in value):
        new = [_renumbered(v, keep) for v in value]
        return type(value)(dict.fromkeys(new)) if all(v >= 0 for v in value) else type(value)(new)
    return value


def _split(total: int, shares: list[int]) -> list[int]:
    """``total`` split in the proportion of ``shares``, each part at least 1."""
    parts = [max(total * share // sum(shares), 1) for share in shares]
    parts[0] += total - sum(parts)
    return parts

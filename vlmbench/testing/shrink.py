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
from dataclasses import dataclass
from typing import Any

from vlmbench.testing.shrink_layers import (
    cut_layers,
    fit_rope,
    is_int,
    layer_overrides,
    names_layers,
    renumber_features,
)

TEXT_WIDTH = 64
VISION_WIDTH = 32
HEADS = 2

_VISION = re.compile(r"vision|visual|image|sam_|vq|qformer|audio|encoder$|adapter")
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
_OTHER_WIDTH = re.compile(r"dim$|_size$|hidden|width|channels$")
_NO_WIDTH = re.compile(r"image|patch|window|kernel|merge_size")
_VOCAB = re.compile(r"^(\w+_)?vocab_size(_per_layer_input)?$|^codebook_size$")
_TOKEN_ID = re.compile(r"token_ids?$|token_index$|_patch_id$|_(start|end|newline)_id$")


def shrink_config(config: Any, *, vocab_size: int = 1024) -> Any:
    """A tiny copy of a configuration.

    Args:
        config: a ``PreTrainedConfig`` with its sub-configurations; left unchanged.
        vocab_size: of the copy; special token ids are renumbered below it, equal ids stay equal.

    Returns:
        a configuration of the same class.

    Raises:
        ValueError: a vocabulary too small for the special tokens.
    """
    tiny = copy.deepcopy(config)
    token_ids = _renumbering(tiny, vocab_size)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    old_text_width = vars(text).get("hidden_size") or vars(text).get("d_model")
    # A timm tower is named, not described: its widths are those of the name.
    parts = [(part, seen) for part, seen in _parts(tiny, vision=False) if "architecture" not in vars(part)]
    for part, is_vision in parts:
        width = VISION_WIDTH if is_vision else TEXT_WIDTH
        cut_layers(part)
        _Widths(
            old=dict(vars(part)),
            width=width,
            old_text_width=old_text_width if is_int(old_text_width) else None,
            vocab_size=vocab_size,
            token_ids=token_ids,
        ).shrink(part)
        fit_rope(part, width // HEADS)
    renumber_features(tiny, [part for part, _ in parts])
    return tiny


def _parts(config: Any, *, vision: bool) -> Iterable[tuple[Any, bool]]:
    """(configuration, whether it is of a vision or audio part), the given one first, then those inside it."""
    from transformers import PretrainedConfig

    yield config, vision
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            yield from _parts(value, vision=(vision or bool(_VISION.search(name))) and "text" not in name)


def _renumbering(config: Any, vocab_size: int) -> dict[int, int]:
    """Old to new special token ids: those past the new vocabulary move to its upper end, in order, none on another."""
    ids: set[int] = set()
    for part, _ in _parts(config, vision=False):
        for name, value in vars(part).items():
            if _TOKEN_ID.search(name):
                ids.update(v for v in (value if isinstance(value, list | tuple) else [value]) if is_int(v))
    if vocab_size < 64 + len(ids):
        raise ValueError(f"'vocab_size' must be {64 + len(ids)} or more for these special tokens (got {vocab_size})")
    keep = {i for i in ids if 0 <= i < 32}
    moved = sorted(i for i in ids if i >= 32)
    return {i: i for i in keep} | {old: vocab_size - len(moved) + n for n, old in enumerate(moved)}


@dataclass(frozen=True, kw_only=True)
class _Widths:
    """Shrinks the numbers of one configuration (its sub-configurations are others' work)."""

    old: Mapping[str, Any]
    width: int
    old_text_width: int | None
    vocab_size: int
    token_ids: Mapping[int, int]

    def shrink(self, config: Any) -> None:
        for name, value in self.old.items():
            new = value if name.startswith("_") else self._new_value(name, value)
            if new is not value:
                setattr(config, name, new)
        for layer in layer_overrides(config).values():
            grouped = layer.get("num_key_value_heads") != layer.get("num_attention_heads")
            layer.update({name: self._new_value(name, value) for name, value in layer.items()})
            if not grouped and "num_key_value_heads" in layer:
                layer["num_key_value_heads"] = layer["num_attention_heads"]

    def _new_value(self, name: str, value: Any) -> Any:
        if isinstance(value, list | tuple) and not names_layers(name):
            if value and all(is_int(v) for v in value):
                return type(value)(self._new_int(name, v) for v in value)
            return value
        return self._new_int(name, value) if is_int(value) else value

    def _new_int(self, name: str, value: int) -> int:
        if value <= 0:
            return value
        if name == "hidden_size" and is_int(self.old.get("embed_dim")):
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
            if is_int(self.old.get(name)):
                return int(self.old[name])
        return HEADS

    def _other(self, name: str, value: int) -> int:
        """A width under another name: recognised as a small multiple of an old width."""
        if not _OTHER_WIDTH.search(name) or _NO_WIDTH.search(name):
            return value
        mine = self.old.get("hidden_size") or self.old.get("d_model") or self.old.get("embed_dim")
        for old, new in ((mine, self.width), (self.old_text_width, TEXT_WIDTH)):
            if is_int(old) and value % old == 0 and value // old <= 16:
                return int(new * (value // old))
        return value

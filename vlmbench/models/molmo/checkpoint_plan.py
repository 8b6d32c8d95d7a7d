"""Which tensors of a released checkpoint make which tensors of :mod:`vlmbench.models.molmo.modeling`.

Three layouts exist. ``original``: allenai/molmo's own (``transformer.blocks.0.att_proj.weight``). ``hub``: the same
with the prefix ``model.`` (7B-D, 7B-O, 72B). ``hub_moe``: MolmoE-1B's
(``model.transformer.blocks.0.attn.att_proj.weight``, experts one by one, ``lm_head.weight``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from vlmbench.errors import ModelError
from vlmbench.models.molmo.checkpoint_source import TensorSource, some
from vlmbench.models.molmo.configuration import MolmoConfig

Layout = Literal["original", "hub", "hub_moe"]
Change = Literal["none", "transpose", "convolution"]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor of the checkpoint, or rows [first, last) of it."""

    key: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A tensor to write: its pieces one behind the other, then changed."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]
    change: Change = "none"

    def make(self, source: TensorSource, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read and build the tensor; contiguous, in ``dtype`` where given."""
        parts = [source.get(piece.key, piece.rows) for piece in self.pieces]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.change == "transpose":
            tensor = tensor.T
        elif self.change == "convolution":  # (out, dy * dx * channel) -> (out, channel, dy, dx)
            _, channels, high, wide = self.shape
            tensor = tensor.view(-1, high, wide, channels).permute(0, 3, 1, 2)
        return tensor.to(dtype).contiguous() if dtype is not None else tensor.contiguous()


@dataclass(kw_only=True)
class Plan:
    """All targets, and every tensor the checkpoint must have with its shape."""

    targets: list[Target] = field(default_factory=list)
    expected: dict[str, Shape] = field(default_factory=dict)

    def take(
        self, name: str, key: str, shape: Shape, *, rows: tuple[int, int] | None = None, change: Change = "none"
    ) -> None:
        """One target from (rows of) one tensor of the given shape."""
        self.expected[key] = shape
        made = shape if rows is None else (rows[1] - rows[0], *shape[1:])
        self.targets.append(
            Target(
                name=name,
                shape=made[::-1] if change == "transpose" else made,
                pieces=(Piece(key=key, rows=rows),),
                change=change,
            )
        )

    def check(self, source: TensorSource) -> None:
        """Refuse a checkpoint that is not exactly this.

        Raises:
            ModelError: names the missing, the surplus and the wrongly shaped tensors.
        """
        missing = sorted(set(self.expected) - set(source.shapes))
        surplus = sorted(set(source.shapes) - set(self.expected))
        shared = sorted(set(self.expected) & set(source.shapes))
        wrong = [
            f"{k} {source.shapes[k]}, not {self.expected[k]}" for k in shared if source.shapes[k] != self.expected[k]
        ]
        found = {"missing": missing, "surplus": surplus, "wrongly shaped": wrong}
        problems = [f"{len(names)} {kind}: {some(names)}" for kind, names in found.items() if names]
        if problems:
            raise ModelError(
                f"the tensors in '{source.folder}' are not those of its configuration; {'; '.join(problems)}"
            )


def detect_layout(names: Collection[str]) -> Layout:
    """Which of the three layouts the names of a checkpoint follow.

    Raises:
        ModelError: none of them.
    """
    if any(name.startswith("transformer.blocks.") for name in names):
        return "original"
    blocks = [name for name in names if name.startswith("model.transformer.blocks.")]
    if blocks:
        return "hub_moe" if any(".attn." in name for name in blocks) else "hub"
    raise ModelError(f"these are not the tensors of a Molmo 1 checkpoint: {some(sorted(names))}")


def make_plan(config: MolmoConfig, layout: Layout) -> Plan:
    """The plan for a configuration; no file is read.

    Raises:
        ModelError: a decoder that the layout cannot hold.
    """
    moe = config.text_config.model_type == "olmoe"
    if layout == "hub_moe" and not moe:
        raise ModelError(
            f"the tensors are named as MolmoE's, but the configuration is '{config.text_config.model_type}'"
        )
    plan = Plan()
    prefix = "" if layout == "original" else "model."
    _embeddings(plan, config, prefix, layout)
    for index in range(config.text_config.num_hidden_layers):
        block = f"{prefix}transformer.blocks.{index}."
        _attention(plan, config.text_config, index, block + ("attn." if layout == "hub_moe" else ""))
        _norms(plan, config.text_config, index, block, layout)
        if not moe:
            _mlp(plan, config.text_config, index, block)
        elif layout == "hub_moe":
            _experts_apart(plan, config.text_config, index, block)
        else:
            _experts_stacked(plan, config.text_config, index, block)
    _vision(plan, config.vision_config, f"{prefix}vision_backbone.")
    _connector(plan, config, f"{prefix}vision_backbone.")
    return plan


def _embeddings(plan: Plan, config: MolmoConfig, prefix: str, layout: Layout) -> None:
    text = config.text_config
    rows, more, width = text.vocab_size, config.additional_vocab_size, text.hidden_size
    table, new = f"{prefix}transformer.wte.embedding", f"{prefix}transformer.wte.new_embedding"
    plan.expected |= {table: (rows, width), new: (more, width)}
    plan.targets.append(
        Target(
            name="model.language_model.embed_tokens.weight",
            shape=(rows + more, width),
            pieces=(Piece(key=table), Piece(key=new)),
        )
    )
    plan.take("model.language_model.norm.weight", f"{prefix}transformer.ln_f.weight", (width,))
    head = "lm_head.weight" if layout == "hub_moe" else f"{prefix}transformer.ff_out.weight"
    plan.take("lm_head.weight", head, (rows, width))


def _attention(plan: Plan, text: Any, index: int, block: str) -> None:
    to = f"model.language_model.layers.{index}.self_attn."
    width = text.hidden_size
    keys = width // text.num_attention_heads * text.num_key_value_heads
    total = width + 2 * keys
    borders = {"q": (0, width), "k": (width, width + keys), "v": (width + keys, total)}
    for name, rows in borders.items():
        plan.take(f"{to}{name}_proj.weight", block + "att_proj.weight", (total, width), rows=rows)
        if text.model_type == "qwen2":
            plan.take(f"{to}{name}_proj.bias", block + "att_proj.bias", (total,), rows=rows)
    plan.take(to + "o_proj.weight", block + "attn_out.weight", (width, width))
    if text.model_type != "qwen2":
        plan.take(to + "q_norm.weight", block + "q_norm.weight", (width,))
        plan.take(to + "k_norm.weight", block + "k_norm.weight", (keys,))


def _norms(plan: Plan, text: Any, index: int, block: str, layout: Layout) -> None:
    """Olmo2 norms what a sublayer gives back, the others what it gets."""
    to, shape = f"model.language_model.layers.{index}.", (text.hidden_size,)
    after = text.model_type == "olmo2"
    attention = "post_attention_layernorm" if after else "input_layernorm"
    feed_forward = "post_feedforward_layernorm" if after else "post_attention_layernorm"
    apart = layout == "hub_moe"
    plan.take(f"{to}{attention}.weight", block + ("attn." if apart else "") + "attn_norm.weight", shape)
    plan.take(f"{to}{feed_forward}.weight", block + ("mlp." if apart else "") + "ff_norm.weight", shape)


def _mlp(plan: Plan, text: Any, index: int, block: str) -> None:
    to, width, gate = f"model.language_model.layers.{index}.mlp.", text.hidden_size, text.intermediate_size
    # The fused projection holds the plain half first: x, gate = halves; x * silu(gate).
    plan.take(to + "up_proj.weight", block + "ff_proj.weight", (2 * gate, width), rows=(0, gate))
    plan.take(to + "gate_proj.weight", block + "ff_proj.weight", (2 * gate, width), rows=(gate, 2 * gate))
    plan.take(to + "down_proj.weight", block + "ff_out.weight", (width, gate))


def _experts_apart(plan: Plan, text: Any, index: int, block: str) -> None:
    to, width, gate = f"model.language_model.layers.{index}.mlp.", text.hidden_size, text.intermediate_size
    plan.take(to + "gate.weight", block + "mlp.gate.weight", (text.num_experts, width))
    for expert in range(text.num_experts):
        for name, shape in (("gate", (gate, width)), ("up", (gate, width)), ("down", (width, gate))):
            weight = f"experts.{expert}.{name}_proj.weight"
            plan.take(to + weight, f"{block}mlp.{weight}", shape)


def _experts_stacked(plan: Plan, text: Any, index: int, block: str) -> None:
    """All experts in three tensors, their rows one behind the other; the way back is stored transposed."""
    to, width, gate = f"model.language_model.layers.{index}.mlp.", text.hidden_size, text.intermediate_size
    plan.take(to + "gate.weight", block + "ffn.router.layer.weight", (text.num_experts, width))
    stacked = (text.num_experts * gate, width)
    changes: dict[str, tuple[str, Change]] = {"gate": ("w1", "none"), "up": ("v1", "none"), "down": ("w2", "transpose")}
    for expert in range(text.num_experts):
        rows = (expert * gate, (expert + 1) * gate)
        for name, (key, change) in changes.items():
            target = f"{to}experts.{expert}.{name}_proj.weight"
            plan.take(target, f"{block}ffn.experts.mlp.{key}", stacked, rows=rows, change=change)


def _vision(plan: Plan, vision: Any, prefix: str) -> None:
    to, at, width = "model.vision_tower.", prefix + "image_vit.", vision.hidden_size
    plan.take(to + "embeddings.class_embedding", at + "class_embedding", (width,))
    positions = (vision.image_size // vision.patch_size) ** 2 + 1
    plan.take(to + "embeddings.position_embedding.weight", at + "positional_embedding", (positions, width))
    patch, key = vision.patch_size, at + "patch_embedding.weight"
    plan.expected[key] = (width, patch * patch * 3)
    plan.targets.append(
        Target(
            name=to + "embeddings.patch_embedding.weight",
            shape=(width, 3, patch, patch),
            pieces=(Piece(key=key),),
            change="convolution",
        )
    )
    for kind in ("weight", "bias"):
        plan.take(f"{to}pre_layrnorm.{kind}", f"{at}pre_ln.{kind}", (width,))
    for index in range(vision.num_hidden_layers):
        _vision_block(plan, vision, f"{to}encoder.layers.{index}.", f"{at}transformer.resblocks.{index}.")


def _vision_block(plan: Plan, vision: Any, to: str, at: str) -> None:
    width, inner = vision.hidden_size, vision.intermediate_size
    linear = {f"attention.w{n}": (f"self_attn.{n}_proj", (width, width)) for n in "qkv"}
    linear |= {
        "attention.wo": ("self_attn.out_proj", (width, width)),
        "feed_forward.w1": ("mlp.fc1", (inner, width)),
        "feed_forward.w2": ("mlp.fc2", (width, inner)),
    }
    for key, (name, shape) in linear.items():
        plan.take(f"{to}{name}.weight", f"{at}{key}.weight", shape)
        plan.take(f"{to}{name}.bias", f"{at}{key}.bias", shape[:1])
    for key, name in (("attention_norm", "layer_norm1"), ("ffn_norm", "layer_norm2")):
        for kind in ("weight", "bias"):
            plan.take(f"{to}{name}.{kind}", f"{at}{key}.{kind}", (width,))


def _connector(plan: Plan, config: MolmoConfig, prefix: str) -> None:
    to, vision = "model.multi_modal_projector.", config.vision_config
    wide, width = vision.hidden_size * len(config.vision_feature_layers), vision.hidden_size
    plan.take(to + "pad_embed", prefix + "pad_embed", (2, wide))
    for key, name, inputs in (("wq", "q", wide), ("wk", "k", wide), ("wv", "v", wide), ("wo", "out", width)):
        at = f"{prefix}image_pooling_2d.{key}."
        plan.take(f"{to}pooling.{name}_proj.weight", at + "weight", (width, inputs))
        plan.take(f"{to}pooling.{name}_proj.bias", at + "bias", (width,))
    inner, out = config.projector_hidden_size, config.text_config.hidden_size
    assert inner is not None
    for key, name, shape in (
        ("w1", "gate", (inner, width)),
        ("w3", "up", (inner, width)),
        ("w2", "down", (out, inner)),
    ):
        plan.take(f"{to}projector.{name}_proj.weight", f"{prefix}image_projector.{key}.weight", shape)

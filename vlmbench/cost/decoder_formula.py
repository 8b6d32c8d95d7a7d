"""The language model's shape, read from its configuration, and its FLOPs in closed form.

Notation: ``S`` input tokens, ``L`` keys a token attends to, ``X`` cross-attention keys; 1 multiply-add = 2 FLOPs. Per
layer and token, the matrices cost ``2 · (their elements)``; attention costs ``4 · L · heads · head_dim`` (scores and
weighted sum). Causal and windowed attention of the prefill are counted in full (``S × S``), as dense kernels compute
them; a decode step attends to ``min(L, window)`` keys, because the cache of a windowed layer is no longer than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmbench.cost.stage_costs import ClosedFormError, StageFlops
from vlmbench.cost.vision_families import vision_of
from vlmbench.cost.vision_formula import Vision
from vlmbench.request import TokenCounts

# Decoders whose feed-forward has two matrices; all others of the supported list have three (gate, up, down).
_UNGATED = frozenset({"phi", "opt", "gpt2", "gpt_neox", "gpt_neo", "gptj", "gpt_bigcode", "starcoder2", "bloom", "git"})


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture-of-experts feed-forward.

    Args:
        count: routed experts of a layer.
        active: experts a token visits (top-k).
        intermediate: width of one expert.
        shared_intermediate: width of what every token visits besides, 0 without.
        layers: how many layers are sparse; the others have the dense feed-forward.
        shared_gate: whether the shared part has a gate (one more column of the router).
    """

    count: int
    active: int
    intermediate: int
    shared_intermediate: int
    layers: int
    shared_gate: bool = False


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Shape of a decoder; all numbers in elements.

    Args:
        hidden: model width.
        intermediate: width of the dense feed-forward.
        layers: all layers, those with cross-attention included.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: of one head.
        vocab: rows of the head.
        mlp_matrices: 3 with a gate, else 2.
        windows: window of each self-attention layer, None for one that sees everything.
        cross_layers: layers that attend to image features instead of the text.
        experts: the sparse feed-forward, if there is one.
        embedding_rows: rows of the input embedding.
        tied: whether the head is the input embedding.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    mlp_matrices: int = 3
    windows: tuple[int | None, ...] = ()
    cross_layers: int = 0
    experts: Experts | None = None
    embedding_rows: int = 0
    tied: bool = False

    @property
    def query_out(self) -> int:
        """Elements of the query and output matrices of a layer."""
        return 2 * self.hidden * self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Elements of the key and value matrices of a layer."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def dense_mlp(self) -> int:
        """Elements of a dense feed-forward."""
        return self.mlp_matrices * self.hidden * self.intermediate

    @property
    def active_mlp(self) -> int:
        """Elements of all layers' feed-forwards that one token meets, routers included."""
        if self.experts is None:
            return self.layers * self.dense_mlp
        e = self.experts
        one = self.mlp_matrices * self.hidden * (e.active * e.intermediate + e.shared_intermediate)
        routers = self.hidden * (e.count + int(e.shared_gate))
        return e.layers * (one + routers) + (self.layers - e.layers) * self.dense_mlp

    @property
    def self_layers(self) -> int:
        """Layers with self-attention."""
        return self.layers - self.cross_layers

    @property
    def head_elements(self) -> int:
        """Elements of the output embedding."""
        return self.hidden * self.vocab

    def _matrices(self, *, cross: bool) -> int:
        cross_layers = self.cross_layers if cross else 0
        if self.cross_layers and not cross:
            # Without an image these layers are skipped whole.
            skipped = self.cross_layers * self.dense_mlp
            return self.self_layers * (self.query_out + self.key_value) + self.active_mlp - skipped
        return self.self_layers * (self.query_out + self.key_value) + cross_layers * self.query_out + self.active_mlp

    def prefill(self, tokens: int, cross_tokens: int = 0) -> int:
        """FLOPs of the body on ``tokens`` input tokens, without the head."""
        width = self.heads * self.head_dim
        flops = 2 * tokens * self._matrices(cross=cross_tokens > 0)
        flops += 4 * tokens * tokens * width * self.self_layers
        if cross_tokens:
            flops += self.cross_layers * (2 * cross_tokens * self.key_value + 4 * tokens * cross_tokens * width)
        return flops

    def masked(self, tokens: int) -> int:
        """FLOPs of self-attention on ``tokens`` input tokens that a causal mask (and a window) makes needless.

        Of the T² pairs that :meth:`prefill` counts, T (T + 1) / 2 are needed, in a window of w fewer. Where image
        tokens see each other both ways more are: what is left is a bound all the same.
        """
        needed = self.keys(0) + self.keys_of_decode(0, tokens + 1)
        return 4 * self.heads * self.head_dim * (self.self_layers * tokens * tokens - needed)

    def keys(self, length: int) -> int:
        """Keys that one decode step reads, summed over the self-attention layers, at a context of ``length``."""
        if not self.windows:
            return self.self_layers * length
        return sum(length if w is None else min(length, w) for w in self.windows)

    def step(self, length: int, cross_tokens: int = 0) -> int:
        """FLOPs of one decode step, head included, when ``length`` tokens (its own included) are in the context."""
        width = self.heads * self.head_dim
        flops = 2 * (self._matrices(cross=cross_tokens > 0) + self.head_elements) + 4 * width * self.keys(length)
        return flops + (4 * width * cross_tokens * self.cross_layers if cross_tokens else 0)

    def decode(self, tokens: int, output_tokens: int, cross_tokens: int = 0) -> int:
        """FLOPs of the ``output_tokens - 1`` steps after a prefill of ``tokens``, heads included."""
        steps = output_tokens - 1
        fixed = self.step(0, cross_tokens) * steps
        return fixed + 4 * self.heads * self.head_dim * self.keys_of_decode(tokens, output_tokens)

    def keys_of_decode(self, tokens: int, output_tokens: int) -> int:
        """:meth:`keys` summed over the ``output_tokens - 1`` steps after a prefill of ``tokens``."""
        first, last = tokens + 1, tokens + output_tokens - 1
        if last < first:
            return 0
        full = _sum_of_minima(first, last, None)
        if not self.windows:
            return self.self_layers * full
        kinds = {w: self.windows.count(w) for w in set(self.windows)}
        return sum(n * (full if w is None else _sum_of_minima(first, last, w)) for w, n in kinds.items())


def _sum_of_minima(first: int, last: int, window: int | None) -> int:
    """Sum of ``min(L, window)`` for L from first to last."""
    if window is None or last <= window:
        return (first + last) * (last - first + 1) // 2
    if first > window:
        return window * (last - first + 1)
    return _sum_of_minima(first, window, None) + window * (last - window)


def decoder_of(config: Any) -> Decoder:
    """The decoder's shape from a model's configuration (its text part is found with ``get_text_config``).

    Raises:
        ClosedFormError: an architecture without the usual fields (linear attention, latent attention …).
    """
    text = config.get_text_config(decoder=True)
    missing = [
        n for n in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size") if _get(text, n) is None
    ]
    if missing:
        raise ClosedFormError(f"no closed form for the language model '{text.model_type}': no {', '.join(missing)}")
    kinds = set(_get(text, "layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds or _get(text, "kv_lora_rank"):
        what = ", ".join(sorted(kinds)) or "latent attention"
        raise ClosedFormError(f"no closed form for the language model '{text.model_type}': {what}")
    heads = int(_get(text, "num_attention_heads"))
    hidden = int(text.hidden_size)
    cross = len(_get(text, "cross_attention_layers") or ())
    extra = _get(text, "additional_vocab_size") or _get(config, "additional_vocab_size")
    # A table with rows of its own for image tokens cannot be the head, whatever the configuration says.
    tied = bool(_get(config, "tie_word_embeddings")) and not extra
    experts = _experts(text)
    intermediate = _get(text, "dense_intermediate_size") or _get(text, "intermediate_size")
    if intermediate is None and experts is None:
        raise ClosedFormError(f"no closed form for the language model '{text.model_type}': no intermediate_size")
    return Decoder(
        hidden=hidden,
        intermediate=int(intermediate or 0),
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=int(_get(text, "num_key_value_heads") or heads),
        head_dim=int(_get(text, "head_dim") or hidden // heads),
        vocab=int(text.vocab_size),
        mlp_matrices=2 if text.model_type in _UNGATED or _get(text, "hidden_act") == "relu2" else 3,
        windows=_windows(text, int(text.num_hidden_layers) - cross),
        cross_layers=cross,
        experts=experts,
        embedding_rows=int(text.vocab_size) + int(extra or 0),
        tied=tied,
    )


def _get(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except (AttributeError, ValueError, RuntimeError) as error:
        # Some configurations refuse fields that differ from layer to layer.
        raise ClosedFormError(f"no closed form for the language model '{config.model_type}': {error}") from error


def _windows(text: Any, layers: int) -> tuple[int | None, ...]:
    window = _get(text, "sliding_window")
    if window is None or _get(text, "use_sliding_window") is False:
        return ()
    types = _get(text, "layer_types")
    if not types:
        return (int(window),) * layers
    return tuple(int(window) if t == "sliding_attention" else None for t in types)


def _experts(text: Any) -> Experts | None:
    count = _first(text, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if not count:
        return None
    width = _first(text, "moe_intermediate_size", "intermediate_size")
    active = _first(text, "num_experts_per_tok", "moe_topk", "moe_k")
    if not isinstance(width, int) or not isinstance(active, int) or _get(text, "moe_hidden_size"):
        raise ClosedFormError(f"no closed form for the language model '{text.model_type}': experts of unlike kinds")
    shared = _first(text, "shared_expert_intermediate_size", "shared_intermediate_size")
    if shared is None:
        shared = (_first(text, "n_shared_experts", "moe_num_shared_experts") or 0) * width
    return Experts(
        count=int(count),
        active=active,
        intermediate=width,
        shared_intermediate=int(shared),
        shared_gate=bool(_get(text, "shared_expert_intermediate_size")),
        layers=_sparse_layers(text),
    )


def _sparse_layers(text: Any) -> int:
    if kinds := _get(text, "mlp_layer_types"):
        return sum(1 for kind in kinds if kind == "sparse")
    dense = set(_get(text, "mlp_only_layers") or ()) | set(range(_get(text, "first_k_dense_replace") or 0))
    every = _get(text, "decoder_sparse_step") or 1
    return sum(1 for i in range(int(text.num_hidden_layers)) if i not in dense and (i + 1) % every == 0)


def _first(config: Any, *names: str) -> Any:
    """The first of these fields that is set."""
    return next((value for name in names if (value := _get(config, name)) is not None), None)


# FLOPs of one ``generate()`` call in closed form, from a configuration and token counts: microseconds a point.


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """The shape of a model: its decoder and, where it has one, its vision part."""

    decoder: Decoder
    vision: Vision | None

    @classmethod
    def of(cls, config: Any) -> ClosedForm:
        """From a transformers configuration.

        Raises:
            ClosedFormError: a family whose vision part or decoder is not known; the message says which.
        """
        return cls(decoder=decoder_of(config), vision=vision_of(config))

    @classmethod
    def as_far_as_known(cls, config: Any) -> tuple[ClosedForm, str]:
        """Like :meth:`of`, but a vision part that is not known is left out; the second value says which, or is "".

        Raises:
            ClosedFormError: not even the decoder is known.
        """
        decoder = decoder_of(config)
        try:
            return cls(decoder=decoder, vision=vision_of(config)), ""
        except ClosedFormError as error:
            return cls(decoder=decoder, vision=None), str(error)

    def needed(self, flops: StageFlops, counts: TokenCounts, *, batch_size: int = 1) -> StageFlops:
        """FLOPs that cannot be left out: the causal half of the prefill's attention, all else in full.

        Args:
            flops: of a batch, attention counted in full.
        """
        return replace(flops, llm_prefill=flops.llm_prefill - batch_size * self.decoder.masked(counts.num_input_tokens))

    def flops(
        self,
        counts: TokenCounts,
        output_tokens: int,
        *,
        batch_size: int = 1,
        grids: Sequence[tuple[int, int]] | None = None,
    ) -> StageFlops:
        """FLOPs of a batch of equal requests.

        Args:
            counts: of one row, observed on prepared inputs or predicted.
            output_tokens: tokens that come out of each row, 1 or more.
            grids: (height, width) in patches of each image, for towers that take any size; the most square ones
                with the observed number of patches where not given (it matters for windowed attention only).

        Raises:
            ClosedFormError: the counts lack what the tower needs.
        """
        if output_tokens < 1:
            raise ValueError(f"'output_tokens' must be 1 or more (got {output_tokens})")
        tower, projector = self.vision.flops(counts, grids) if self.vision is not None else (0, 0)
        cross = counts.num_cross_attention_tokens or 0
        head = 2 * self.decoder.head_elements
        row = StageFlops(
            vision_encoder=tower,
            projector=projector,
            llm_prefill=self.decoder.prefill(counts.num_input_tokens, cross) + head,
            llm_decode=self.decoder.decode(counts.num_input_tokens, output_tokens, cross),
            head=head,
        )
        return row * batch_size

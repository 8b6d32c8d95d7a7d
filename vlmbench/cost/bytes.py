"""Bytes: what a model weighs, what a request keeps in memory, and the fewest bytes each stage must move.

The floor of a stage's traffic counts what cannot stay on chip between kernels: every weight that is used once, the
stage's input and output, and the key-value cache (written once by the prefill; read whole and extended by one entry by
each decode step). Intermediate activations are left out: fused kernels need not move them. Real traffic is higher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlmbench.cost.decoder_formula import ClosedForm
from vlmbench.cost.vision_formula import Vision
from vlmbench.request import TokenCounts
from vlmbench.schema import COST_STAGES

ELEMENT_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
}
"""Bytes of one element by dtype name."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of a model by stage, in elements; those of the input embedding apart, since a token reads one row."""

    vision_encoder: int
    projector: int
    language_model: int
    head: int
    embedding: int

    @property
    def total(self) -> int:
        """All of them; a head tied to the embedding counts once (``head`` is 0 then)."""
        return self.vision_encoder + self.projector + self.language_model + self.head + self.embedding

    @classmethod
    def of_closed(cls, closed: ClosedForm) -> Parameters:
        """Matrices only, from the closed form: without biases, norms and position tables (below 1 % of a model)."""
        decoder, vision = closed.decoder, closed.vision
        body = decoder.layers * decoder.query_out + decoder.layers * decoder.key_value
        if decoder.experts is None:
            body += decoder.layers * decoder.dense_mlp
        else:
            e = decoder.experts
            wide = decoder.mlp_matrices * decoder.hidden * (e.count * e.intermediate + e.shared_intermediate)
            body += e.layers * (wide + decoder.hidden * e.count) + (decoder.layers - e.layers) * decoder.dense_mlp
        return cls(
            vision_encoder=vision.tower.elements if vision else 0,
            projector=vision.projector.elements if vision else 0,
            language_model=body,
            head=0 if decoder.tied else decoder.head_elements,
            embedding=decoder.embedding_rows * decoder.hidden,
        )

    @classmethod
    def of_model(cls, model: Any, anatomy: Any = None, *, size: Callable[[Any], int] | None = None) -> Parameters:
        """Exact, from a model (also one without weights).

        Args:
            anatomy: of it; found by rule where not given.
            size: what to add up of each parameter; None: its elements. With
                :func:`vlmbench.models.weight_bytes.in_memory` all numbers are bytes as they lie in memory.
        """
        from vlmbench.models.anatomy.find import find_anatomy, stage_parameters

        measure = size or (lambda parameter: int(parameter.numel()))
        counts = stage_parameters(model, anatomy or find_anatomy(model), size)
        table = model.get_input_embeddings().weight
        embedding = measure(table)
        output = model.get_output_embeddings()
        tied = output is not None and output.weight is table
        head = 0 if tied or output is None else sum(measure(p) for p in output.parameters())
        vision, projector = counts.get("vision_encoder", 0), counts.get("projector", 0)
        return cls(
            vision_encoder=vision,
            projector=projector,
            # whatever belongs to no stage (a newline embedding) is counted with the language model
            language_model=counts["total"] - vision - projector - head - embedding,
            head=head,
            embedding=embedding,
        )


@dataclass(frozen=True, kw_only=True)
class StageBytes:
    """The fewest bytes that each stage of one ``generate()`` call must move."""

    vision_encoder: int
    projector: int
    llm_prefill: int
    llm_decode: int

    @property
    def total(self) -> int:
        """All stages."""
        return sum(self.by_stage().values())

    def by_stage(self) -> dict[str, int]:
        """Stage name to bytes, in the order of :data:`vlmbench.schema.COST_STAGES`."""
        return {stage: getattr(self, stage) for stage in COST_STAGES}

    def columns(self) -> dict[str, int]:
        """As record columns: ``bytes_<stage>`` and ``bytes_total``."""
        return {f"bytes_{stage}": value for stage, value in {**self.by_stage(), "total": self.total}.items()}


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes a request needs on the device at its peak.

    Weights and cache are exact up to the allocator's rounding; ``activations`` is an estimate of the largest set of
    intermediate tensors alive at once. What the driver and libraries take (about 0.5 GB on CUDA) comes on top.
    """

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.activations


def distinct_experts(count: int, active: int, tokens: int) -> float:
    """Expected number of experts that ``tokens`` tokens visit when each picks ``active`` of ``count`` at random."""
    return float(count * (1 - (1 - active / count) ** tokens))


@dataclass(frozen=True, kw_only=True)
class Visits:
    """Different experts of a layer that one forward visited, the mean over layers.

    Args:
        prefill: of the whole batch, padding left out.
        decode: of a step, the mean over steps; None without one.
    """

    prefill: float
    decode: float | None

    def columns(self) -> dict[str, float | None]:
        """As record columns."""
        return {"experts_llm_prefill": self.prefill, "experts_llm_decode": self.decode}


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Byte counts of one model.

    Args:
        closed: its shape.
        parameters: its parameters.
        element: bytes of one element of weights, activations and cache.
        stored: bytes of the weights of each stage as they lie in memory, where they are quantised; None: all weights
            have ``element`` bytes.
    """

    closed: ClosedForm
    parameters: Parameters
    element: int
    stored: Parameters | None = None

    def _weights(self, stage: str, elements: float | None = None) -> float:
        """Bytes of the weights of a stage, or of so many elements of it."""
        held = getattr(self.parameters, stage)
        used = held if elements is None else elements
        return float(used * self.element if self.stored is None else used / max(held, 1) * getattr(self.stored, stage))

    def kv_per_token(self) -> int:
        """Bytes of key-value cache that one more token takes in all self-attention layers (below any window)."""
        return self.closed.decoder.keys(1) * self._kv_entry()

    def kv_cache(self, length: int, cross_tokens: int = 0) -> int:
        """Bytes of the cache of one row at a context of ``length`` tokens."""
        decoder = self.closed.decoder
        return (decoder.keys(length) + decoder.cross_layers * cross_tokens) * self._kv_entry()

    def _kv_entry(self) -> int:
        return 2 * self.closed.decoder.kv_heads * self.closed.decoder.head_dim * self.element

    def _body_weights(self, tokens: int, seen: float | None = None) -> int:
        """Bytes of the language model's weights that ``tokens`` tokens in one forward use, without head.

        ``seen``: the experts of a layer that they visited; None: as many as are expected of tokens that choose evenly.
        """
        experts, decoder = self.closed.decoder.experts, self.closed.decoder
        elements = float(self.parameters.language_model)
        if experts is not None:
            visited = distinct_experts(experts.count, experts.active, tokens) if seen is None else seen
            unused = experts.count - visited
            elements -= experts.layers * unused * decoder.mlp_matrices * decoder.hidden * experts.intermediate
        return round(self._weights("language_model", elements))

    def _head_weights(self) -> int:
        own = "embedding" if self.closed.decoder.tied else "head"
        elements = None if self.stored is None else getattr(self.parameters, own)
        return round(self._weights(own, elements)) if elements else self.closed.decoder.head_elements * self.element

    def stages(
        self,
        counts: TokenCounts,
        output_tokens: int,
        *,
        batch_size: int = 1,
        copies: bool = False,
        visits: Visits | None = None,
    ) -> StageBytes:
        """The fewest bytes each stage must move for a batch.

        Args:
            counts: of one row, or the means of different ones.
            output_tokens: tokens that come out of each row, 1 or more.
            copies: all rows are one request, and so visit the same experts.
            visits: of a mixture, the experts that were seen; None: as many as are expected.
        """
        of_prefill, of_step = (None, None) if visits is None else (visits.prefill, visits.decode)
        visiting = 1 if copies else batch_size
        decoder = self.closed.decoder
        tokens, cross = counts.num_input_tokens, counts.num_cross_attention_tokens or 0
        row = decoder.hidden * self.element
        vision, projector = self._vision(counts, batch_size)
        prefill = self._body_weights(visiting * tokens, of_prefill) + self._head_weights()
        prefill += batch_size * (2 * tokens * row + self.kv_cache(tokens, cross) + decoder.vocab * self.element)
        steps = output_tokens - 1
        decode = steps * (self._body_weights(visiting, of_step) + self._head_weights())
        kv = (decoder.keys_of_decode(tokens, output_tokens) + steps * decoder.cross_layers * cross) * self._kv_entry()
        decode += batch_size * (kv + steps * (self.kv_per_token() + 2 * row + decoder.vocab * self.element))
        return StageBytes(vision_encoder=vision, projector=projector, llm_prefill=prefill, llm_decode=decode)

    def _vision(self, counts: TokenCounts, batch_size: int) -> tuple[int, int]:
        vision = self.closed.vision
        if not counts.num_images:
            return 0, 0
        if vision is None:  # of an unknown tower, only the weights are known to move
            return round(self._weights("vision_encoder")), round(self._weights("projector"))
        positions = vision_positions(vision, counts)
        features = positions * vision.tower.hidden * self.element
        pixels = positions * vision.tower.patch_elements * self.element
        out = (counts.num_vision_tokens or positions) * self.closed.decoder.hidden * self.element
        tower = round(self._weights("vision_encoder")) + batch_size * (pixels + features)
        return tower, round(self._weights("projector")) + batch_size * (features + out)

    def memory_need(self, counts: TokenCounts, output_tokens: int, *, batch_size: int = 1) -> MemoryNeed:
        """Bytes at the peak of one ``generate()`` call."""
        length = counts.num_input_tokens + output_tokens - 1
        return MemoryNeed(
            weights=self.parameters.total * self.element if self.stored is None else self.stored.total,
            kv_cache=batch_size * self.kv_cache(length, counts.num_cross_attention_tokens or 0),
            activations=batch_size * max(self._prefill_peak(counts.num_input_tokens), self._vision_peak(counts)),
        )

    def _prefill_peak(self, tokens: int) -> int:
        # residual, normed input, attention output and query of a layer, or the feed-forward's two wide tensors;
        # logits of the last position in the working dtype and in float32.
        decoder = self.closed.decoder
        if decoder.experts is None:
            wide = decoder.intermediate
        else:
            wide = decoder.experts.active * decoder.experts.intermediate + decoder.experts.shared_intermediate
        layer = tokens * (3 * decoder.hidden + max(3 * decoder.heads * decoder.head_dim, 3 * wide))
        return layer * self.element + decoder.vocab * (self.element + 4)

    def _vision_peak(self, counts: TokenCounts) -> int:
        vision = self.closed.vision
        if vision is None or not counts.num_images:
            return 0
        tower, positions = vision.tower, vision_positions(vision, counts)
        # Towers record the hidden state of every block where features are taken from an inner one.
        kept = tower.layers + 1
        wide = max(4 * tower.attention_width, 2 * tower.intermediate)
        return positions * (tower.patch_elements + kept * tower.hidden + wide) * self.element


def vision_positions(vision: Vision, counts: TokenCounts) -> int:
    """Positions of one row that the tower computes, class tokens and padding included."""
    if not vision.tower.tile_patches:
        return counts.num_vision_patches or 0
    return vision.tiles(counts) * (vision.tower.tile_patches + vision.tower.tile_extra)

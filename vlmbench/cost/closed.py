"""FLOPs of one ``generate()`` call in closed form, from a configuration and token counts: microseconds a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmbench.cost.decoder import Decoder, decoder_of
from vlmbench.cost.errors import ClosedFormError
from vlmbench.cost.families import vision_of
from vlmbench.cost.stages import StageFlops
from vlmbench.cost.vision import Vision
from vlmbench.request import TokenCounts


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
            batch_size: rows.
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

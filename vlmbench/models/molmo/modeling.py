"""Molmo 1 with its head: what ``AutoModelForImageTextToText`` builds and ``generate`` runs."""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call, misc, override, arg-type, no-any-return, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput, can_return_tuple

from vlmbench.models.molmo.backbone import MolmoModel, MolmoPreTrainedModel
from vlmbench.models.molmo.configuration import MolmoConfig


@dataclass
class MolmoCausalLMOutputWithPast(ModelOutput):
    """Output of :class:`MolmoForConditionalGeneration`: logits (B, kept positions, head rows) and what made them."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class MolmoForConditionalGeneration(MolmoPreTrainedModel, GenerationMixin):
    """Molmo with its head: what ``AutoModelForImageTextToText`` builds and ``generate`` runs."""

    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        self.model = MolmoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The input table."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the input table."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def get_image_features(
        self, pixel_values: torch.Tensor, image_masks: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See :meth:`MolmoModel.get_image_features`."""
        return self.model.get_image_features(pixel_values=pixel_values, image_masks=image_masks, **kwargs)

    @can_return_tuple
    def forward(  # noqa: PLR0917  # transformers' order of arguments
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_masks: torch.Tensor | None = None,
        image_input_idx: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> MolmoCausalLMOutputWithPast:
        """One pass over the new positions.

        Args:
            input_ids: (B, S) token ids; padding may stand on either side, with ``attention_mask``.
            pixel_values: (B, crops, patches, pixels of a patch), normalised.
            image_masks: (B, crops, patches), share of each patch that is not padding.
            image_input_idx: (B, crops, vectors per crop), the position in ``input_ids`` of each pooled vector, negative
                for none.
            attention_mask: (B, past + S), 1 for real tokens, or 4-D as transformers makes it.
            position_ids: (B, S); made of a 2-D attention mask where absent.
            past_key_values: the cache; images are given with the first step only.
            inputs_embeds: (B, S, width) instead of ``input_ids``.
            labels: (B, S) for the next-token loss, -100 for none.
            logits_to_keep: last positions that get logits (0: all), or their indices.
            mm_encoder_outputs: ``{"image": get_image_features(...)}`` instead of ``pixel_values``.
            kwargs: passed to the decoder (``use_cache`` …).
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_masks=image_masks,
            image_input_idx=image_input_idx,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        return MolmoCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The image goes with the first step only (with every step where there is no cache)."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("image_input_idx", "image_masks"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Copies for beams and several answers: encoded images have a batch axis here, like everything else."""
        encoded = kwargs.pop("mm_encoder_outputs", None)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, **kwargs)
        if encoded is not None:
            if expand_size > 1 and encoded.get("image") is not None:
                vectors = encoded["image"].pooler_output.repeat_interleave(expand_size, dim=0)
                encoded = {**encoded, "image": BaseModelOutputWithPooling(pooler_output=vectors)}
            kwargs["mm_encoder_outputs"] = encoded
        return input_ids, kwargs

    def _prefill(self, input_ids: torch.Tensor, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        """The first pass; in one piece only, since positions of the image are those of the whole prompt."""
        if generation_config.prefill_chunk_size is not None:
            raise ValueError("'prefill_chunk_size' must be None for Molmo: its image features have absolute positions")
        return super()._prefill(input_ids, generation_config, *args, **kwargs)

"""Molmo 1 without its head, composed of transformers' own CLIP tower and decoders plus the connector.

A pooled vector is *added* to the embedding of its ``<im_patch>`` token (the token's own embedding stays). Where each
vector belongs is given by ``image_input_idx``; vectors from the overlap of neighbouring crops belong nowhere (-100).
No step depends on the values of a tensor, so nothing waits for the device and the graph is static.

Unlike the original code, attention of the vision tower runs in the working dtype, so that fast kernels are used.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call, misc, assignment, arg-type, no-any-return, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModel, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from vlmbench.models.molmo.configuration import MolmoConfig
from vlmbench.models.molmo.connector import MolmoConnector


@dataclass
class MolmoModelOutputWithPast(BaseModelOutputWithPast):
    """Output of :class:`MolmoModel`: that of the decoder, and ``image_hidden_states`` (B, crops, vectors, width)."""

    image_hidden_states: torch.Tensor | None = None


class MolmoPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of Molmo: loading, placing, attention kernels, compiling."""

    config: MolmoConfig
    config_class = MolmoConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = [
        "CLIPVisionModel",
        "MolmoConnector",
        "OlmoeDecoderLayer",
        "Olmo2DecoderLayer",
        "Qwen2DecoderLayer",
    ]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """MolmoE's decoder can; transformers looks for it in the source of this module and finds nothing."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights: the base class knows the layers, only the padding embeddings are ours."""
        super()._init_weights(module)
        if isinstance(module, MolmoConnector):
            init.normal_(module.pad_embed, mean=0.0, std=self.config.initializer_range)


class MolmoModel(MolmoPreTrainedModel):
    """Vision tower, connector and decoder, without the head.

    The modules ``vision_tower``, ``multi_modal_projector`` and ``language_model`` are each called through
    ``__call__``, so that hooks see them; the decoder gets keyword arguments only.
    """

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.vision_tower = CLIPVisionModel._from_config(config.vision_config)
        self.vision_tower.post_layernorm = nn.Identity()  # the checkpoints have none, nothing reads its output
        self.multi_modal_projector = MolmoConnector(config)
        self.language_model = AutoModel.from_config(text)
        # The input table goes on behind the head's vocabulary: the image tokens' rows.
        self.language_model.set_input_embeddings(
            nn.Embedding(text.vocab_size + config.additional_vocab_size, text.hidden_size)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The input table, (head rows + additional rows, width)."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the input table."""
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, image_masks: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode, pool and project the crops.

        Args:
            pixel_values: (B, crops, patches, patch_size * patch_size * 3), each patch in (dy, dx, channel) order.
            image_masks: (B, crops, patches), see :meth:`MolmoConnector.forward`; all 1 (no padding) where absent.

        Returns:
            ``pooler_output`` (B, crops, vectors per crop, decoder width), ``last_hidden_state`` of the tower. Rows of
            absent crops (padding of a batch) hold values that ``image_input_idx`` sends nowhere.
        """
        if pixel_values.ndim != 4:
            raise ValueError(
                f"'pixel_values' must have the shape (batch, crops, patches, pixels) (got {tuple(pixel_values.shape)})"
            )
        batch, crops = pixel_values.shape[:2]
        patches = pixel_values.flatten(0, 1).to(self.vision_tower.dtype)
        if image_masks is None:
            image_masks = torch.ones(pixel_values.shape[:3], device=pixel_values.device)
        # All hidden states are recorded (references, until the tower has returned); two of them are used.
        kwargs = {**kwargs, "output_hidden_states": True, "return_dict": True}
        outputs = self.vision_tower(pixel_values=self._unfold(patches), **kwargs)
        device = outputs.last_hidden_state.device  # a tower spread over devices leaves its layers' outputs behind
        layers = self.config.vision_feature_layers
        chosen = [outputs.hidden_states[layer][:, 1:].to(device) for layer in layers]  # without CLS
        vectors = self.multi_modal_projector(torch.cat(chosen, dim=-1), image_masks.flatten(0, 1))
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state, pooler_output=vectors.unflatten(0, (batch, crops))
        )

    def _unfold(self, patches: torch.Tensor) -> torch.Tensor:
        """(crops, patches, pixels) -> (crops, 3, image_size, image_size)."""
        size, patch = self.config.vision_config.image_size, self.config.vision_config.patch_size
        side = size // patch
        grid = patches.view(-1, side, side, patch, patch, 3)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, size, size)

    @staticmethod
    def add_image_features(
        inputs_embeds: torch.Tensor, image_features: torch.Tensor, image_input_idx: torch.Tensor
    ) -> torch.Tensor:
        """Add each vector to the embedding at its position.

        Args:
            inputs_embeds: (B, S, width).
            image_features: (B, crops, vectors, width).
            image_input_idx: (B, crops, vectors), position in the row, negative for none; no position twice.

        Raises:
            ValueError: the shapes do not belong together.
        """
        if image_features.shape[:-1] != image_input_idx.shape or len(image_input_idx) != len(inputs_embeds):
            raise ValueError(
                f"'image_input_idx' must have the shape {tuple(image_features.shape[:-1])} of the image features and "
                f"a batch of {len(inputs_embeds)} (got {tuple(image_input_idx.shape)})"
            )
        batch, length, width = inputs_embeds.shape
        vectors = image_features.flatten(1, 2).to(inputs_embeds.device, inputs_embeds.dtype)
        index = image_input_idx.flatten(1).to(inputs_embeds.device, torch.int64)
        # Turn "vector -> position" round into "position -> vector" and gather: deterministic, without atomics.
        # Position `length` collects the dropped vectors, vector `count` is the zero of positions without one.
        count = index.shape[1]
        order = torch.arange(count, device=index.device).expand(batch, -1)
        source = torch.full((batch, length + 1), count, device=index.device)
        source = source.scatter(1, torch.where(index < 0, length, index), order)[:, :length]
        vectors = nn.functional.pad(vectors, (0, 0, 0, 1))
        return inputs_embeds + vectors.gather(1, source.unsqueeze(-1).expand(-1, -1, width))

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
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> MolmoModelOutputWithPast:
        """Embed, add the image, decode; arguments as of :meth:`MolmoForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of 'input_ids' and 'inputs_embeds' must be given")
        image = (mm_encoder_outputs or {}).get("image")
        if image is not None and pixel_values is not None:
            raise ValueError("only one of 'pixel_values' and 'mm_encoder_outputs' may be given")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            image = self.get_image_features(pixel_values=pixel_values, image_masks=image_masks, return_dict=True)
        if image is not None:
            if image_input_idx is None:
                raise ValueError("an image needs 'image_input_idx', as the processor gives it")
            inputs_embeds = self.add_image_features(inputs_embeds, image.pooler_output, image_input_idx)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)  # padding on either side
            position_ids = positions[:, -inputs_embeds.shape[1] :]
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return MolmoModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=None if image is None else image.pooler_output,
        )

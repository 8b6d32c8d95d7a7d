"""Molmo's connector: padding embeddings, 2x2 attention pooling, SwiGLU projector."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from vlmbench.models.molmo.configuration import MolmoConfig


class MolmoPooling(nn.Module):
    """Attention pooling of a group of patches with their mean as the query; no residual, no norm.

    Args:
        input_size: width of a patch feature (all selected layers).
        hidden_size: width of the vision tower, and of the result.
        num_heads: heads of the vision tower.
    """

    def __init__(self, input_size: int, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(input_size, hidden_size)
        self.k_proj = nn.Linear(input_size, hidden_size)
        self.v_proj = nn.Linear(input_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, groups: torch.Tensor) -> torch.Tensor:
        """(N, group, input_size) -> (N, hidden_size)."""
        n, group, _ = groups.shape
        query = self.q_proj(groups.mean(dim=1))
        head_size = query.shape[-1] // self.num_heads
        # Written out, in float32 as the original: a group has four keys, and fused kernels limit N * heads.
        q = query.view(n, self.num_heads, 1, head_size).float()
        k = self.k_proj(groups).view(n, group, self.num_heads, head_size).transpose(1, 2).float()
        v = self.v_proj(groups).view(n, group, self.num_heads, head_size).transpose(1, 2).float()
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(head_size), dim=-1)
        pooled = (weights @ v).view(n, self.num_heads * head_size).to(query.dtype)
        return self.out_proj(pooled)  # type: ignore[no-any-return]


class MolmoProjector(nn.Module):
    """SwiGLU without biases: ``down(act(gate(x)) * up(x))``."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, act: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(input_size, hidden_size, bias=False)
        self.up_proj = nn.Linear(input_size, hidden_size, bias=False)
        self.down_proj = nn.Linear(hidden_size, output_size, bias=False)
        self.act_fn = ACT2FN[act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., input_size) -> (..., output_size)."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class MolmoConnector(nn.Module):
    """From patch features to vectors of the decoder's width: the whole of the stage ``projector``."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        vision, text = config.vision_config, config.text_config
        inner = config.projector_hidden_size
        assert inner is not None  # the configuration fills it in
        width = vision.hidden_size * len(config.vision_feature_layers)
        self.side = vision.image_size // vision.patch_size
        self.pool_height, self.pool_width = config.pooling_size
        self.pad_embed = nn.Parameter(torch.empty(2, width))  # [wholly padding, partly padding]
        self.pooling = MolmoPooling(width, vision.hidden_size, vision.num_attention_heads)
        self.projector = MolmoProjector(vision.hidden_size, inner, text.hidden_size, config.projector_hidden_act)

    def forward(self, features: torch.Tensor, image_masks: torch.Tensor) -> torch.Tensor:
        """Pool and project.

        Args:
            features: (crops, patches, width), patches in raster order.
            image_masks: (crops, patches), share of a patch's pixels that are not padding; anything below 1 but 0
                (so also -1) counts as partly padding.

        Returns:
            (crops, patches / pooling area, decoder width), raster order.
        """
        masks = image_masks.to(features.device).unsqueeze(-1)
        features = features + self.pad_embed[0] * (masks == 0).to(features.dtype)
        features = features + self.pad_embed[1] * ((masks < 1) & (masks != 0)).to(features.dtype)
        crops, _, width = features.shape
        rows, cols = self.side // self.pool_height, self.side // self.pool_width
        groups = features.view(crops, rows, self.pool_height, cols, self.pool_width, width).transpose(2, 3)
        pooled = self.pooling(groups.reshape(crops * rows * cols, self.pool_height * self.pool_width, width))
        return self.projector(pooled).view(crops, rows * cols, -1)  # type: ignore[no-any-return]

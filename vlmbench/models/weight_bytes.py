"""Bytes that weights take as they lie in memory: quantised ones packed, with their scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def weight_bytes(module: nn.Module) -> int:
    """Bytes that a module's weights take, packed ones as they lie in memory with their scales; shared ones once."""
    return sum({id(tensor): in_memory(tensor) for tensor in module.parameters()}.values())


def in_memory(weight: torch.Tensor) -> int:
    """Bytes of one weight, with the scales that belong to it."""
    return _bytes(weight) + _state_bytes(weight)


def _bytes(tensor: torch.Tensor) -> int:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    return sum(_bytes(getattr(tensor, name)) for name in flatten()[0])


def _state_bytes(tensor: torch.Tensor) -> int:
    """Scales that bitsandbytes keeps beside a packed weight."""
    import torch

    state = getattr(tensor, "quant_state", None)
    parts = (
        [getattr(tensor, "SCB", None)] if state is None else [getattr(state, name, None) for name in ("absmax", "code")]
    )
    return sum(_bytes(part) for part in parts if isinstance(part, torch.Tensor))

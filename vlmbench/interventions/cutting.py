"""Cutting what a language model or a decoder layer is called with down to the positions that stay.

A subset in order of a causal sequence is causal, so no cut ever makes a mask where there was none: the attention
kernels stay those of the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError

if TYPE_CHECKING:
    import torch


def cut_mask(mask: Any, keep: torch.Tensor, length: int) -> Any:
    """An attention mask for the kept positions only, of the same kind.

    Args:
        mask: None, (batch, L), (batch, 1, L, keys), or a mapping of such by kind of layer. With a cache of fixed size
            there are more keys than L; those beyond it stay closed.
        keep: positions that stay, ascending, shape (kept,).

    Raises:
        UnreachablePointError: a mask of another kind.
    """
    import torch

    if mask is None:
        return None
    if isinstance(mask, Mapping):
        return {kind: cut_mask(part, keep, length) for kind, part in mask.items()}
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] == length:
        return mask.index_select(1, keep)
    if isinstance(mask, torch.Tensor) and mask.dim() == 4 and mask.shape[2] == length and mask.shape[3] >= length:
        rows = mask.index_select(2, keep)
        columns = rows.index_select(3, keep)
        free = mask.shape[3] - length
        if not free:
            return columns
        closed = 0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return torch.nn.functional.pad(columns, (0, mask.shape[3] - columns.shape[3]), value=closed)
    shape = tuple(getattr(mask, "shape", ()))
    raise UnreachablePointError(
        f"tokens cannot be dropped under an attention mask of type {type(mask).__name__} {shape}"
    )


def cut_rotation(embeddings: Any, keep: torch.Tensor, length: int) -> Any:
    """Cosine and sine of rotary positions, each (…, L, dim), for the kept positions."""
    if isinstance(embeddings, tuple | list):
        return type(embeddings)(cut_rotation(part, keep, length) for part in embeddings)
    if embeddings is None or embeddings.shape[-2] != length:
        raise UnreachablePointError(
            f"tokens cannot be dropped under rotary embeddings of shape {getattr(embeddings, 'shape', None)}"
        )
    return embeddings.index_select(-2, keep)


def cut_other(name: str, value: Any, keep: torch.Tensor, length: int) -> Any:
    """Any other argument: a tensor (batch, L, …) is cut, one with L elsewhere is refused, the rest is left alone.

    Raises:
        UnreachablePointError: it cannot be told which axis is the sequence.
    """
    import torch

    if not isinstance(value, torch.Tensor) or length not in value.shape:
        return value
    if value.dim() >= 2 and value.shape[1] == length:
        return value.index_select(1, keep)
    raise UnreachablePointError(f"tokens cannot be dropped beside argument '{name}' of shape {tuple(value.shape)}")

"""Attention of one new token over a static cache, and which kernels scaled-dot-product attention chose.

transformers' function repeats keys and values for every group of query heads where a mask is given, which copies the
whole cache in every step of a grouped-query model. cuDNN's kernel takes grouped heads as they are, and shares the cache
among more of the device (28 heads over 4 of 2,048 tokens on an H200: 7.5 us, 44.4 side by side, 44.6 repeated). For
other kernels the queries of a group are laid side by side, as if they were several queries of one head: the same
products, without a copy.
"""

# torch's dispatch modes are not annotated.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

GROUPED = "vlmbench_grouped"


def grouped_attention(  # noqa: PLR0917  # transformers' order of arguments
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with one query a row.

    Args:
        query: (batch, query heads, 1, head size).
        key: (batch, key heads, window, head size).
        value: (batch, key heads, window, value size).
        attention_mask: (batch or 1, 1, 1, window), added to the scores; layers that hold fewer tokens have their own.
        dropout: 0: this is no training.
        scaling: of the scores; None for 1 / sqrt(head size).
        kwargs: what else transformers hands to attention functions.

    Returns:
        (batch, 1, query heads, value size), and no weights.
    """
    for first, mask in _SHORTER:
        if module.layer_idx >= first:
            attention_mask = mask
    if any(kwargs.get(name) is not None for name in _CHANGE_SCORES):  # as without capturing: or refused, or left out
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if _AS_THEY_ARE:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    batch, heads, _, size = query.shape
    side_by_side = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    out = torch.nn.functional.scaled_dot_product_attention(
        side_by_side, key, value, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(batch, 1, heads, value.shape[-1]), None


_CHANGE_SCORES = ("softcap", "s_aux", "position_bias")  # what transformers' own function makes of them is its matter
_SHORTER: list[tuple[int, torch.Tensor]] = []
_AS_THEY_ARE: list[bool] = []  # empty, or one True
_OF_GROUPS = {"scaled_dot_product_cudnn_attention"}


def takes_groups(kernels: Mapping[str, int]) -> bool:
    """Whether all of these kernels take grouped heads with a mask as they are; others would fall back to products.

    Args:
        kernels: as :func:`attention_kernels` names them.
    """
    return set(kernels) == _OF_GROUPS


@contextmanager
def grouped(
    config: Any, shorter: Sequence[tuple[int, torch.Tensor]] = (), *, as_they_are: bool = False
) -> Iterator[bool]:
    """Let a decoder's layers attend by :func:`grouped_attention`; whether they do.

    Only ``sdpa`` is replaced: with ``eager``, what the model's own code does is what was asked for.

    Args:
        config: of the decoder; its layers look the function up there in every call.
        shorter: (first layer, mask) of layers that hold fewer tokens, ascending.
        as_they_are: hand groups of heads to the kernel, which must be one that takes them (:func:`takes_groups`).
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = getattr(config, "_attn_implementation", None)
    if before != "sdpa":
        yield False
        return
    ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, sdpa_mask)
    config._attn_implementation_internal = GROUPED
    _SHORTER[:] = shorter
    _AS_THEY_ARE[:] = [True] * as_they_are
    try:
        yield True
    finally:
        config._attn_implementation_internal = before
        _SHORTER.clear()
        _AS_THEY_ARE.clear()


class _Seen(TorchDispatchMode):
    """Counts the attention operators that run: after PyTorch has chosen, before the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operator, then run it."""
        name = func.overloadpacket.__name__
        if "attention" in name:
            self.names[name.strip("_")] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def attention_kernels() -> Iterator[Mapping[str, int]]:
    """Which of PyTorch's attention operators run within, and how often: ``scaled_dot_product_flash_attention`` …

    ``eager`` attention is made of matrix products and leaves no name.
    """
    seen = _Seen()
    with seen:
        yield seen.names

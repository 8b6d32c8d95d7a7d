"""The masked reference that dropping must equal: nothing is dropped, and dropped tokens are never attended to. Slow.

In every decoder layer attention is written out by hand in float32; from the layer on where a token was dropped its key
is closed to all queries. What the other tokens compute is then, up to rounding, what they compute without it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError
from vlmbench.interventions.attention_row import attention_modules, register, unregister

if TYPE_CHECKING:
    import torch
    from torch import nn

_COUNTER = itertools.count()


@contextmanager
def masked_reference(
    layers: Sequence[nn.Module], keeps: Sequence[torch.Tensor | None], *, length: int
) -> Iterator[None]:
    """Run the decoder layers with hand-written attention that never sees what was dropped.

    Args:
        keeps: of each layer the prompt positions that stay; None for all.

    Raises:
        UnreachablePointError: a layer whose attention cannot be written by hand.
    """
    replaced: list[tuple[Any, Any]] = []
    names: list[str] = []
    try:
        for layer, keep in zip(layers, keeps, strict=True):
            found: list[Any] = list(attention_modules(layer))
            if not found:
                raise UnreachablePointError(f"the attention of {type(layer).__name__} cannot be written by hand")
            name = f"vlmbench_reference_{next(_COUNTER)}"
            register(name, _by_hand(_dropped(keep, length)))
            names.append(name)
            for module in found:
                replaced.append((module, module.config))
                module.config = copy.copy(module.config)
                module.config._attn_implementation_internal = name
        yield
    finally:
        for module, config in replaced:
            module.config = config
        for name in names:
            unregister(name)


def _dropped(keep: torch.Tensor | None, length: int) -> torch.Tensor | None:
    import torch

    if keep is None or keep.shape[0] == length:
        return None
    closed = torch.ones(length, dtype=torch.bool, device=keep.device)
    closed[keep] = False
    return closed.nonzero()[:, 0]


def _by_hand(dropped: torch.Tensor | None) -> Any:
    import torch

    def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:  # noqa: ARG001
        group = query.shape[1] // key.shape[1]
        keys, values = (part.repeat_interleave(group, dim=1).float() for part in (key, value))
        scaling = options.get("scaling")
        scores = query.float() @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if (cap := options.get("softcap")) is not None:
            scores = (scores / cap).tanh() * cap
        closed = torch.finfo(torch.float32).min
        queries, count = scores.shape[-2:]
        if attention_mask is None and queries > 1:
            at = torch.arange(queries, device=scores.device)[:, None]
            scores = scores.masked_fill(torch.arange(count, device=scores.device)[None] > at, closed)
        elif attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask[..., :count], closed)
        elif attention_mask is not None:
            scores = (scores + attention_mask[..., :count].float()).clamp_min(closed)
        if dropped is not None:
            scores[..., dropped] = closed
        # A dropped query may see no key at all: an even mean of all, which no kept token ever reads.
        return (scores.softmax(-1) @ values).to(value.dtype).transpose(1, 2).contiguous(), None

    return attention

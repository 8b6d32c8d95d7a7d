"""A key-value cache that stays at its address, and the lengths at which decode steps attend over it.

transformers' static cache counts its own length in a tensor that every forward advances, so replaying a captured
forward runs over the end. Here the position that a decode step writes to belongs to the caller, and a step sees only
the first ``window`` slots: one captured step per window attends over little more than it must.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer, (batch, heads, capacity, head size), allocated by the first prefill.

    Args:
        capacity: slots.
        slot: shape (1,), int64: where the next decode step writes; shared by all layers and advanced by the caller.
        stored: the cache's list of what the last prefill stored in each layer.
        index: of this layer in it.
    """

    is_compileable = True
    is_sliding = False
    is_croppable = False

    def __init__(self, capacity: int, slot: torch.Tensor, stored: list[int], index: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.slot = slot
        self.window: int | None = None
        self._stored = stored
        self._index = index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots, zeroed: a masked slot must not hold a NaN."""
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros((batch, heads, self.capacity, size))
        self.values = value_states.new_zeros((batch, heads, self.capacity, value_states.shape[-1]))
        self.dtype, self.device, self.batch_size = key_states.dtype, key_states.device, batch
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ARG002  # transformers' signature
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values; what attention reads.

        A prefill (``window`` is None) fills the first slots and reads its own keys, so that causal kernels without a
        mask serve it. A decode step writes one slot and reads the first ``window``.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if self.window is None:
            self._stored[self._index] = length = key_states.shape[-2]
            self.keys[:, :, :length].copy_(key_states)
            self.values[:, :, :length].copy_(value_states)
            return key_states, value_states
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys[:, :, : self.window], self.values[:, :, : self.window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys that attention reads."""
        return (query_length if self.window is None else self.window), 0

    def get_seq_length(self) -> int | torch.Tensor:  # type: ignore[override]  # as transformers' own static layer
        """Tokens that are stored: none before a prefill, else the slot of the next one."""
        return 0 if self.window is None else self.slot[0]

    def get_max_length(self) -> int:
        """Slots."""
        return self.capacity

    def get_max_cache_shape(self) -> int:
        """Slots, by the older name."""
        return self.capacity

    def reset(self) -> None:
        """Make ready for a prefill. What is stored stays: every slot that is read later is written first."""
        self.window = None


class FixedCache(Cache):
    """The layers of one model for one batch size.

    Args:
        layers: how many.
        capacity: slots of each.
        slot: see :class:`FixedLayer`.

    Attributes:
        stored: tokens that the last prefill stored in each layer: by the shapes of its keys. A replay runs no Python,
            so whoever replays puts there what its capture stored.
    """

    def __init__(self, *, layers: int, capacity: int, slot: torch.Tensor) -> None:
        self._slot = slot
        self.stored = [0] * layers
        self.fixed = [FixedLayer(capacity, slot, self.stored, index) for index in range(layers)]
        super().__init__(layers=list(self.fixed))
        self.capacity = capacity

    def look_at(self, window: int | None, shorter: Sequence[tuple[int, int, torch.Tensor]] = ()) -> None:
        """Decode steps over the first ``window`` slots from now on; None: a prefill comes next.

        Args:
            window: slots.
            shorter: (first layer, slots, slot of the next step) of layers that hold fewer tokens, ascending.

        Raises:
            ValueError: more slots than there are.
        """
        if window is not None and not 0 < window <= self.capacity:
            raise ValueError(f"'window' must be between 1 and {self.capacity} (got {window})")
        for layer in self.fixed:
            layer.window, layer.slot = window, self._slot
        for first, fewer, slot in shorter:
            for layer in self.fixed[first:]:
                layer.window, layer.slot = fewer, slot

    def fill_random(self, tokens: int) -> None:
        """Put random keys and values into the first slots of every layer, which a prefill has allocated."""
        for layer in self.fixed:
            for held in (layer.keys, layer.values):
                if held is not None:  # a layer may use another's
                    held[:, :, :tokens].normal_()

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        tensors = [t for layer in self.fixed for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)


def window_for(length: int, *, step: int) -> int:
    """The shortest window that holds ``length`` tokens: a multiple of ``step``."""
    return -(-length // step) * step


Spans = tuple[tuple[int, int], ...]
"""(first layer, tokens or slots) of each run of layers that hold as many tokens, from layer 0 on."""


def spans_of(stored: Sequence[int]) -> Spans:
    """Runs of layers that hold as many tokens."""
    return tuple((at, held) for at, held in enumerate(stored) if at == 0 or held != stored[at - 1])


def windows_after(held: Spans, tokens: int, *, step: int) -> tuple[Spans, int]:
    """The windows of the decode step that is the ``tokens``-th after ``held``, and the last step that they hold."""
    windows = tuple((first, window_for(count + tokens, step=step)) for first, count in held)
    return windows, min(window - count for (_, window), (_, count) in zip(windows, held, strict=True))


def windows(held: Spans, steps: int, *, step: int) -> Iterator[Spans]:
    """The windows that so many decode steps after ``held`` tokens need, in order."""
    tokens = 0
    while tokens < steps:
        needed, tokens = windows_after(held, tokens + 1, step=step)
        yield needed

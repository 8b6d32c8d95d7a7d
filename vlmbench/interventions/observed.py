"""How many vision tokens each decoder layer really kept: read from the key-value cache's own lengths after a run."""

from __future__ import annotations

import itertools
from typing import Any

from vlmbench.errors import MeasurementError


def kept_by_layer(cache: Any, *, text: int, num_output_tokens: int, method: str) -> list[int]:
    """Vision tokens in each layer's cache.

    Args:
        cache: of the run, as it left it: prompt tokens that stayed, and all new ones but the last. One that stays at
            its address says itself what the prefill stored.
        text: prompt tokens that are no vision tokens.

    Raises:
        MeasurementError: no cache was seen, so nothing says that the method did anything.
    """
    layers = getattr(cache, "layers", None)
    if not layers:
        raise MeasurementError(f"{method}: its hook never ran, or the run had no key-value cache: nothing was dropped")
    if (stored := getattr(cache, "stored", None)) is not None:
        return [length - text for length in stored]
    return [int(layer.get_seq_length()) - (num_output_tokens - 1) - text for layer in layers]


def in_words(counts: list[int]) -> str:
    """``576x2,288x30``: tokens × layers, first layer first."""
    return ",".join(f"{count}x{len(list(same))}" for count, same in itertools.groupby(counts))


def kept_values(counts: list[int]) -> dict[str, Any]:
    """The columns of a row: per layer in words, the mean over layers, and what the last layer has."""
    return {
        "kept_by_layer": in_words(counts),
        "num_vision_tokens_kept": counts[-1],
        "num_vision_tokens_kept_mean": round(sum(counts) / len(counts), 3),
    }

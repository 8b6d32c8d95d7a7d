"""Runs that begin over a cache: a decode at a given length without the prefill that it would take.

The cache's layout (heads, sizes, windows of single layers) is read off a prefill of a few tokens. Before the first such
run a model proves that it goes on from a cache as if the prompt had been prefilled with it.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vlmbench.errors import UnreachablePointError

if TYPE_CHECKING:
    from vlmbench.models.protocol import Prepared

LAYOUT_TOKENS = 2
"""Tokens that are prefilled to learn a cache's layout; the model forgets the positions of an earlier image, too."""
_PROOF_TOKENS = 16
_LEAST_ROUNDING = 1e-4  # of the largest logit: float32 in another order of summing
_ROUNDING_STEPS = 4  # of the number format


def random_ids(tokenizer: Any, words: list[str], tokens: int) -> list[int]:
    """Token ids of ordinary words, as many as are asked for; none of them is a special token."""
    found: list[int] = []
    while len(found) < tokens:
        found += [index for word in words for index in tokenizer(f" {word}", add_special_tokens=False).input_ids]
    return found[:tokens]


def refuse_unfit(module: Any, *, why: str) -> None:
    """Refuse a model whose decode steps a cache of keys and values does not stand for.

    Args:
        why: the axis that asks for it.

    Raises:
        UnreachablePointError: with the reason.
    """
    config, name = module.config, type(module).__name__
    if config.is_encoder_decoder:
        raise UnreachablePointError(f"{why}: {name} is an encoder-decoder, whose second cache holds the prompt")
    if getattr(config.get_text_config(decoder=True), "cross_attention_layers", None):
        raise UnreachablePointError(f"{why}: {name} reads the image by cross-attention, which is not in the cache")


def fill_random(module: Any, prepared: Prepared) -> Any:
    """A cache that holds ``prepared.cached.tokens`` tokens of random keys and values, in the model's own layout.

    A layer with a window holds no more than it would after a prefill.

    Raises:
        UnreachablePointError: a layer keeps something else than keys and values.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    assert prepared.cached is not None
    cache = prefilled(module, first_tokens(prepared.inputs, LAYOUT_TOKENS))
    shapes = []
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnreachablePointError(
                f"kv_length: layers of {type(module).__name__} keep more than keys and values ({type(layer).__name__})"
            )
        shapes.append((layer.keys, layer.values) if layer.is_initialized else None)  # one may use another's keys
    cache.reset()
    for layer, like in zip(cache.layers, shapes, strict=True):
        if like is not None:
            layer.update(*(_random_like(one, prepared.cached.tokens) for one in like))
    return cache


def _random_like(one: torch.Tensor, tokens: int) -> torch.Tensor:
    """(batch, heads, tokens, size) of the device and dtype of ``one``."""
    batch, heads, _, size = one.shape
    return torch.randn((batch, heads, tokens, size), dtype=one.dtype, device=one.device)


def first_tokens(inputs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The inputs of a text cut to its first tokens."""
    return {name: value[:, :tokens] for name, value in inputs.items()}


@torch.inference_mode()
def prefilled(module: Any, inputs: Mapping[str, Any]) -> Any:
    """The cache that the model's own prefill of some inputs leaves."""
    done = module.generate(**inputs, max_new_tokens=1, min_new_tokens=1, return_dict_in_generate=True)
    return done.past_key_values


def prove(module: Any, whole: Mapping[str, Any], rest: Mapping[str, Any], cache: Any) -> str | None:
    """Compare the first logits after a prefill of everything with those after going on from a cache.

    Args:
        whole: inputs of ``generate`` from an empty cache.
        rest: those that go with the cache.
        cache: holds the first positions of ``whole``.

    Returns:
        What differs, in words; None where nothing does.
    """
    over = _logits(module, {**rest, "past_key_values": cache})
    full = _logits(module, whole)
    rounding = max(_LEAST_ROUNDING, _ROUNDING_STEPS * torch.finfo(next(module.parameters()).dtype).eps)
    error, tolerance = float((over - full).abs().max()), rounding * float(full.abs().max())
    if error <= tolerance:
        return None
    return f"its logits over a cache differ by {error:.2g} from a prefill's, where rounding explains {tolerance:.2g}"


def proof_of_text(module: Any, inputs: Mapping[str, Any]) -> str | None:
    """:func:`prove` on the first tokens of a text."""
    whole = first_tokens(inputs, _PROOF_TOKENS)
    held = int(whole["input_ids"].shape[1]) - 1
    return prove(module, whole, whole, prefilled(module, first_tokens(whole, held)))


@torch.inference_mode()
def _logits(module: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    done = module.generate(
        **inputs, max_new_tokens=1, min_new_tokens=1, output_logits=True, return_dict_in_generate=True
    )
    logits: torch.Tensor = done.logits[0].float()
    return logits

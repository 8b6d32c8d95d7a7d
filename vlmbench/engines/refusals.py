"""Which models the loop of our own cannot drive, each with the reason: refused by name before anything is measured."""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from vlmbench.errors import ModelError


def refuse_unfit(module: Any) -> None:
    """Check what can be told from the class and its configuration.

    Raises:
        ModelError: the reasons, and what to do.
    """
    if reasons := list(_reasons(module)):
        refuse(module, "; ".join(reasons))


def decoder_layers(module: Any) -> int:
    """How many layers of the decoder store keys and values."""
    from transformers import StaticCache

    config = module.config.get_text_config(decoder=True)
    return len(StaticCache(config=config, max_cache_len=8).layers)


def refuse(module: Any, why: str) -> NoReturn:
    """Refuse a model by name.

    Raises:
        ModelError: always.
    """
    raise ModelError(f"runtime=cudagraph cannot run {type(module).__name__}: {why}.\nTake runtime=eager or compiled.")


def _reasons(module: Any) -> Iterator[str]:
    from transformers import GenerationMixin, StaticCache
    from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

    config = module.config
    if not isinstance(module, GenerationMixin):
        yield "it does not generate"
        return
    if config.is_encoder_decoder:
        yield "an encoder-decoder has a second cache"
        return
    if type(module).generate is not GenerationMixin.generate:
        yield "its class has a generate() of its own"
    if type(module)._sample is not GenerationMixin._sample:
        yield "its class chooses tokens in a way of its own"
    text = config.get_text_config(decoder=True)
    if getattr(text, "cross_attention_layers", None):
        yield "its decoder reads the image by cross-attention, which is not in the cache"
    try:
        layers = StaticCache(config=text, max_cache_len=8).layers
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        yield f"transformers has no static cache for it ({error})"
        return
    kinds = {type(layer) for layer in layers} - {StaticLayer, StaticSlidingWindowLayer}
    if kinds:
        yield f"its decoder keeps more than keys and values ({', '.join(sorted(kind.__name__ for kind in kinds))})"
    attention = getattr(text, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        yield f"attn_implementation must be sdpa or eager (got {attention})"

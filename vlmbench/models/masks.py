"""Attention masks that are made before a class runs, one for each kind of layer: what a cache that stays asks for.

transformers makes them for every such cache, by what kinds of layer the decoder's configuration names. Most classes
take them; PaliGemma's (5.17 to 5.23) makes its own all the same, by functions that refuse several masks, so a decoder
with a sliding window (PaliGemma 2) fails with a static cache, whoever runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any


def take_made_masks(module: Any) -> None:
    """Let the functions by which a model's class makes masks hand out those that it was given; for the whole process.

    Nothing changes for a class that is given one mask, or looks for itself what it was given.

    Args:
        module: the top-level model.
    """
    from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING

    names = vars(sys.modules[type(module).__module__])
    for kind, make in LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING.items():
        name = getattr(make, "__name__", None)  # of some kinds: several functions, or one with arguments
        if name is not None and names.get(name) is make:
            names[name] = _handing_out(kind, names[name])


def _handing_out(kind: str, make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("attention_mask")
        return given[kind] if isinstance(given, dict) else make(*args, **kwargs)

    return made

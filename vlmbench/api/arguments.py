"""Arguments of the Python API against what their annotations say, before anything is loaded or measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from os import PathLike
from typing import Any

from vlmbench.errors import ConfigError, VlmbenchError

_Test = Callable[[Any], bool]


def _is_two_numbers(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_whole(one) and one > 0 for one in value)


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and -(2**63) <= int(value) < 2**63


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


# Annotations are texts here, and what they name may not be imported yet: those that are not listed are not looked at.
_KINDS: Mapping[str, tuple[_Test, str]] = {
    "int": (_is_whole, "a whole number of 64 bits"),
    "float": (_is_number, "a number"),
    "str": (lambda value: isinstance(value, str), "text"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "None": (lambda value: value is None, "None"),
    "Path": (lambda value: isinstance(value, PathLike), "a path"),
    "Mapping[str, Any]": (
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
        "a mapping with texts as keys",
    ),
    "tuple[int, int]": (_is_two_numbers, "(width, height), whole numbers above 0"),
}


def check(
    annotations: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    least: Mapping[str, float] | None = None,
    most: Mapping[str, int] | None = None,
    error: type[VlmbenchError] = ConfigError,
) -> None:
    """Refuse an argument of the wrong type, or one that is too small or too large.

    Args:
        annotations: name to annotation as it is written.
        given: name to value; others than those with an annotation are left out.
        least: name to the least value that a number may have.
        most: name to the largest that a number, or the larger one of two, may be.

    Raises:
        VlmbenchError: such an argument, as ``error``; the message says what is wanted.
    """
    for name, value in given.items():
        kinds = [_KINDS.get(one) for one in str(annotations.get(name, "")).split(" | ")]
        known = [kind for kind in kinds if kind is not None]
        if known and len(known) == len(kinds) and not any(test(value) for test, _ in known):
            raise error(f"'{name}' must be {' or '.join(words for _, words in known)} (got {value!r})")
        if isinstance(value, Real) and value < (least or {}).get(name, -math.inf):
            raise error(f"'{name}' must be {(least or {})[name]:g} or more (got {value})")
        largest: Any = max(value) if isinstance(value, tuple | list) and known and _is_two_numbers(value) else value
        if isinstance(largest, Real) and float(largest) > (most or {}).get(name, math.inf):
            raise error(f"'{name}' must be {(most or {})[name]:,} or less (got {largest:,})")


def check_model(model: Any) -> None:
    """Refuse what is no loaded model.

    Raises:
        ConfigError: such a thing.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"'model' must be a loaded model, the first of what vlmbench.load gives (got {type(model).__name__})"
        )

"""What the module tree and the code of a model tell without running it: who lies in whom, who uses whom.

The order in which a ``forward`` uses its children is read from its byte code, so that no source file is needed.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def called_names(function: Any) -> list[str]:
    """Names of attributes and methods that a function's code refers to, in the order of first use.

    Decorators that keep ``__wrapped__`` are looked through; nested functions count as part of the code.
    """
    function = getattr(function, "fget", None) or getattr(function, "__func__", function)
    function = inspect.unwrap(function) if callable(function) else None
    code = getattr(function, "__code__", None)
    names: list[str] = []
    todo = [code] if code is not None else []
    while todo:
        part = todo.pop(0)
        names += [name for name in part.co_names if name not in names]
        todo += [const for const in part.co_consts if isinstance(const, types.CodeType)]
    return names


def children_used(owner: nn.Module, method: str, *, depth: int = 3) -> list[tuple[str, nn.Module]]:
    """(name, child) of ``owner`` that its ``method`` refers to, in the order of first use.

    Methods and properties of the same object that it uses are followed, ``depth`` uses deep.
    """
    children = dict(owner.named_children())
    found: dict[str, nn.Module] = {}
    seen = {method}

    def walk(name: str, left: int) -> None:
        for used in called_names(getattr(type(owner), name, None)):
            if used in children:
                found.setdefault(used, children[used])
            elif (
                left
                and used not in seen
                and isinstance(getattr(type(owner), used, None), types.FunctionType | property)
            ):
                seen.add(used)
                walk(used, left - 1)

    walk(method, depth)
    return list(found.items())


def contains(outer: nn.Module, inner: nn.Module) -> bool:
    """Whether ``inner`` is ``outer`` or lies inside it."""
    return any(part is inner for part in outer.modules())


def strictly_contains_any(outer: nn.Module, inners: Iterable[nn.Module]) -> bool:
    """Whether one of ``inners`` lies inside ``outer`` and is not ``outer`` itself."""
    return any(inner is not outer and contains(outer, inner) for inner in inners)


def outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules that lie in no other of them, doubles dropped, in the order given."""
    unique = list({id(m): m for m in modules}.values())
    return [m for m in unique if not any(o is not m and contains(o, m) for o in unique)]


def size(module: nn.Module) -> int:
    """Number of parameters, shared ones counted once."""
    return sum(p.numel() for p in module.parameters())


def ask(module: nn.Module, method: str, **kwargs: str) -> nn.Module | None:
    """What a ``get_...`` method answers; None where there is no such method or no answer."""
    from torch import nn

    getter: Callable[..., object] | None = getattr(module, method, None)
    if getter is None:
        return None
    try:
        answer = getter(**kwargs)
    except (TypeError, NotImplementedError, AttributeError):
        return None  # an older signature, or a model without such a part
    return answer if isinstance(answer, nn.Module) else None


def base_of(module: nn.Module) -> nn.Module:
    """transformers' ``base_model`` of a model (the model without its head), else the module itself."""
    from torch import nn

    base = getattr(module, "base_model", None)
    return base if isinstance(base, nn.Module) else module


def _modalities(module: nn.Module) -> set[str]:
    declared = getattr(type(module), "input_modalities", ())
    return {declared} if isinstance(declared, str) else set(declared)


def takes_images_only(module: nn.Module) -> bool:
    """Whether its class declares images (and videos) as the only thing it reads."""
    return bool(_modalities(module)) and "image" in _modalities(module) and _modalities(module) <= {"image", "video"}


def is_norm_only(module: nn.Module) -> bool:
    """Whether a module has parameters and all have one axis: a norm, a scale, a bias."""
    shapes = [p.dim() for p in module.parameters()]
    return bool(shapes) and max(shapes) < 2


def callable_parts(module: nn.Module) -> list[nn.Module]:
    """A list of modules has no ``forward`` of its own: its items stand for it."""
    from torch import nn

    return list(module) if isinstance(module, nn.ModuleList) else [module]


def arguments(function: Any) -> set[str]:
    """Names of a function's arguments, decorators looked through; empty where they cannot be read."""
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()

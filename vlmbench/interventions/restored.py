"""Whether a method left the model as it was: what it leaves would be measured in every run that follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnrestoredModelError

if TYPE_CHECKING:
    from torch import nn

_REPLACED = ("forward", "generate")  # what methods replace on a module by an attribute of its own
_WHAT = ("a hook before the forward", "a hook after the forward", *(f"'{name}'" for name in _REPLACED))
_State = dict[Any, tuple[Any, ...]]


@contextmanager
def restored(module: nn.Module, method: str) -> Iterator[None]:
    """Hold a model against what it was before a method ran on it, outside any clock.

    Looked at are the modules, their forward hooks, and ``forward`` and ``generate`` that stand on one of them.

    Args:
        module: the whole model, without the method.
        method: its name.

    Raises:
        UnrestoredModelError: something was left on the model, or taken from it.
    """
    before = _state(module)
    try:
        yield
    except Exception as error:
        if left := _difference(module, before):
            raise UnrestoredModelError(_words(method, left)) from error
        raise
    if left := _difference(module, before):
        raise UnrestoredModelError(_words(method, left))


def _state(module: nn.Module) -> _State:
    """By module, in the order of ``_WHAT``: the numbers of its hooks, and what was replaced on it.

    It is asked for twice a run, so it names no paths: ``named_modules`` takes several times as long.
    """
    found: _State = {}
    parts: list[Any] = [module]
    while parts:
        part = parts.pop()
        if part is None or part in found:
            continue
        own = part.__dict__
        hooks = (tuple(own["_forward_pre_hooks"]), tuple(own["_forward_hooks"]))
        found[part] = (*hooks, *(own.get(name) for name in _REPLACED))
        parts += own["_modules"].values()
    return found


def _difference(module: nn.Module, before: _State) -> str:
    """What differs first, and at which module; empty where all is as it was."""
    after = _state(module)
    paths = {part: path for path, part in module.named_modules()} if after != before else {}
    for part, path in paths.items():
        if part not in before:
            return f"'{path}' is another module"
        for what, then, now in zip(_WHAT, before[part], after[part], strict=True):
            if then != now:
                return f"{what} of '{path or 'the whole model'}'"
    return f"a {type(next(iter(before.keys() - after.keys()))).__name__} is missing" if paths else ""


def _words(method: str, left: str) -> str:
    return (
        f"method '{method}' left the model changed: {left}\n"
        "Its detach() must undo all that it did: whatever is left would be measured in every run that follows."
    )

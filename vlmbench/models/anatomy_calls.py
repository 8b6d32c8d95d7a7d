"""Record which modules of a model a run calls, in which order and on what shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]


@dataclass(kw_only=True)
class Call:
    """One run of a module's ``forward``.

    Args:
        path: the module's dotted path.
        enter, leave: positions in the sequence of all entries and exits of the run.
        enter_ns, leave_ns: host clock (``perf_counter_ns``) there; on a GPU these are launch times.
        inputs: shape of every floating-point tensor among its arguments, by position or name.
        ids: shape of every integer tensor among its arguments, by position or name.
        outputs: shape of every tensor in what it returned, in order.
    """

    path: str
    enter: int
    leave: int = -1
    enter_ns: int = 0
    leave_ns: int = 0
    inputs: Mapping[str, Shape] = field(default_factory=dict)
    ids: Mapping[str, Shape] = field(default_factory=dict)
    outputs: tuple[Shape, ...] = ()

    @property
    def length(self) -> int | None:
        """Sequence length of what a language model was given; None where no argument looks like a sequence."""
        for name in ("inputs_embeds", "hidden_states", "input_ids", "decoder_input_ids", "decoder_inputs_embeds", "0"):
            shape = self.inputs.get(name) or self.ids.get(name)
            if shape and len(shape) > 1:
                return shape[1]
        return None


def record_calls(module: nn.Module, run: Callable[[], object]) -> list[Call]:
    """Every call of every module below the top one during ``run()``, in the order of entry.

    Modules inside a repeated layer (an item of a list of layers) are not followed; the layers themselves are. Hooks are
    removed whatever happens; a call that raises is not recorded.
    """
    calls: list[Call] = []
    clock = iter(range(1 << 62))
    with _hooks(module, calls, clock):
        run()
    return [call for call in calls if call.leave >= 0]


@contextmanager
def _hooks(module: nn.Module, calls: list[Call], clock: Iterator[int]) -> Iterator[None]:
    open_calls: dict[str, list[Call]] = {}
    handles: list[Any] = []

    def before(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            floats, ids = _tensors({**{str(i): a for i, a in enumerate(args)}, **kwargs})
            call = Call(path=path, enter=next(clock), enter_ns=time.perf_counter_ns(), inputs=floats, ids=ids)
            calls.append(call)
            open_calls.setdefault(path, []).append(call)

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> None:
            call = open_calls[path].pop()
            call.leave, call.leave_ns = next(clock), time.perf_counter_ns()
            call.outputs = tuple(tuple(t.shape) for t in _flat(output))

        return hook

    try:
        for path, part in _watched(module):
            handles.append(part.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(part.register_forward_hook(after(path), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watched(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of what is watched: everything but the insides of repeated layers."""
    layers = [
        path
        for path, part in module.named_modules()
        if type(part).__name__ == "ModuleList" and len(list(part.children())) > 1
    ]
    for path, part in module.named_modules():
        deep = any(path.startswith(layer + ".") and "." in path[len(layer) + 1 :] for layer in layers)
        if path and not deep:
            yield path, part


def _flat(value: Any) -> Iterator[Any]:
    """The tensors in nested tuples, lists and mappings, one after another."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _flat(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)


def _tensors(arguments: Mapping[str, Any]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Shapes of the first floating-point and of the first integer tensor of each argument."""
    floats: dict[str, Shape] = {}
    ids: dict[str, Shape] = {}
    for name, value in arguments.items():
        for tensor in _flat(value):
            (floats if tensor.is_floating_point() else ids).setdefault(name, tuple(tensor.shape))
    return floats, ids

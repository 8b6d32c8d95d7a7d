"""A recorder for CPUs with the rules of CUDA graphs: operators are noted once and run again on the same tensors.

No Python of the model runs in a replay, every tensor keeps its address, and a value that the host reads is an error
while recording, unless it is one of the constants that are handed out. What a real graph would get wrong (a length counted in Python, an input that moved) gives wrong tokens
here as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten

from vlmbench.engines.capture import as_uncaptured, unseen
from vlmbench.engines.constants import _Handing

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal")


class _Noting(TorchDispatchMode):
    """Notes operators; those that would wait for the device are errors."""

    def __init__(self, tape: list[Callable[[], Any]] | None) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _WAITS or (name in {"index", "index_put_"} and _by_mask(args[1])):
            raise RuntimeError(f"called a synchronizing operation: {name}")
        out = func(*args, **kwargs)
        if self.tape is not None:
            self.tape.append(_again(func, args, kwargs, out))
        return out


class _Reading(TorchFunctionMode):
    """Reading a list from a tensor, which no dispatch mode sees, would wait for the device as well."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist:
            handing = [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, _Handing)]
            if not any(mode.holds(args[0]) for mode in handing):
                raise RuntimeError("called a synchronizing operation: tolist")
        return func(*args, **(kwargs or {}))


def _by_mask(indices: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> Callable[[], None]:
    views = [ret.alias_info is not None and not ret.alias_info.is_write for ret in func._schema.returns]
    if views and all(views):
        return lambda: None  # a view of memory that is written by others
    writes = any(ret.alias_info is not None for ret in func._schema.returns)

    def again() -> None:
        new = func(*args, **kwargs)
        if not writes:
            for old, fresh in zip(tree_flatten(out)[0], tree_flatten(new)[0], strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(fresh)

    return again


class Replaying:
    """See the module."""

    captures = True

    def __init__(self) -> None:
        self._noting: _Noting | None = None
        self.replays = 0

    @property
    def recording(self) -> bool:
        return self._noting is not None

    def obstacle(self, work: Callable[[], Any]) -> str | None:
        work()
        try:
            with _Reading(), _Noting(None):
                work()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return str(error)
        return None

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        tape: list[Callable[[], Any]] = []
        self._noting = _Noting(tape)
        try:
            with as_uncaptured(), _Reading(), self._noting:
                result = work()
        finally:
            self._noting = None

        def play() -> Any:
            self.replays += 1
            for piece in tape:
                piece()
            return result

        return play

    def nested(self, work: Callable[[], Any], again: Callable[[Callable[[], Any]], Any]) -> Any:
        assert self._noting is not None
        tape: list[Callable[[], Any]] = []
        outer, self._noting.tape = self._noting.tape, tape
        assert outer is not None
        outer.append(lambda: again(lambda: [piece() for piece in tape]))
        _seeds_for_a_graph()
        result = work()
        self._noting.tape = outer
        _seeds_for_a_graph()
        return result


def _seeds_for_a_graph() -> None:
    """Operators that CUDA runs by itself where a graph begins: they belong to nobody's work."""
    with unseen():
        torch.empty(1, dtype=torch.int64).fill_(0)

"""What a stage's code makes of its small integer inputs alone: kept once, handed out while the rest is captured.

Towers for images of any size read their grid on the host: lengths of windows, an order of patches, positions. A CUDA
graph cannot. But as long as the contents of these inputs stay, so does all that is made of them and of nothing else.
Operators are followed one by one: those that see only constants are run once, beforehand, and in the capture their
results are handed out in the same order, each only where it is asked for in the same way. What reads pixels or weights
is captured as it is.
"""

# torch's modes are not annotated.
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

T = TypeVar("T")

_ATEN = torch.ops.aten
_LIFTS = (_ATEN.lift_fresh, _ATEN.lift_fresh_copy, _ATEN.lift)  # what Python values become tensors by
_BY_INDEX = (_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_)
_MOST_PASSES = 20


@dataclass(kw_only=True)
class _Kept:
    """One operator that saw only constants: what it was asked, and what it gave."""

    func: Any
    asked: list[Any]
    written: bool
    out: Any


@dataclass(kw_only=True)
class Constants:
    """The constants of one piece of work.

    Args:
        roots: tensors whose contents stay; what depends on nothing else is constant.
    """

    roots: Sequence[torch.Tensor]
    kept: dict[int, _Kept] = field(init=False, default_factory=dict)  # by the number of the operator
    instead: dict[int, Mapping[int, list[torch.Tensor]]] = field(init=False, default_factory=dict)
    operators: int = field(init=False, default=0)

    def learn(self, work: Callable[[], Any]) -> None:
        """Run the work until it is known what is constant in it.

        Raises:
            RuntimeError: it writes to its inputs.
        """
        own: set[int] = set()  # operators whose results the work writes to: they belong to it
        for _ in range(_MOST_PASSES):
            self.kept.clear()
            self.instead.clear()
            learning = _Learning(self, own)
            with _MadeOnHost(), learning:
                work()
            if not learning.written:
                self.operators = learning.count
                return
            own |= learning.written
        raise RuntimeError("which of its values are constant differs from run to run")

    def handed_out(self, work: Callable[[], T]) -> Callable[[], T]:
        """The work with its constants in place of what makes them.

        Returns:
            Raises a RuntimeError when called where the work takes another path than the one that was learned.
        """

        def handed() -> T:
            handing = _Handing(self)
            with _MadeOnHost(), handing:
                answer = work()
            if handing.count != self.operators:
                raise RuntimeError(f"its code ran {handing.count} operators, and {self.operators} before")
            # Whoever gets the answer may write to it.
            copied: T = tree_map(lambda leaf: leaf.clone() if handing.holds(leaf) else leaf, answer)
            return copied

        return handed


class _MadeOnHost(TorchFunctionMode):
    """Tensors of Python values are made on the host and then copied: only so do dispatch modes see the copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make on the host, or run as it is."""
        kwargs = dict(kwargs or {})
        if func in {torch.tensor, torch.as_tensor}:
            device = kwargs.pop("device", None)
            if args and isinstance(args[0], torch.Tensor):  # no Python values: a copy
                made = args[0].to(kwargs.get("dtype") or args[0].dtype, copy=func is torch.tensor)
            else:
                made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func is torch.Tensor.new_tensor:
            like, *values = args
            device = kwargs.pop("device", None)
            made = torch.tensor(*values, **{"dtype": like.dtype, **kwargs})
            return made.to(like.device if device is None else device)
        if func is torch.Tensor.tolist:
            return func(args[0].cpu())
        return func(*args, **kwargs)


class _Following(TorchDispatchMode):
    """Follows which storages hold constants, and counts operators."""

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.constants = constants
        self.count = 0
        self._held = {_storage(root) for root in constants.roots}
        self._alive: list[Any] = []  # a storage that was given back could come again as another

    def holds(self, leaf: Any) -> bool:
        """Whether this is a constant tensor."""
        return isinstance(leaf, torch.Tensor) and _storage(leaf) in self._held

    def hold(self, out: Any) -> None:
        """Take note of a constant."""
        self._alive.append(out)
        self._held.update(map(_storage, _tensors(out)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator, and run it or not."""
        if not isinstance(func, torch._ops.OpOverload):
            raise RuntimeError(f"what {func} reads and writes is not known")
        if func.overloadpacket is _ATEN.detach:  # torch's own, where somebody else holds what an operator gave
            return func(*args, **(kwargs or {}))
        number, self.count = self.count, self.count + 1
        return self.follow(number, func, args, kwargs or {})

    def follow(self, number: int, func: Any, args: Any, kwargs: Any) -> Any:
        """One operator."""
        raise NotImplementedError

    def run(self, number: int, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator of the work, with what stands in for constants that it cannot be captured with."""
        instead = self.constants.instead.get(number)
        if not instead:
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        indices = len(args[1]) if func.overloadpacket in _BY_INDEX else 0
        for at, tensors in instead.items():
            leaves[at] = tensors if 1 <= at <= indices else tensors[0]
        args, kwargs = tree_unflatten(leaves, spec)
        if indices:
            args = (args[0], [one for index in args[1] for one in _listed(index)], *args[2:])
        return func(*args, **kwargs)


class _Learning(_Following):
    """Runs everything and keeps what is constant.

    Attributes:
        written: operators that made, or wrote to, what the work wrote to as well: no constants.
    """

    def __init__(self, constants: Constants, own: set[int]) -> None:
        super().__init__(constants)
        self.written: set[int] = set()
        self._own = own
        self._inputs = frozenset(self._held)
        self._makers: dict[int, set[int]] = {}
        self._read: set[int] = set()  # storages that the work has read: they must stay as they were then

    def follow(self, number: int, func: Any, args: Any, kwargs: Any) -> Any:
        """Run it, and keep what it gives where it saw only constants."""
        asked = tree_flatten((args, kwargs))[0]
        written = {_storage(tensor) for tensor in _written(func, args, kwargs)}
        if written & self._inputs:
            raise RuntimeError(f"its code writes to its inputs ({func})")
        if number not in self._own and self._constant(func, asked):
            for storage in written & self._read:
                self.written |= {number, *self._makers[storage]}
            kept = [_fresh(leaf) if func.overloadpacket in _LIFTS else leaf for leaf in asked]
            out = func(*args, **kwargs)
            self.hold((kept, out))
            for storage in {*written, *map(_storage, _tensors(out))} - self._inputs:
                self._makers.setdefault(storage, set()).add(number)
            self.constants.kept[number] = _Kept(func=func, asked=kept, written=bool(written), out=out)
            return out if written else _aliases(out)
        for storage in written & self._held:
            self.written |= self._makers.get(storage, set())
        self._read.update(_storage(leaf) for leaf in asked if self.holds(leaf))
        self.constants.instead[number] = self._instead(func, args, asked)
        return self.run(number, func, args, kwargs)

    def _constant(self, func: Any, asked: Sequence[Any]) -> bool:
        if torch.Tag.nondeterministic_seeded in func.tags:
            return False
        if func.overloadpacket in _LIFTS:
            return True
        return all(self.holds(leaf) for leaf in asked if isinstance(leaf, torch.Tensor))

    def _instead(self, func: Any, args: Any, asked: Sequence[Any]) -> Mapping[int, list[torch.Tensor]]:
        """For constants that a capture would have to copy from the host, or count: what can be captured."""
        devices = [leaf.device for leaf in asked if isinstance(leaf, torch.Tensor)]
        device = next((device for device in devices if device.type != "cpu"), None)
        copies = func.overloadpacket is _ATEN.copy_
        indices = len(args[1]) if func.overloadpacket in _BY_INDEX else 0
        found: dict[int, list[torch.Tensor]] = {}
        for at, leaf in enumerate(asked):
            if not self.holds(leaf):
                continue
            mask = 1 <= at <= indices and leaf.dtype in {torch.bool, torch.uint8}
            tensors = list(leaf.nonzero().unbind(1)) if mask else [leaf]
            if device is not None and (copies or leaf.dim()):  # a number is part of the kernel's call
                tensors = [tensor.to(device) for tensor in tensors]
            if mask or tensors[0] is not leaf:
                found[at] = tensors
        self.hold(list(found.values()))
        return found


class _Handing(_Following):
    """Runs what is not constant, and hands out what is."""

    def __init__(self, constants: Constants) -> None:
        super().__init__(constants)
        for kept in constants.kept.values():
            self.hold((kept.asked, kept.out))

    def follow(self, number: int, func: Any, args: Any, kwargs: Any) -> Any:
        """Hand out, or run."""
        kept = self.constants.kept.get(number)
        if kept is None:
            return self.run(number, func, args, kwargs)
        asked = tree_flatten((args, kwargs))[0]
        same = len(asked) == len(kept.asked) and all(map(_same, asked, kept.asked))
        if kept.func is not func or not same:
            raise RuntimeError(f"its code took another path when it was captured: {func} in place of {kept.func}")
        return next(_written(func, args, kwargs)) if kept.written else _aliases(kept.out)


def small_integers(leaves: Sequence[Any], most: int = 65536) -> list[int]:
    """Which of a stage's inputs say how it goes about its work: grids, sizes, masks of patches."""
    return [
        at
        for at, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        and not (leaf.is_floating_point() or leaf.is_complex())
        and 0 < leaf.numel() <= most
    ]


def contents(leaves: Sequence[Any], numbers: Sequence[int]) -> bytes:
    """What these tensors hold, as far as their shapes and types do not say it; waits for the device."""
    return b"".join(leaves[at].cpu().numpy().tobytes() for at in numbers)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor))


def _aliases(out: Any) -> Any:
    """Views of all of what an operator gave: autograd marks what it hands on, and does not take it a second time."""
    return tree_map(lambda leaf: _ATEN.alias(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)


def _storage(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The tensors that an operator writes to."""
    for at, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[at] if at < len(args) else kwargs.get(argument.name))


def _listed(index: Any) -> list[Any]:
    return index if isinstance(index, list) else [index]


def _fresh(leaf: Any) -> Any:
    """The values of a tensor that was just made of them."""
    return (leaf.dtype, leaf.tolist()) if isinstance(leaf, torch.Tensor) else leaf


def _same(asked: Any, kept: Any) -> bool:
    """Whether an argument is the one of before: the same view of the same constant, or an equal value."""
    if not isinstance(asked, torch.Tensor):
        return type(asked) is type(kept) and bool(asked == kept)
    if not isinstance(kept, torch.Tensor):
        return bool((asked.dtype, asked.tolist()) == kept)
    return _storage(asked) == _storage(kept) and (asked.shape, asked.dtype, asked.stride(), asked.storage_offset()) == (
        kept.shape,
        kept.dtype,
        kept.stride(),
        kept.storage_offset(),
    )

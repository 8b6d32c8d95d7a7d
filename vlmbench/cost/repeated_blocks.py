"""Counting a model of eighty equal blocks at the price of one: blocks that repeat run once, the others are credited.

Two blocks of a list are alike when they are of one class and agree in every submodule's class, plain attributes (sizes,
window, kind of attention …) and parameter shapes; only their place in the list (``layer_idx``) may differ. Alike blocks
that meet alike arguments, in the same stage and step, do the same operations, so the first of them runs and what it did
is credited to the rest. Arguments are alike when floats agree in shape and dtype, integers and masks in their values as
well, and everything else is the same object.

One thing could still tell such blocks apart: the cache, which those that did not run have not filled. Hence two checks:
a block that was credited must never have to run later, and every forward must meet the blocks that the first one met.
Where a check fails, :class:`NotAlike` is raised and the caller counts without this short cut.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlmbench.cost.flop_ledger import Ledger
from vlmbench.models.weightless import is_ghost

_FEWEST = 3  # blocks of a list worth the trouble
_LARGEST_COMPARED = 1 << 16  # elements; larger tensors must be the same object
_PLACE = frozenset({"layer_idx", "layer_index", "layer_number", "layer_id", "block_idx"})
_PLAIN = (bool, int, float, str, type(None))


class NotAlike(Exception):  # noqa: N818 - a signal, not an error: the caller counts in full
    """Blocks that looked alike were not treated alike."""


@dataclass
class _Blocks:
    """The blocks of one list while a run lasts."""

    ledger: Ledger
    done: dict[Any, tuple[Any, Any]] = field(default_factory=dict)  # key -> (output, booked)
    kept: list[Any] = field(default_factory=list)  # what keys name by id must not be freed
    credited: set[int] = field(default_factory=set)
    met: set[int] = field(default_factory=set)
    met_first: set[int] | None = None

    def start(self, *_: Any) -> None:
        """A forward of the module that holds the list begins."""
        self.finish()
        self.done.clear()
        self.kept.clear()
        self.met = set()

    def finish(self) -> None:
        """A forward has ended; which blocks it met must not change."""
        if not self.met:
            return
        if self.met_first is not None and self.met != self.met_first:
            raise NotAlike(f"blocks {sorted(self.met ^ self.met_first)} were met by some forwards only")
        self.met_first = self.met

    def call(self, index: int, kind: Any, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One block's forward, run or credited."""
        self.met.add(index)
        key = (kind, self.ledger.place, _alike(args, self.kept), _alike(kwargs, self.kept))
        if key in self.done:
            output, booked = self.done[key]
            self.credited.add(index)
            self.ledger.credit(booked)
            return output
        if index in self.credited:
            raise NotAlike(f"block {index} was credited before and has to run now")
        self.done[key] = self.ledger.watched(lambda: forward(*args, **kwargs))
        return self.done[key][0]


@contextmanager
def repeated_once(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """While active, alike blocks of every list of the model run once in each forward (see the module's docstring).

    Raises:
        NotAlike: out of a forward, or at the end: what was booked is of no use, count again without this.
    """
    handles, patched, all_blocks = [], [], []
    try:
        for parent, blocks in _lists(model):
            if any("forward" in vars(block) for block in blocks):
                continue  # somebody else's, or a block of two lists
            state = _Blocks(ledger=ledger)
            all_blocks.append(state)
            handles.append(parent.register_forward_pre_hook(state.start))
            for index, block in enumerate(blocks):
                block.forward = _patched(state, index, _kind(block), block.forward)
                patched.append(block)
        yield
        for state in all_blocks:
            state.finish()
    finally:
        for handle in handles:
            handle.remove()
        for block in patched:
            del block.forward  # the class's own shows again


def _lists(model: nn.Module) -> list[tuple[nn.Module, nn.ModuleList]]:
    """Every list of blocks, with the module whose forward calls them."""
    return [
        (parent, child)
        for parent in model.modules()
        if not isinstance(parent, nn.ModuleList)
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) >= _FEWEST
    ]


def _patched(state: _Blocks, index: int, kind: Any, forward: Callable[..., Any]) -> Any:
    @functools.wraps(forward)
    def once(*args: Any, **kwargs: Any) -> Any:
        return state.call(index, kind, forward, args, kwargs)

    return once


def _kind(block: nn.Module) -> Any:
    """What makes a block do what it does, its place in the list left out."""
    return tuple(
        (
            path,
            type(module),
            tuple((n, v) for n, v in sorted(vars(module).items()) if isinstance(v, _PLAIN) and n not in _PLACE),
            tuple((n, p.shape, p.dtype) for n, p in module.named_parameters(recurse=False)),
            tuple((n, b.shape, b.dtype) for n, b in module.named_buffers(recurse=False)),
        )
        for path, module in block.named_modules()
    )


def _alike(value: Any, kept: list[Any]) -> Any:
    """A key that is equal for arguments that make a block do the same operations."""
    if isinstance(value, torch.Tensor):
        if is_ghost(value):
            return "shape", value.shape, value.dtype
        if value.numel() <= _LARGEST_COMPARED:
            return "values", value.shape, value.dtype, value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, _PLAIN):
        return type(value), value
    elif type(value) in (list, tuple):
        return type(value), tuple(_alike(item, kept) for item in value)
    elif isinstance(value, Mapping):
        return type(value), tuple((name, _alike(item, kept)) for name, item in value.items())
    kept.append(value)
    return "object", id(value)

"""Where a method says "my own work begins, ends here", so that its time can be shown inside the stage that holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch


def _nothing() -> None:
    """No probe listens."""


class MethodMarks:
    """Two calls that a method makes around its own code; the timeline probe listens to them during timed runs."""

    def __init__(self) -> None:
        self.active = False  # a method is attached: a probe's marks go outside its hooks
        self.enter: Callable[[], None] = _nothing
        self.leave: Callable[[], None] = _nothing

    def listen(self, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        """Have these called from now on."""
        self.enter, self.leave = enter, leave

    def rest(self) -> None:
        """Call nothing any more."""
        self.enter = self.leave = _nothing

    @contextmanager
    def own_time(self) -> Iterator[None]:
        """Around the method's own code (for a method outside this package; the shipped ones save the generator)."""
        self.enter()
        try:
            yield
        finally:
            self.leave()


_MARKS: WeakKeyDictionary[Any, MethodMarks] = WeakKeyDictionary()


def marks_of(module: torch.nn.Module) -> MethodMarks:
    """The marks of a top-level model: one object for its life, shared by the method and the probe."""
    if module not in _MARKS:
        _MARKS[module] = MethodMarks()
    return _MARKS[module]

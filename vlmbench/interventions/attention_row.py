"""One row of one layer's attention weights, without giving up the attention kernel.

A selector by attention needs the weights of one query only. Running the model eagerly to get them changes the kernel of
every layer, which is what many published comparisons measure. Here one attention module gets a copy of its
configuration that names another attention function; that function computes the one row from the same queries and keys
and then calls the kernel that the module would have called.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vlmbench.errors import UnreachablePointError

if TYPE_CHECKING:
    import torch

    from vlmbench.interventions.marks import MethodMarks

_COUNTER = itertools.count()
_AT_WORK: WeakKeyDictionary[Any, AttentionRow] = WeakKeyDictionary()  # by attention module: whom a replay tells


class Row(StrEnum):
    """Which query's weights."""

    LAST = "last"  # the prompt's last token
    FIRST = "first"  # the class token of a vision encoder
    MEAN = "mean"  # the mean over all queries: as much work as a whole layer's weights


class AttentionRow:
    """Records the weights of one query in one attention module; :meth:`take` hands them over.

    Args:
        module: the attention module; its forward must ask the attention interface of transformers.
        row: which query.
        marks: where the method's own time is told.
        loop: that may capture the module's stage: the row then is a part of its own in the replays, between two marks.
    """

    def __init__(self, module: Any, row: Row, marks: MethodMarks, *, loop: Any = None) -> None:
        self._loop = loop
        self._module = module
        self._row = row
        self._marks = marks
        self._parts: list[torch.Tensor] = []
        self._config = self._module.config
        self._kernel = self._config._attn_implementation
        self._inner = interface_of(module)
        self._name = f"vlmbench_row_{next(_COUNTER)}"
        self.armed = False
        mine: Any = copy.copy(self._config)
        mine._attn_implementation_internal = self._name
        register(self._name, self._forward)
        self._module.config = mine
        _AT_WORK[module] = self

    def arm(self) -> None:
        """Record from the next call on."""
        self._parts.clear()
        self.armed = True

    def take(self) -> torch.Tensor:
        """The weights since :meth:`arm`, mean over heads, shape (batch, keys), keys of several calls joined.

        Raises:
            UnreachablePointError: the module never asked the attention interface.
        """
        import torch

        self.armed = False
        parts, self._parts = self._parts, []
        if not parts:
            raise UnreachablePointError(
                f"{type(self._module).__name__} never asked the attention interface, so its weights cannot be seen"
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def detach(self) -> None:
        """Give the module its configuration back."""
        self._module.config = self._config
        _AT_WORK.pop(self._module, None)
        unregister(self._name)
        self._parts.clear()

    def _forward(self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        def work() -> torch.Tensor:
            return weights(query, key, attention_mask, self._row, options)

        armed = self.armed and query.shape[2] > 1  # while a decode step is captured, rows wait for the next prefill
        if armed and self._loop is not None and self._loop.recorder.recording:
            held: list[torch.Tensor] = []
            again = partial(_replayed, self._module, held)
            held.append(self._loop.recorder.nested(work, again))
        elif armed:
            self._marks.enter()
            self._parts.append(work())
            self._marks.leave()
        asked = self._config._attn_implementation  # a loop's steps attend by a function of their own
        inner = self._inner if asked == self._kernel else interface_of(module, asked)
        return inner(module, query, key, value, attention_mask, **options)


def _replayed(module: torch.nn.Module, held: list[torch.Tensor], play: Callable[[], Any]) -> None:
    """A row in a replay: for the one that is at work now, whichever was when it was captured."""
    row = _AT_WORK[module]
    row._marks.enter()
    play()
    row._parts.append(held[0].clone())  # the next replay writes to the same memory
    row._marks.leave()


def weights(query: Any, key: Any, mask: Any, row: Row, options: dict[str, Any]) -> torch.Tensor:
    """Attention weights of one query, mean over heads, shape (batch, keys), float32.

    Keys are not repeated for grouped queries. The last query of a causal prefill sees all keys, the first and the mean
    belong to encoders without a mask; under a mask its own row is added.

    Args:
        query: (batch, heads, queries, dim), after norms and rotation.
        key: (batch, key heads, keys, dim).
        mask: None, or (batch, 1, queries, keys), boolean or additive.
        options: of the attention function: ``scaling``, ``softcap``.
    """
    batch, heads, queries, dim = query.shape
    key_heads = key.shape[1]
    keys = key[:, :, :queries] if mask is None and key.shape[2] > queries else key
    at = slice(None) if row is Row.MEAN else slice(0, 1) if row is Row.FIRST else slice(queries - 1, queries)
    asked = query[:, :, at].reshape(batch, key_heads, -1, dim)
    scaling = options.get("scaling")
    scores = (asked @ keys.transpose(2, 3)).float() * (dim**-0.5 if scaling is None else scaling)
    if (cap := options.get("softcap")) is not None:
        scores = (scores / cap).tanh() * cap
    if mask is not None:  # one row for all heads: rows of a group follow one another, so each takes the same
        own = mask[:, :, at].repeat(1, 1, heads // key_heads, 1)
        scores = scores + own.float() if own.dtype.is_floating_point else scores.masked_fill(~own.bool(), -1e30)
    found: torch.Tensor = scores.softmax(-1).mean((1, 2))
    return found


def attention_modules(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Attention modules inside a layer or a tower that have a configuration of their own to choose a kernel by."""
    return [
        part
        for part in module.modules()
        if "attention" in type(part).__name__.lower() and hasattr(getattr(part, "config", None), "_attn_implementation")
    ]


def interface_of(module: Any, name: str | None = None) -> Callable[..., Any]:
    """The attention function that a module would call, or that of another name."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found = ALL_ATTENTION_FUNCTIONS.get_interface(name or module.config._attn_implementation, eager)
    if found is None:
        raise UnreachablePointError(f"{type(module).__name__} has no attention function that can be looked into")
    function: Callable[..., Any] = found
    return function


def register(name: str, function: Callable[..., Any]) -> None:
    """Make an attention function known to transformers."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, function)


def unregister(name: str) -> None:
    """Forget an attention function again."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)

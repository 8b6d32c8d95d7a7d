"""What a probe is. No torch import."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from vlmbench.models.protocol import VisionLanguageModel


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the runner knows of a run once it is over.

    Args:
        T_total: ms between entering ``generate()`` and its last token, host clock, device idle at both ends.
        num_output_tokens: new tokens of one row, counted on the output.
        batch_size: rows.
        prefill: whether the run had one; where its cache was filled before the clock, it had none.
        num_forwards: that gave the answer, where one may yield several tokens; None where each gives one.
    """

    T_total: float
    num_output_tokens: int
    batch_size: int
    prefill: bool = True
    num_forwards: int | None = None

    @property
    def token_marks(self) -> int:
        """How often tokens were chosen: once each, or once for all that a forward yielded."""
        return self.num_output_tokens if self.num_forwards is None else self.num_forwards


class Watch(Protocol):
    """A probe at work on one run. A class that inherits from it writes ``values`` and what else it needs."""

    @property
    def stopping_criteria(self) -> Sequence[Any]:
        """Criteria handed to ``generate()``: called once a token, after it was chosen; none unless overridden."""
        return ()

    def start(self) -> None:
        """Begin, right before ``generate()``; the device is idle. What takes time belongs into the constructor."""
        return

    def stop(self) -> None:
        """End, right after ``generate()`` returned, before the closing synchronisation: the device still works."""
        return

    @abstractmethod
    def values(self, run: RunFacts) -> dict[str, Any]:
        """Give column name to value, read once the device is idle; ``flags`` holds names of known causes."""


class Probe(Protocol):
    """A configuration (frozen dataclass) that can watch runs of a model."""

    @property
    def name(self) -> str:
        """Names the probe in configuration and errors."""

    @property
    def own_run(self) -> bool:
        """True when watching changes the times so much that it needs runs of its own (mode ``trace``)."""

    @property
    def max_output_tokens(self) -> int | None:
        """With ``own_run``: the watched request is cut to this many new tokens before it is prepared; None: whole.

        A probe never ends a run from inside: the other processes of a tensor-parallel model would go on.
        """

    def applies(self, model: VisionLanguageModel) -> bool:
        """Whether it has anything to say about this model on its device; if not, it is left out without a word."""

    def watch(self, model: VisionLanguageModel) -> AbstractContextManager[Watch]:
        """Attach to the model for one run; leaving the context leaves no trace on it."""

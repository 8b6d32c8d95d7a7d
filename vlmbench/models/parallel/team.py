"""One model over the processes that ``torchrun`` starts: the first one decides, the others follow it.

The first process (rank 0) reads the configuration, owns the run directory and decides what runs next. The others know
nothing but its orders: load this, generate that, stop. Orders travel through the store of ``torch.distributed`` (plain
TCP), not through collectives, so a follower that waits keeps no GPU busy, and rank 0 may stop, fail or take its time
whenever it likes without the processes falling out of step. Only what transformers' ``tp_plan`` does inside one
``generate()`` is collective. An order is given, and confirmed by everybody, before the clock of ``generate()`` starts.

What cannot be mended is ended: when one process fails inside ``generate()``, the others may wait in a collective for
ever. Then no further order is given (:class:`~vlmbench.errors.OutOfStepError`), and a thread that waits for word of a
failure ends a process that is stuck (:mod:`vlmbench.models.parallel.team`).

How orders travel is in :mod:`vlmbench.models.parallel.team`, what the others do with them in
:mod:`vlmbench.models.parallel.follower`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from vlmbench.errors import ModelError, OutOfStepError, VlmbenchError
from vlmbench.text import say

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import Prepared
    from vlmbench.models.runtime import Runtime
    from vlmbench.models.spec import ModelSpec
    from vlmbench.request import TokenCounts


# A thread that waits for word of an end, and ends this process if it is stuck then (in a collective, for ever).

GRACE_S = 10.0
"""For a process to notice a failure by itself."""
_UNTIL_ENDED = timedelta(days=7)


def watch(
    store: Any, key: str, *, busy: Callable[[], bool], heard: Callable[[str], None], stuck: Callable[[str], None]
) -> threading.Thread:
    """Begin to wait, in a thread that does not run meanwhile, for a key of the store; returns the thread.

    Args:
        store: of ``torch.distributed``.
        key: the word; what stands there is the reason, nothing where all is well.
        busy: whether this process is in the middle of something that may never end.
        heard: told the reason, where the process is not busy or ceases to be in time.
        stuck: told the reason just before the process is ended, where it stays busy.
    """

    def wait(store: Any) -> None:
        try:
            store.wait([key], _UNTIL_ENDED)
            reason = store.get(key).decode()
        except RuntimeError:
            reason = "the store of torchrun is gone"
        until = time.monotonic() + GRACE_S
        while reason and time.monotonic() < until:
            if not busy():
                heard(reason)
                return
            time.sleep(0.1)
        if reason and busy():
            stuck(reason)
            with suppress(RuntimeError):
                store.set("ended", "1")
            os._exit(1)

    thread = threading.Thread(target=wait, args=(store.clone(),), daemon=True, name=f"vlmbench-{key}")
    thread.start()
    return thread


# Orders to the processes of ``torchrun``, and the answers to them, through the store of ``torch.distributed``.

_FOREVER = timedelta(days=7)  # how long a follower waits for its next order
_CHUNK = 1 << 20  # bytes of one value in the store, which has a limit of a few MiB


@dataclass(kw_only=True)
class Orders:
    """The orders of the first process, seen from one of the processes.

    Args:
        store: of ``torch.distributed``.
        rank: of this process; 0 gives orders, the others answer.
        size: how many processes.

    Attributes:
        busy: whether this process is at work on the last order.
    """

    store: Any
    rank: int
    size: int
    busy: bool = False
    _number: int = 0
    _chunks: int = 0

    def give(self, *order: Any) -> None:
        """Write the next order down for the followers, who have all read the one before."""
        for chunk in range(self._chunks):
            self.store.delete_key(f"order/{self._number}/{chunk}")
        content = pickle.dumps(order)
        chunks = [content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK)]
        self._number, self._chunks, self.busy = self._number + 1, len(chunks), True
        for index, chunk_bytes in enumerate(chunks):
            self.store.set(f"order/{self._number}/{index}", chunk_bytes)
        self.store.set(f"order/{self._number}", str(len(chunks)))

    def answers(self, what: str, timeout: timedelta) -> list[str]:
        """What the followers say about the last order, by rank; waits for all of them.

        Raises:
            OutOfStepError: one of them says nothing for so long.
        """
        keys = [f"{what}/{self._number}/{rank}" for rank in range(1, self.size)]
        try:
            self.store.wait(keys, timeout)
        except RuntimeError as error:
            raise OutOfStepError(f"no answer ({what}) from the other processes within {timeout}") from error
        answers = [self.store.get(key).decode() for key in keys]
        for key in keys:
            self.store.delete_key(key)
        return answers

    def next(self) -> tuple[Any, ...]:
        """Wait for the next order; ``("stop",)`` where the first process is gone."""
        self._number += 1
        try:
            self.store.wait([f"order/{self._number}"], _FOREVER)
            chunks = int(self.store.get(f"order/{self._number}"))
            content = b"".join(self.store.get(f"order/{self._number}/{index}") for index in range(chunks))
        except RuntimeError:  # the store went with the first process
            return ("stop",)
        order: tuple[Any, ...] = pickle.loads(content)  # noqa: S301 - from rank 0 of this very run
        return order

    def answer(self, what: str, text: str) -> None:
        """Say something about the last order."""
        self.store.set(f"{what}/{self._number}/{self.rank}", text)


Loaded = TypeVar("Loaded")
LOADING = timedelta(hours=2)
_ANSWER = timedelta(seconds=120)


@dataclass(kw_only=True)
class Team:
    """All processes of one torchrun, seen from one of them.

    Args:
        rank: of this process; 0 leads.
        size: how many processes.
        store: of ``torch.distributed``.

    Attributes:
        orders: what the first process tells the others, and their answers.
        lost: why no order can be given any more.
        on_loss: told the reason, in the first process, just before it is ended because it is stuck.
    """

    rank: int
    size: int
    store: Any
    lost: str | None = None
    on_loss: Callable[[str], None] = lambda reason: None  # noqa: ARG005
    orders: Orders = field(init=False)
    _announced: bool = False
    _tokens: torch.Tensor | None = None
    _gpus: list[str] = field(default_factory=list)
    _watcher: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.orders = Orders(store=self.store, rank=self.rank, size=self.size)

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def _give(self, *order: Any) -> None:
        """Give the followers an order.

        Raises:
            OutOfStepError: an earlier one left the processes out of step.
        """
        if self.lost is not None:
            raise OutOfStepError(
                f"the processes of torchrun are out of step after: {self.lost}.\n"
                "What was measured is kept; run the same command again to continue."
            )
        self.orders.give(*order)

    def _answers(self, what: str, timeout: timedelta) -> list[str]:
        """What the followers say about the last order; without an answer from each, no other can be given."""
        try:
            return self.orders.answers(what, timeout)
        except OutOfStepError as error:
            self.orders.busy = False
            self.lost = self.lost or str(error)
            raise OutOfStepError(self.lost) from error

    def load_together(self, spec: ModelSpec, runtime: Runtime, seed: int, load: Callable[[], Loaded]) -> Loaded:
        """Load this process's share of a model, and have the others load theirs.

        Raises:
            ModelError: one of the processes cannot.
            OutOfStepError: an earlier run left them out of step.
        """
        import torch

        if not self.leads:
            return load()
        self._agree()
        self._give("load", spec, runtime, seed, torch.get_num_threads())
        with self.in_step():
            model = load()
            answers = self._answers("loaded", LOADING)
            self.orders.busy = False
            for rank, answer in enumerate(answers, start=1):
                if answer.startswith("!"):
                    raise ModelError(f"process {rank} of torchrun could not load the model: {answer[1:]}")
        self._gpus = answers
        return model

    def announce(self, prepared: Prepared) -> None:
        """Tell the followers what is generated next, and wait until all of them are about to.

        Raises:
            OutOfStepError: an earlier run left the processes out of step.
        """
        if not self.leads:
            return
        if self._announced:  # they wait in the middle of a run that never began here
            self.lost = self.lost or "a run that was announced did not begin"
        self._agree()
        on_host = {name: value.cpu() if hasattr(value, "cpu") else value for name, value in prepared.inputs.items()}
        counted = partial(_known, prepared.counts)  # counted here; how it was done does not travel
        self._give("generate", replace(prepared, inputs=on_host, count=counted))
        self._answers("ready", _ANSWER)
        self._announced = True

    @contextmanager
    def in_step(self, prepared: Prepared | None = None) -> Iterator[None]:
        """What every process does together; when it fails here, nobody knows how far the others came."""
        if self.leads and prepared is not None and not self._announced:
            self.announce(prepared)
        self._announced = False
        try:
            yield
        except BaseException as error:
            self.lost = self.lost or one_line(error)
            self.orders.busy = False
            raise

    def finished(self, tokens: torch.Tensor) -> None:
        """What this process generated, on the host: all must have chosen the same tokens."""
        self.orders.busy = False
        if self.leads:
            self._tokens = tokens  # compared when time is not taken
        else:
            self.orders.answer("tokens", _digest(tokens))

    def _agree(self) -> None:
        """Check the tokens of the run before.

        Raises:
            OutOfStepError: another process chose other tokens.
        """
        if self._tokens is None or self.lost is not None:
            return
        mine, self._tokens = _digest(self._tokens), None
        others = [rank for rank, found in enumerate(self._answers("tokens", _ANSWER), start=1) if found != mine]
        if others:
            self.lost = f"processes {others} chose other tokens than the first one"
            raise OutOfStepError(self.lost)

    def lead(self) -> None:
        """The first process begins: watch for a follower that fails."""

        def heard(reason: str) -> None:
            self.lost = self.lost or reason

        def stuck(reason: str) -> None:
            say(f"{reason}; the run ends, what was measured is kept")
            self.on_loss(reason)

        self._watcher = watch(self.store, "failed", busy=lambda: self.orders.busy, heard=heard, stuck=stuck)

    def dismiss(self) -> None:
        """The first process is done: end the followers, also those that are stuck."""
        with suppress(RuntimeError, OutOfStepError):  # the store is gone: so are they
            if self.lost is None and not self.orders.busy:
                self._give("stop")
            self.store.set("ended", "1")
            self.store.set("failed", "")
        self.part()

    def await_the_end(self) -> None:
        """A follower begins: watch for the end of the first process."""

        def nothing(_: str) -> None:
            """The next order, or its absence, says it all."""

        self._watcher = watch(self.store, "ended", busy=lambda: self.orders.busy, heard=nothing, stuck=nothing)

    def part(self) -> None:
        """Let the watching thread end before this process does: one that ends inside the store aborts it."""
        if self._watcher is not None:
            self._watcher.join(timeout=2 * GRACE_S)

    @property
    def facts(self) -> dict[str, Any]:
        """``processes``, and the UUIDs of the GPUs of all but the first, for the provenance."""
        return {"processes": self.size, "other_gpus": [uuid for uuid in self._gpus if uuid]}


def _known(counts: TokenCounts) -> TokenCounts:
    return counts


def _digest(tokens: torch.Tensor) -> str:
    return f"{list(tokens.shape)} {hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()[:16]}"


def one_line(error: BaseException) -> str:
    """The first line of an error, with its kind where it is not one of this package's."""
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, VlmbenchError) and text else f"{type(error).__name__}: {text}".rstrip(": ")

"""One model over the processes that ``torchrun`` starts: the first one decides, the others follow it.

The first process (rank 0) reads the configuration, owns the run directory and decides what runs next. The others know
nothing but its orders: load this, generate that, stop. Orders travel through the store of ``torch.distributed`` (plain
TCP), not through collectives, so a follower that waits keeps no GPU busy, and rank 0 may stop, fail or take its time
whenever it likes without the processes falling out of step. Only what transformers' ``tp_plan`` does inside one
``generate()`` is collective. An order is given, and confirmed by everybody, before the clock of ``generate()`` starts.

What cannot be mended is ended: when one process fails inside ``generate()``, the others may wait in a collective for
ever. Then no further order is given (:class:`~vlmbench.errors.OutOfStepError`), and a thread that waits for word of a
failure ends a process that is stuck.
"""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from vlmbench.errors import ModelError, OutOfStepError, VlmbenchError

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import Prepared
    from vlmbench.models.spec import ModelSpec

Loaded = TypeVar("Loaded")
_FOREVER = timedelta(days=7)  # how long a follower waits for its next order
LOADING = timedelta(hours=2)
_ANSWER = timedelta(seconds=120)
_CHUNK = 1 << 20  # bytes of one value in the store, which has a limit of a few MiB
_GRACE_S = 10.0  # for a process to notice a failure by itself
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(kw_only=True)
class Team:
    """All processes of one torchrun, seen from one of them.

    Args:
        rank: of this process; 0 leads.
        size: how many processes.
        store: of ``torch.distributed``.

    Attributes:
        lost: why no order can be given any more.
        on_loss: told the reason, in the first process, just before it is ended because it is stuck.
    """

    rank: int
    size: int
    store: Any
    lost: str | None = None
    on_loss: Callable[[str], None] = lambda reason: None  # noqa: ARG005
    _number: int = 0
    _chunks: int = 0
    _busy: bool = False
    _announced: bool = False
    _tokens: torch.Tensor | None = None
    _gpus: list[str] = field(default_factory=list)
    _model: Any = None
    _watcher: threading.Thread | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    # ------------------------------------------------------------------------------------------ orders of rank 0

    def _give(self, *order: Any) -> None:
        """Write the next order down for the followers.

        Raises:
            OutOfStepError: an earlier one left the processes out of step.
        """
        if self.lost is not None:
            raise OutOfStepError(
                f"the processes of torchrun are out of step after: {self.lost}.\n"
                "What was measured is kept; run the same command again to continue."
            )
        for chunk in range(self._chunks):  # everybody has read the order before
            self.store.delete_key(f"order/{self._number}/{chunk}")
        content = pickle.dumps(order)
        chunks = [content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK)]
        self._number, self._chunks, self._busy = self._number + 1, len(chunks), True
        for index, chunk_bytes in enumerate(chunks):
            self.store.set(f"order/{self._number}/{index}", chunk_bytes)
        self.store.set(f"order/{self._number}", str(len(chunks)))

    def _answers(self, what: str, timeout: timedelta) -> list[str]:
        """What the followers say about the last order, by rank; waits for all of them."""
        keys = [f"{what}/{self._number}/{rank}" for rank in range(1, self.size)]
        try:
            self.store.wait(keys, timeout)
        except RuntimeError as error:
            self._busy = False
            self.lost = self.lost or f"no answer ({what}) from the other processes within {timeout}"
            raise OutOfStepError(self.lost) from error
        answers = [self.store.get(key).decode() for key in keys]
        for key in keys:
            self.store.delete_key(key)
        return answers

    def load_together(self, spec: ModelSpec, options: Mapping[str, Any], load: Callable[[], Loaded]) -> Loaded:
        """Load this process's share of a model, and have the others load theirs.

        Args:
            spec: what is loaded.
            options: keyword arguments of ``spec.load``, for the others.
            load: does it here.

        Raises:
            ModelError: one of the processes cannot.
            OutOfStepError: an earlier run left them out of step.
        """
        import torch

        if not self.leads:
            return load()
        self._agree()
        self._give("load", spec, dict(options), torch.get_num_threads())
        with self.in_step():
            model = load()
            answers = self._answers("loaded", LOADING)
            self._busy = False
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
        self._give("generate", replace(prepared, inputs=on_host))
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
            self.lost = self.lost or _line(error)
            self._busy = False
            raise

    def finished(self, tokens: torch.Tensor) -> None:
        """What this process generated, on the host: all must have chosen the same tokens."""
        self._busy = False
        if self.leads:
            self._tokens = tokens  # compared when time is not taken
        else:
            self.store.set(f"tokens/{self._number}/{self.rank}", _digest(tokens))

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

    def dismiss(self) -> None:
        """The first process is done: end the followers, also those that are stuck."""
        with suppress(RuntimeError, OutOfStepError):  # the store is gone: so are they
            if self.lost is None and not self._busy:
                self._give("stop")
            self.store.set("ended", "1")
            self.store.set("failed", "")
        self.part()

    def part(self) -> None:
        """Let the watching thread end before this process does: one that ends inside the store aborts it."""
        if self._watcher is not None:
            self._watcher.join(timeout=2 * _GRACE_S)

    # ------------------------------------------------------------------------------------------------- followers

    def follow(self) -> int:
        """Do what the first process orders until it says stop; returns the exit status."""
        for number in _IGNORED:  # they end the first process, which then ends this one
            signal.signal(number, signal.SIG_IGN)
        self._watch("ended", lambda _: None)
        try:
            while (order := self._next())[0] != "stop":
                self._obey(order)
        except Exception as error:
            self._busy = False
            with suppress(RuntimeError):
                self.store.set("failed", f"process {self.rank}: {_line(error)}")
                if not isinstance(error, VlmbenchError):
                    _say(f"process {self.rank} of torchrun failed: {_line(error)}")
                self.store.wait(["ended"], timedelta(seconds=3 * _GRACE_S))
            return 1
        return 0

    def _next(self) -> tuple[Any, ...]:
        self._number += 1
        try:
            self.store.wait([f"order/{self._number}"], _FOREVER)
            chunks = int(self.store.get(f"order/{self._number}"))
            content = b"".join(self.store.get(f"order/{self._number}/{index}") for index in range(chunks))
        except RuntimeError:  # the store went with the first process
            return ("stop",)
        order: tuple[Any, ...] = pickle.loads(content)  # noqa: S301 - from rank 0 of this very run
        return order

    def _obey(self, order: tuple[Any, ...]) -> None:
        self._busy = True
        if order[0] == "load":
            self._model = None
            self._model = self._load(*order[1:])
        else:
            self._generate(order[1])
        self._busy = False

    def _load(self, spec: ModelSpec, options: Mapping[str, Any], threads: int) -> Any:
        import torch

        torch.set_num_threads(threads)
        try:
            model = spec.load(**options)
        except Exception as error:
            self.store.set(f"loaded/{self._number}/{self.rank}", f"!{_line(error)}")
            raise
        gc.collect()  # as in the first process: no collection during a run
        gc.freeze()
        gc.disable()
        self.store.set(f"loaded/{self._number}/{self.rank}", gpu_of(model.device) or "")
        return model

    def _generate(self, prepared: Prepared) -> None:
        import torch

        here = self._model.transfer(prepared)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
        self.store.set(f"ready/{self._number}/{self.rank}", "1")
        self.finished(self._model.generate(here).cpu())

    # ------------------------------------------------------------------------------------------------- the end

    def _watch(self, key: str, tell: Callable[[str], None]) -> None:
        """Wait, in a thread that does not run meanwhile, for word of an end; end this process if it is stuck then."""

        def wait(store: Any) -> None:
            try:
                store.wait([key], _FOREVER)
                reason = store.get(key).decode()
            except RuntimeError:
                reason = "the store of torchrun is gone"
            until = time.monotonic() + _GRACE_S
            while reason and time.monotonic() < until:
                if not self._busy:
                    self.lost = (self.lost or reason) if self.leads else self.lost
                    return
                time.sleep(0.1)
            if reason and self._busy:
                tell(reason)
                with suppress(RuntimeError):
                    store.set("ended", "1")
                os._exit(1)

        self._watcher = threading.Thread(target=wait, args=(self.store.clone(),), daemon=True, name=f"vlmbench-{key}")
        self._watcher.start()

    def lead(self) -> None:
        """Begin to watch the followers."""

        def tell(reason: str) -> None:
            _say(f"{reason}; the run ends, what was measured is kept")
            self.on_loss(reason)

        self._watch("failed", tell)

    @property
    def facts(self) -> dict[str, Any]:
        """``processes``, and the UUIDs of the GPUs of all but the first, for the provenance."""
        return {"processes": self.size, "other_gpus": [uuid for uuid in self._gpus if uuid]}


def gpu_of(device: torch.device) -> str | None:
    """The UUID of a GPU; None for another device."""
    if device.type != "cuda":
        return None
    from vlmbench.records.gpu import gpu_uuid

    return gpu_uuid(str(device))


def _digest(tokens: torch.Tensor) -> str:
    return f"{list(tokens.shape)} {hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()[:16]}"


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n", maxsplit=1)[0]
    return text if isinstance(error, VlmbenchError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _say(message: str) -> None:
    sys.stderr.write(f"vlmbench: {message}\n")
    sys.stderr.flush()

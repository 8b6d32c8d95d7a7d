"""A process of ``torchrun`` that is not the first: it does what the first one orders."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vlmbench.errors import VlmbenchError
from vlmbench.models.parallel.team import GRACE_S, Team, one_line
from vlmbench.text import say

if TYPE_CHECKING:
    import torch

    from vlmbench.models.protocol import Prepared
    from vlmbench.models.runtime import Runtime
    from vlmbench.models.spec import ModelSpec


_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Follower:
    """Carries out the orders of the first process.

    Args:
        team: that this process belongs to.
        load: loads this process's share of a model: :func:`vlmbench.models.loading.load`.
    """

    team: Team
    load: Callable[..., Any]
    _model: Any = None

    def follow(self) -> int:
        """Do what the first process orders until it says stop; returns the exit status."""
        for number in _IGNORED:  # they end the first process, which then ends this one
            signal.signal(number, signal.SIG_IGN)
        team = self.team
        team.await_the_end()
        try:
            while (order := team.orders.next())[0] != "stop":
                self._obey(order)
        except Exception as error:
            team.orders.busy = False
            with suppress(RuntimeError):
                team.store.set("failed", f"process {team.rank}: {one_line(error)}")
                if not isinstance(error, VlmbenchError):
                    say(f"process {team.rank} of torchrun failed: {one_line(error)}")
                team.store.wait(["ended"], timedelta(seconds=3 * GRACE_S))
            return 1
        return 0

    def _obey(self, order: tuple[Any, ...]) -> None:
        self.team.orders.busy = True
        if order[0] == "load":
            self._model = None
            self._model = self._load(*order[1:])
        else:
            self._generate(order[1])
        self.team.orders.busy = False

    def _load(self, spec: ModelSpec, runtime: Runtime, seed: int, threads: int) -> Any:
        import torch

        torch.set_num_threads(threads)
        try:
            model = self.load(spec, runtime, seed=seed)
        except Exception as error:
            self.team.orders.answer("loaded", f"!{one_line(error)}")
            raise
        gc.collect()  # as in the first process: no collection during a run
        gc.freeze()
        gc.disable()
        self.team.orders.answer("loaded", _gpu_of(model.device) or "")
        return model

    def _generate(self, prepared: Prepared) -> None:
        import torch

        here = self._model.transfer(prepared)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
        self.team.orders.answer("ready", "1")
        self.team.finished(self._model.generate(here).cpu())


def _gpu_of(device: torch.device) -> str | None:
    """The UUID of a GPU; None for another device."""
    if device.type != "cuda":
        return None
    from vlmbench.machine.gpu import gpu_uuid

    return gpu_uuid(str(device))

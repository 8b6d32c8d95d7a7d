"""Orders to the processes of ``torchrun``, and the answers to them, through the store of ``torch.distributed``."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from vlmbench.errors import OutOfStepError

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

"""A thread that waits for word of an end, and ends this process if it is stuck then (in a collective, for ever)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

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

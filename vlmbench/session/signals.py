"""Signals that ask a run to stop: it finishes what it is at, and ends cleanly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def stop_on_signal() -> Iterator[list[str]]:
    """Signals finish the current run and end the loop; yields a list that holds the signal's name once one came.

    A second SIGINT interrupts at once: rows are on disk as soon as they are measured.
    """
    received: list[str] = []

    def note(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    before = {}
    for number in _STOP_SIGNALS:
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: whoever owns it owns the signals
            break
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

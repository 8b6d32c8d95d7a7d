"""Signals that ask a run to stop.

While it measures, it finishes what it is at and ends cleanly; at any other moment (loading, reporting, between two
jobs) it is interrupted as by Ctrl-C. Either way it ends with 130, and the same command continues it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def interrupt_on_signals() -> None:
    """Let every signal that asks to stop interrupt this process as Ctrl-C does, where it would end it without a word.

    What the caller ignores (``nohup``, a shell's background job) stays ignored.
    """
    for number in _STOP_SIGNALS[1:]:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextmanager
def interrupted_in_words_of_others() -> Iterator[None]:
    """Take an error that an interruption caused for the interruption that it is.

    A signal may come while another package cleans up; what then fails there hides it (seen in OmegaConf).

    Raises:
        KeyboardInterrupt: an error was raised while one was under way.
    """
    try:
        yield
    except Exception as error:
        before: BaseException | None = error
        while before is not None:
            if isinstance(before, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            before = before.__cause__ or before.__context__
        raise


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
        if signal.getsignal(number) is signal.SIG_IGN:  # nohup
            continue
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: whoever owns it owns the signals
            break
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Signals that ask a run to stop.

While it measures, it finishes what it is at and ends cleanly; at any other moment (loading, reporting, between two
jobs) it is interrupted as by Ctrl-C. Either way it ends with 130, and the same command continues it.

An exception raised in the middle of an import is worth little: the importing package may catch it, go on with a module
that is half there, or end the process where its C++ calls Python. So in an import a process ends at once where nothing
is begun, and is interrupted after the import else; where somebody swallows an interruption, it comes again.

Two ways would be simpler. To end at once everywhere would leave what ``finally`` tidies up: processes that were
started, half an export, what a plug-in holds. To wait for the end of every import was tried: Ctrl-C in ``import torch``
then takes seconds (2 to 12 on two busy cores), just where a command is taken back most often.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from vlmbench.errors import INTERRUPTED

if TYPE_CHECKING:
    from types import FrameType

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_AGAIN_S = 0.05
_IMPORTING = "<frozen importlib._bootstrap>"
_asked: list[str] = []  # names of signals that nobody has heeded yet
_before: list[tuple[Any, tuple[float, float], Any]] = []  # the caller's alarm, its timer, what shows ignored errors
_ends: list[Callable[[], bool]] = []  # what is to be done before this process may end in the middle of an import


def end_on_signals() -> None:
    """Let every signal that asks to stop end this process at once, in one line: nothing is begun that could be lost.

    What the caller ignores (``nohup``, a shell's background job) stays ignored.
    """
    _handle(_end_at_once)


def interrupt_on_signals() -> None:
    """Let every signal that asks to stop interrupt this process as Ctrl-C does, where it would end it without a word.

    What the caller ignores (``nohup``, a shell's background job) stays ignored.
    """
    _handle(_interrupt)


def heed() -> None:
    """Take note that this process is being interrupted: whoever catches ``KeyboardInterrupt`` calls it."""
    _asked.clear()
    if _before:
        handler, timer, sys.unraisablehook = _before.pop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@contextmanager
def ending_in_imports(end: Callable[[], bool]) -> Iterator[None]:
    """Within, a signal in the middle of an import ends this process at once, after all such ends, the innermost first.

    Args:
        end: says and writes down what must be; False, with nothing done, where more was begun than it can end.
    """
    _ends.append(end)
    try:
        yield
    finally:
        _ends.pop()


def end_process(status: int | str | None) -> NoReturn:
    """Exit with a status, and with this one.

    Python ends ``python -m`` by SIGINT, whatever status it was told, where an interruption came out of a text that was
    executed (each dataclass is made of one). And what libraries log as an interrupted process ends is no answer.
    """
    if status != INTERRUPTED:
        sys.exit(status)
    import atexit
    import logging

    logging.disable(logging.CRITICAL)
    _handle(lambda *_: os._exit(INTERRUPTED))
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(INTERRUPTED)


def _handle(handler: Callable[[int, Any], Any]) -> None:
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end_at_once(*_: Any) -> None:
    os.write(2, b"vlmbench: interrupted before anything was measured\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _asked.append(signal.Signals(number).name)
    if not _before:
        timer, shows = signal.setitimer(signal.ITIMER_REAL, 0), sys.unraisablehook
        _before.append((signal.signal(signal.SIGALRM, _interrupt_again), timer, shows))
        # Raised where Python can only show and ignore it (a __del__), an interruption comes again.
        sys.unraisablehook = lambda found: None if _is_interruption(found.exc_value) else shows(found)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
    _interrupt_again(number, frame)


def _interrupt_again(_: int, frame: FrameType | None) -> None:
    """Interrupt, unless somebody cleans up after the interruption, or an import is under way."""
    if not _asked or _is_interruption(sys.exc_info()[1]):
        return
    if not _is_importing(frame):
        raise KeyboardInterrupt(_asked[0])
    if _ends and all(end() for end in reversed(_ends)):
        end_process(INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _is_interruption(error: BaseException | None) -> bool:
    """Whether an error is an interruption, or hides one."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def interrupted_in_words_of_others() -> Iterator[None]:
    """Take an error that an interruption caused for the interruption that it is.

    A signal may come while another package cleans up; what then fails there hides it (seen in OmegaConf).

    Raises:
        KeyboardInterrupt: an error was raised while one was under way, or was asked for.
    """
    try:
        yield
    except Exception as error:
        if _asked or _is_interruption(error):
            raise KeyboardInterrupt from error
        raise


@contextmanager
def stop_on_signal() -> Iterator[list[str]]:
    """Signals finish the current run and end the loop; yields a list that holds the signal's name once one came.

    A second SIGINT interrupts at once: rows are on disk as soon as they are measured.
    """
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            _interrupt(number, frame)
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

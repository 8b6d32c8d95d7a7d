"""A progress bar with time left on long work; a line now and then where there is no terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)
_LINE_EVERY_S = 60.0


class ProgressBar:
    """Implements :class:`vlmbench.runner.loop.Progress`.

    Args:
        show: True or False; None shows a bar when standard error is a terminal.
        note: called after every run with the number of points that are over, to keep the outcome file up to date.
    """

    def __init__(self, *, show: bool | None, note: Callable[[int], None] | None = None) -> None:
        self._note = note
        self._show = sys.stderr.isatty() if show is None else show
        self._total = 0
        self._points = 0
        self._done = 0
        self._said_s = time.monotonic()
        self._bar = Progress(
            TextColumn("[progress.description]{task.description:30.30}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
            disable=not self._show,
            refresh_per_second=2,  # the bar's thread must not disturb what is measured
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def expect(self, runs: int) -> None:
        """That many runs more are expected."""
        self._total += runs
        self._bar.update(self._task, total=self._total)

    def end(self, point_id: str) -> None:
        """A point is over."""
        self._points += 1
        if self._note is not None:
            self._note(self._points)
        _log.debug("%s is over", point_id)

    def advance(self, point_id: str, runs: int = 1) -> None:
        """Runs of a point are over; more than expected make the total grow."""
        self._done += runs
        if self._note is not None:
            self._note(self._points)
        self._total = max(self._total, self._done)
        self._bar.update(self._task, completed=self._done, total=self._total, description=point_id)
        now = time.monotonic()
        if not self._show and now - self._said_s > _LINE_EVERY_S:
            self._said_s = now
            _log.info("%d of about %d runs (now %s)", self._done, self._total, point_id)

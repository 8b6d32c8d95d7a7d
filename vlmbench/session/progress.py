"""A progress bar with time left on long work; a line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from vlmbench.records.outcome import runs_of
from vlmbench.text import count, detail, lasting, note

_FIRST_LINE_S, _LINE_EVERY_S = 10.0, 60.0
_FEWEST = 3  # runs of this session before a time left is told
_NARROW = 70  # columns below which the bar leaves out its name and the time that has passed


class ProgressBar:
    """Implements :class:`vlmbench.runner.loop.Progress`.

    Args:
        show: True or False; None shows a bar when standard error is a terminal.
        told: called after every run with the points that are over, the runs that are over and the runs to expect.
        about: whether a rule ends the points, so that the number of runs is an estimate.
        after: what comes when all is measured, in words; empty for nothing that takes long.
    """

    def __init__(
        self,
        *,
        show: bool | None,
        told: Callable[[int, int, int], None] | None = None,
        about: bool = False,
        after: str = "",
    ) -> None:
        self._told = told
        self._about = about
        self._after = after
        self._does = ""  # beside the runs, which are over then
        self._show = (sys.stderr is not None and sys.stderr.isatty()) if show is None else show
        self._total = 0
        self._points = 0
        self._done = 0
        self._earlier = 0
        self._began_s = self._said_s = time.monotonic()
        self._said = False
        self._first: tuple[float, int] | None = None  # when the first runs of this session were over, and how many
        console = Console(stderr=True)
        wide = console.width >= _NARROW
        self._bar = Progress(
            *([TextColumn("[progress.description]{task.description:30.30}")] if wide else []),
            BarColumn(bar_width=None),
            MofNCompleteColumn() if wide else TaskProgressColumn(),
            *([TextColumn("runs"), TimeElapsedColumn()] if wide else []),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not self._show,
            refresh_per_second=2,  # the bar's thread must not disturb what is measured
        )
        self._task = self._bar.add_task("starting", total=None, left="")

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
        if kind is None and self._after and (self._show or self._said):
            note(f"{count(self._done, 'run')} made; {self._after}")

    def expect(self, runs: int) -> None:
        """That many runs more are expected."""
        self._total += runs
        self._bar.update(self._task, total=self._total)

    def end(self, point_id: str) -> None:
        """A point is over."""
        self._points += 1
        self._tell()
        detail(f"{point_id} is over")

    def advance(self, point_id: str, runs: int = 1, *, earlier: bool = False) -> None:
        """Runs of a point are over.

        Args:
            earlier: an earlier session measured them: they say nothing of the time left.
        """
        self._done += runs
        self._earlier += runs if earlier else 0
        if self._first is None and not earlier:
            self._first = time.monotonic(), runs
        self._tell()
        total = None if self._done > self._total else self._total  # a bar without an end
        self._bar.update(self._task, completed=self._done, total=total, description=point_id, left=self._left_words())
        self._say_now_and_then(f"{self.short()} (now {point_id})")

    def does(self, words: str) -> None:
        """Say what is done beside the runs, once all of them are over: ``trace 3 of 12``."""
        self._does = words
        self._bar.update(self._task, description=words, left="")
        self._say_now_and_then(self.short())

    def _say_now_and_then(self, words: str) -> None:
        now = time.monotonic()
        if not self._show and now - self._said_s > (_LINE_EVERY_S if self._said else _FIRST_LINE_S):
            self._said, self._said_s = True, now
            note(words)

    def left_s(self) -> float | None:
        """Seconds that the runs to come will take at the rate of this session; None where too few were made."""
        made = self._done - self._earlier
        if made < _FEWEST or self._total <= self._done or self._first is None or made == self._first[1]:
            return None
        first_s, first = self._first  # what was before them, waiting for others to load say, does not come again
        return (time.monotonic() - first_s) / (made - first) * (self._total - self._done)

    def short(self) -> str:
        """``2/200 runs, about 12 minutes left``; ``200 runs made, now trace 3 of 12``."""
        if self._does:
            return f"{count(self._done, 'run')} made, now {self._does}"
        if self._done > self._total:
            return self.words()
        left = self._left_words()
        about = "about " if self._about else ""
        return f"{self._done:,}/{about}{self._total:,} runs{f', {left}' if left else ''}"

    def words(self) -> str:
        """``69 of 200 runs, about 4 minutes left``: for the end of a run that was cut short."""
        left = self._left_words()
        return runs_of(self._done, self._total, about=self._about) + (f", {left}" if left else "")

    def _left_words(self) -> str:
        left = self.left_s()
        return "" if left is None else f"about {lasting(left)} left"

    def _tell(self) -> None:
        if self._told is not None:
            self._told(self._points, self._done, self._total)

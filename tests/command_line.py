"""The command line in this process: milliseconds instead of the seconds that a process of its own takes."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended.

    Args:
        status: exit status.
        said: its error output.
        out: its standard output.
    """

    status: int
    said: str
    out: str

    @property
    def own(self) -> list[str]:
        """Lines that are vlmbench's own words, or follow them."""
        lines = self.said.splitlines()
        first = next((n for n, line in enumerate(lines) if line.startswith("vlmbench: ")), len(lines))
        return lines[first:]


def command_line(*arguments: str, task: Callable[[Any], int] | None = None) -> Done:
    """Run the command line as ``python -m vlmbench`` does, and take its exit.

    Args:
        arguments: its words.
        task: takes the place of what the job would do, once it was composed, checked and built; None lets it do it.
    """
    from vlmbench.cli import main, tasks

    said, out = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_before())
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(mock.patch.object(sys, "argv", ["vlmbench", *arguments]))
        if task is not None:
            stack.enter_context(mock.patch.object(tasks, "run", task))
        try:
            main.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Done(status=status, said=said.getvalue(), out=out.getvalue())


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """What one command leaves in the process is not seen by the next."""
    import os
    import signal

    from vlmbench.cli import main

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    handlers, environment = {n: signal.getsignal(n) for n in numbers}, dict(os.environ)
    root = logging.getLogger()
    before, level, disabled = list(root.handlers), root.level, logging.root.manager.disable
    lists = (main._statuses, main._stopped, main._onward)
    for one in lists:
        one.clear()
    try:
        yield
    finally:
        for one in lists:
            one.clear()
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        logging.disable(disabled)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler_before in handlers.items():
            signal.signal(number, handler_before)

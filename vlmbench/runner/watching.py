"""Probes around one run: what fails in a probe costs its values, never the row."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from vlmbench.errors import ConfigError, DeviceError
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.protocol import Probe, RunFacts, Watch

_log = logging.getLogger(__name__)
_said: set[str] = set()  # probes whose failure was logged; once a process is enough


@dataclass(kw_only=True)
class Attached:
    """A probe at work on one run, which may fail at any time.

    Args:
        probe: that it is of. One that has a run of its own is all that the run is for, so its failures are raised.
        watch: what it gave; None where attaching failed.
        failed: whether anything of it failed.
    """

    probe: Probe
    context: AbstractContextManager[Watch]
    watch: Watch | None = None
    failed: bool = False
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def began_ns(self) -> int | None:
        """When it set the first mark of the timeline, on the host's clock; None for one that sets none."""
        return None if self.failed else getattr(self.watch, "began_ns", None)

    @property
    def sets_marks(self) -> bool:
        """Whether it is the one that sets the timeline's marks."""
        return hasattr(self.watch, "began_ns")

    @property
    def stopping_criteria(self) -> list[Any]:
        """Those of its watch."""
        return [] if self.watch is None else list(self.watch.stopping_criteria)

    def enter(self) -> None:
        """Attach; a probe that cannot work on this device or with this configuration is refused, not flagged."""
        self._guarded(self._enter, allowed=(ConfigError, DeviceError))

    def _enter(self) -> None:
        self.watch = self.context.__enter__()

    def start(self) -> None:
        """Right before ``generate()``."""
        if self.watch is not None:
            self._guarded(self.watch.start)

    def stop(self) -> None:
        """Right after it."""
        if self.watch is not None and not self.failed:
            self._guarded(self.watch.stop)

    def leave(self) -> None:
        """Detach, also after a failed run."""
        if self.watch is None:
            return
        under_way = sys.exc_info()
        try:
            self.context.__exit__(*under_way)
        except Exception as error:
            if error is not under_way[1]:
                self._note(error)

    def read(self, facts: RunFacts) -> None:
        """Read its values; none where anything of it failed."""
        watch = self.watch
        if watch is not None and not self.failed:
            self._guarded(lambda: self.values.update(watch.values(facts)))
        if self.failed:
            self.values = {"flags": [f"probe_failed:{self.probe.name}"]}

    def _guarded(self, call: Callable[[], None], allowed: tuple[type[Exception], ...] = ()) -> None:
        try:
            call()
        except allowed:
            raise
        except Exception as error:
            if self.probe.own_run:
                raise
            self._note(error)

    def _note(self, error: Exception) -> None:
        self.failed = True
        if self.probe.name not in _said:
            _said.add(self.probe.name)
            _log.warning("the probe %s failed; its values are missing where it does: %s", self.probe.name, error)


@contextmanager
def watching(model: VisionLanguageModel, probes: Sequence[Probe]) -> Iterator[list[Attached]]:
    """Attach probes for one run, in order, and detach them in reverse.

    Raises:
        ConfigError, DeviceError: a probe cannot work here at all.
    """
    attached: list[Attached] = []
    try:
        for probe in probes:
            one = Attached(probe=probe, context=probe.watch(model))
            attached.append(one)
            one.enter()
        yield attached
    finally:
        for one in reversed(attached):
            one.leave()

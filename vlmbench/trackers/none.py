"""No tracker: results stay in the run directory."""

from __future__ import annotations

from dataclasses import dataclass

from vlmbench.trackers.protocol import Tracked
from vlmbench.trackers.result import Result


@dataclass(frozen=True, kw_only=True)
class NoTracker:
    """Tracks nothing."""

    name = "none"

    def check(self) -> None:
        """Nothing to refuse."""

    def track(self, result: Result, run_id: str | None) -> Tracked:  # noqa: ARG002 – the protocol's arguments
        """Leave the result where it is."""
        return Tracked(run_id="", where=str(result.directory))

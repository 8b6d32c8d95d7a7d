"""What a tracker is: something that takes a finished run and says where it went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vlmbench.trackers.result import Result


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Where a run went.

    Args:
        run_id: the tracker's own name of the run; given back when the same run directory is tracked again.
        where: for people: a path or an address.
    """

    run_id: str
    where: str


class Tracker(Protocol):
    """Takes the result of a run directory to a place where many runs are kept.

    A frozen dataclass with one YAML in ``conf/tracker/``; in a package of its own, declared as an entry point of
    ``vlmbench.trackers``. Its library is imported inside the methods.
    """

    @property
    def name(self) -> str:
        """As users write it: ``tracker=NAME``; ``none`` for the one that tracks nothing."""
        ...

    def check(self) -> None:
        """Refuse, before anything is measured, what cannot work: a library that is not installed, say.

        Raises:
            ConfigError: with what to do.
        """
        ...

    def track(self, result: Result, run_id: str | None) -> Tracked:
        """Store a result. Whatever it raises is said in one line, and the run ends as it would have.

        Args:
            run_id: of :class:`Tracked`, where this directory was tracked before; its numbers are then replaced.
        """
        ...

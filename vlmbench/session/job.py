"""One job of the command line: its settings, its directory, and how its components are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmbench.machine.turns import Turns
from vlmbench.records.outcome import OutcomeFile
from vlmbench.records.run_directory import RunDirectory
from vlmbench.session.settings import RunConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of the command line.

    Args:
        settings: typed settings.
        config: the whole configuration, plain; resolved but for what the environment holds (``${oc.env:NAME}``).
        overrides: what the user wrote on the command line.
        directory: the run directory.
        outcome: the job's own account of its end.
        part: the job of a part of this one, from its name and the choices that make it.
        write_composed: writes ``.hydra/`` of the run directory: the configuration and overrides as they were composed.
        build: makes the component of a configuration key (``model``, ``dataset``, ``probe.timeline`` …).
        turns: of the whole job, its parts share them.
    """

    settings: RunConfig
    config: Mapping[str, Any]
    overrides: list[str]
    directory: Path
    outcome: OutcomeFile
    build: Callable[[str], Any]
    part: Callable[[str, list[str]], Job]
    write_composed: Callable[[], None]
    turns: Turns = field(default_factory=Turns)

    def run_directory(self) -> RunDirectory:
        """Make the object that locks, begins and ends the job's directory."""
        return RunDirectory(
            self.directory,
            self.config,
            outcome=self.outcome,
            write_composed=self.write_composed,
            break_lock=self.settings.break_lock,
            allow_unlike=self.settings.allow_unlike,
        )

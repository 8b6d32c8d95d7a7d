"""What became of a run: ``outcome.json`` of its directory, the truth that schedulers are second to.

Written whole at the start, now and then while the run goes on, and at its end; so it can be read at any moment, from
any host that sees the directory.
"""

from __future__ import annotations

import os
import time
import traceback as tracebacks
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from vlmbench.errors import InputError
from vlmbench.machine.host import host_hash, slurm_ids
from vlmbench.machine.wall_clock import look_at_wall_clock, unix_s
from vlmbench.records.files import write_json
from vlmbench.records.lock import LAST_UNIX_S, is_held, slurm_job_id
from vlmbench.records.redact import shareable
from vlmbench.text import count, parse_json

OUTCOME_NAME = "outcome.json"


class State(StrEnum):
    """How far a run is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by a signal or a time limit: resumable


class Cause(StrEnum):
    """Why a run was interrupted."""

    STOPPED = "stopped"  # by a signal or Ctrl-C
    TIME_LIMIT = "time_limit"  # its own, measurement.time_limit_s
    REFUSED = "refused"  # it was not continued, on unlike hardware, say


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The content of ``outcome.json``.

    Args:
        state: how far the run is; ``running`` is a claim that only its process can keep true.
        exit_status: of the process, once it is over (0, 1, 2, 130).
        reason: why it failed or was interrupted, one or two lines.
        traceback: of an unexpected failure; paths shortened.
        points_done: points that are over, failed ones included.
        points_total: all points; None while unknown.
        rows: rows measured so far in this directory.
        runs_done: runs that are over, in all sessions. runs_total: runs to expect; None while unknown.
        started_unix_s: begin of this attempt.
        updated_unix_s: when this was written.
        attempt: counts the processes that worked here, from 0.
        host: hash of the host's name. pid: of the process. job_id: Slurm's (``12_3`` for a task of an array).
        slurm: further ids of the job.
        cause: why it was interrupted, for programs; None for another end.
        before: of a run that was not continued, the reason of its end before that.
    """

    state: State
    exit_status: int | None = None
    reason: str | None = None
    traceback: str | None = None
    points_done: int = 0
    points_total: int | None = None
    rows: int = 0
    started_unix_s: float = 0.0
    updated_unix_s: float = 0.0
    attempt: int = 0
    host: str = ""
    pid: int = 0
    job_id: str | None = None
    slurm: dict[str, str] = field(default_factory=dict)
    cause: Cause | None = None
    before: str | None = None
    runs_done: int | None = None
    runs_total: int | None = None


def read_outcome(directory: Path) -> Outcome | None:
    """The outcome of a run directory; None when no run was ever begun there.

    Raises:
        InputError: the file cannot be read or is something else.
    """
    path = Path(directory) / OUTCOME_NAME
    try:
        found = parse_json(path.read_bytes())
        known = {f.name for f in fields(Outcome)}  # a newer version may have written more
        cause = None if found.get("cause") is None else Cause(found["cause"])
        kept = {k: v for k, v in found.items() if k in known}
        made = Outcome(**{**kept, "state": State(found["state"]), "cause": cause})
        _check_types(made)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"cannot read '{path}': {error!r}; it is no outcome of vlmbench.") from error
    return made


def _check_types(made: Outcome) -> None:
    for name in ("rows", "attempt", "pid", "points_done"):
        if not isinstance(getattr(made, name), int):
            raise TypeError(f"'{name}' must be a whole number (got {getattr(made, name)!r})")
    for name in ("exit_status", "points_total", "runs_done", "runs_total"):
        if not isinstance(getattr(made, name), int | None):
            raise TypeError(f"'{name}' must be a whole number or null (got {getattr(made, name)!r})")
    for name in ("started_unix_s", "updated_unix_s"):
        if not isinstance(value := getattr(made, name), int | float) or not abs(value) < LAST_UNIX_S:
            raise TypeError(f"'{name}' must be a time (got {value!r})")
    for name in ("reason", "traceback", "job_id", "before"):
        if not isinstance(getattr(made, name), str | None):
            raise TypeError(f"'{name}' must be a text or null (got {getattr(made, name)!r})")


class OutcomeFile:
    """Keeps ``outcome.json`` of one run true; make it once the run lock is held.

    Args:
        directory: the run directory.
        every_s: progress is written at most this often (each write is synced, so not after every row).

    Attributes:
        now: what was told last.
    """

    def __init__(self, directory: Path, *, every_s: float = 10.0) -> None:
        self.directory = Path(directory)
        self.every_s = every_s
        self.now = Outcome(state=State.RUNNING)
        self._written_s = 0.0
        self._is_lost = False

    @property
    def is_lost(self) -> bool:
        """Whether the run directory went somewhere that is not known: nothing is written any more."""
        return self._is_lost

    def follow(self, directory: Path | None) -> None:
        """The run directory was moved or removed under the run.

        Args:
            directory: where it is now; None where that is not known.
        """
        self._is_lost = directory is None
        self.directory = directory or self.directory

    def begin(self, *, points_total: int | None = None) -> None:
        """The run starts; an earlier attempt's outcome is replaced, its number kept counting."""
        try:
            before = read_outcome(self.directory)
        except InputError:
            before = None  # unreadable: this attempt's is to replace it
        look_at_wall_clock()
        self.now = replace(
            _mine(), points_total=points_total, started_unix_s=unix_s(), attempt=before.attempt + 1 if before else 0
        )
        self._write()

    def progress(
        self,
        *,
        points_done: int | None = None,
        points_total: int | None = None,
        rows: int = 0,
        runs: tuple[int, int] | None = None,
    ) -> None:
        """Note how far the run is; cheap, reaches the disk at most every ``every_s``.

        Args:
            points_done, points_total: points that are over, and all.
            runs: how many are over, of how many that are expected.
        """
        done, total = runs or (self.now.runs_done, self.now.runs_total)
        self.now = replace(
            self.now,
            runs_done=done,
            runs_total=total,
            points_done=self.now.points_done if points_done is None else points_done,
            points_total=self.now.points_total if points_total is None else points_total,
            rows=rows or self.now.rows,
        )
        if time.monotonic() - self._written_s >= self.every_s:
            self._write()

    def waits(self, words: str) -> None:
        """The run waits for something, in words; none once that came."""
        self.now = replace(self.now, reason=words or None)
        self._write()

    def end(
        self,
        state: State,
        *,
        exit_status: int,
        reason: str | None = None,
        error: BaseException | None = None,
        cause: Cause | None = None,
        before: str | None = None,
    ) -> Outcome:
        """The run is over.

        Args:
            state: ``done``, ``failed`` or ``interrupted``.
            reason: in words; None takes the error's message.
            before: of a run that was not continued, why it had ended before.
        """
        text = None if error is None else "".join(tracebacks.format_exception(error))
        if reason is None and error is not None:
            reason = str(error) or type(error).__name__
        self.now = replace(
            self.now if self.now.started_unix_s else _mine(),
            state=state,
            exit_status=exit_status,
            cause=cause,
            before=before,
            reason=None if reason is None else str(shareable(reason)),
            traceback=None if text is None else str(shareable(text)),
        )
        self._write()
        return self.now

    def _write(self) -> None:
        self.now = replace(self.now, updated_unix_s=unix_s())
        content: dict[str, Any] = asdict(self.now)
        write_json(self.directory / OUTCOME_NAME, content)
        self._written_s = time.monotonic()


def _mine() -> Outcome:
    return Outcome(state=State.RUNNING, host=host_hash(), pid=os.getpid(), job_id=slurm_job_id(), slurm=slurm_ids())


def unfinished(directory: Path, *, about: bool = False) -> str | None:
    """Say how far a run is that is not over: ``interrupted after 69 of 200 runs``.

    Args:
        about: whether a rule, not a number, ends its points, so that its total is an estimate.

    Returns:
        None for a run that came to its end, also where this process is about to say so, and for rows without an
        ``outcome.json`` (published ones).

    Raises:
        InputError: ``outcome.json`` or the lock cannot be read.
    """
    outcome = read_outcome(directory)
    if outcome is None or outcome.state == State.DONE or _is_ours(outcome):
        return None
    far = how_far(outcome, about=about)
    if outcome.state == State.RUNNING:
        return f"still running, {far} so far" if is_held(directory) else f"ended without a word after {far}"
    if outcome.state == State.INTERRUPTED:
        return f"{'cut short by its time limit' if outcome.cause == Cause.TIME_LIMIT else 'interrupted'} after {far}"
    short = outcome.runs_total is not None and (outcome.runs_done or 0) < outcome.runs_total
    return f"failed after {far}" if short else None


def _is_ours(outcome: Outcome) -> bool:
    """Whether this process measures the run: who writes a report then has measured all of it."""
    return outcome.state == State.RUNNING and outcome.pid == os.getpid() and outcome.host == host_hash()


def how_far(outcome: Outcome, *, about: bool = False) -> str:
    """``69 of 200 runs``; points or rows where an earlier version counted no runs."""
    if outcome.runs_done is not None and outcome.runs_total is not None:
        return runs_of(outcome.runs_done, outcome.runs_total, about=about)
    if outcome.points_total is not None:
        return f"{outcome.points_done:,} of {count(outcome.points_total, 'point')}"
    return count(outcome.rows, "row")


def runs_of(done: int, total: int, *, about: bool = False) -> str:
    """``69 of 200 runs``, ``69 of about 200 runs``; ``230 runs, about 200 were foreseen``."""
    nearly = "about " if about else ""
    if done > total:
        return f"{count(done, 'run')}, {nearly}{total:,} were foreseen"
    return f"{done:,} of {nearly}{count(total, 'run')}"

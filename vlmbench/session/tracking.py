"""What a run gives to a tracker when it is over; a tracker that fails costs no measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench.errors import first_line
from vlmbench.records.outcome import Cause
from vlmbench.records.redact import shareable
from vlmbench.text import say, shown
from vlmbench.trackers.result import earlier, keep, read_result

if TYPE_CHECKING:
    from vlmbench.session.job import Job
    from vlmbench.trackers.protocol import Tracker


def tracked(job: Job, measure: Callable[[Job], int]) -> int:
    """Measure, then give the result to the tracker that was asked for; returns the measurement's exit status.

    A run that was stopped is not tracked: it has little time, and is tracked when it is continued. One that met its own
    time limit is.

    Args:
        measure: runs it; returns the exit status.

    Raises:
        ConfigError: the tracker cannot work here; nothing was measured.
    """
    tracker: Tracker = job.build("tracker")
    tracker.check()
    status = measure(job)
    if tracker.name != "none" and job.outcome.now.cause != Cause.STOPPED:
        parts = job.settings.parts if job.settings.task == "study" else ()
        for directory in (job.directory, *(job.directory / name for name in parts)):
            if directory.is_dir():
                _track(tracker, directory)
    return status


def _track(tracker: Tracker, directory: Path) -> None:
    """Store one directory; whatever goes wrong is one line."""
    try:
        done = tracker.track(read_result(directory), earlier(directory, tracker.name))
        keep(directory, tracker.name, done.run_id)
    except Exception as error:  # a library of somebody else: anything may come out of it
        why = f"{type(error).__name__}: {shareable(first_line(error))}"
        say(f"warning: {shown(directory)} is not in {tracker.name} ({why}); what was measured is kept")
    else:
        say(f"{shown(directory)} is in {tracker.name}: {done.where}")

"""What a session writes about itself at its end: the whole report, or a page of what there is where it was stopped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vlmbench.errors import InputError, VlmbenchError
from vlmbench.runner.plan import SeriesState
from vlmbench.session.ending import conclude, cut_short, interrupted
from vlmbench.text import Level, level, say, show, shown

if TYPE_CHECKING:
    from vlmbench.session.job import Job


def report_and_conclude(
    job: Job, states: Sequence[SeriesState], *, again: str, far: str, untraced: Collection[str] = ()
) -> int:
    """Write the reports of a run that was not told to stop, and how it ended; returns the exit status.

    A run that its time limit cut short is first written down as such: its page says how far it is.
    """
    ends = partial(conclude, job.outcome, states, say, untraced=untraced, again=again, far=far)
    if cut_short(states, untraced):
        status = ends()
        write_reports(job, needed=False)
        return status
    write_reports(job, needed=True)
    return ends()


def write_reports(job: Job, *, needed: bool) -> None:
    """Figures, summary and phase file; a failure here loses no measurement and is said aloud.

    Args:
        needed: False where the run will be continued: too little for a report then does not end it as failed.
    """
    from vlmbench.report import write_report

    try:
        text = write_report(job.settings.report, job.directory, extra_figures=job.settings.figures.extra)
    except InputError as error:
        if needed:
            raise
        text = f"No report yet: {error}"
    if level() > Level.QUIET:
        show(text)


def stopped(job: Job, far: str, *, again: str) -> int:
    """End a run that was told to stop: first the truth about it on disk, then a page of what there is.

    Whoever stops a run may give it little time: no figure is drawn, and another signal ends it at once.

    Args:
        far: how far it is, in words.
    """
    from vlmbench.report import write_quick_report

    status = interrupted(job.outcome, f"interrupted after {far}; {again}", say)
    try:
        if text := write_quick_report(job.settings.report, job.directory):
            say(text)
    except KeyboardInterrupt:
        say(f"stopped again, so there is no page; experiment=report runs={shown(job.directory)} makes it")
    except VlmbenchError as error:  # the run is ended and can be continued, whatever becomes of its page
        say(f"no page: {error}")
    return status

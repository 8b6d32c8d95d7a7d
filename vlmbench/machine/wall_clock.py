"""Moments as dates: the wall clock as it stood when a run began, and the time that has passed since.

Who sets the wall clock meanwhile (by hand, or NTP on a fresh machine) neither brings rows out of their order nor makes
a run longer than it was. The time that has passed goes on while the machine sleeps.
"""

from __future__ import annotations

import time

_PASSES = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_began: list[float] = []


def look_at_wall_clock() -> None:
    """Read the wall clock anew; at the begin of a run."""
    _began[:] = [time.time() - time.clock_gettime(_PASSES)]


def unix_s() -> float:
    """Now, in seconds since 1970."""
    if not _began:
        look_at_wall_clock()
    return _began[0] + time.clock_gettime(_PASSES)

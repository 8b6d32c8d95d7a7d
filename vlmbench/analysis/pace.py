"""Whether the machine changed between two runs, and what that may explain of a difference of their times.

Beside the runs stands a fixed calculation (``yardstick_ms``, processor time), and each row has how long its thread
waited for a processor. Their product is the machine's pace: how long work that never changes takes there. A stage need
not follow it: one that waits for a GPU does not notice, one that lives on memory may notice more than the calculation.
So a change of the pace explains anything from nothing to :data:`MOST` times itself, and only what lies beyond is the
code's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.estimate import Array, Estimate, Shortfall
from vlmbench.analysis.frames import turns_of, values
from vlmbench.analysis.shift import partners, shift_between, shift_in_turns
from vlmbench.text import digits, span

MOST = 2.0
"""Times the change of the pace, on a logarithmic scale, that a stage may follow at most. The error of the change counts
once. Counted twice, a real change of 5 % (100 runs, autocorrelation 0.3) is found in 0.47 instead of 0.75 of the cases.
With 1.5 instead of 2, false alarms are 0.4 where stages follow a change of 10 % 0 to 1.8 times; as it is, at most 0.06.
"""
_WITHIN = ("T_transfer", "T_total", "T_detokenize")  # what the waiting was counted over


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Time for the same work on the candidate's machine, over that on the baseline's.

    Args:
        ratio: above 1: the machine was slower under the candidate; without an interval where its changes within a run
            leave too few independent values.
        decides: whether it is told apart from the code. Not of runs in turns: both saw the same machine, and what
            still differs is each process's own. Of 22 pairs of equal processes in turns the calculation differed for
            sure in 8, by up to 14 %, and ``T_total`` by at most 1.2 % there.
    """

    ratio: Estimate
    decides: bool = True

    @property
    def changed(self) -> bool:
        """Whether it did for sure."""
        low, high = self.ratio.low, self.ratio.high
        return low is not None and high is not None and not low <= 1 <= high

    @property
    def explains(self) -> float:
        """The largest ratio of times above 1 that it explains at the best guess; 1 where the machine was faster."""
        return max(1.0, math.pow(self.ratio.value or 1.0, MOST))

    def beyond(self, time: Estimate) -> tuple[float, float]:
        """What the code's part of a ratio of times may be, with 95 %: (low, high)."""
        if None in (time.value, time.low, time.high):
            return 0.0, math.inf
        if None in (self.ratio.value, self.ratio.low, self.ratio.high):
            return 0.0, math.inf
        machine, below, above = (math.log(x or 1) for x in (self.ratio.value, self.ratio.low, self.ratio.high))
        ratio, low, high = (math.log(x or 1) for x in (time.value, time.low, time.high))
        middle = ratio - MOST * machine
        down = middle - math.hypot(ratio - low, above - machine)
        up = middle + math.hypot(high - ratio, machine - below)
        return math.exp(min(low, down)), math.exp(max(high, up))

    def words(self) -> str:
        """``the machine: 1.07× (1.05 to 1.09×) the time for the same calculation``."""
        inside = span(self.ratio.low, self.ratio.high, "×") or "no interval: it changed within the runs"
        whose = "the machine" if self.decides else "the processes, which saw the same machine"
        return (
            f"{whose}: {digits(self.ratio.value or 1.0, 4)}× ({inside}) the time for the same calculation, waiting for "
            f"a processor included{'' if self.decides else '; nothing is decided from it'}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ratio": self.ratio.as_dict(), "changed": self.changed}


def pace_between(baseline: pd.DataFrame, candidate: pd.DataFrame, *, in_turns: bool = False) -> Pace | None:
    """The change of the machine's pace; None where a run lacks it, or has it too rarely.

    Args:
        baseline, candidate: measured rows of a run each, in the order measured.
        in_turns: whether the two took turns: neighbours in time are compared, so that what both saw is no change.
    """
    rows = [frame[~np.isnan(_paces(frame))] for frame in (baseline, candidate)]
    if not all(map(len, rows)):
        return None
    sides, same = [_paces(frame) for frame in rows], [np.zeros(len(frame), dtype=np.intp) for frame in rows]
    if in_turns:
        ours, theirs = partners(*(part for side in zip(rows, same, strict=True) for part in turns_of(*side)))
        ratio = shift_in_turns(sides[0][ours], sides[1][theirs], same[0][ours]).estimate
    else:
        ratio = shift_between(sides[0], same[0], sides[1], same[1]).estimate
    return (
        None
        if ratio.shortfall in (Shortfall.TOO_FEW_RUNS, Shortfall.NOTHING_TO_COMPARE)
        else Pace(ratio=ratio, decides=not in_turns)
    )


def _paces(rows: pd.DataFrame) -> Array:
    """ms of the calculation, longer by the share of the run that its thread waited; shape (rows,), NaN without."""
    whole = np.nansum([values(rows, name) for name in _WITHIN], axis=0)
    waited = np.nan_to_num(values(rows, "thread_waited_ms"))
    running = whole - waited
    alone = np.where(running > 0, running, np.nan)
    return np.asarray(values(rows, "yardstick_ms") * whole / alone, dtype=np.float64)

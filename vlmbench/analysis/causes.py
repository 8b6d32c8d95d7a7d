"""Which flags of runs are a cause of their being slow: those that slow runs carry clearly more often than the rest.

A flag that nearly every run carries (a board that always stands at its power cap) explains no slow run, so a flag is a
cause only where Fisher's exact test, one-sided, tells its share among the slow runs from that among the others at 5 %,
divided by the number of flags that are looked at (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import hypergeom

from vlmbench.analysis.rows import is_cause

LEVEL = 0.05
COLUMNS = ["flag", "slow", "slow_runs", "all", "runs", "p", "cause"]


def flag_causes(flags: Sequence[str], slow: NDArray[np.bool_]) -> pd.DataFrame:
    """How often each flag that may be a cause stands on slow runs and on all runs.

    Args:
        flags: of each run, names joined by spaces.
        slow: whether each run is one of the slow, shape (runs,).

    Returns:
        One row a flag that some slow run carries, the commonest among them first: ``flag``; ``slow`` of ``slow_runs``
        carry it, ``all`` of ``runs`` do; ``p``: the chance of at least so many among the slow, were they drawn from
        all runs blindly (Fisher's exact test, one-sided); ``cause``: whether that is too small to be chance.
    """
    carried = [frozenset(filter(is_cause, text.split())) for text in flags]
    among_slow = [names for names, is_slow in zip(carried, slow, strict=True) if is_slow]
    looked_at = sorted(set().union(*among_slow))
    rows = []
    for flag in looked_at:
        here, everywhere = _carriers(flag, among_slow), _carriers(flag, carried)
        p = float(hypergeom.sf(here - 1, len(carried), everywhere, len(among_slow)))
        rows.append((flag, here, len(among_slow), everywhere, len(carried), p, p <= LEVEL / len(looked_at)))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["slow", "p"], ascending=[False, True], kind="stable", ignore_index=True)


def _carriers(flag: str, carried: Collection[Collection[str]]) -> int:
    return sum(flag in names for names in carried)


def shares(row: Mapping[str, Any]) -> str:
    """``12 of 20 slow, 15 of 200 overall``.

    Args:
        row: of :func:`flag_causes`, as a mapping.
    """
    return f"{row['slow']:,} of {row['slow_runs']:,} slow, {row['all']:,} of {row['runs']:,} overall"

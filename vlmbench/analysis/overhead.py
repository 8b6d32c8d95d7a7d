"""What the instrument itself costs: runs with marks against runs without, in pairs."""

from __future__ import annotations

import pandas as pd

from vlmbench.analysis.quantiles import Estimate, median
from vlmbench.analysis.rows import measured

_PAIR = ["point_id", "sample_id", "repeat"]


def paired_ratios(frame: pd.DataFrame, metric: str = "T_total") -> pd.DataFrame:
    """Instrumented over bare, run by run: the same point, sample and repeat, so that drift of the host cancels.

    Returns:
        ``point_id``, ``sample_id``, ``repeat``, ``instrumented``, ``bare`` (ms), ``ratio``; one row a pair, none
        where there are no bare runs.
    """
    sides = [
        measured(frame, mode)[[*_PAIR, metric]].rename(columns={metric: mode}).dropna(subset=[mode])
        for mode in ("instrumented", "bare")
    ]
    pairs = sides[0].merge(sides[1], on=_PAIR, how="inner", validate="many_to_many")
    pairs = pairs.drop_duplicates(_PAIR, keep="last").reset_index(drop=True)
    return pairs.assign(ratio=pairs["instrumented"].astype("float64") / pairs["bare"].astype("float64"))


def instrument_overhead(frame: pd.DataFrame, metric: str = "T_total") -> Estimate:
    """Median of the paired ratios minus 1, with its order-statistic interval: 0.002 is 0.2 % slower with marks on."""
    found = median(paired_ratios(frame, metric)["ratio"].to_numpy())
    if found.value is None:
        return Estimate(value=None, n=0, n_needed=found.n_needed, note="no bare runs to compare with")
    shifted = [None if end is None else end - 1 for end in (found.low, found.high)]
    return Estimate(
        value=found.value - 1, low=shifted[0], high=shifted[1], n=found.n, n_needed=found.n_needed, note=found.note
    )

"""What the instrument itself costs: runs with marks against runs without, in pairs.

A pair is two runs of the same point, sample, repeat and session, made one right after the other: a session is a
process, and two processes differ by more than the instrument. Where one half of a pair carries a flag that it did work
for the first time and the other does not (``first_seen_length``, ``shape_changed``), the two did unlike work by a cause
that is known beforehand; such pairs are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pandas as pd

from vlmbench.analysis.estimate import Estimate, Shortfall
from vlmbench.analysis.frames import FIRST_TIME, measured
from vlmbench.analysis.quantiles import median
from vlmbench.schema import TOTAL
from vlmbench.text import count, percent, span, worth

_PAIR = ["point_id", "sample_id", "repeat", "session"]


def paired_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """``T_total`` instrumented over bare, run by run: the same point, sample, repeat and session, so drift cancels.

    Args:
        frame: rows of a run, with ``session`` where they come from several.

    Returns:
        ``point_id``, ``sample_id``, ``repeat``, ``session``, ``instrumented``, ``bare`` (ms), ``ratio``, ``unlike``
        (flags of work done for the first time that one half carries and the other does not, joined by spaces); one row
        a pair, none where there are no bare runs.
    """
    keys = [name for name in _PAIR if name in frame]
    sides = [
        measured(frame, mode)[[*keys, TOTAL, "flags"]]
        .rename(columns={TOTAL: mode, "flags": f"flags_{mode}"})
        .dropna(subset=[mode])
        for mode in ("instrumented", "bare")
    ]
    pairs = sides[0].merge(sides[1], on=keys, how="inner", validate="many_to_many")
    pairs = pairs.drop_duplicates(keys, keep="last").reset_index(drop=True)
    both = zip(pairs.pop("flags_instrumented"), pairs.pop("flags_bare"), strict=True)
    unlike = [_unlike(one, other) for one, other in both]
    bare = pairs["bare"].astype("float64")
    ratio = pairs["instrumented"].astype("float64") / bare.where(bare > 0)
    return pairs.assign(ratio=ratio, unlike=pd.Series(unlike, index=pairs.index, dtype=object))


@lru_cache  # few kinds of flags, many pairs
def _unlike(one: Any, other: Any) -> str:
    return " ".join(sorted(_first_time(one) ^ _first_time(other)))


def _first_time(flags: Any) -> frozenset[str]:
    return FIRST_TIME & frozenset(flags.split()) if isinstance(flags, str) else frozenset()


def _estimate(pairs: pd.DataFrame) -> Estimate:
    """Median of the paired ratios minus 1: 0.002 is 0.2 % slower with marks on; pairs of unlike work are left out."""
    alike = pairs[pairs["unlike"] == ""]
    found = median(alike["ratio"].to_numpy())
    if found.value is None:
        note = "no pair of runs that did alike work" if len(pairs) else "no bare runs to compare with"
        return Estimate(value=None, n=0, n_needed=found.n_needed, shortfall=Shortfall.NOTHING_TO_COMPARE, detail=note)
    low, high = (None if end is None else end - 1 for end in (found.low, found.high))
    return replace(found, value=found.value - 1, low=low, high=high)


def overhead_summary(frame: pd.DataFrame) -> dict[str, Any]:
    """What the summary says of the instrument's own cost.

    Returns:
        ``value`` (median of instrumented over bare, minus 1), ``low``, ``high``, ``n`` …; ``pairs_left_out``: how many,
        because their halves did unlike work, and ``left_out_by_flag``: flag to pairs; ``words``: a sentence.
    """
    pairs = paired_ratios(frame)
    left_out = [names.split() for names in pairs["unlike"] if names]
    by_flag = Counter(name for names in left_out for name in names)
    found = {
        **_estimate(pairs).as_dict(),
        "pairs_left_out": len(left_out),
        "left_out_by_flag": dict(sorted(by_flag.items(), key=lambda entry: (-entry[1], entry[0]))),
    }
    return found | {"words": overhead_words(found)}


def overhead_words(found: Mapping[str, Any]) -> str:
    """The sentence on what :func:`overhead_summary` found; a summary of an earlier version has no pairs left out."""
    missing = ""
    if left_out := found.get("pairs_left_out"):
        flags = ", ".join(f"{name} {number}" for name, number in found["left_out_by_flag"].items())
        are = "is" if left_out == 1 else "are"
        missing = f"{count(left_out, 'pair')} {are} left out, whose halves did unlike work: {flags}"
    if found["value"] is None:
        return f"What watching itself costs is not known: {missing or 'no bare runs'}."
    inside = span(found["low"], found["high"], "%")
    pairs = f"{count(found['n'], 'pair')} of runs{worth(found['n'], found.get('effective_n'))}"
    if not inside:
        text = f"What watching costs cannot be told from {pairs}: {percent(found['value'])}, without an interval"
    elif found["low"] <= 0 <= found["high"]:
        comma = "," if ", worth" in pairs else ""
        text = f"Watching costs nothing that {pairs}{comma} can show ({inside})"
    else:
        text = f"Watching costs {percent(found['value'])} ({inside}), from {pairs}"
    return f"{text}; {missing}." if missing else f"{text}."

"""Marks beside an engine's own figures of the same thing: do the two agree, run by run?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import measured, values
from vlmbench.analysis.quantiles import median

# What both measure, in words: columns of the marks that add up to it, and the engine's own column.
PAIRS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "vision encoder with projector": (("T_vision_encoder", "T_projector"), "engine_encoder_forward"),
    "generate() until the first token": (("TTFT_model",), "engine_first_token_latency"),
    "first until last token": (("T_LLM_decode",), "engine_decode_time"),
}
ASYNCHRONOUS = (
    "With asynchronous scheduling the engine reads a token after it has launched the next step, so its first token is "
    "later and its decode shorter than the device's, which the marks tell; only the encoder is the same thing twice."
)
COLUMNS = tuple(theirs for _, theirs in PAIRS.values())


def engine_agreement(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Marks over the engine's own figures: the median of the runs' ratios, with its interval.

    Args:
        frame: rows of a run.

    Returns:
        Rows of ``what``, ``engine`` (its column), ``ratio`` (:class:`vlmbench.analysis.estimate.Estimate` as a mapping)
        and ``runs``; none where the engine gave no such figure.
    """
    rows = measured(frame)
    found = []
    for what, (ours, theirs) in PAIRS.items():
        if theirs not in rows:
            continue
        parts = [values(rows, name) for name in ours if name in rows]
        whole, own = np.sum([np.nan_to_num(part) for part in parts], axis=0), values(rows, theirs)
        good = (own > 0) & (whole > 0)
        if good.any():
            ratio = median(whole[good] / own[good])
            found.append({"what": what, "engine": theirs, "ratio": asdict(ratio), "runs": int(good.sum())})
    return found


def agreement_words(found: Sequence[Mapping[str, Any]], *, asynchronous: bool = False) -> list[str]:
    """Say it in a sentence; none where there is nothing to say.

    Args:
        found: of :func:`engine_agreement`.
        asynchronous: the engine launches a step before it reads the token of the one before.
    """
    if not found:
        return []
    said = [f"The marks beside the engine's own figures, medians: {'; '.join(map(_words, found))}."]
    return [*said, ASYNCHRONOUS] if asynchronous else said


def _words(row: Mapping[str, Any]) -> str:
    ratio = row["ratio"]
    low, high = ratio["low"], ratio["high"]
    inside = "no interval" if low is None or high is None else f"{low:.4f}–{high:.4f}"
    return f"{row['what']} {ratio['value']:.4f} × {row['engine']} ({inside}, {row['runs']:,} runs)"

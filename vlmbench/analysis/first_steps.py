"""What a fresh process pays: the first decode step at each cache length, the first image of each size.

Kernels are chosen, and plans of cuDNN's attention built, when a shape is met for the first time in a process. The first
time is set against the median of all later times at the same shape, in the same process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

STEP, VISION, PREFILL = "decode step", "vision encoder", "prefill"
COLUMNS = ["what", "at", "first_ms", "later_ms", "later_n", "began"]


def first_times(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Set first times against later ones.

    Args:
        rows: of one process (one session), in the order measured, with the timeline's columns; no warm-up before them.

    Returns:
        ``what`` (``decode step``, ``vision encoder``, ``prefill``); ``at``: tokens in the cache, patches of the image,
        positions of the input; ``first_ms``; ``later_ms``: median of the ``later_n`` times after it; ``began``: whether
        it belongs to the very first run of the process, which starts everything else, too.
    """
    seen: dict[tuple[str, int], list[float]] = defaultdict(list)
    in_first: set[tuple[str, int]] = set()
    for number, row in enumerate(rows):
        for key, time in _times(row):
            if number == 0 and key not in seen:
                in_first.add(key)
            seen[key].append(time)
    found = [
        (what, at, times[0], median(times[1:]), len(times) - 1, (what, at) in in_first)
        for (what, at), times in sorted(seen.items())
        if len(times) > 1
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def _times(row: Mapping[str, Any]) -> Iterable[tuple[tuple[str, int], float]]:
    length = int(row["num_input_tokens"])
    if (vision := row.get("T_vision_encoder")) is not None and row.get("num_vision_patches"):
        yield (VISION, int(row["num_vision_patches"])), float(vision)
    if (prefill := row.get("T_LLM_prefill")) is not None:
        yield (PREFILL, length), float(prefill)
    for step, gap in enumerate(row.get("ITL") or [], start=1):
        if gap is not None:
            yield (STEP, length + step), float(gap)


def first_time_summary(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Summarise by kind: how many shapes, first and later time at the median, and what all first times add up to.

    Args:
        table: of :func:`first_times`. The very first run of the process is left out, and given as ``process_ms``:
            what it took beyond later times.

    Returns:
        One mapping a kind: ``what``, ``shapes``, ``first_ms``, ``later_ms`` (medians), ``ratio`` (median of the ratios,
        shape by shape), ``extra_ms`` (sum of first minus later), ``process_ms``.
    """
    found = []
    for what in (STEP, VISION, PREFILL):
        every = table[table["what"] == what]
        rows, began = every[~every["began"].astype(bool)], every[every["began"].astype(bool)]
        extra = rows["first_ms"] - rows["later_ms"]
        known = len(rows) > 0
        found.append(
            {
                "what": what,
                "shapes": len(rows),
                "first_ms": float(np.median(rows["first_ms"])) if known else None,
                "later_ms": float(np.median(rows["later_ms"])) if known else None,
                "ratio": float(np.median(rows["first_ms"] / rows["later_ms"])) if known else None,
                "extra_ms": float(extra.sum()) if known else None,
                "process_ms": float((began["first_ms"] - began["later_ms"]).sum()) if len(began) else None,
            }
        )
    return found

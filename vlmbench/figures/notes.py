"""Parts of captions that say what the rows are: output tokens of a request, what is held fixed, what an axis counts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import values
from vlmbench.analysis.quantiles import finite
from vlmbench.analysis.slices import COUNTED, X_LABELS, Slice, held
from vlmbench.text import count, plain


def output_tokens(rows: pd.DataFrame) -> str:
    """``32 output tokens a request``; a range and the median where requests differ; empty if they were not counted."""
    number = finite(values(rows, "num_output_tokens"))
    if not len(number):
        return ""
    low, middle, high = float(number.min()), float(np.median(number)), float(number.max())
    if low == high:
        return f"{count(low, 'output token')} a request"
    return f"{low:,.0f} to {high:,.0f} output tokens a request (median {plain(middle)})"


def not_held(part: Slice) -> str:
    """``prompt tokens 4 to 20``: counts of text that differ between the rows, besides the one on the axis."""
    said = []
    for name in ("num_prompt_tokens", "num_output_tokens"):
        number = finite(values(part.rows, name))
        if name != part.x and len(number) and np.ptp(number) > 0:
            said.append(f"{COUNTED[name]} {number.min():,.0f} to {number.max():,.0f}")
    return ", ".join(said)


def grown_by(part: Slice) -> str:
    """What makes the vision tokens of a sweep grow: whole images, crops, or one image of another size; empty if the
    rows do not tell.
    """
    if part.kind.name != "vision":
        return ""
    counts, unit = values(part.rows, part.x), X_LABELS.get(part.x, part.x)
    for name, one in (("num_images", "image"), ("num_crops", "crop")):
        number = values(part.rows, name)
        if np.isnan(number).any() or not np.ptp(number):
            continue
        span = f"{number.min():,.0f} to {count(number.max(), one)}"
        each = counts / number
        if not np.ptp(each):
            return f"the axis grows by whole {one}s of {each[0]:,.0f} {unit} ({span})"
        return f"the number of {one}s grows with the axis ({span})"
    patches = finite(values(part.rows, "num_vision_patches"))
    if len(patches) and np.ptp(patches):
        return f"the axis grows by the image's size ({patches.min():,.0f} to {patches.max():,.0f} vision patches)"
    return ""


def about(part: Slice) -> str:
    """All of it in one line of a caption: held fixed, not held fixed, what the axis grows by, the slice's own note."""
    equal, differing = held(part), not_held(part)
    parts = (
        f"held fixed: {equal}" if equal else "",
        f"not held fixed: {differing}" if differing else "",
        grown_by(part),
        part.note,
    )
    return "; ".join(words for words in parts if words)


def sentences(*parts: str) -> str:
    """The parts that are not empty as sentences: each begins with a capital and ends with a full stop."""
    return " ".join(f"{part[0].upper()}{part[1:].removesuffix('.')}." for part in parts if part)

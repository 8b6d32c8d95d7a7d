"""Which rows belong to one controlled comparison: one kind of token varies, everything else is held fixed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import REFERENCE, values
from vlmbench.analysis.quantiles import finite
from vlmbench.schema import label_of

MIN_POINTS = 3
"""Distinct token counts that a slope needs."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of thing that a sweep turns.

    Args:
        name: ``vision``, ``prompt`` …
        unit: what one more of it is called.
        columns: observed counts that may stand on the x axis, the first that varies is taken.
        axes: names of sweep axes that turn it (``processor.`` is a prefix).
        fixed: observed counts that must be equal within a slice, besides the other axes of the sweep.
        otherwise: on the x axis where no row has any of ``columns``: a server that counts its prompts as a whole.
    """

    name: str
    unit: str
    columns: tuple[str, ...]
    axes: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    otherwise: str = ""

    def turned_by(self, axis: str) -> bool:
        """Whether a sweep axis (without ``axis_``) turns this kind."""
        return axis in self.axes or (axis.startswith("processor.") and "processor." in self.axes)

    def counts(self, rows: pd.DataFrame) -> tuple[str, ...]:
        """Columns of rows that may stand on the x axis, the first that varies is taken."""
        known = tuple(c for c in self.columns if c in rows and bool(rows[c].notna().any()))
        return known or tuple(c for c in (self.otherwise,) if c in rows)


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="vision",
            unit="vision token",
            # Cross-attention models keep image positions out of the language model's input; resamplers keep their
            # number fixed while the encoder's work grows.
            columns=("num_vision_tokens", "num_cross_attention_tokens", "num_vision_patches"),
            axes=("vision_tokens", "resolution", "image_width", "image_height", "images", "frames", "processor."),
            fixed=("num_output_tokens",),
            otherwise="num_input_tokens",
        ),
        Kind(
            name="prompt",
            unit="prompt token",
            columns=("num_prompt_tokens",),
            axes=("prompt_tokens",),
            fixed=("num_vision_tokens", "num_output_tokens"),
            otherwise="num_input_tokens",
        ),
        Kind(
            name="output",
            unit="output token",
            columns=("num_output_tokens",),
            axes=("output_tokens",),
            fixed=("num_vision_tokens", "num_prompt_tokens"),
        ),
        Kind(name="turns", unit="turn", columns=("axis_turns",), axes=("turns",), fixed=("num_output_tokens",)),
        Kind(
            name="cache",
            unit="token in the cache",
            columns=("axis_kv_length",),
            axes=("kv_length",),
            fixed=("num_output_tokens",),
        ),
        Kind(name="batch", unit="request in the batch", columns=("axis_batch_size",), axes=("batch_size",)),
    )
}

TOKEN_KINDS = ("vision", "prompt", "output")

X_LABELS: Mapping[str, str] = {
    name: label_of(name) for kind in KINDS.values() for name in (*kind.columns, kind.otherwise) if name
}
"""Counts that may stand on the x axis to their labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """Rows in which one kind varies.

    Args:
        kind: what varies.
        x: the column with its observed count.
        rows: measured rows, ``x`` never missing.
        fixed: what is equal in all of them.
        note: what could not be held fixed; empty when all was.
    """

    kind: Kind
    x: str
    rows: pd.DataFrame
    fixed: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def clusters(self) -> pd.Series:
        """The sweep point of each row; rows of foreign files are grouped by their count."""
        return cluster_ids(self.rows, self.x)


def held_fixed(fixed: Mapping[str, Any]) -> str:
    """``vision tokens 576, output tokens 8``: what a slice holds fixed, a target and its observed count said once."""
    said = (f"{X_LABELS.get(name, name.replace('_', ' '))} {value}" for name, value in fixed.items())
    return ", ".join(dict.fromkeys(said))


COUNTED: Mapping[str, str] = {
    "num_vision_tokens": "vision tokens",
    "num_prompt_tokens": "prompt tokens",
    "num_output_tokens": "output tokens",
    "num_images": "images",
    "batch_size": "batch size",
}
"""Observed columns that a reader of a sweep must know, and what a sentence calls them."""


def held(part: Slice) -> str:
    """``output tokens 8, prompt tokens 32, batch size 1``: every count that is equal in all rows of a slice."""
    fixed = held_fixed(part.fixed)
    said = fixed.split(", ") if fixed else []
    for name, words in COUNTED.items():
        number = finite(values(part.rows, name))
        if name not in (part.x, part.x.removeprefix("axis_")) and len(number) == len(part.rows) > 0 == np.ptp(number):
            said.append(f"{words} {number[0]:.0f}")
    return ", ".join(dict.fromkeys(said))


def cluster_ids(rows: pd.DataFrame, x: str) -> pd.Series:
    """The sweep point of each row: ``point_id``, or ``x`` where the rows do not name points."""
    if "point_id" in rows and rows["point_id"].nunique() >= MIN_POINTS:
        return rows["point_id"].astype(str)
    return rows[x].astype(str)


def timing_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that enter statistics: status ``ok``, watched by the timeline (rows of older files have neither column)."""
    keep = pd.Series(True, index=frame.index)
    if "status" in frame:
        keep &= frame["status"].eq("ok")
    if "mode" in frame:
        keep &= frame["mode"].eq("instrumented")
    return frame[keep]


def sweep_axes(frame: pd.DataFrame) -> list[str]:
    """Columns ``axis_*`` that hold a value somewhere."""
    return [c for c in map(str, frame.columns) if c.startswith("axis_") and bool(frame[c].notna().any())]


def slices(frame: pd.DataFrame, kind: Kind) -> list[Slice]:
    """All slices of ``kind`` with at least three distinct counts, the one with most rows first.

    Counts named in ``kind.fixed`` are held equal. Where that leaves less than half of the rows (answers of natural
    length, say), only the other axes are held fixed and the slice carries a note.
    """
    rows = timing_rows(frame)
    if "point_id" in rows:
        rows = rows[~rows["point_id"].astype(str).str.startswith(REFERENCE)]
    axes = sweep_axes(rows)
    if axes:
        turning = [a for a in axes if kind.turned_by(a.removeprefix("axis_"))]
        rows = rows[rows[turning].notna().any(axis=1)] if turning else rows.iloc[:0]
        others = [a for a in axes if a not in turning]
    else:
        others = []
    x = next((c for c in kind.counts(rows) if rows[c].nunique() >= MIN_POINTS), None)
    if x is None:
        return []
    rows = rows[rows[x].notna()]
    counts = [c for c in kind.fixed if c in rows and c != x and bool(rows[c].notna().any())]
    strict = list(_split(rows, kind, x, others + counts))
    if strict and sum(len(s.rows) for s in strict) * 2 >= len(rows):
        found = strict
    else:
        varying = ", ".join(X_LABELS.get(c, c) for c in counts)
        found = list(_split(rows, kind, x, others, note=f"{varying} vary with it" if varying else ""))
    # Of equally large slices the middle one stands for the grid.
    middle = (len(found) - 1) / 2
    order = sorted(range(len(found)), key=lambda i: (-len(found[i].rows), abs(i - middle)))
    return [found[i] for i in order]


def _split(rows: pd.DataFrame, kind: Kind, x: str, by: list[str], note: str = "") -> Iterator[Slice]:
    if not by:
        yield Slice(kind=kind, x=x, rows=rows, note=note)
        return
    for found, part in rows.groupby(by, dropna=False, sort=True, observed=True):
        assert isinstance(found, tuple)
        if part[x].nunique() >= MIN_POINTS:
            named = zip(by, found, strict=True)
            fixed = {str(c).removeprefix("axis_"): _plain(v) for c, v in named if not _missing(v)}
            yield Slice(kind=kind, x=x, rows=part, fixed=fixed, note=note)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value

"""Whose tail it is, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.analysis.host import ABSENCE, DEVICE, HOST_OR_DEVICE, SPEED, WORKLOAD
from vlmbench.text import percent, span

_WORDS: Mapping[str, str] = {
    SPEED: "goes with the processor time of the launching thread (its processor ran slower, or had more to do)",
    HOST_OR_DEVICE: (
        "goes with the time in which the launching thread computed or waited for the device (traced runs that show an "
        "idle device would tell these apart)"
    ),
    ABSENCE: "with that thread being on no processor (preempted, or waiting)",
    DEVICE: "with the device's clocks and throttling",
}


def source_sentences(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say whose tail it is.

    Args:
        table: rows of :func:`vlmbench.analysis.host.variance_sources`.
    """
    rows = {row["source"]: row for row in table if row["of_rest"] is not None}
    of_host = sum(float(rows[name]["of_rest"]) for name in (SPEED, ABSENCE) if name in rows)
    parts = [
        f"{percent(float(rows[name]['of_rest']))} {words}"
        for name, words in _WORDS.items()
        if name in rows and abs(float(rows[name]["of_rest"])) >= 0.005
    ]
    if not parts:
        return []
    workload = next(row for row in table if row["source"] == WORKLOAD)
    left = 1 - float(workload["share"])
    inside = span(1 - float(workload["high"]), 1 - float(workload["low"]), "%")
    of_what = (
        f"the {percent(left)} ({inside}) of the variance that token counts leave" if left < 0.995 else "the variance"
    )
    whose = f"The tail is the host's, {percent(of_host)}. " if of_host >= 0.5 else ""
    return [f"{whose}Of {of_what}, {', '.join(parts)}."]

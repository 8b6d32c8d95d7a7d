"""Whose tail it is, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.analysis.variance import ABSENCE, DEVICE, HOST, HOST_OR_DEVICE, SPEED, WORKLOAD
from vlmbench.figures.theme import component_label
from vlmbench.schema import TOTAL
from vlmbench.text import percent, span

_THREAD: Mapping[str, str] = {
    SPEED: "goes with the processor time of the launching thread (its processor ran slower, or had more to do)",
    HOST_OR_DEVICE: (
        "goes with the time in which the launching thread computed or waited for the device (traced runs that show "
        "where the device is idle would tell these apart)"
    ),
    ABSENCE: "with that thread being on no processor (preempted, or waiting)",
    DEVICE: "with the device's clocks and throttling",
}
_STAGES: Mapping[str, str] = {
    DEVICE: "lies where the device works",
    HOST: "where the device waits for the host",
    HOST_OR_DEVICE: "where traces do not tell the two apart",
}
_SAID = 0.005  # smaller shares are not worth a clause


def source_sentences(table: Sequence[Mapping[str, Any]], what: str = "The tail") -> list[str]:
    """Say whose tail it is.

    Args:
        table: rows of :func:`vlmbench.analysis.variance.variance_sources`.
    """
    rows = {row["source"]: row for row in table if row["of_rest"] is not None}
    of_host = sum(float(rows[name]["of_rest"]) for name in (SPEED, ABSENCE, HOST) if name in rows)
    parts = [_clause(row) for row in rows.values() if abs(float(row["of_rest"])) >= _SAID]
    if not parts:
        return []
    workload = next(row for row in table if row["source"] == WORKLOAD)
    of_shape = float(workload["share"])
    shape = ""
    if of_shape >= _SAID:
        inside = share_interval(workload)
        shape = f"The shape of the request (its token counts) explains {percent(of_shape)} ({inside}) of the variance. "
    of_what = f"the {percent(1 - of_shape)} that it leaves" if shape else "the variance"
    whose = f"{what} is the host's, {percent(of_host)}. " if of_host * (1 - of_shape) >= 0.5 else ""
    return [f"{whose}{shape}Of {of_what}, {', '.join(parts)}."]


def _clause(row: Mapping[str, Any]) -> str:
    words = _STAGES if row.get("stages") else _THREAD
    stages = ", ".join(component_label(name) for name in str(row.get("stages") or "").split())
    return f"{percent(float(row['of_rest']))} {words[row['source']]}{f' ({stages})' if stages else ''}"


def part_sentences(tail: Mapping[str, Any]) -> list[str]:
    """Say which stages of ``generate()`` its variance lies in, and which part of a request the request's tail.

    Args:
        tail: ``tail`` of a summary.
    """
    sentences = []
    of_stages = _listed(tail.get("variance_parts") or [])
    if of_stages:
        sentences.append(f"By stage, of the variance of generate(): {of_stages}.")
    request = tail.get("request") or {}
    ratio, of_parts = request.get("ratio"), _listed(request.get("variance_parts") or [])
    if ratio and of_parts:
        inside = span(ratio["workload_low"], ratio["workload_high"], "×")
        sentences.append(
            f"{str(ratio['quantile']).upper()} of a whole request is {ratio['workload']:.3g}×"
            f"{f' ({inside})' if inside else ''} its median; of its variance: {of_parts}."
        )
    return sentences


def _listed(parts: Sequence[Mapping[str, Any]]) -> str:
    said = [row for row in parts if float(row["share"]) >= 0.01]
    return ", ".join(f"{_part(row['part'])} {percent(float(row['share']))} ({share_interval(row)})" for row in said)


def share_interval(row: Mapping[str, Any]) -> str:
    """The interval of a share of a variance, or why it has none.

    Args:
        row: of :func:`vlmbench.analysis.variance.variance_parts` or ``variance_sources``.
    """
    low, high = row["low"], row["high"]
    if low is None or math.isnan(low):
        return "too few runs for an interval"
    return span(low, high, "%") if high - low <= 1 else "a few slow runs carry it, so not known"


def _part(name: str) -> str:
    return "generate()" if name == TOTAL else component_label(name)

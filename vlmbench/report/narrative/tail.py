"""The tail in words, for the terminal and every place of the page: how far it reaches, whose it is, what it lacks, and
what makes times vary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.analysis.distribution import quantile_of
from vlmbench.analysis.estimate import Shortfall
from vlmbench.analysis.quantiles import needed
from vlmbench.analysis.variance import ABSENCE, DEVICE, HOST, HOST_OR_DEVICE, SPEED, WORKLOAD
from vlmbench.figures.theme import component_label
from vlmbench.report.narrative.pieces import Piece, Sentence, bold, ci
from vlmbench.schema import TOTAL, label_of
from vlmbench.text import count, factor, ms, not_measurable, percent, span, whole_ones

Summary = Mapping[str, Any]


def whole(summary: Summary) -> str:
    """What the time is of whose tail is told: ``a request``, or ``generate()``."""
    return "a request" if summary["tail"].get("metric") == "T_request" else "generate()"


def tail_sentence(summary: Summary, *, lead: bool = True) -> Sentence:
    """How many times its median the tail is, and whether it belongs to the workload or to the machine.

    Args:
        summary: of phase 1.
        lead: whether the sentence says of what the percentile is.
    """
    ratio = summary["headline"]["tail_ratio"]
    if not ratio:
        return _untold(summary)
    name = str(ratio["quantile"]).upper()
    return [
        f"{name} of {whole(summary)} is " if lead else f"{name} is ",
        *_times_median(ratio, "workload"),
        "; ",
        *whose_tail(summary),
        ".",
    ]


def request_tail(summary: Summary, lead: str) -> list[Piece]:
    """How many times its median the tail of a whole request is, and in which part most of its variance lies.

    Args:
        summary: of phase 1.
        lead: the words before the ratio; ``{}`` is its percentile.

    Returns:
        Pieces without a full stop; none where generate() alone was timed.
    """
    request = (summary.get("tail") or {}).get("request") or {}
    ratio = request.get("ratio")
    if not ratio or ratio.get("workload") is None:
        return []
    pieces: list[Piece] = [lead.format(str(ratio["quantile"]).upper()), *_times_median(ratio, "workload")]
    parts = [row for row in request.get("variance_parts") or [] if row.get("share") is not None]
    if not parts:
        return pieces
    top = max(parts, key=lambda row: float(row["share"]))
    inside = share_interval(top).removesuffix(" %")
    return [*pieces, "; ", bold(percent(top["share"])), *ci(inside), f" of its variance is {label_of(top['part'])}"]


def whose_tail(summary: Summary) -> list[Piece]:
    """The clause that says what of the tail is the workload's own: one repeated request has a tail, too.

    It is told at the highest percentile for which both have runs enough.
    """
    both = [row for row in summary["tail"]["ratios_to_median"] if row["beyond"] is not None]
    repeats = summary["runs"].get("reference_runs")
    if not both:
        why = "too few repeats of one request" if repeats else "no single request was repeated"
        return [f"how much of that belongs to the workload is not known: {why}"]
    row = both[-1]
    name = str(row["quantile"]).upper()
    repeated: list[Piece] = [
        f"one identical request, repeated {count(repeats, 'time')}{_worth(summary)}, has a tail too: its {name} is ",
        *_times_median(row, "reference"),
    ]
    if row["quantile"] != summary["headline"]["tail_ratio"]["quantile"]:  # like is compared with like
        inside = span(row.get("workload_low"), row.get("workload_high"), "×")
        repeated += [", that of the workload ", bold(factor(row["workload"])), *ci(inside)]
    if row["beyond_low"] <= 1:
        return [*repeated, ", so no tail of the workload's own can be told from the machine's"]
    beyond = [bold(factor(row["beyond"])), *ci(span(row["beyond_low"], row["beyond_high"], "×"))]
    return [*repeated, "; what exceeds that, ", *beyond, ", belongs to the workload"]


def _worth(summary: Summary) -> str:
    """How many independent runs the repeats are worth, where fewer than they are."""
    metric = summary["tail"].get("metric", "T_total")
    entry = (summary.get("distribution") or {}).get(metric, {}).get("reference") or {}
    n, effective = entry.get("n"), entry.get("effective_n")
    if not n or not effective or effective >= n / 2:
        return ""
    return f" (worth {whole_ones(effective)} independent {'one' if effective < 2 else 'ones'})"


def _times_median(row: Mapping[str, Any], group: str) -> list[Piece]:
    inside = span(row.get(f"{group}_low"), row.get(f"{group}_high"), "×")
    return [bold(factor(row[group])), *ci(inside), " its median"]


def share_of_variance(row: Mapping[str, Any]) -> str:
    """A share with its interval; one that may be none: estimated without bias, it may come out below nothing."""
    if float(row["low"]) > 0:
        return f"{percent(row['share'])} ({span(row['low'], min(row['high'], 1.0), '%')})"
    return not_measurable(float(row["high"]))


def _untold(summary: Summary) -> Sentence:
    entry = summary["distribution"].get(summary["tail"].get("metric", "T_total"), {}).get("workload")
    if not entry:
        return ["generate() was not timed on its own."]
    slowest = f"The tail cannot be told: the slowest of {count(entry['n'], 'request')} took "
    p90 = entry["p90"]
    why = f", and P90 {lacks(p90)}." if shortage(p90) else f"; P90 is not given: {lacks(p90)}."
    where = "" if whole(summary) == "a request" else " in generate()"
    return [slowest, bold(ms(entry["max"])), f"{where}{why}"]


def shortage(entry: Mapping[str, Any]) -> str:
    """What an estimate has of what it needs: ``4 of 6``, ``50, worth 12, of 36``; empty where a summary of an earlier
    version does not count it.
    """
    least = entry.get("n_needed")
    if least is None or entry.get("shortfall") not in _COUNTED:
        return ""
    if entry["shortfall"] == Shortfall.TOO_FEW_RUNS.key:
        return f"{entry['n']:,} of {least:,}"
    return f"{entry['n']:,}, worth {whole_ones(entry.get('effective_n') or 0)}, of {least:,}"


_COUNTED = (Shortfall.TOO_FEW_RUNS.key, Shortfall.TOO_FEW_INDEPENDENT.key)


def lacks(entry: Mapping[str, Any]) -> str:
    """Why an estimate has no interval: ``needs 36 requests, and there are 4``."""
    if not shortage(entry):
        return str(entry.get("note") or "too few runs")
    if entry["shortfall"] == Shortfall.TOO_FEW_RUNS.key:
        there = "is 1" if entry["n"] == 1 else f"are {entry['n']:,}"
        return f"needs {entry['n_needed']:,} requests, and there {there}"
    worth = whole_ones(entry.get("effective_n") or 0)
    return f"needs {entry['n_needed']:,} independent requests, and the {entry['n']:,} are worth {worth}"


def lacks_short(entry: Mapping[str, Any], name: str) -> str:
    """Why a percentile is not given, in a cell: ``needs 36``; of runs that resemble each other ``worth 7 of 36``."""
    if entry.get("shortfall") == Shortfall.TOO_FEW_INDEPENDENT.key and entry.get("n_needed") is not None:
        return f"worth {whole_ones(entry.get('effective_n') or 0)} of {entry['n_needed']:,}"
    _, resembling, worth = str(entry.get("note") or "").partition(" are worth ")  # of a version without the fields
    return f"worth {worth}" if resembling else needs(name)


def needs(name: str) -> str:
    """How many requests a percentile needs: ``needs 36`` for ``p90``."""
    return f"needs {needed(quantile_of(name)):,}"


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

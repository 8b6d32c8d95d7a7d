"""The tail in words, for the terminal and every place of the page: how far it reaches, whose it is, what it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vlmbench.analysis.distribution import quantile_of
from vlmbench.analysis.estimate import Shortfall
from vlmbench.analysis.quantiles import needed
from vlmbench.report.narrative.pieces import Piece, Sentence, bold, ci
from vlmbench.report.narrative.variance import share_interval
from vlmbench.schema import label_of
from vlmbench.text import count, factor, ms, percent, span

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
    return f" (worth {math.floor(effective):,} independent ones)" if n and effective and effective < n / 2 else ""


def _times_median(row: Mapping[str, Any], group: str) -> list[Piece]:
    inside = span(row.get(f"{group}_low"), row.get(f"{group}_high"), "×")
    return [bold(factor(row[group])), *ci(inside), " its median"]


def share_of_variance(row: Mapping[str, Any]) -> str:
    """A share with its interval; one that may be none: estimated without bias, it may come out below nothing."""
    if float(row["low"]) > 0:
        return f"{percent(row['share'])} ({span(row['low'], min(row['high'], 1.0), '%')})"
    return f"not measurable, at most {percent(max(float(row['high']), 0.0))}"


def _untold(summary: Summary) -> Sentence:
    entry = summary["distribution"].get(summary["tail"].get("metric", "T_total"), {}).get("workload")
    if not entry:
        return ["generate() was not timed on its own."]
    slowest = f"The tail cannot be told: the slowest of {count(entry['n'], 'request')} took "
    p90 = entry["p90"]
    why = f", and P90 has only {lacks(p90)}." if shortage(p90) else f"; P90 is not given: {lacks(p90)}."
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
    return f"{entry['n']:,}, worth {math.floor(entry.get('effective_n') or 0):,}, of {least:,}"


_COUNTED = (Shortfall.TOO_FEW_RUNS.key, Shortfall.TOO_FEW_INDEPENDENT.key)


def lacks(entry: Mapping[str, Any]) -> str:
    """Why an estimate has no interval: ``4 of 6 requests that it needs``."""
    counted = shortage(entry)
    return f"{counted} requests that it needs" if counted else str(entry.get("note") or "too few runs")


def lacks_short(entry: Mapping[str, Any], name: str) -> str:
    """Why a percentile is not given, in a cell: ``needs 36``; of runs that resemble each other ``worth 7 of 36``."""
    if entry.get("shortfall") == Shortfall.TOO_FEW_INDEPENDENT.key and entry.get("n_needed") is not None:
        return f"worth {math.floor(entry.get('effective_n') or 0):,} of {entry['n_needed']:,}"
    _, resembling, worth = str(entry.get("note") or "").partition(" are worth ")  # of a version without the fields
    return f"worth {worth}" if resembling else needs(name)


def needs(name: str) -> str:
    """How many requests a percentile needs: ``needs 36`` for ``p90``."""
    return f"needs {needed(quantile_of(name)):,}"

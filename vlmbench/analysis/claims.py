"""Three claims about the latency of vision-language models, each told by an interval: it holds, it does not, or open.

The limits below are conventions, not findings; they are printed beside every verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

TAIL_FROM = 1.2
"""A tail counts as a problem where the percentile is at least so many times the median."""
MOST = 0.5
"""The bottleneck is what takes more than this share of a request."""
SAME = 1.0
"""Tokens of two kinds cost the same where the ratio of their costs is this."""


class Verdict(StrEnum):
    """What the measured interval says of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be told"
    UNMEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Told:
    """A claim with its evidence.

    Args:
        verdict: of the interval against the limit.
        value: the estimate; None where it was not measured.
        low: lower end of its 95 % interval; None where there is none.
        high: upper end.
        of: what was estimated: ``p95`` or ``p90`` of the tail, ``T_request`` or ``T_total`` as the whole of a share; or
            why nothing was.
    """

    verdict: Verdict
    value: float | None = None
    low: float | None = None
    high: float | None = None
    of: str = ""


def claims_told(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> tuple[Told, Told, Told]:
    """Tell all three: the tail, the bottleneck, the kinds of token.

    Args:
        summary: of phase 1; empty if there is none.
        comparison: an entry of a token comparison's ``comparisons``; empty if there is none.
    """
    return tail_is_the_problem(summary), language_model_is_the_bottleneck(summary), token_kinds_differ(comparison)


def tail_is_the_problem(summary: Mapping[str, Any]) -> Told:
    """Tell whether the slowest requests take much longer than the middle one.

    Args:
        summary: of phase 1.

    Returns:
        The highest percentile that the run carries over the median, of whole requests where they were timed; holds
        from ``TAIL_FROM`` on. Open without a value where the run carries none; ``of`` says why.
    """
    tail = summary.get("tail") or {}
    request = tail.get("request") or {}
    row = request.get("ratio") or {}
    if not row and not request.get("note"):
        row = (summary.get("headline") or {}).get("tail_ratio") or {}
    value, low, high = (row.get(name) for name in ("workload", "workload_low", "workload_high"))
    of_generate = next((r.get("workload_note") for r in tail.get("ratios_to_median") or []), None)
    if value is None and (note := request.get("note") or of_generate):
        return Told(verdict=Verdict.OPEN, of=str(note))
    return _against(TAIL_FROM, value, low, high, str(row.get("quantile") or ""))


def language_model_is_the_bottleneck(summary: Mapping[str, Any]) -> Told:
    """Tell whether prefill and decode take most of a request.

    Args:
        summary: of phase 1, with ``llm_share``.
    """
    found = summary.get("llm_share") or {}
    value, low, high = (found.get(name) for name in ("value", "low", "high"))
    return _against(MOST, value, low, high, str(found.get("whole") or ""))


def token_kinds_differ(comparison: Mapping[str, Any]) -> Told:
    """Tell whether an output token costs another time than a vision token.

    Args:
        comparison: an entry of a token comparison's ``comparisons``; empty if there is none.

    Returns:
        Vision tokens that one output token is worth, without rows that did something for the first time where there
        are such; the claim fails only by an interval that holds no ratio beyond ``TAIL_FROM`` or below its inverse.
    """
    ratios = comparison.get("ratios_unflagged") or comparison.get("ratios") or {}
    row = ratios.get("output_over_vision") or {}
    value, low, high = (row.get(name) for name in ("value", "low", "high"))
    if value is None:
        return Told(verdict=Verdict.UNMEASURED)
    verdict = Verdict.OPEN
    if low is not None and high is not None:
        if low > SAME or high < SAME:
            verdict = Verdict.HOLDS
        elif low > 1 / TAIL_FROM and high < TAIL_FROM:
            verdict = Verdict.FAILS
    return Told(verdict=verdict, value=value, low=low, high=high, of="output_over_vision")


def _against(limit: float, value: float | None, low: float | None, high: float | None, of: str) -> Told:
    if value is None:
        return Told(verdict=Verdict.UNMEASURED)
    verdict = Verdict.OPEN
    if low is not None and low > limit:
        verdict = Verdict.HOLDS
    elif high is not None and high < limit:
        verdict = Verdict.FAILS
    return Told(verdict=verdict, value=value, low=low, high=high, of=of)

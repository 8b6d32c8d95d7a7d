"""What a server gave under each load: rates against latencies as a chart, and a table of the loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmbench.report.narrative import serving as words
from vlmbench.report.narrative.pieces import Sentence
from vlmbench.report.page.cells import cell, known, ms, ms_span, rounded, share_span, table
from vlmbench.report.page.parts import Part
from vlmbench.text import DASH, digits, percent

RATES: Mapping[str, str] = {
    "requests_per_s": "answers a second",
    "tokens_per_s": "tokens a second, all users",
    "tokens_per_s_user": "tokens a second, each user",
}
LATENCIES: Mapping[str, str] = {
    "TTFT_p50": "first token, median",
    "TTFT_p99": "first token, P99",
    "T_request_p50": "request, median",
    "TPOT_p50": "each output token, median",
}
_PAIRS = 2  # loads that a chart needs


def loads(part: Part) -> dict[str, Any] | None:
    """The loads of a run against a server, for the chart.

    Returns:
        ``rates`` and ``latencies`` (key, label of those that some load has), ``points`` (``name``, ``at``: key →
        value, low, high; ``doubt``); None for a run of a model in this process, and for a single load.
    """
    points = [point for point in _points(part) if not str(point["point_id"]).startswith("reference")]
    if len(points) < _PAIRS:
        return None
    serving = part.summary["serving"]
    made = [
        {
            "name": words.load_name(serving, point),
            "short": words.load_name(serving, point).removeprefix("Requests with ").removeprefix("Requests "),
            "at": {name: _at(point, name) for name in (*RATES, *LATENCIES) if known(point.get(name))},
            "doubt": "; ".join(words.why_doubtful(point)),
        }
        for point in points
    ]
    there = {name for point in made for name in point["at"]}
    return {
        "rates": [[name, label] for name, label in RATES.items() if name in there],
        "latencies": [[name, label] for name, label in LATENCIES.items() if name in there],
        "points": made,
    }


def _points(part: Part) -> list[Mapping[str, Any]]:
    found = part.summary.get("serving")
    return list(found.get("points") or []) if isinstance(found, Mapping) else []


def _at(point: Mapping[str, Any], name: str) -> list[Any]:
    return [rounded(point.get(key)) for key in (name, f"{name}_low", f"{name}_high")]


def said(part: Part) -> list[Sentence]:
    """What the section says beside its chart: what a server cannot show, and what limits the answer."""
    serving = part.summary.get("serving")
    if not isinstance(serving, Mapping):
        return []
    lines: list[Sentence] = [[words.not_seen(serving)]]
    lines += [[line] for line in words.doubts(serving)]
    return lines


def load_table(part: Part) -> dict[str, Any] | None:
    """The loads as a table; None for a run of a model in this process."""
    points = _points(part)
    if not points:
        return None
    serving = part.summary["serving"]
    limits = ", ".join(f"{n.upper()} ≤ {v:g} ms" for n, v in (serving.get("limits") or {}).items() if v is not None)
    columns = [("Load", False), ("Answers", True), ("Answers a second", True), ("Tokens a second", True)]
    columns += [("First token P50, ms", True), ("First token P99, ms", True), ("Request P50, ms", True)]
    columns += [("Within the limits", True), ("Failed", True), ("Doubts", False)]
    rows = [_row(serving, point) for point in points]
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i]["t"] not in (DASH, "0") for row in rows)]
    return table(
        "loads",
        "What the server gave (95 % interval)",
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        note=f"Limits: {limits}." if limits else "",
    )


def _row(serving: Mapping[str, Any], point: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        cell(words.load_name(serving, point)),
        cell(f"{point.get('requests') or 0:,.0f}"),
        *(_rate(point, name) for name in ("requests_per_s", "tokens_per_s")),
        *(_time(point, name) for name in ("TTFT_p50", "TTFT_p99", "T_request_p50")),
        cell(percent(point["good_share"]), sub=share_span(point.get("good_share_low"), point.get("good_share_high")))
        if known(point.get("good_share"))
        else cell(DASH),
        cell(f"{point.get('errors') or 0:,.0f}"),
        cell("; ".join(words.why_doubtful(point)) or DASH),
    ]


def _rate(point: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not known(point.get(name)):
        return cell(DASH)
    low, high = point.get(f"{name}_low"), point.get(f"{name}_high")
    return cell(digits(point[name]), sub=f"{digits(low)}–{digits(high)}" if known(low) and known(high) else "")


def _time(point: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not known(point.get(name)):
        return cell(DASH)
    return cell(ms(point[name]), sub=ms_span(point.get(f"{name}_low"), point.get(f"{name}_high")))

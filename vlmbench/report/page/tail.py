"""How bad the tail is and whose it is: percentiles, the repeated request beside the workload, the slowest requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.report.narrative.pieces import Sentence
from vlmbench.report.narrative.tail import request_tail, share_interval, share_of_variance, tail_sentence
from vlmbench.report.page.cells import cell, heading, known, ms, quantile_cell, share_span, signed, table
from vlmbench.report.page.parts import Part
from vlmbench.report.page.quality import flag_name
from vlmbench.text import DASH, percent, tokens, whole_ones

_QUANTILES = ("p50", "p90", "p95", "p99")
_SHOWN = 0.01  # smaller shares of the variance are not listed
_TIMES = ("T_request", "T_total", "TTFT", "ITL")  # those of the stages stand in the stage table


def percentiles(part: Part) -> dict[str, Any] | None:
    """Percentiles of every time with their intervals; what n does not allow says what it needs."""
    distribution: Mapping[str, Any] = part.summary.get("distribution") or {}
    lines = []
    shown = [name for name in _TIMES if name in distribution] or list(distribution)
    for metric in shown:
        for group, entry in distribution[metric].items():
            runs = "workload" if group == "workload" else "repeated"
            quantiles = [quantile_cell(entry.get(name), name) for name in _QUANTILES]
            lines.append([cell(f"{heading(metric)}, {runs}"), _n(entry), *quantiles, cell(ms(entry["max"]))])
    if not lines:
        return None
    columns = (("Time", False), *((name, True) for name in ("n", "P50", "P90", "P95", "P99", "Largest")))
    return table(
        "percentiles",
        "Percentiles, ms (95 % interval)",
        columns,
        lines,
        note="A percentile with a dash needs so many independent requests before its interval exists; n is of runs, "
        "below it the independent ones that they are worth.",
    )


def _n(entry: Mapping[str, Any]) -> dict[str, Any]:
    effective = entry.get("effective_n")
    return cell(
        f"{entry['n']:,}", sub=f"worth {whole_ones(effective)}" if known(effective) and effective is not None else ""
    )


def said(part: Part) -> list[Sentence]:
    """What the section says beside its charts."""
    request = request_tail(part.summary, "{} of a request is ")
    return [*([[*request, "."]] if request else []), tail_sentence(part.summary)]


def causes(part: Part) -> list[dict[str, Any]]:
    """What makes requests slow, in columns: the workload, marks, where it lies, what is left (``h``, ``t``, ``s``)."""
    tail = part.summary.get("tail") or {}
    what = "a request" if tail.get("metric") == "T_request" else "generate()"
    split = {row["source"]: row for row in tail.get("variance_split") or []}
    if not split:
        return []
    varied = [row for source, row in split.items() if source.startswith("num_") and row["low"] is not None]
    constant = [tokens(s) for s, r in split.items() if s.startswith("num_") and r["low"] is None]
    made = []
    if varied:
        top = max(varied, key=lambda row: float(row["share"]))
        listed = "; ".join(f"{tokens(r['source'])} {share_of_variance(r)}" for r in varied)
        same = f" The number of {' and '.join(constant)} never varied." if constant else ""
        found = f"of the variance of {what} follows {tokens(top['source'])}, the most of any count. All: {listed}."
        if float(top["low"]) <= 0:
            found = f"of the variance of {what} follows a count that can be measured: {listed}."
        made.append(
            {
                "h": "The workload",
                "t": percent(top["share"]) if float(top["low"]) > 0 else "nothing",
                "s": f"{found}{same}",
            }
        )
    else:
        made.append(
            {
                "h": "The workload",
                "t": "nothing",
                "s": f"The number of {' and '.join(constant)} never varied, so it explains nothing.",
            }
        )
    made.append(_marks(tail))
    made += [card for card in (_where(tail, what), _where_of_request(tail)) if card]
    rest = split.get("rest")
    if rest:
        inside = share_span(*(None if end is None else _in_range(end) for end in (rest.get("low"), rest.get("high"))))
        made.append(
            {
                "h": "What is left",
                "t": percent(_in_range(rest["share"])),
                "s": f"{f'({inside}) ' if inside else ''}of the variance no count explains: jitter of host and "
                "device, and what is not linear.",
            }
        )
    return made


def _in_range(share: float) -> float:
    """What is left of a variance is no less than nothing and no more than all of it."""
    return min(max(float(share), 0.0), 1.0)


def _where(tail: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    return _parts_card(f"Where {what} varies", tail.get("variance_parts") or [], what)


def _where_of_request(tail: Mapping[str, Any]) -> dict[str, Any] | None:
    request = tail.get("request") or {}
    return _parts_card("Where a whole request varies", request.get("variance_parts") or [], "a whole request")


def _parts_card(title: str, parts: Sequence[Mapping[str, Any]], what: str) -> dict[str, Any] | None:
    """The parts of a time by their share of its variance, the largest named."""
    if not parts:
        return None
    listed = "; ".join(
        f"{heading(row['part'])} {percent(row['share'])} ({signed(share_interval(row))})"
        for row in parts
        if float(row["share"]) >= _SHOWN
    )
    first = parts[0]["part"]
    return {"h": title, "t": heading(first), "s": f"Of the variance of {what}: {listed}."}


def _marks(tail: Mapping[str, Any]) -> dict[str, Any]:
    flags = [row for row in tail.get("flags") or [] if row.get("cause")]
    slow = int(tail.get("slow_runs") or 0)
    if not flags:
        return {
            "h": "Marked by the instrument",
            "t": "none",
            "s": f"{_none_of(slow)} carries a mark that is commoner among the slow.",
        }
    listed = "; ".join(
        f"{flag_name(row['flag'])}: {row['slow']} of {row['slow_runs']} slow, {row['all']} of {row['runs']} overall"
        for row in flags
    )
    return {"h": "Marked by the instrument", "t": flag_name(flags[0]["flag"]), "s": f"{listed}."}


def _none_of(slow: int) -> str:
    return f"None of the {slow:,} slowest runs" if slow != 1 else "Not even the slowest run"


def slowest(part: Part) -> dict[str, Any] | None:
    """The slowest requests with what is known of their cause."""
    found = (part.summary.get("tail") or {}).get("slow_requests") or []
    if not found:
        return None
    metric = str((part.summary.get("tail") or {}).get("metric") or "T_total")
    words = {"unknown": "not known", "jitter": "within what one repeated request shows", "tokens": "its token counts"}
    lines = [
        [
            cell(str(row["sample_id"]), pick=str(row["sample_id"])),
            cell(ms(row[metric])),
            cell(ms(row.get("over_median"))),
            cell(
                " / ".join(
                    _count(row.get(name)) for name in ("num_vision_tokens", "num_prompt_tokens", "num_output_tokens")
                )
            ),
            cell(
                words.get(str(row.get("cause")), str(row.get("cause") or "not known").replace("_", " ")),
                sub=f"in {heading(row['place'])}" if row.get("place") else "",
            ),
        ]
        for row in found[:20]
    ]
    columns = (
        ("Request", False),
        (heading(metric, unit=True), True),
        ("Over the median, ms", True),
        ("Vision / prompt / output tokens", False),
        ("Cause", False),
    )
    what = "a whole request" if metric == "T_request" else "generate()"
    which = f"The {len(lines):,} slowest requests" if len(lines) > 1 else "The slowest request"
    return table("slowest", f"{which}, by the time of {what}", columns, lines)


def _count(value: Any) -> str:
    return f"{value:,.0f}" if known(value) else DASH

"""Servers and loads: tables and sentences of the pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from published import (
    MODELS,
    NOT_MEASURED,
    SERVER,
    SERVERS,
    Published,
    Run,
    command_of,
    cut_words,
    measured,
    read,
    table,
    value,
)

from vlmbench.analysis.frames import REFERENCE
from vlmbench.figures.serving import point_label
from vlmbench.text import DASH, count, digits, percent


def server_table(results: Published) -> str:
    """What the loads on servers on a processor gave, one line a run."""
    rows = []
    for folder in sorted((results.results / SERVERS).glob("*/")):
        summary, about = read(folder / "summary.json"), read(folder / "provenance.json")
        if summary is None or about is None:
            continue
        run = Run(folder=folder.relative_to(results.results), summary=summary, provenance=about)
        point = summary["serving"]["points"][0]
        request = summary["distribution"]["T_request"]["workload"]
        rows.append(
            [
                f"[`{folder.name}`]({run.folder.as_posix()})",
                f"{point['requests']:,}",
                value(point, key="requests_per_s"),
                value(request["p50"]),
                value(request["p99"]) if request["p99"]["value"] is not None else _sample_p99(folder),
                digits(request["max"]),
                percent(point["good_share"]),
                command_of(run),
            ]
        )
    heads = (
        "run",
        "requests",
        "answers a second",
        "a request (ms), P50",
        "P99",
        "slowest",
        "first token within 200 ms",
    )
    return table((*heads, "command"), rows) if rows else f"{NOT_MEASURED}."


_ASKED: Mapping[str, str] = {
    "vllm_closed": "in this process",
    "vllm_open": "in this process",
    "endpoint/closed": "as a server",
    "endpoint/open": "as a server",
}


def _loaded(results: Published) -> Iterator[tuple[str, str, Run, list[Mapping[str, Any]]]]:
    """(model, how vLLM was asked, run, its loads) of what was measured under load on the card."""
    for model in MODELS:
        for place, asked in _ASKED.items():
            name, _, phase = place.partition("/")
            run = results.run(f"{model}_{name}", phase or "phase1")
            points = ((run.summary.get("serving") or {}).get("points") or []) if run else []
            if run is not None and (shown := [point for point in points if point["point_id"] != REFERENCE]):
                yield model, asked, run, shown


def _load(run: Run, point: Mapping[str, Any]) -> str:
    """``4 users``, ``5 a second``."""
    if said := point_label(point):
        return said
    load = run.summary["serving"]["load"]
    return point_label({f"axis_load.{name}": load[name] for name in (_OPEN if load["name"] == "open" else _CLOSED)})


_OPEN, _CLOSED = ("rate_per_s",), ("concurrency",)


def load_table(results: Published) -> str:
    """What vLLM gave on the card under load, a line a load."""
    carried = _has_p99(results)
    rows = [
        [
            MODELS[model],
            f"{asked}{run.mark}",
            _load(run, point),
            _answer_length(run),
            f"{point['requests']:,}" + (f", {point['errors']:,} failed" if point["errors"] else "") + cut_words(run),
            value(point, key="requests_per_s"),
            _good(point),
            value(point, key="tokens_per_s"),
            value(point, key="TTFT_p50"),
            *([value(point, key="TTFT_p99") if point["TTFT_p99"] is not None else "n too small"] if carried else []),
            value(point, key="T_request_p50"),
            results.rows(run),
        ]
        for model, asked, run, points in _loaded(results)
        for point in points
    ]
    heads = ("model", "vLLM", "load", "tokens an answer", "requests", "answers a second", "within the limits")
    first = ("tokens a second", "first token, ms, P50", *(("P99",) if carried else ()), "request, ms, P50", "")
    return table((*heads, *first), rows) if rows else ""


def _has_p99(results: Published) -> bool:
    return any(point["TTFT_p99"] is not None for *_, points in _loaded(results) for point in points)


def _answer_length(run: Run) -> str:
    spread = (run.summary.get("tokens") or {}).get("num_output_tokens")
    return DASH if spread is None else f"{spread['median']:g}"


def _good(point: Mapping[str, Any]) -> str:
    """``3.53 a second, 95.0 % (71.2–99.0 %)``; a dash where no limits were given."""
    if point.get("good_share") is None:
        return DASH
    return f"{digits(point['goodput_per_s'])} a second, {value(point, percent, 'good_share')}"


_LIMITS: Mapping[str, str] = {
    "ttft": "a first token within {} ms", "tpot": "{} ms a token after it", "request": "a whole answer within {} ms"
}  # fmt: skip


def limits_words(results: Published) -> str:
    """Which limits goodput is counted under."""
    every = {
        ", ".join(
            _LIMITS[name].format(f"{limit:g}") for name, limit in run.summary["serving"]["limits"].items() if limit
        )
        for *_, run, _points in _loaded(results)
    } - {""}
    limits = f"Limits: {'; or '.join(sorted(every))}. " if every else ""
    if limits and not _has_p99(results):
        limits += "P99 of the first token is not given: n is too small for it at each of these loads. "
    served = [run for _, asked, run, _points in _loaded(results) if asked == "as a server"]
    server = read(results.results / served[0].folder.parent / SERVER) if served else None
    said = f"The server is `vllm serve` {server['vllm']} with random weights on an {server['device']}" if server else ""
    return f"{limits}{said}{'; its client asked from processors of the same host.' if said else ''}".strip()


def load_figures(results: Published) -> str:
    """What a user gets against what the card gives, and the first token against throughput."""
    return "".join(
        results.figure(f"{run.folder.as_posix()}/figures/{stem}.png", f"{MODELS[model]}, vLLM {asked}: {words}")
        for model, asked, run, _ in _loaded(results)
        for stem, words in (
            ("pareto", "tokens a second of the card against tokens a second of a user"),
            ("ttft_throughput", "time to the first token against answers a second"),
        )
    )


def load_words(results: Published) -> str:
    """How far throughput and first token go from the least load to the most, a bullet a run."""
    lines = []
    for model, asked, run, points in _loaded(results):
        first, last = (min(points, key=_rate), max(points, key=_rate))
        held = sum(bool(point["client_in_the_way"]) for point in points)
        client = f"; the client was in its own way in {held} of {count(len(points), 'load')}" if held else ""
        client += "; cut off before all loads were measured" if run.cut else ""
        rate = value(first, key="requests_per_s")
        said = f"* {MODELS[model]}, vLLM {asked}, {_load(run, first)}: {rate} answers a second"
        if first is not last:
            said += f", {_load(run, last)}: {value(last, key='requests_per_s')}; the first token takes"
            said += f" {value(first, key='TTFT_p50')} and {value(last, key='TTFT_p50')} ms at the median"
        lines.append(f"{said}{client}{run.mark}.")
    return "\n".join(lines) or f"Under load on this card: {NOT_MEASURED}."


def _rate(point: Mapping[str, Any]) -> float:
    return float(next((number for name, number in point.items() if name.startswith("axis_load.")), 0.0))


def alone_words(results: Published) -> str:
    """How many requests at a time the claims are about."""
    if any(_loaded(results)):
        return "* Claims, tails and stages are of one request at a time on one card."
    return "* One request at a time on one card. Servers under load: [engines](engines.md)."


def stall_words(results: Published) -> str:
    """What a server that stands still for a while looks like in an open and in a closed loop."""
    said = []
    for name, loop in (("stall_open", "an open loop"), ("stall_closed", "a closed loop")):
        folder = results.results / SERVERS / name
        summary = read(folder / "summary.json")
        if summary is None:
            return f"{NOT_MEASURED.capitalize()}."
        times_ms = measured(folder, "TTFT")
        slow = sum(time > SLOW_MS for time in times_ms)
        middle = digits(summary["distribution"]["TTFT"]["workload"]["p50"]["value"])
        said.append(
            f"{slow} of {len(times_ms):,} requests of {loop} waited more than {SLOW_MS / 1e3:g} s for their first "
            f"token (median {middle} ms, the sample's P99 {digits(_p99(times_ms))} ms)"
        )
    return f"{', and '.join(said)}: a closed loop hides the tail. [Rows]({results.link}/{SERVERS})."


SLOW_MS = 500.0


def _sample_p99(folder: Path) -> str:
    """The 99th percentile of the very requests that were sent, where they are too few to say more."""
    return f"n too small ({digits(_p99(measured(folder, 'T_request')))} in the sample)"


def _p99(values: Sequence[float]) -> float:
    """By linear interpolation, as percentiles are elsewhere."""
    return float(np.quantile(values, 0.99))

#!/usr/bin/env python3
"""Write the pages about the published results from their rows: every number on them is filled in here.

    python scripts/findings.py            # findings and the study in docs, docs/results/README.md, README.md
    python scripts/findings.py --check    # exit 1 and the names of pages that are not what would be written

Sentences that do not depend on a number stand in ``scripts/pages``; what was not measured says so. A run of an earlier
set (``docs/results/archive``) stands in where the present one has none, and is marked.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent))
from published import (
    ARCHIVE,
    CARD,
    EACH,
    EARLIER,
    FULL,
    METHODS,
    MODELS,
    NOT_MEASURED,
    PROVENANCE,
    RESULTS,
    ROOT,
    RUNTIMES,
    Published,
    Run,
    code_of,
    read,
    span_of,
    table,
    times,
    value,
    who,
)  # fmt: skip

from vlmbench.analysis.claims import (
    MOST,
    TAIL_FROM,
    Told,
    Verdict,
    claims_told,
    language_model_is_the_bottleneck,
    tail_is_the_problem,
    token_kinds_differ,
)
from vlmbench.analysis.frames import REFERENCE
from vlmbench.figures.serving import point_label
from vlmbench.report.from_rows import FIRST_STEPS
from vlmbench.schema import label_of
from vlmbench.text import DASH, count, digits, percent, tight_interval

# Claims ---------------------------------------------------------------------------------------------------------------


def claims_of(results: Published, name: str) -> tuple[Told, Told, Told]:
    """The verdicts on tail, bottleneck and kinds of token."""
    run = results.run(name, "phase1")
    return claims_told(run.summary if run else {}, results.comparison(name))


def _claims_told(results: Published, name: str) -> list[Verdict]:
    """The verdicts; what was measured and could not be told is open."""
    verdicts = [one.verdict for one in claims_of(results, name)]
    measured = [results.run(name, "phase1") is not None] * 2 + [bool(results.comparison(name))]
    unmeasured = Verdict.UNMEASURED
    return [Verdict.OPEN if is_there and v is unmeasured else v for v, is_there in zip(verdicts, measured, strict=True)]


def claims_table(results: Published) -> str:
    """The three claims under each runtime."""
    rows = []
    for name in results.names():
        tail, share, kinds = claims_of(results, name)
        run, compared = results.run(name, "phase1"), results.run(name)
        rows.append(
            [
                *who(name),
                _verdict(tail, times, f"× at {tail.of.upper()}", run),
                _verdict(share, percent, "", run),
                _verdict(kinds, digits, " to 1", compared if results.comparison(name) else None),
            ]
        )
    return table(
        ("model", "runtime", "the tail is the problem", "the LLM is the bottleneck", "kinds of token differ"), rows
    )


def _verdict(found: Told, write: Callable[[float], str], unit: str, run: Run | None) -> str:
    if run is None:
        return NOT_MEASURED
    if found.value is None:
        return f"**{Verdict.OPEN}**{run.mark}: too few independent runs"
    if found.low is None:
        said = "not bounded" if write is digits else f"{write(found.value)}{unit}, no interval"
        return f"**{found.verdict}**{run.mark}: {said}"
    return f"**{found.verdict}**{run.mark}: {write(found.value)}{unit}{span_of(found.low, found.high, write)}"


def claims_words(results: Published) -> str:
    """How often each claim holds, a bullet a claim."""
    told = [_claims_told(results, name) for name in results.names()]
    lines = []
    for place, claim in enumerate(
        ("The tail is the problem", "The language model is the bottleneck", "Kinds of token differ")
    ):
        found = Counter(one[place] for one in told)
        measured = sum(found.values()) - found[Verdict.UNMEASURED]
        if not measured:
            lines.append(f"* {claim}: {NOT_MEASURED}.")
            continue
        parts = [
            f"{verdict} in {found[verdict]}" for verdict in Verdict if found[verdict] and verdict != Verdict.UNMEASURED
        ]
        lines.append(f"* {claim}: {', '.join(parts)} of {measured} pairs of model and runtime that were measured.")
    return "\n".join(lines)


# Tail -----------------------------------------------------------------------------------------------------------------


def tail_table(results: Published) -> str:
    """How far the tail of requests and of ``generate()`` reaches, and where it lies."""
    rows = []
    for name in results.names():
        run = results.run(name, "phase1")
        if run is None:
            rows.append([*who(name), NOT_MEASURED, *[DASH] * 4, ""])
            continue
        summary = run.summary
        whole = (summary["distribution"].get("T_request") or {}).get("workload") or {}
        tail = summary["tail"]
        request = (tail.get("request") or {}).get("ratio")
        of_model = next((r for r in reversed(tail["ratios_to_median"]) if r["workload"] is not None), None)
        effective = whole.get("effective_n")
        worth = "" if effective is None else f", worth {min(effective, whole['n']):,.0f}"
        if failed := summary["runs"]["status"].get("error", 0):
            again = _failed_and_again(results.results / run.folder)
            worth += f", {failed} failed first, {again} of {failed} ran when tried again"
        rows.append(
            [
                *who(name),
                f"{whole.get('n', 0):,}{worth}{_cut(run)}{run.mark}",
                value(whole.get("p50")),
                _quantile(request),
                _quantile(of_model),
                _largest_part(tail),
                results.rows(run),
            ]
        )
    heads = ("model", "runtime", "requests", "median, ms", "tail of a request, ×", "tail of `generate()`, ×")
    return table((*heads, "most of the request's variance is", ""), rows)


def _failed_and_again(folder: Path) -> int:
    """How many of the requests that failed were measured by a later try."""
    measured = {row["sample_id"] for row in _counted(folder)}
    return len({row["sample_id"] for row in _rows(folder) if row["status"] == "error"} & measured)


def _quantile(row: Mapping[str, Any] | None) -> str:
    return DASH if row is None else f"{row['quantile'].upper()} {value(row, times, 'workload')}"


def _largest_part(tail: Mapping[str, Any]) -> str:
    parts = [row for row in (tail.get("request") or {}).get("variance_parts") or [] if row.get("share") is not None]
    if not parts:
        return DASH
    top = max(parts, key=lambda row: float(row["share"]))
    name = "`generate()`" if top["part"] == "T_total" else label_of(top["part"])
    return f"{name}, {value(top, percent, 'share') if 'share_low' in top else _share(top)}"


def _share(row: Mapping[str, Any]) -> str:
    return f"{percent(row['share'])}{span_of(row.get('low'), row.get('high'), percent)}"


def tail_words(results: Published) -> str:
    """One bullet a model: under which runtimes ``generate()`` itself has a tail."""
    lines = []
    for model in MODELS:
        clauses = []
        for runtime, words in RUNTIMES.items():
            run = results.run(f"{model}_{runtime}", "phase1")
            row = run and next(
                (r for r in reversed(run.summary["tail"]["ratios_to_median"]) if r["workload"] is not None), None
            )
            if run and row and row["workload_low"] is not None:
                verdict = (
                    "reaches the limit" if row["workload_low"] > TAIL_FROM
                    else "stays below it" if row["workload_high"] < TAIL_FROM else "cannot be told from it"
                )  # fmt: skip
                clauses.append(f"{words} {_quantile(row)}, which {verdict}{run.mark}")
        if clauses:
            lines.append(f"* `generate()` of {MODELS[model]} alone: {'; '.join(clauses)}.")
    return "\n".join(lines) or f"* {NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]}."


_SLOW = 2.0  # preprocessing is slow from so many of its medians on
_UNRELATED = 0.2  # a rank correlation nearer to 0 says that it is not the request
_HOST_S = ": this tail is of the host and of how it preprocesses there, not of the images."


def _stolen(rows: Sequence[Mapping[str, Any]]) -> str:
    return percent(fmean((row.get("steal_ms") or 0) > 0 for row in rows), 2) if rows else DASH


def slow_words(results: Published) -> str:
    """Whether the requests whose preprocessing is slow under one runtime are those that are slow under another."""
    lines = []
    for model in FULL:
        runs = _present(results, model)
        held = _held(runs)
        if len(held) < 2:
            continue
        shares = []
        for runtime, run in runs.items():
            rows = _counted(results.results / run.folder)
            limit = _SLOW * median(row["T_preprocess"] for row in rows)
            slow, other = (
                [row for row in rows if (row["T_preprocess"] > limit) is is_slow] for is_slow in (True, False)
            )
            shares.append(
                f"{RUNTIMES[runtime]} {len(slow)} of {len(rows)} ({_stolen(slow)}; of the others {_stolen(other)})"
            )
        rank = _rank(results, [runs[runtime] for runtime in held[:2]])
        lines.append(
            f"* Requests to {MODELS[model]} whose preprocessing took more than {_SLOW:g} × its median, and from how "
            f"many of them the hypervisor took processor time while they ran: {'; '.join(shares)}. The rank "
            f"correlation of the same request's preprocessing under {RUNTIMES[held[0]]} and "
            f"under {RUNTIMES[held[1]]} is {rank:.2f}"
            f"{_HOST_S if abs(rank) < _UNRELATED else '.'}"
        )
    return "\n".join(lines)


def _present(results: Published, model: str) -> dict[str, Run]:
    """Phase 1 of a model by runtime, of the present set."""
    runs = {runtime: results.run(f"{model}_{runtime}", "phase1") for runtime in RUNTIMES}
    return {runtime: run for runtime, run in runs.items() if run is not None and not run.mark}


def _held(runs: Mapping[str, Run]) -> list[str]:
    return [name for name, run in runs.items() if tail_is_the_problem(run.summary).verdict is Verdict.HOLDS]


def _rank(results: Published, runs: Sequence[Run]) -> float:
    """Rank correlation of the preprocessing of the same requests in two runs."""
    first, second = (_by_request(results.results / run.folder, "T_preprocess") for run in runs)
    common = sorted(first.keys() & second.keys())
    return float(spearmanr([first[one] for one in common], [second[one] for one in common]).statistic)


# Bottleneck -----------------------------------------------------------------------------------------------------------

_PARTS = ("T_preprocess", "T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")
_STAGES = ("T_preprocess", "T_vision_encoder", "T_LLM_prefill", "T_LLM_decode")


def bottleneck_table(results: Published) -> str:
    """Shares of a request, and how much of ``generate()`` the device waits."""
    rows = []
    for name in results.names():
        run = results.run(name, "phase1")
        if run is None:
            rows.append([*who(name), NOT_MEASURED, *[DASH] * 5])
            continue
        shares = {row["component"]: row.get("share_of_request") for row in run.summary["components"]}
        waits = run.summary.get("launch_bound") or {}
        rows.append(
            [
                *who(name),
                f"{value(run.summary.get('llm_share'), percent)}{run.mark}",
                *(percent(shares.get(stage)) for stage in _STAGES),
                value(waits, percent, "launch_bound") if "launch_bound_low" in waits else _waits(waits),
            ]
        )
    heads = ("model", "runtime", "LLM, share of a request", "preprocessing", "vision encoder", "prefill", "decode")
    return table((*heads, "device waits, of `generate()`"), rows)


def _waits(waits: Mapping[str, Any]) -> str:
    found = waits.get("launch_bound")
    if found is None:
        return NOT_MEASURED
    return f"{percent(found)}{span_of(waits.get('low'), waits.get('high'), percent)}"


def bottleneck_words(results: Published) -> str:
    """One bullet a model: time against work."""
    lines = []
    for model in MODELS:
        clauses = []
        for runtime, words in RUNTIMES.items():
            run = results.run(f"{model}_{runtime}", "phase1")
            waits = ((run.summary.get("launch_bound") or {}) if run else {}).get("launch_bound")
            if run is None or waits is None:
                continue
            told = language_model_is_the_bottleneck(run.summary)
            shares = {row["component"]: row.get("share_of_request") or 0.0 for row in run.summary["components"]}
            largest = max(_PARTS, key=lambda name: shares.get(name, 0.0))
            clauses.append(
                f"{words}{run.mark}: {told.verdict}; the largest part is {label_of(largest)} "
                f"({percent(shares[largest])}), and the device waits for {percent(waits)} of `generate()`, "
                f"{_where_it_waits(run.summary['launch_bound'])}"
            )
        if clauses:
            lines += [f"* {MODELS[model]}, {clause}." for clause in clauses]
    return "\n".join(lines) or f"* {NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]}."


def _where_it_waits(waits: Mapping[str, Any]) -> str:
    """The stage with the largest part of the waiting, and which part."""
    idle = {row["stage"]: row["elapsed_ms"] - row["busy_ms"] for row in waits["stages"]}
    whole = idle.pop("total")
    top = max(idle, key=lambda stage: idle[stage])
    return f"{percent(idle[top] / whole, 2)} of that in {label_of(f'T_{top}')}"


# Tokens ---------------------------------------------------------------------------------------------------------------


def tokens_table(results: Published) -> str:
    """What one more token takes, and how the two kinds compare."""
    rows = []
    for name in results.names():
        model = name.partition("_")[0]
        found = results.comparison(name)
        if not found:
            if model in FULL:
                rows.append([*who(name), NOT_MEASURED, DASH, DASH, DASH, ""])
            continue
        run = results.run(name)
        ratio = (found.get("ratios_unflagged") or found.get("ratios") or {}).get("output_over_vision")
        pearson = ((found.get("flops_latency") or {}).get("together") or {}).get("pearson")
        costs = found["token_costs"]
        rows.append(
            [
                *who(name),
                f"{_cost(costs.get('output'))}{run.mark if run else ''}",
                _cost(costs.get("vision")),
                value(ratio) if ratio and ratio.get("low") is not None else "not bounded",
                DASH if pearson is None else f"{pearson:.2f}".replace("-", "−"),
                results.rows(run),
            ]
        )
    heads = ("model", "runtime", "ms an output token", "ms a vision token", "vision tokens for one of output")
    return table((*heads, "FLOPs with latency, both sweeps, r", ""), rows)


def _cost(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return DASH
    end = "_unflagged" if entry.get("cost_unflagged_ms") is not None else ""
    middle, low, high = entry[f"cost{end}_ms"], entry[f"low{end}"], entry[f"high{end}"]
    if low is not None and low <= 0 <= high:
        return f"cannot be told from 0 ({tight_interval(low, high)})".replace("-", "−")
    return f"{digits(middle)}{span_of(low, high, digits)}"


def power_words(results: Published) -> str:
    """In how many runs of the vision sweeps the card was held back by its power limit, and how far its clock fell."""
    said = []
    for name in results.names():
        run = results.run(name, "phase2")
        if run is None or run.mark:
            continue
        rows = _counted(results.results / run.folder)
        held = sum("throttled:power" in row["flags"] for row in rows)
        clocks = [row["sm_clock_after_mhz"] for row in rows if row.get("sm_clock_after_mhz") is not None]
        if held and clocks:
            ends = f"{min(clocks):,.0f} of {max(clocks):,.0f} MHz"
            said.append(f"{', '.join(who(name))}: {held} of {len(rows)} runs, clock down to {ends}")
    if not said:
        return ""
    return f"The card's power limit held it back in vision sweeps, and these rows are in the slopes: {'; '.join(said)}."


def tokens_words(results: Published) -> str:
    """How far the ratio moves with the runtime."""
    lines = []
    for model in MODELS:
        found, unbounded = [], False
        for runtime in RUNTIMES:
            told = token_kinds_differ(results.comparison(f"{model}_{runtime}"))
            if told.value is not None and told.low is not None:
                found.append((told.value, RUNTIMES[runtime]))
            unbounded |= told.value is not None and told.low is None
        if len(found) > 1:
            low, high = min(found), max(found)
            lines.append(
                f"* {MODELS[model]}: between {digits(low[0])} to 1 ({low[1]}) and {digits(high[0])} to 1 ({high[1]})"
                f"{', where the ratio is bounded' if unbounded else ''}."
            )
    return "\n".join(lines)


# How far the numbers can be trusted -------------------------------------------------------------------------------


def steady_table(results: Published) -> str:
    """The precision that was reached, whether the machine drifted, whether the stages add up, what watching costs."""
    rows = []
    for name in results.names():
        run = results.run(name, "phase1")
        if run is None:
            continue
        summary = run.summary
        reach = next((point.get("reach") for point in (summary.get("precision") or {}).get("points") or []), None)
        rows.append(
            [
                *who(name),
                f"{'no interval' if reach is None else f'±{percent(reach)}'}{run.mark}",
                _drift(summary.get("aa_check") or {}),
                value(_hundredfold((summary.get("residual") or {}).get("median_abs_share"))),
                value(_hundredfold(summary.get("instrument_overhead"))),
            ]
        )
    heads = (
        "model",
        "runtime",
        "median of `generate()` known to",
        "A/A: second half over first",
        "stages miss the whole, %",
    )
    return table((*heads, "watching costs, %"), rows)


def _drift(check: Mapping[str, Any]) -> str:
    if check.get("verdict") == "clean":
        return f"no drift beyond {percent(check['no_drift_beyond'])}"
    ends = span_of(check.get("low"), check.get("high"), times)
    return DASH if check.get("ratio") is None else f"{check['verdict']}: {times(check['ratio'])}{ends}"


def _hundredfold(entry: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Of an interval of shares one in percent."""
    ends = {name: (entry or {}).get(name) for name in ("value", "low", "high")}
    return {name: None if end is None else 100 * end for name, end in ends.items()}


def data_table(results: Published) -> str:
    """What another data set does to the tail: sizes of VQA v2 beside long-tailed ones, under the same runtime."""
    rows = []
    for model in MODELS:
        other = results.run(f"{model}_long_tail", "phase1")
        if other is None:
            continue
        runtime = other.provenance["runtime"]["name"]
        for data, run in (("VQA v2", results.run(f"{model}_{runtime}", "phase1")), ("long-tailed", other)):
            if run is None:
                continue
            tokens, tail = run.summary["tokens"]["num_vision_tokens"], run.summary["tail"]
            split = next((row for row in tail["variance_split"] if row["source"] == "num_vision_tokens"), None)
            rows.append(
                [
                    MODELS[model], f"{RUNTIMES[runtime]}{run.mark}", data,
                    f"{run.summary['runs']['workload_runs']:,}{_cut(run)}",
                    " / ".join(f"{tokens[name]:,.0f}" for name in ("min", "median", "max")),
                    value(run.summary["distribution"]["T_request"]["workload"]["p50"]),
                    _quantile((tail.get("request") or {}).get("ratio")),
                    DASH if split is None else _share(split), results.rows(run),
                ]
            )  # fmt: skip
    heads = (
        "model",
        "runtime",
        "sizes of images",
        "requests",
        "vision tokens, least / median / most",
        "request, median ms",
    )
    heads = (*heads, "tail of a request, ×", "variance of `generate()` that vision tokens explain", "")
    return table(heads, rows) if rows else f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]} on this card."


def _cut(run: Run) -> str:
    return ", cut off" if run.cut else ""


# Runtimes -------------------------------------------------------------------------------------------------------------

COMPARED = (
    ("eager", "compiled"), ("eager", "cudagraph"), ("eager", "vllm"), ("cudagraph", "vllm"),
    ("cudagraph_compiled", "vllm"),
)  # fmt: skip
_TIMES = ("T_request", "T_total", "TTFT_model", "T_preprocess", "T_vision_encoder", "T_LLM_prefill", "T_LLM_decode")


def runtimes_table(results: Published) -> str:
    """Ratios of runtimes, request by request; none where their answers are of unlike length."""
    from vlmbench.report.runtimes import measured_together

    rows = []
    for model in MODELS:
        for one, other in COMPARED:
            stem = f"{CARD}_{model}/compare_{one}_{other}"
            content = read(results.results / f"{stem}.json")
            head = [MODELS[model], f"{RUNTIMES[other]} over {RUNTIMES[one]}"]
            sides = [results.run(f"{model}_{runtime}", "phase1") for runtime in (one, other)]
            if (
                content is None
                or len({None if side is None else side.mark for side in sides} - {None}) != 1
                or None in sides
            ):
                if model in FULL and one in EACH:
                    rows.append([*head, NOT_MEASURED, *[DASH] * (len(_TIMES) - 1), "", ""])
                continue
            runs = [side for side in sides if side is not None]
            lengths = [(side.summary["tokens"]["num_output_tokens"] or {}).get("median") for side in runs]
            if len(set(lengths)) > 1:
                said = f"answers of {lengths[0]:g} and {lengths[1]:g} tokens: not divided"
                rows.append([*head, said, *[DASH] * (len(_TIMES) - 1), "", ""])
                continue
            changes = {row["metric"]: row for row in content["pairs"][0]["changes"]}
            link = f"[all times]({results.link}/{stem}.md)"
            apart = measured_together([side.provenance for side in runs])
            rows.append([*head, *(_ratio(changes.get(name)) for name in _TIMES), apart, link])
    return table(("model", "", *(f"`{name}`" for name in _TIMES), "", ""), rows)


def engine_side_words(results: Published) -> str:
    """What two columns of the table do not have in common, with the numbers that tell how much it matters."""
    lines = []
    for model in FULL:
        sides = [results.run(f"{model}_{runtime}", "phase1") for runtime in ("cudagraph", "vllm")]
        if any(side is None or side.mark for side in sides):
            continue
        runs = [side for side in sides if side is not None]
        folders = [results.results / run.folder for run in runs]
        inside = median(
            [sum(row.get(part) or 0.0 for part in ("T_transfer", "T_detokenize")) for row in _counted(folders[0])]
        )
        first, second = (_by_request(folder, "T_preprocess") for folder in folders)
        logs = [math.log(second[one] / first[one]) for one in first.keys() & second.keys()]
        middle, mean = (times(math.exp(found)) for found in (median(logs), fmean(logs)))
        waits = [
            f"{percent(row['launch_bound'])} of it under {RUNTIMES[runtime]} "
            f"({count(row['launches'], 'launch', 'launches')})"
            for runtime, run in zip(("cudagraph", "vllm"), runs, strict=True)
            for row in (run.summary.get("launch_bound") or {}).get("stages") or []
            if row["stage"] == "vision_encoder"
        ]
        lines.append(
            f"* {MODELS[model]}: transfer and text take {digits(inside)} ms outside `generate()` in the captured loop; "
            f"`T_preprocess` of vLLM over it is {middle} by the median of pairs and {mean} by the geometric mean; the "
            f"device waits in the vision encoder for {', for '.join(waits)}."
        )
    return "\n".join(lines)


def _counted(folder: Path) -> list[dict[str, Any]]:
    return [row for row in _rows(folder) if row["status"] == "ok" and row["mode"] == "instrumented"]


def _ratio(row: Mapping[str, Any] | None) -> str:
    return DASH if row is None else value(row["ratio"], times)


# Fresh process --------------------------------------------------------------------------------------------------------


def first_steps_words(results: Published) -> str:
    """What first decode steps at a length of the cache take, with and without cuDNN's attention."""
    for folder in (Path(f"{CARD}_llava_first_steps"), Path(ARCHIVE) / f"{CARD}_llava_first_steps"):
        content = read(results.results / folder / FIRST_STEPS)
        if content is None:
            continue
        lines = []
        words = {"torch_chooses": "With the kernels that torch chooses", "without_cudnn": "Without cuDNN's attention"}
        for arm, said in words.items():
            steps = [row for row in content["arms"][arm]["times"] if row["what"] == "decode step"]
            first = sorted(row["first_ms"] for row in steps)
            later = sorted(row["later_ms"] for row in steps if row["later_ms"] is not None)
            process = next(r["process_ms"] for r in content["arms"][arm]["summary"] if r["what"] == "decode step")
            lines.append(
                f"* {said} the first decode step at each of {len(steps)} lengths of the cache takes "
                f"{digits(first[0])}–{digits(first[-1])} ms (median {digits(median(first))}), later ones "
                f"{digits(later[0])}–{digits(later[-1])} ms; the "
                f"first request of the process pays {digits(process)} ms beyond a later one in its decode."
            )
        about = read(next((results.results / folder).glob("*/provenance.json"))) or {}
        began = datetime.fromtimestamp(min(one["started_unix_s"] for one in about["sessions"]), UTC)
        old = EARLIER if results.codes and code_of(about) not in results.codes else ""
        mark = f"; measured on {began:%Y-%m-%d at %H:%M} UTC{old}"
        figure = results.figure(f"{folder.as_posix()}/figures/first_steps.png", "First decode steps of a fresh process")
        link = f"[rows]({results.link}/{folder.as_posix()})"
        return "\n".join(
            [*lines, "", f"LLaVA-1.5-7B, eager, one process an arm, so without intervals{mark}; {link}.", "", figure]
        )
    return f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]}.\n"


def budget_words(results: Published) -> str:
    """Which settings answered in time, and whether they did so again."""
    lines = []
    for model in MODELS:
        content = read(results.results / f"{CARD}_{model}_budget" / "budget.json")
        if content is None:
            continue
        rows = [
            [
                _setting(row), value(row["latency"]), f"{row['fit']}{', chosen' if row['chosen'] else ''}",
                value(row["measured_again"]), row["promise"] or DASH,
            ]
            for row in content["settings"]
        ]  # fmt: skip
        heads = (
            "setting",
            f"P{content['percentile']:g} of `{content['metric']}`, ms",
            "fits",
            "measured again, ms",
            "promise",
        )
        figure = results.figure(
            f"{CARD}_{model}_budget/figures/budget.png", f"What fits into {content['latency_ms']:g} ms"
        )
        link = f"[rows]({results.link}/{CARD}_{model}_budget)"
        lines.append(f"{MODELS[model]}: {content['verdict']} {link}\n\n{figure}{table(heads, rows)}")
    return "\n\n".join(lines) or f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]}."


def _setting(row: Mapping[str, Any]) -> str:
    """``576 vision tokens, 8 output tokens``."""
    return ", ".join(
        f"{number:g} {axis.rpartition('.')[2].replace('_', ' ')}"
        for axis, number in sorted(row["axes"].items(), reverse=True)
    )


# Methods that drop vision tokens --------------------------------------------------------------------------------------

_SHOWN_KEEPS = (1.0, 0.5, 0.25, 0.11)


def methods_table(method: str, run: Run) -> str:
    """Every arm of a run: what it saves, where, and what FLOPs promised."""
    rows = []
    for arm in run.summary["arms"]:
        total, prefill = arm["savings"].get("T_total"), arm["savings"].get("T_LLM_prefill")
        if total is None:
            continue
        promised = sum(arm["promised_ms"].values()) if arm["promised_ms"] else None
        name = METHODS[method] if arm["role"] == "method" else f"control: {_control(arm)}"
        kept = "" if arm["kept"] is None else f", {digits(arm['kept'])} of {digits(arm['vision_tokens'])}"
        rows.append(
            [
                name,
                f"{DASH if arm['keep'] is None else percent(arm['keep'], 2)}{kept}",
                f"{value(total['saved_ms'])}",
                DASH if total["share"] is None else percent(total["share"]),
                DASH if prefill is None else value(prefill["saved_ms"]),
                DASH if promised is None else digits(promised),
                digits(arm["method_ms"]["total"]) if arm["method_ms"] else DASH,
                "the baseline's" if not arm["unlike_kernels"] else f"unlike: {', '.join(arm['unlike_kernels'])}",
                f"{arm['pairs']}",
            ]
        )
    heads = ("arm", "tokens kept", "saved of `generate()`, ms", "share", "of it in prefill, ms", "FLOPs promised, ms")
    return table((*heads, "its own time, ms", "attention kernels", "pairs"), rows)


def _control(arm: Mapping[str, Any]) -> str:
    return "smaller image" if arm["name"] == "downsample" else "random tokens"


def best_arm(run: Run, keep: float) -> Mapping[str, Any] | None:
    """The method's own arm at a share."""
    arms = [a for a in run.summary["arms"] if a["role"] == "method" and a["keep"] == keep and "T_total" in a["savings"]]
    return arms[0] if arms else None


def ratio_of(saving: Mapping[str, Any]) -> str:
    """Baseline's time over the arm's, with its interval: ``1.31 × (1.28–1.35)``."""
    base, saved = saving["baseline_ms"], saving["saved_ms"]
    found = [None if saved[key] is None else base / (base - saved[key]) for key in ("value", "low", "high")]
    if found[0] is None:
        return DASH
    return f"{times(found[0])} ×{span_of(found[1], found[2], times)}"


def method_sections(results: Published) -> str:
    """A section a run: figure, sentences, table."""
    parts = []
    for model, method, runtime, run in results.methods():
        title = f"### {METHODS[method]}, {MODELS[model]}, {RUNTIMES[runtime]}{' ' + EARLIER if run.mark else ''}"
        figure = results.figure(f"{run.folder.as_posix()}/figures/interventions.png", title.removeprefix("### "))
        parts.append(
            f"{title}\n\n{figure}{methods_table(method, run)}\n\n{_method_words(run)}\n\n"
            f"{results.rows(run).capitalize()}; `python -m vlmbench experiment=report runs=docs/{results.link}/"
            f"{run.folder.as_posix()} output_dir=DIR`.\n"
        )
    return "\n".join(parts) or f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]} on this card.\n"


def _method_words(run: Run) -> str:
    lines = []
    for keep in _SHOWN_KEEPS:
        arm = best_arm(run, keep)
        if arm is None:
            continue
        total = arm["savings"]["T_total"]
        saved = total["saved_ms"]["value"]
        promised = sum(arm["promised_ms"].values()) if arm["promised_ms"] else 0
        words = [f"Keeping {percent(keep, 2)}: {_said(total)}"]
        if promised > 0 and saved is not None and saved > 0 and total["verdict"] == "faster":
            words.append(f"{percent(saved / promised)} of what FLOPs promised")
        if arm["controls"]:
            words.append(f"as fast or faster without thought: {', '.join(arm['controls'])}")
        elif arm["controls"] is not None and keep < 1:
            words.append("no control that was run is as fast")
        if arm["drowned_after"] is not None:
            words.append(f"less than 5 % of `generate()` from about {arm['drowned_after'][0]:,.0f} output tokens on")
        lines.append(f"* {'; '.join(words)}.")
    if not run.summary["proofs"]:
        lines.append(
            "* This run was cut off: so many pairs as the table says, and its proof of the method was not stored."
        )
    lines += [f"* Not run: {one['arm']}: {one['reason']}" for one in run.summary.get("skipped") or []]
    return "\n".join(lines)


def _said(saving: Mapping[str, Any]) -> str:
    verdict = saving["verdict"]
    if verdict == "no difference":
        return f"no difference beyond {percent(saving['no_difference_beyond'])}"
    if verdict == "too few pairs":
        return "too few pairs to tell"
    saved = saving["saved_ms"]
    low, high = sorted(abs(saved[end]) for end in ("low", "high"))
    return f"`generate()` is {verdict} by {value({'value': abs(saved['value']), 'low': low, 'high': high})} ms"


def methods_words(results: Published) -> str:
    """The answer in short, a bullet a run, at half and at a ninth of the tokens."""
    lines = []
    for model, method, runtime, run in results.methods():
        clauses = []
        for keep in (0.5, 0.11):
            if (arm := best_arm(run, keep)) is not None:
                controls = ""
                if arm["controls"] is not None and arm["savings"]["T_total"]["verdict"] == "faster":
                    controls = " (a control is as fast)" if arm["controls"] else " (no control is as fast)"
                clauses.append(f"with {percent(keep, 2)} kept {_said(arm['savings']['T_total'])}{controls}")
        pairs = sorted({arm["pairs"] for arm in run.summary["arms"]})
        said = f" ({pairs[0]}–{pairs[-1]} pairs, cut off, without its proof)" if not run.summary["proofs"] else ""
        lines.append(
            f"* {METHODS[method]}, {MODELS[model]}, {RUNTIMES[runtime]}{said}: {'; '.join(clauses)}{run.mark}."
        )
    return "\n".join(lines) or f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]} on this card."


def grid_words(results: Published) -> str:
    """All methods, shares and runtimes as one command: how long it took, and what each saved."""
    parts = []
    for model in MODELS:
        folder = results.results / f"{CARD}_{model}_grid"
        runs = [run for run in results.below(folder) if run.summary.get("arms")]
        if not runs:
            continue
        rows = [[*_method_and_runtime(run), *(_saved(run, keep) for keep in _GRID_KEEPS), _pairs(run)] for run in runs]
        keeps = {arm["keep"] for run in runs for arm in run.summary["arms"] if arm["role"] == "method"}
        tries = (read(folder / "part.json") or {"tries": []})["tries"]
        took = f"took {sum(one['seconds'] for one in tries):,} s" if tries else "was not timed"
        if len(tries) > 1:
            took += f", in {len(tries)} goes"
        if tries and tries[-1]["status"]:
            took += " and was not finished"
        methods, runtimes = (len({row[place] for row in rows}) for place in (0, 1))
        heads = ("method", "runtime", *(f"{percent(keep, 2)} kept" for keep in _GRID_KEEPS), "pairs")
        parts.append(
            f"{MODELS[model]}: {count(methods, 'method')} × {count(len(keeps), 'share')} × "
            f"{count(runtimes, 'runtime')} {took}, loading and proofs included ([rows]({results.link}/{folder.name})). "
            f"Saved of `generate()`, ms:\n\n{table(heads, sorted(rows))}"
        )
    return "\n\n".join(parts) or f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]} on this card."


_GRID_KEEPS = (0.5, 0.25, 0.11, 0.05)


def _method_and_runtime(run: Run) -> tuple[str, str]:
    intervention = run.provenance["config"]["intervention"]
    layer, selector = intervention.get("layer"), intervention.get("selector")
    name = "pyramid_drop" if isinstance(layer, list) else "fastv" if layer is not None else (
        "visionzip" if selector == "encoder_attention" else "keep_after_projector"
    )  # fmt: skip
    return METHODS[name], RUNTIMES[run.provenance["runtime"]["name"]]


def _saved(run: Run, keep: float) -> str:
    arm = best_arm(run, keep)
    return DASH if arm is None else value(arm["savings"]["T_total"]["saved_ms"])


def _pairs(run: Run) -> str:
    return "–".join(str(end) for end in sorted({f(arm["pairs"] for arm in run.summary["arms"]) for f in (min, max)}))


def methods_verdict(results: Published) -> str:
    """How many arms that drop tokens are faster, and of how many a control is as fast."""
    arms = [
        arm
        for *_, run in results.methods()
        for arm in run.summary["arms"]
        if arm["role"] == "method" and (arm["keep"] or 1) < 1 and "T_total" in arm["savings"]
    ]
    if not arms:
        return f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]} on this card."
    found = Counter(arm["savings"]["T_total"]["verdict"] for arm in arms)
    told = [arm for arm in arms if arm["savings"]["T_total"]["verdict"] == "faster" and arm["controls"] is not None]
    said = ", ".join(f"{verdict} in {number}" for verdict, number in found.most_common())
    fast = sum(bool(arm["controls"]) for arm in told)
    return (
        f"Of {len(arms)} arms that drop tokens `generate()` is {said}. Where it is faster and the controls can be "
        f"told, a control that costs no thought is as fast by whole requests in {fast} of {len(told)}."
    )


def arms_tokens(results: Published) -> str:
    """How long the answers of all arms are."""
    ends = _answer(results)
    return f"{ends} output tokens, " if ends else ""


def _answer(results: Published) -> str:
    ranges = [run.summary["scope"]["output_tokens"] for *_, run in results.methods()]
    return " to ".join(sorted({f"{end:g}" for one in ranges if one for end in one}, key=float))


def drowned_words(results: Published) -> str:
    """From which length of the answer on nothing of a saving is left to speak of, over all arms that drop tokens."""
    found = [
        arm["drowned_after"][0]
        for *_, run in results.methods()
        for arm in run.summary["arms"]
        if arm["role"] == "method" and (arm["keep"] or 1) < 1 and arm["drowned_after"] is not None
    ]
    if not found:
        return ""
    return (
        f"what is saved here is below 5 % of `generate()` from {min(found):,.0f} (least saved) or {max(found):,.0f} "
        "(most) output tokens on"
    )


def published_table(results: Published) -> str:
    """Published ratios of latency beside ours in the nearest setting."""

    def ours(method: str, keep: float, metric: str, models: Sequence[str] = FULL) -> str:
        found = []
        for model in models:
            for runtime in RUNTIMES:
                run = results.run(f"{model}_{method}_{runtime}")
                arm = best_arm(run, keep) if run and run.summary.get("arms") else None
                if run and arm and metric in arm["savings"]:
                    found.append(f"{MODELS[model]}, {RUNTIMES[runtime]}: {ratio_of(arm['savings'][metric])}{run.mark}")
        return "; ".join(found) or NOT_MEASURED

    fastv, cache = (
        "[FastV](https://github.com/pkunlp-icler/FastV)",
        "[the same, with a KV cache](https://github.com/pkunlp-icler/FastV#support-kv-cache)",
    )
    zipped, qwen = (
        "[VisionZip](https://arxiv.org/abs/2412.04467)",
        "[VisionZip#24](https://github.com/JIA-Lab-research/VisionZip/issues/24)",
    )
    rows = [
        [
            fastv,
            "first token, LLaVA-1.5-13B, A100, half dropped",
            "0.203 / 0.155 s = 1.31 ×",
            ours("fastv", 0.5, "TTFT"),
        ],
        [fastv, "the same, three quarters dropped", "0.203 / 0.124 s = 1.64 ×", ours("fastv", 0.25, "TTFT")],
        [
            cache,
            "whole answer of 300 tokens and more, one image, three quarters dropped (its demo's settings; the figure "
            "names none)",
            "“approximately 8 %” = 1.09 ×",
            f"answers of {_answer(results)} tokens only: {ours('fastv', 0.25, 'T_total')}",
        ],
        [
            zipped,
            "prefill, LLaVA-NeXT, share not named in the abstract",
            "8 ×",
            f"11 % kept: {ours('visionzip', 0.11, 'T_LLM_prefill')}",
        ],
        [
            qwen,
            "whole run, Qwen2.5-VL, as a user found",
            "“nearly the same”",
            ours("visionzip", 0.11, "T_total", ["qwen"]),
        ],
    ]
    return table(("published by", "of what", "ratio", "ours: baseline over method"), rows)


# What lies where ------------------------------------------------------------------------------------------------------


def folder_table(results: Published) -> str:
    """Every folder with what it holds and its command."""
    rows = []
    for folder in sorted(path for path in results.results.iterdir() if path.is_dir()):
        if folder.name in (ARCHIVE, SERVERS, "vqa_v2_layout"):
            continue
        part = folder.name.removeprefix(f"{CARD}_")
        runs = results.below(folder)
        abouts = [read(path) or {} for path in folder.rglob(PROVENANCE)]
        begun = min((one["started_unix_s"] for about in abouts for one in about["sessions"]), default=None)
        when = "" if begun is None else f"{datetime.fromtimestamp(begun, UTC):%Y-%m-%d %H:%M}"
        codes = sorted({code_of(about) for about in abouts})
        code = ", ".join(f"{one}{'' if not _of_card(folder) or one in results.codes else EARLIER}" for one in codes)
        said = list(dict.fromkeys(_command(run) for run in runs))
        about = "<br>".join(said) or COMMANDS.get(part, "`python scripts/publish_results.py`")
        rows.append([f"[`{folder.name}`]({folder.name})", _holds(results, part, runs), when, code, about])
    return table(("folder", "what", "begun, UTC", "code", "command"), rows)


def _of_card(folder: Path) -> bool:
    return folder.name.startswith(f"{CARD}_")


def commits_words(results: Published) -> str:
    """Which commits have the code of the present runs."""
    present = {run.code for folder in results.results.glob(f"{CARD}_*") for run in results.below(folder)}
    codes = {code: commit for code, commit in results.codes.items() if code in present and commit}
    said = " and ".join(f"`{code}` is commit {commit}" for code, commit in codes.items())
    alike = ", between which nothing\nchanged that runs, marks or counts a request of these runtimes"
    return f": {said}{alike if len(codes) > 1 else ''}" if codes else ""


COMMANDS: Mapping[str, str] = {
    "llava_vllm_stats": "the same with `runtime.encoder_stats=true`, for vLLM's own figure of the encoder",
    "llava_first_steps": "`python -m vlmbench experiment=first_steps model=llava_1_5_7b output.tokens=24`",
    "truth": "`python scripts/gpu/truth.py side_stream busy overhead recompiles energy floor moe_batch --out DIR`",
    "captured": "`python scripts/gpu/cudagraph.py tokens decode prefill request overhead --out DIR`",
}


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
                _command(run),
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
    rows = [
        [
            MODELS[model],
            f"{asked}{run.mark}",
            _load(run, point),
            f"{point['requests']:,}" + (f", {point['errors']:,} failed" if point["errors"] else "") + _cut(run),
            value(point, key="requests_per_s"),
            DASH
            if point["good_share"] is None
            else f"{digits(point['goodput_per_s'])}, {value(point, percent, 'good_share')}",
            value(point, key="tokens_per_s"),
            value(point, key="TTFT_p50"),
            value(point, key="TTFT_p99") if point["TTFT_p99"] is not None else "n too small",
            value(point, key="T_request_p50"),
            results.rows(run),
        ]
        for model, asked, run, points in _loaded(results)
        for point in points
    ]
    heads = ("model", "vLLM", "load", "requests", "answers a second", "of them within the limits", "tokens a second")
    return table((*heads, "first token, ms, P50", "P99", "request, ms, P50", ""), rows) if rows else ""


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
    return f"Limits: {'; or '.join(sorted(every))}." if every else ""


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


def mask_words(results: Published) -> str:
    """Which captured runs were made before a capture went the way that the code goes uncaptured."""
    names = [(model, runtime) for model in MODELS for runtime in ("cudagraph", "cudagraph_compiled")]
    runs = [(model, runtime, results.run(f"{model}_{runtime}", "phase1")) for model, runtime in names]
    masked = [
        f"{MODELS[model]}, {RUNTIMES[runtime]}"
        for model, runtime, run in runs
        if run is not None
        and not all("prefill" in (one.get("engine") or {"prefill": {}}) for one in run.provenance["sessions"])
    ]
    if not masked:
        return ""
    return (
        f"* Captured prefills attended with a mask, which eager mode does without ({'; '.join(masked)}):\n"
        "  transformers 5.17 makes one wherever it sees a capture. Mended since; what it cost was not measured\n"
        "  ([engines](engines_cudagraph.md)).\n"
    )


def energy_words(results: Published) -> str:
    """What a request takes in energy, a bullet a model."""
    runs = [(model, results.run(f"{model}_energy", "phase1")) for model in MODELS]
    return "\n".join(
        f"* {MODELS[model]}, {RUNTIMES[run.provenance['runtime']['name']]}: {' '.join(run.summary['energy']['words'])}"
        for model, run in runs
        if run is not None and run.summary.get("energy")
    )


def stall_words(results: Published) -> str:
    """What a server that stands still for a while looks like in an open and in a closed loop."""
    said = []
    for name, loop in (("stall_open", "an open loop"), ("stall_closed", "a closed loop")):
        folder = results.results / SERVERS / name
        summary = read(folder / "summary.json")
        if summary is None:
            return f"{NOT_MEASURED[:1].upper()}{NOT_MEASURED[1:]}."
        times_ms = _measured(folder, "TTFT")
        slow = sum(time > SLOW_MS for time in times_ms)
        middle = digits(summary["distribution"]["TTFT"]["workload"]["p50"]["value"])
        said.append(
            f"{slow} of {len(times_ms):,} requests of {loop} waited more than {SLOW_MS / 1e3:g} s for their first "
            f"token (median {middle} ms, the sample's P99 {digits(_p99(times_ms))} ms)"
        )
    return f"{', and '.join(said)}: a closed loop hides the tail. [Rows]({results.link}/{SERVERS})."


SLOW_MS = 500.0


@cache
def _rows(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "records.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _measured(folder: Path, column: str) -> list[float]:
    return [float(row[column]) for row in _rows(folder) if row["status"] == "ok" and row["point_id"] == "dataset"]


def _by_request(folder: Path, column: str) -> dict[str, float]:
    """A time of each request of the workload, of the runs that count."""
    return {row["sample_id"]: float(row[column]) for row in _counted(folder) if row["point_id"] == "dataset"}


def _sample_p99(folder: Path) -> str:
    """The 99th percentile of the very requests that were sent, where they are too few to say more."""
    return f"n too small ({digits(_p99(_measured(folder, 'T_request')))} in the sample)"


def _p99(values: Sequence[float]) -> float:
    """By linear interpolation, as percentiles are elsewhere."""
    return float(np.quantile(values, 0.99))


def truth_table(results: Published) -> str:
    """What the checks of the instrument found on the card, from the lines of ``scripts/gpu/truth.py``."""
    file = results.results / f"{CARD}_truth" / "truth.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if not line.get("done"):
            found.setdefault(line["part"], []).append(line)
    rows = [[f"`{part}`", _TRUTH[part](of)] for part, of in found.items() if part in _TRUTH]
    return table(("part of `scripts/gpu/truth.py`", "what it found"), rows) if rows else f"{NOT_MEASURED}."


def _of(lines: Sequence[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    return next(line for line in lines if all(line.get(key) == word for key, word in wanted.items()))


def _truth_energy(lines: Sequence[dict[str, Any]]) -> str:
    aligned = sorted(line["energy_j"]["median"] for line in lines if str(line.get("what")).startswith("aligned"))
    block = _of(lines, what="block")
    off = block["integral_j"] / block["rise_j"] - 1
    return (
        f"a request takes {digits(block['energy_j_a_run'])} J above idle by one block of {block['runs']} runs, "
        f"{digits(aligned[0])}–{digits(aligned[-1])} J by runs aligned with the counter's steps (medians of "
        f"{len(aligned)} gaps); the integral of sampled power is {percent(abs(off))} "
        f"{'above' if off > 0 else 'below'} it"
    )


def _truth_floor(lines: Sequence[dict[str, Any]]) -> str:
    over = sorted(line["over_floor"] for line in lines)
    return (
        f"the prefill of {lines[0]['vision_tokens']:,} vision tokens takes {times(over[0])}–{times(over[-1])} × its "
        f"floor ({len(over)} runs): a bound, not crossed"
    )


def _truth_recompiles(lines: Sequence[dict[str, Any]]) -> str:
    seen = [line for line in lines if line.get("first_step_ms") is not None]
    again, kept = (
        sorted(one["first_step_ms"] for one in seen if bool(one["captured"]) is was) for was in (True, False)
    )
    words = []
    if again:
        words.append(f"{digits(again[0])}–{digits(again[-1])} ms in {len(again)} runs that captured a CUDA graph again")
    if kept:
        words.append(f"{digits(kept[0])}–{digits(kept[-1])} ms in {len(kept)} that captured none")
    return f"the first compiled step of a `generate()` takes {', '.join(words)}"


def _truth_busy(lines: Sequence[dict[str, Any]]) -> str:
    busy, whole = _of(lines, what="busy_total"), _of(lines, what="T_total")
    return (
        f"busy time of one request over {busy['n']} traces varies by {percent(busy['relative_sd'])} (standard "
        f"deviation over mean), its `generate()` by {percent(whole['relative_sd'])}: the noise is the host's"
    )


def _truth_overhead(lines: Sequence[dict[str, Any]]) -> str:
    row = _of(lines, metric="thread_cpu_ms")
    ends = f"{row['low']:.4f}–{row['high']:.4f}, {row['pairs']} pairs"
    return f"processor time of the launching thread with the instrument over without: {row['ratio']:.4f} ({ends})"


def _truth_side_stream(lines: Sequence[dict[str, Any]]) -> str:
    row = lines[0]
    seen = digits(row["T_vision_encoder_ms"], 5)
    return f"work of {digits(row['planted_ms'], 5)} ms on a side stream of the tower is seen as {seen} ms"


def _truth_moe(lines: Sequence[dict[str, Any]]) -> str:
    row = next(line for line in lines if "pairs" in line)
    ends = f"{row['low']:.3f}–{row['high']:.3f}, {row['pairs']} pairs"
    return f"a step of a batch of eight different prompts over eight copies (MolmoE-1B): {row['ratio']:.3f} ({ends})"


_TRUTH: Mapping[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "energy": _truth_energy,
    "floor": _truth_floor,
    "recompiles": _truth_recompiles,
    "busy": _truth_busy,
    "overhead": _truth_overhead,
    "side_stream": _truth_side_stream,
    "moe_batch": _truth_moe,
}

SERVERS = "cpu_llama_server"
_ELSEWHERE = ("output_dir", "report", "progress", "measurement.time_limit_s", "hydra")


def _command(run: Run) -> str:
    """What was typed for a run, without where its rows went."""
    words = [str(word) for word in run.provenance["sessions"][0]["command"][1:]]
    kept = [word for word in words if word.partition("=")[0].partition("/")[0] not in _ELSEWHERE]
    return f"`python -m vlmbench {' '.join(kept)}`".replace("|", "\\|")


def _holds(results: Published, part: str, runs: Sequence[Run]) -> str:
    said = []
    for run in runs:
        counts = run.summary.get("runs") or {}
        measured = counts.get("workload_runs") or (counts.get("ok_by_mode") or {}).get("instrumented", 0)
        arms = run.summary.get("arms")
        phase = f"{run.folder.name}: " if len(run.folder.parts) > 1 and not arms else ""
        said.append(phase + (count(len(arms), "arm") if arms else count(measured, "run")))
        if run.summary.get("arms") and not run.summary.get("proofs"):
            said.append("cut off")
    if results.comparison(part):
        said.append("token comparison")
    if (results.results / f"{CARD}_{part}" / FIRST_STEPS).is_file():
        said.append("a fresh process an arm")
    if part in MODELS:
        said.append("its runtimes side by side: figures, times compared")
    return ", ".join(f"{n} × {one}" if n > 1 else one for one, n in Counter(said).items()) or "one line a finding"


def example(results: Published) -> str:
    """A folder to show a command with: the first that there is."""
    found = sorted(path.name for path in results.results.glob(f"{CARD}_*_*") if any(path.rglob("provenance.json")))
    return found[0] if found else "FOLDER"


def readme_words(results: Published) -> str:
    """The findings in short: the two models under their runtimes, then methods."""
    rows = []
    for name in [name for name in results.names() if name.partition("_")[0] in FULL]:
        run = results.run(name, "phase1")
        tail, share, kinds = claims_of(results, name)
        if run is None and kinds.value is None:
            continue
        compared = results.run(name)
        worth = DASH if kinds.value is None else "not bounded" if kinds.low is None else _told(kinds, digits)
        row = [*who(name), *[NOT_MEASURED] * 4]
        if run is not None:
            waits = (run.summary.get("launch_bound") or {}).get("launch_bound")
            row[2:] = [
                value(run.summary["distribution"]["T_request"]["workload"]["p50"]) + run.mark,
                "too few" if tail.value is None else f"{tail.of.upper()} {_told(tail, times)}: {tail.verdict}",
                _told(share, percent),
                DASH if waits is None else percent(waits),
            ]
        rows.append([*row, worth + (compared.mark if compared and kinds.value is not None else "")])
    heads = (
        "model",
        "runtime",
        "request, median ms",
        "tail, ×",
        "LLM, share",
        "device waits",
        "vision tokens for one of output",
    )
    lines = [
        table(heads, rows),
        "",
        f"Dropping vision tokens ([study]({results.link.removesuffix('results')}study_dropping_tokens.md)):",
        "",
    ]
    return "\n".join([*lines, methods_words(results)])


def held_tails(results: Published) -> str:
    """Where the variance of those requests lies whose tail is the problem."""
    said = []
    ranks = []
    for model in FULL:
        runs = _present(results, model)
        held = _held(runs)
        said += [f"{MODELS[model]}, {RUNTIMES[one]}: {_largest_part(runs[one].summary['tail'])}" for one in held]
        if len(held) > 1:
            ranks.append(_rank(results, [runs[one] for one in held[:2]]))
    if not said:
        return ""
    words = f"Where the tail is the problem, the variance is mostly one part of the request ({'; '.join(said)})."
    if ranks and all(abs(rank) < _UNRELATED for rank in ranks):
        words += (
            " The same images are not slow twice (rank correlation of a request's preprocessing between two of these "
            f"runs: {', '.join(f'{rank:.2f}' for rank in ranks)}){_HOST_S}"
        )
    return words


def engine_words(results: Published) -> str:
    """How the marks agree with an engine's own figures."""
    run = results.run("llava_vllm_stats", "phase1") or results.run("llava_vllm", "phase1")
    found = (run.summary.get("engine_agreement") or []) if run else []
    encoder = next((row for row in found if "encoder" in row["engine"]), None)
    return (
        NOT_MEASURED
        if encoder is None
        else f"{value(encoder['ratio'], lambda number: f'{number:.4f}')}, {encoder['runs']} runs"
    )


def _told(found: Told, write: Callable[[float], str]) -> str:
    return DASH if found.value is None else f"{write(found.value)}{span_of(found.low, found.high, write)}"


def tour_words(results: Published) -> str:
    """What the tour's second step shows."""
    run = results.run("llava_eager", "phase1")
    words = "**2. Look at a GPU's answer without a GPU.** The rows of an H200 are in the repository; this makes page,\n"
    words += "figures and tables of them anew."
    if run is None:
        return words
    decode = next(row for row in run.summary["components"] if row["component"] == "T_LLM_decode")
    waits = run.summary.get("launch_bound") or {}
    if waits.get("launch_bound") is None:
        return words
    lesson = "most of the time, so" if waits["launch_bound"] > MOST else "part of the time, and"
    return (
        f"{words} Decode is {percent(decode['share'])} of `generate()`, but the device waits for the host\n"
        f'{_waits(waits)} of it, {lesson} "the LLM is the bottleneck" is not the whole lesson.'
    )


def adds_up_words(results: Published) -> str:
    """By how much the stages miss the whole, under each runtime of the first model."""
    found = []
    for runtime, words in RUNTIMES.items():
        run = results.run(f"llava_{runtime}", "phase1")
        if run is not None:
            share = value(run.summary["residual"]["median_abs_share"], lambda number: f"{number * 100:.3f}")
            found.append(
                f"{words} {share} % ({run.summary['residual']['runs_with_negative']} negative stages){run.mark}"
            )
    return "; ".join(found) or NOT_MEASURED


def watching_words(results: Published) -> str:
    """What watching costs by pairs, under each runtime of the first model."""
    found = []
    for runtime, words in RUNTIMES.items():
        run = results.run(f"llava_{runtime}", "phase1")
        cost = (run.summary.get("instrument_overhead") or {}) if run else {}
        if run is not None and cost.get("value") is not None:
            ends = "no interval" if cost["low"] is None else f"{100 * cost['low']:.2f} to {100 * cost['high']:.2f} %"
            found.append(f"{words} {100 * cost['value']:.2f} % ({ends}, {cost['n']} pairs){run.mark}".replace("-", "−"))
    return "; ".join(found) or NOT_MEASURED


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent / "pages"), undefined=StrictUndefined, autoescape=False,  # noqa: S701  # Markdown
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def together(results: Published, model: str) -> str:
    """Card, host, hour and code of a model's present phase-1 runs, in words."""
    from vlmbench.report.runtimes import measured_together

    runs = [run for runtime in RUNTIMES if (run := results.run(f"{model}_{runtime}", "phase1")) and not run.mark]
    if not runs:
        return NOT_MEASURED
    codes = sorted({run.code for run in runs})
    one = f"code `{codes[0]}`" if len(codes) == 1 else f"{len(codes)} states of the code"
    return f"{measured_together([run.provenance for run in runs])}; {one}"


def side_work(results: Published) -> str:
    """Whether the two models were measured at the same time, on which cards of which hosts."""
    from vlmbench.report.runtimes import measured_together

    spans = []
    provenances = []
    for model in FULL:
        runs = [run for runtime in RUNTIMES if (run := results.run(f"{model}_{runtime}", "phase1")) and not run.mark]
        sessions = [session for run in runs for session in run.provenance["sessions"] if session.get("ended_unix_s")]
        provenances += [run.provenance for run in runs]
        if sessions:
            ends = (one["ended_unix_s"] for one in sessions)
            spans.append((min(one["started_unix_s"] for one in sessions), max(ends)))
    if len(spans) < len(FULL):
        return ""
    if max(begin for begin, _ in spans) >= min(end for _, end in spans):
        return "* They were measured one after the other."
    cards = {(one.get("device") or {}).get("uuid") for one in provenances}
    own = ", each on a card of its own" if len(cards) == len(FULL) else ""
    return f"* Together: {measured_together(provenances)}; at the same time{own}."


def other_day(results: Published) -> str:
    """What an output token took in eager mode on another day, beside today."""
    lines = []
    for model in FULL:
        now = results.comparison(f"{model}_eager")
        before = read(results.results / ARCHIVE / f"{CARD}_{model}_eager" / "summary.json")
        rows = (before or {}).get("comparisons") or []
        run = results.run(f"{model}_eager")
        if now and rows and run and not run.mark:
            costs = [_cost(found["token_costs"]["output"]) for found in (now, rows[0])]
            lines.append(
                f"* {MODELS[model]} in eager mode: {costs[0]} ms an output token here, {costs[1]} ms on another "
                f"day{EARLIER}, on a card of the same kind. The device waits in most of it (above): a "
                "time of the host."
            )
    return "\n".join(lines)


def fill(template: str, results: Published) -> str:
    """A page with its numbers."""
    functions = {n: f for n, f in globals().items() if callable(f) and not n.startswith("_")}
    limits = {"tail_from": f"{TAIL_FROM:g}", "most": percent(MOST, 2), "earlier": EARLIER}
    about = {"models": MODELS, "full": FULL, "card": card_name(results)}
    text = _environment().get_template(template).render(functions | limits | about | {"r": results})
    return re.sub(r"\n{3,}", "\n\n", text)


def card_name(results: Published) -> str:
    """The card's name, from the provenance of the runs.

    Raises:
        ValueError: they are of several kinds of card, or there are none.
    """
    names = {
        str(found["device"]["name"])
        for path in results.results.glob(f"{CARD}_*/**/provenance.json")
        if (found := read(path)) and (found.get("device") or {}).get("type") == "cuda"
    }
    if len(names) != 1:
        raise ValueError(
            f"the runs of '{CARD}_*' must be of one kind of card (got {', '.join(sorted(names)) or 'none'})"
        )
    return names.pop()


def pages(results: Path) -> Iterator[tuple[Path, str]]:
    """(page, its text) of all that is made from the results."""
    for template, page, link in (
        ("findings.md.j2", ROOT / "docs" / "findings.md", "results"),
        ("study_dropping_tokens.md.j2", ROOT / "docs" / "study_dropping_tokens.md", "results"),
        ("results.md.j2", ROOT / "docs" / "results" / "README.md", "."),
    ):
        yield page, fill(template, Published(results, link))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name in ("found", "tour", "trust"):
        made = fill(f"readme_{name}.md.j2", Published(results, "docs/results")).strip("\n")
        begin, end = f"<!-- {name}: written by scripts/findings.py -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    yield readme, text


def write_pages_of(results: Path) -> Iterator[Path]:
    """Write the pages; yields those that changed."""
    for page, text in pages(results):
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            yield page.relative_to(ROOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not what it would be")
    options = parser.parse_args(arguments)
    if options.check:
        stale = [
            page for page, text in pages(RESULTS) if not page.is_file() or page.read_text(encoding="utf-8") != text
        ]
        sys.stdout.write(
            "".join(f"{page.relative_to(ROOT)} is not what scripts/findings.py writes\n" for page in stale)
        )
        return 1 if stale else 0
    sys.stdout.write("".join(f"written: {page}\n" for page in write_pages_of(RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

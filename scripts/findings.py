#!/usr/bin/env python3
"""Write the pages about the published results from their rows: every number on them is filled in here.

    python scripts/findings.py            # findings and the study in docs, docs/results/README.md, README.md
    python scripts/findings.py --check    # exit 1 and the names of pages that are not what would be written

Sentences that do not depend on a number stand in ``scripts/pages``; what was not measured says so. A run of an earlier
set (``docs/results/archive``) stands in where the present one has none, and is marked.
"""

from __future__ import annotations

import argparse
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

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever vlmbench is installed
sys.path.insert(0, str(Path(__file__).resolve().parent))
import findings_card
import findings_claims
import findings_facts
import findings_far
import findings_levels
import findings_loads
import findings_methods
import findings_others
from coverage_models import CANNOT, NOT_RUN, PAGE, RIGHT
from findings_claims import STAGES, claims_of, drift_words, largest_of, shares_of, too_few_words
from findings_facts import MACHINE
from findings_methods import methods_words
from published import (
    ACROSS,
    ARCHIVE,
    CARD,
    DRAWN,
    EACH,
    EARLIER,
    FULL,
    MODELS,
    NOT_MEASURED,
    PROVENANCE,
    RESULTS,
    ROOT,
    RUNTIMES,
    SERVERS,
    SIDES,
    STUDIED,
    Published,
    Run,
    by_request,
    code_of,
    command_of,
    counted,
    cut_words,
    pairs_of,
    read,
    reasons_of,
    rows_of,
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
    language_model_is_the_bottleneck,
    tail_is_the_problem,
    token_kinds_differ,
)
from vlmbench.records.comparable import turn_ids
from vlmbench.report.from_rows import FIRST_STEPS
from vlmbench.report.narrative.tail import share_interval
from vlmbench.schema import label_of
from vlmbench.text import DASH, count, digits, percent, tight_interval, whole_ones

# Tail -----------------------------------------------------------------------------------------------------------------


def tail_table(results: Published) -> str:
    """How far the tail of requests and of ``generate()`` reaches, and where it lies."""
    rows = []
    for name in results.names(STUDIED):
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
        worth = "" if effective is None else f", worth {whole_ones(min(effective, whole['n']))}"
        if failed := summary["runs"]["status"].get("error", 0):
            again = _failed_and_again(results.results / run.folder)
            worth += f", {failed} failed first, {again} of {failed} ran when tried again"
        rows.append(
            [
                *who(name),
                f"{whole.get('n', 0):,}{_of_planned(run)}{worth}{run.mark}",
                value(whole.get("p50")),
                _quantile(request),
                _quantile(of_model),
                _largest_part(tail),
                results.rows(run),
            ]
        )
    heads = ("model", "runtime", "requests", "median, ms", "tail of a request, ×", "tail of `generate()`, ×")
    return table((*heads, "most of the request's variance is", ""), rows)


def _of_planned(run: Run) -> str:
    """How many requests a run that was cut off should have had."""
    planned = (run.provenance.get("config", {}).get("dataset") or {}).get("num_samples")
    return cut_words(run) if planned is None or not run.cut else f" of {planned:,}{cut_words(run)}"


def _failed_and_again(folder: Path) -> int:
    """How many of the requests that failed were measured by a later try."""
    measured = {row["sample_id"] for row in counted(folder)}
    return len({row["sample_id"] for row in rows_of(folder) if row["status"] == "error"} & measured)


def _quantile(row: Mapping[str, Any] | None) -> str:
    return DASH if row is None else f"{row['quantile'].upper()} {value(row, times, 'workload')}"


def _largest_part(tail: Mapping[str, Any]) -> str:
    parts = [row for row in (tail.get("request") or {}).get("variance_parts") or [] if row.get("share") is not None]
    if not parts:
        return DASH
    top = max(parts, key=lambda row: float(row["share"]))
    name = "`generate()`" if top["part"] == "T_total" else label_of(top["part"])
    if top.get("low") is not None and top["low"] < MOST:
        return f"cannot be told: {name}, {percent(top['share'])} ({share_interval(top)})"
    return f"{name}, {_share(top)}"


def _share(row: Mapping[str, Any]) -> str:
    return f"{percent(row['share'])}{span_of(row.get('low'), row.get('high'), percent)}".replace("-", "−")


def tail_words(results: Published) -> str:
    """One bullet a model: under which runtimes ``generate()`` itself has a tail."""
    lines = []
    for model in STUDIED:
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
    return "\n".join(lines) or f"* {NOT_MEASURED.capitalize()}."


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
            rows = counted(results.results / run.folder)
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
    first, second = (by_request(results.results / run.folder, "T_preprocess") for run in runs)
    common = sorted(first.keys() & second.keys())
    return float(spearmanr([first[one] for one in common], [second[one] for one in common]).statistic)


# Bottleneck -----------------------------------------------------------------------------------------------------------


def bottleneck_table(results: Published) -> str:
    """Shares of a request, and how much of ``generate()`` the device waits."""
    rows = []
    for name in results.names(STUDIED):
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
                *(percent(shares.get(stage)) for stage in STAGES),
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
    for model in STUDIED:
        clauses = []
        for runtime, words in RUNTIMES.items():
            run = results.run(f"{model}_{runtime}", "phase1")
            if run is None:
                continue
            waits = (run.summary.get("launch_bound") or {}).get("launch_bound")
            told = language_model_is_the_bottleneck(run.summary)
            shares = shares_of(run)
            largest = largest_of(shares)
            clauses.append(
                f"{words}{run.mark}: {told.verdict}; the largest part is {label_of(largest)} "
                f"({percent(shares[largest])} of a request), and "
                f"{_waited(run.summary['launch_bound']) if waits is not None else 'no request was traced'}"
            )
        if clauses:
            lines += [f"* {MODELS[model]}, {clause}." for clause in clauses]
    return "\n".join(lines) or f"* {NOT_MEASURED.capitalize()}."


def _waited(waits: Mapping[str, Any]) -> str:
    """How much of ``generate()`` the device waits, and in which stage most, where that is more than what misses."""
    found = f"the device waits for {percent(waits['launch_bound'])} of `generate()`"
    idle = {row["stage"]: row["elapsed_ms"] - row["busy_ms"] for row in waits["stages"]}
    whole = idle.pop("total")
    top = max(idle, key=lambda stage: idle[stage])
    below = -sum(min(0.0, time) for time in idle.values())  # traced and untraced runs differ by at least so much
    if below > _BELOW * whole or not 0 < idle[top] <= whole:
        return f"{found}; in which stage cannot be told, traced and untraced runs differ by as much"
    return f"{found}, {percent(idle[top] / whole, 2)} of that in {label_of(f'T_{top}')}"


_BELOW = 0.1


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
                results.rows(run) + _cut_sweeps(results, name),
            ]
        )
    heads = ("model", "runtime", "ms an output token", "ms a vision token", "vision tokens for one of output")
    return table((*heads, "FLOPs with latency, both sweeps, r", ""), rows)


def _cut_sweeps(results: Published, name: str) -> str:
    """Which sweeps of the present set were cut off, and after how many runs a point."""
    words = ""
    for phase in SIDES:
        run = results.run(name, phase)
        if run is None or run.mark or not run.cut:
            continue
        counts = Counter(row["point_id"] for row in counted(results.results / run.folder)).values()
        ends = "–".join(dict.fromkeys(str(end(counts)) for end in (min, max)))
        words += f", {phase.replace('phase', 'phase ')} cut off after {sum(counts)} runs, {ends} a point"
    return words


def costs_words(results: Published) -> str:
    """Which runs of the present set have no FLOPs and no bytes."""
    lacking: dict[str, list[str]] = {}
    for name in results.names():
        run = results.run(name, "phase1")
        if run is None or run.mark:
            continue
        if any("no_costs" in row["flags"] for row in counted(results.results / run.folder)):
            version = run.provenance["software"]["packages"]["transformers"]
            lacking.setdefault(version, []).append(", ".join(who(name)))
    return "\n".join(
        f"No FLOPs and bytes in this set, and so no correlation and no floor: {'; '.join(names)}. Their count failed "
        f"with the transformers there ({version}); it is mended since, and times do not depend on it."
        for version, names in lacking.items()
    )


def _cost(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return DASH
    end = "_unflagged" if entry.get("cost_unflagged_ms") is not None else ""
    middle, low, high = entry[f"cost{end}_ms"], entry[f"low{end}"], entry[f"high{end}"]
    if low is not None and low <= 0 <= high:
        return f"cannot be told from 0 ({tight_interval(low, high)})".replace("-", "−")
    return f"{digits(middle)}{span_of(low, high, digits)}"


def power_words(results: Published) -> str:
    """In how many runs of the vision sweeps, and of phase 1, the card was held back by its power limit, and how far its
    clock fell.
    """
    said = [
        [*who(name), f"{held} of {count(runs, 'run')}", f"{low:,.0f} of {high:,.0f}"]
        for name, held, runs, low, high in _held_back(results, "phase2")
    ]
    if not said:
        return ""
    most = [
        f"{', '.join(who(name))}, {held} of {runs} (down to {low:,.0f} MHz)"
        for name, held, runs, low, _ in _held_back(results, "phase1")
        if 2 * held > runs
    ]
    heads = ("model", "runtime", "held back in", "clock down to, MHz")
    also = f"\n\nIt also did in most requests of phase 1 of {'; '.join(most)}." if most else ""
    return (
        "The card's power limit held it back in vision sweeps, and these rows are in the slopes:\n\n"
        f"{table(heads, said)}{also}"
    )


def _held_back(results: Published, phase: str) -> Iterator[tuple[str, int, int, float, float]]:
    """(``MODEL_RUNTIME``, runs that the power limit held back, runs, lowest clock, highest) of the present set."""
    for name in results.names():
        run = results.run(name, phase)
        if run is None or run.mark:
            continue
        rows = counted(results.results / run.folder)
        held = sum("throttled:power" in row["flags"] for row in rows)
        read = [row.get(f"sm_clock_{when}_mhz") for row in rows for when in ("before", "after")]
        clocks = [clock for clock in read if clock is not None]
        if held and clocks:
            yield name, held, len(rows), min(clocks), max(clocks)


def sweep_drift_words(results: Published) -> str:
    """Which sweeps drifted for sure from their first half to their second."""
    said = []
    for name in results.names():
        for phase in SIDES:
            run = results.run(name, phase)
            check = {} if run is None or run.mark else run.summary.get("aa_check") or {}
            if check.get("verdict") == "drift":
                ends = span_of(check["low"], check["high"], times)
                said.append(
                    f"{', '.join(who(name))}, {phase.replace('phase', 'phase ')}: {times(check['ratio'])} ×{ends}"
                )
    if not said:
        return ""
    return (
        f"In these sweeps `generate()` changed from the first half to the second: {'; '.join(said)}. Their points were "
        "measured in rounds, so that a drift widens the intervals of a slope more than it tilts it."
    )


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
    for name in results.names(STUDIED):
        run = results.run(name, "phase1")
        if run is None:
            continue
        summary = run.summary
        reach = next((point.get("reach") for point in (summary.get("precision") or {}).get("points") or []), None)
        rows.append(
            [
                *who(name),
                f"{'no interval' if reach is None else f'±{percent(reach)}'}{run.mark}",
                drift_words(summary.get("aa_check") or {}),
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


def _hundredfold(entry: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Of an interval of shares one in percent."""
    ends = {name: (entry or {}).get(name) for name in ("value", "low", "high")}
    return {name: None if end is None else 100 * end for name, end in ends.items()}


def data_table(results: Published) -> str:
    """What another data set does to the tail: sizes of VQA v2 beside long-tailed ones, under the same runtime."""
    from vlmbench.report.runtimes import measured_together

    rows, apart = [], []
    for model in MODELS:
        other = results.run(f"{model}_long_tail", "phase1")
        if other is None:
            continue
        runtime = other.provenance["runtime"]["name"]
        same = results.run(f"{model}_{runtime}", "phase1")
        if same is not None:
            apart.append(f"The two of {MODELS[model]}: {measured_together([same.provenance, other.provenance])}.")
        for data, run in (("VQA v2", same), ("long-tailed", other)):
            if run is None:
                continue
            tokens, tail = run.summary["tokens"]["num_vision_tokens"], run.summary["tail"]
            split = next((row for row in tail["variance_split"] if row["source"] == "num_vision_tokens"), None)
            rows.append(
                [
                    MODELS[model], f"{RUNTIMES[runtime]}{run.mark}", data,
                    f"{run.summary['runs']['workload_runs']:,}{cut_words(run)}",
                    " / ".join(f"{tokens[name]:,.0f}" for name in ("min", "median", "max")),
                    value(run.summary["distribution"]["T_request"]["workload"]["p50"]),
                    _quantile((tail.get("request") or {}).get("ratio")),
                    DASH if split is None else _share(split), results.rows(run),
                ]
            )  # fmt: skip
    heads = ("model", "runtime", "sizes of images", "requests", "vision tokens, least / median / most")
    more = ("request, median ms", "tail of a request, ×", "variance of `generate()` that vision tokens explain", "")
    if not rows:
        return f"{NOT_MEASURED.capitalize()} on this card."
    return "\n\n".join([table((*heads, *more), rows), *apart])


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
    for model in STUDIED:
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
                    marks = {runtime: side and side.mark for runtime, side in zip((one, other), sides, strict=True)}
                    old = [RUNTIMES[runtime] for runtime, mark in marks.items() if mark]
                    said = (
                        f"not divided: {old[0]} is of the earlier set{EARLIER}"
                        if old and None not in sides
                        else NOT_MEASURED
                    )
                    rows.append([*head, said, *[DASH] * (len(_TIMES) - 1), "", ""])
                continue
            runs = [side for side in sides if side is not None]
            head[1] += runs[0].mark
            lengths = [(side.summary["tokens"]["num_output_tokens"] or {}).get("median") for side in runs]
            if len(set(lengths)) > 1:
                said = f"answers of {lengths[0]:g} and {lengths[1]:g} tokens: not divided"
                rows.append([*head, said, *[DASH] * (len(_TIMES) - 1), "", ""])
                continue
            changes = {row["metric"]: row for row in content["pairs"][0]["changes"]}
            link = f"[all times]({results.link}/{stem}.md)"
            apart = measured_together([side.provenance for side in runs])
            if pairs := pairs_of(content):
                apart += f", {count(pairs, 'pair')}"
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
            [sum(row.get(part) or 0.0 for part in ("T_transfer", "T_detokenize")) for row in counted(folders[0])]
        )
        first, second = (by_request(folder, "T_preprocess") for folder in folders)
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


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    return f"{value(row['ratio'], times)}{MACHINE if row['change'] == 'machine' else ''}"


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
        abouts = [read(results.results / folder / arm / PROVENANCE) or {} for arm in words]
        began = datetime.fromtimestamp(min(one["started_unix_s"] for about in abouts for one in about["sessions"]), UTC)
        old = EARLIER if results.codes and any(code_of(about) not in results.codes for about in abouts) else ""
        mark = f"; measured on {began:%Y-%m-%d at %H:%M} UTC{old}"
        figure = results.figure(f"{folder.as_posix()}/figures/first_steps.png", "First decode steps of a fresh process")
        link = f"[rows]({results.link}/{folder.as_posix()})"
        return "\n".join(
            [*lines, "", f"LLaVA-1.5-7B, eager, one process an arm, so without intervals{mark}; {link}.", "", figure]
        )
    return f"{NOT_MEASURED.capitalize()}.\n"


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
        said = list(dict.fromkeys(command_of(run) for run in runs))
        about = "<br>".join(said) or COMMANDS.get(part, "`python scripts/publish_results.py`")
        rows.append([f"[`{folder.name}`]({folder.name})", _holds(results, part, runs), when, code, about])
    return table(("folder", "what", "begun, UTC", "code", "command"), rows)


def _of_card(folder: Path) -> bool:
    return folder.name.startswith(f"{CARD}_")


def commits_words(results: Published) -> str:
    """Which commits have the code of the present runs."""
    present = {run.code for folder in results.results.glob(f"{CARD}_*") for run in results.below(folder)}
    codes = {code: commit for code, commit in results.codes.items() if code in present and commit}
    reasons = reasons_of(results.results)
    said = [
        f"`{code}` is commit {commit}{f', {reasons[code]}' if code in reasons else ''}"
        for code, commit in codes.items()
    ]
    return f": {'; '.join(said)}" if codes else ""


COMMANDS: Mapping[str, str] = {
    "llava_vllm_stats": "the same with `runtime.encoder_stats=true`, for vLLM's own figure of the encoder",
    "llava_first_steps": "`python -m vlmbench experiment=first_steps model=llava_1_5_7b output.tokens=24`",
    "truth": "`python scripts/gpu/truth.py side_stream busy overhead recompiles energy floor moe_batch --out DIR`",
    "captured": "`python scripts/gpu/cudagraph.py decode encoder prefill --out DIR`, with `--model` and `--compile`",
}


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
        f"* {MODELS[model]}, {RUNTIMES[run.provenance['runtime']['name']]}: {' '.join(run.summary['energy']['words'])} "
        f"{results.rows(run, 'Rows')}."
        for model, run in runs
        if run is not None and run.summary.get("energy")
    )


def _holds(results: Published, part: str, runs: Sequence[Run]) -> str:
    said = []
    for run in runs:
        counts = run.summary.get("runs") or {}
        measured = counts.get("workload_runs") or (counts.get("ok_by_mode") or {}).get("instrumented", 0)
        arms = run.summary.get("arms")
        phase = f"{run.folder.name}: " if len(run.folder.parts) > 1 and not arms else ""
        said.append(phase + (count(len(arms), "arm") if arms else f"{count(measured, 'run')}{cut_words(run)}"))
        if run.summary.get("arms") and not run.summary.get("proofs"):
            said.append("cut off")
    if results.comparison(part):
        said.append("token comparison")
    if (results.results / f"{CARD}_{part}" / FIRST_STEPS).is_file():
        said.append("a fresh process an arm")
    if part in MODELS:
        figures = "figures, " if (results.results / f"{CARD}_{part}" / "figures").is_dir() else ""
        said.append(f"its runtimes side by side: {figures}times compared")
    if part == ACROSS:
        said.append("the models of a runtime side by side")
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
                too_few_words(run) if tail.value is None else f"{tail.of.upper()} {_told(tail, times)}: {tail.verdict}",
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
        f"{run.mark if run else ''}"
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
    known, untold = [], []
    for runtime, words in RUNTIMES.items():
        run = results.run(f"llava_{runtime}", "phase1")
        cost = (run.summary.get("instrument_overhead") or {}) if run else {}
        if run is None or cost.get("value") is None:
            continue
        if cost["low"] is None or max(-cost["low"], cost["high"]) > _TOLD_TO:
            untold.append(words)
            continue
        ends = f"{100 * cost['low']:.2f} to {100 * cost['high']:.2f} %"
        known.append(f"{words} {100 * cost['value']:.2f} % ({ends}, {cost['n']} pairs){run.mark}".replace("-", "−"))
    if untold:
        known.append(f"not known to {percent(_TOLD_TO, 1)} under {', '.join(untold)}, where runs differ by more")
    return "; ".join(known) or NOT_MEASURED


_TOLD_TO = 0.01


@cache
def coverage_words() -> str:
    """Of how many architectures the stages are right, as the page of the architectures says."""
    text = PAGE.read_text(encoding="utf-8")
    counts = {label: int(number) for label, number in re.findall(r"^\| (.+) \| (\d+) \|$", text, re.MULTILINE)}
    (whole,) = re.findall(r"(\d+) architectures\.$", text, re.MULTILINE)
    others = {CANNOT: "cannot run `generate()`", NOT_RUN: "were not run"}
    left = [f"{counts[label]} {words}" for label, words in others.items() if counts[label]]
    return "; ".join([f"{counts[RIGHT]} of {whole} architectures of transformers run and agree", *left])


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent / "pages"), undefined=StrictUndefined, autoescape=False,  # noqa: S701  # Markdown
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def together_words(results: Published) -> str:
    """Card, host, hour and code of the present phase-1 runs of each model under several runtimes, a bullet a model;
    one for all other models of which the same is to say.
    """
    said: dict[str, list[str]] = {}
    for model, name in MODELS.items():
        if model in FULL or sum(one.startswith(f"{model}_") for one in _present_names(results)) > 1:
            key = _together(results, model)
            said.setdefault(key if model not in STUDIED else f"{key}.", []).append(name)
    lines = []
    for words, names in said.items():
        if words.endswith("."):
            lines += [f"* {name}, phase 1 under its runtimes: {words}" for name in names]
        else:
            each = " of each" if len(names) > 1 else ""
            lines.append(f"* {', '.join(names)}, phase 1{each} under its runtimes: {words}.")
    return "\n".join(lines)


def _present_names(results: Published) -> list[str]:
    return [name for name in results.names() if (run := results.run(name, "phase1")) and not run.mark]


def _together(results: Published, model: str) -> str:
    from vlmbench.report.runtimes import measured_together

    runs = [run for runtime in RUNTIMES if (run := results.run(f"{model}_{runtime}", "phase1")) and not run.mark]
    if not runs:
        return NOT_MEASURED
    codes = sorted({run.code for run in runs})
    one = f"code `{codes[0]}`" if len(codes) == 1 else f"{len(codes)} states of the code"
    names = [RUNTIMES[run.folder.parts[0].split("_", 2)[2]] for run in runs]
    return f"{measured_together([run.provenance for run in runs], names)}; {one}"


def side_work(results: Published) -> str:
    """Whether the two models were measured at the same time, on which cards of which hosts."""
    from vlmbench.report.runtimes import measured_together

    spans = []
    provenances = []
    for model in FULL:
        found = [results.run(f"{model}_{runtime}", "phase1") for runtime in RUNTIMES]
        runs = [run for run in found if run and not run.mark and turn_ids(run.provenance)]
        sessions = [session for run in runs for session in run.provenance["sessions"] if session.get("ended_unix_s")]
        provenances += [run.provenance for run in runs]
        if sessions:
            ends = (one["ended_unix_s"] for one in sessions)
            spans.append((min(one["started_unix_s"] for one in sessions), max(ends)))
    if len(spans) < len(FULL):
        return ""
    if max(begin for begin, _ in spans) >= min(end for _, end in spans):
        return f"* {' and '.join(MODELS[model] for model in FULL)} were measured one after the other."
    cards = {(one.get("device") or {}).get("uuid") for one in provenances}
    own = ", each on a card of its own" if len(cards) == len(FULL) else ""
    together = " and ".join(MODELS[model] for model in FULL)
    return f"* {together} together: {measured_together(provenances)}; at the same time{own}."


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
                f"day{EARLIER}, on a card of the same kind (other lengths of answers, and without runs that met a new "
                "one). The device waits in most of it (above): a time of the host."
            )
    return "\n".join(lines)


def fill(template: str, results: Published) -> str:
    """A page with its numbers."""
    modules = (
        globals(),
        *map(
            vars,
            (
                findings_card, findings_claims, findings_facts, findings_far, findings_levels, findings_loads,
                findings_methods, findings_others,
            ),
        ),
    )  # fmt: skip
    functions = {n: f for module in modules for n, f in module.items() if callable(f) and not n.startswith("_")}
    limits = {"tail_from": f"{TAIL_FROM:g}", "most": percent(MOST, 2), "earlier": EARLIER}
    about = {"models": MODELS, "full": FULL, "drawn": DRAWN, "card": card_name(results)}
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

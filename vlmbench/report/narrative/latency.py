"""The answer in words: how long does a request take, how bad is the tail, which part eats the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmbench.analysis.breakdown import LONG, LONG_GOAL, SHORT_GOAL
from vlmbench.analysis.engine_figures import agreement_words
from vlmbench.analysis.floors import floor_sentences
from vlmbench.analysis.frames import left_out_words
from vlmbench.analysis.longer_run import LongerRun, longer_run
from vlmbench.analysis.overhead import overhead_words
from vlmbench.analysis.tail import shares
from vlmbench.figures.theme import COMPONENT_LABELS, component_label
from vlmbench.report.narrative import serving
from vlmbench.report.narrative.pieces import plain
from vlmbench.report.narrative.tail import (
    lacks,
    needs,
    part_sentences,
    share_of_variance,
    shortage,
    source_sentences,
    tail_sentence,
)
from vlmbench.text import count, factor, lasting, ms, percent, span, tokens, worth

Summary = Mapping[str, Any]

ALL_ZERO = "All times of generate() are 0, so no part has a share of them."

HOW_LONG = "How long does a request take?"
HOW_BAD = "How bad is the tail?"
WHICH_PART = "Which part eats the time?"
HOW_MUCH_ENERGY = "How much energy does a request take?"
HOW_SURE = "How far can this be trusted?"

_WRITE: Mapping[str, Callable[[float | None], str]] = {"ms": ms, "%": percent, "×": factor}
_SLOWEST: Mapping[str, str] = {
    "tokens": "The slowest run is explained by its token counts.",
    "jitter": "The slowest run is within what one repeated request shows.",
    "host_absence": "The thread of the slowest run was on no processor for most of what it took beyond the median.",
    "host_speed": "The slowest run is within what one repeated request shows: its thread's processor took longer.",
    "unknown": "Why the slowest run was slow is not known.",
}
_ODDS = {"p90": "1 in 10", "p95": "1 in 20", "p99": "1 in 100"}


def answers(summary: Summary, provenance: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(question, sentences) of the three questions, of energy where it was measured, then what limits the answers."""
    if not summary["headline"]["latency_metric"]:
        return [(HOW_LONG, ["Nothing could be measured.", *_failures(summary)])]
    energy, server = summary.get("energy"), summary.get("serving")
    loads = [plain(sentence) for sentence in serving.first_words(server or {})]
    return [
        (HOW_LONG, loads or _how_long(summary)),
        *([] if loads else [(HOW_BAD, _how_bad(summary))]),
        *(serving.answers(server) if server else []),
        (WHICH_PART, [serving.not_seen(server)] if server else [*_which_part(summary), *_device(summary, provenance)]),
        *([(HOW_MUCH_ENERGY, energy["words"])] if energy else []),
        (HOW_SURE, [*(serving.doubts(server) if server else []), *_how_sure(summary, provenance)]),
    ]


def _with_interval(entry: Mapping[str, Any], unit: str = "ms") -> str:
    shown = _WRITE[unit](entry["value"])
    inside = span(entry.get("low"), entry.get("high"), unit)
    return f"{shown} ({inside})" if inside else f"{shown} (no interval: {lacks(entry)})"


def _quantile(summary: Summary, metric: str, name: str) -> Mapping[str, Any] | None:
    entry = summary["distribution"].get(metric, {}).get("workload", {}).get(name)
    return entry if entry and entry["value"] is not None else None


def _runs(whole: Mapping[str, Any]) -> str:
    """``200 runs, worth 44 independent ones``."""
    said = worth(whole["samples"], whole.get("effective_n"))
    ones = " independent one" if said.endswith((" one", " 1")) else " independent ones"
    return f"{count(whole['n'], 'run')}{said}{ones if said else ''}"


def _how_long(summary: Summary) -> list[str]:
    metric = summary["headline"]["latency_metric"]
    whole = summary["distribution"][metric]["workload"]
    what = "A request, from image and text to text," if metric == "T_request" else "One generate() call"
    sentences = [f"{what} takes {_with_interval(whole['p50'])} at the median of {_runs(whole)}."]
    upper = [
        f"{_ODDS[name]} takes more than {_with_interval(entry)}"
        for name in ("p90", "p99")
        if (entry := _quantile(summary, metric, name))
    ]
    short = [name.upper() for name in ("p90", "p95", "p99") if whole[name]["value"] is None]
    if upper:
        sentences.append("; ".join(upper) + f". The mean is {ms(whole['mean'])}, the slowest took {ms(whole['max'])}.")
    else:
        sentences.append(f"The mean is {ms(whole['mean'])}, the slowest took {ms(whole['max'])}.")
    if short:
        counted = ((name, shortage(whole[name.lower()]) or needs(name.lower())) for name in short)
        sentences.append(f"Too few runs for {', '.join(f'{n} ({c})' for n, c in counted)}: no value is given.")
        lasted = summary["runs"].get("workload_lasted_s")  # none in a summary of an earlier version
        would = [(name, longer_run(whole[name.lower()], whole.get("effective_n"), lasted)) for name in short]
        unit = "run" if whole["samples"] == whole["n"] else "request"
        if wanted := ", ".join(f"{_longer(run, unit)} for {name}" for name, run in would if run):
            sentences.append(f"At this dependence it would take some {wanted}.")
    sentences += _tokens_in_time(summary)
    return sentences


def _longer(run: LongerRun, unit: str) -> str:
    """``5,500 runs (79 minutes)``."""
    return f"{count(run.requests, unit)}{f' ({lasting(run.lasts_s)})' if run.lasts_s else ''}"


def _tokens_in_time(summary: Summary) -> list[str]:
    first, gap = _quantile(summary, "TTFT", "p50"), _quantile(summary, "ITL", "p50")
    if not first:
        return []
    text = f"The first token is ready after {_with_interval(first)}"
    if not gap:
        return [text + "."]
    tail_gap = _quantile(summary, "ITL", "p99")
    beyond = f", 1 in 100 after more than {_with_interval(tail_gap)}" if tail_gap else ""
    return [f"{text}; each later one follows after {_with_interval(gap)}{beyond}."]


def _how_bad(summary: Summary) -> list[str]:
    sentences, known = [plain(tail_sentence(summary))], bool(summary["headline"]["tail_ratio"])
    table = summary["tail"].get("variance_sources") or []
    sources = source_sentences(table, what="The tail" if known else "What spread there is")
    if not known:
        return sentences + sources
    return sentences + part_sentences(summary["tail"]) + _explained(summary) + sources + _causes(summary)


def _explained(summary: Summary) -> list[str]:
    split = {row["source"]: row for row in summary["tail"]["variance_split"]}
    if not split:
        return []
    named = [row for source, row in split.items() if source.startswith("num_") and row["low"] is not None]
    named.sort(key=lambda row: -row["share"])
    parts = [f"{tokens(r['source'])} {share_of_variance(r)}" for r in named]
    rest = split["rest"]
    constant = [tokens(s) for s, r in split.items() if s.startswith("num_") and r["low"] is None]
    text = (
        f"Of the variance of {summary['tail'].get('metric', 'T_total')}, linear effects explain: " + "; ".join(parts)
        if parts
        else ""
    )
    same = f" ({' and '.join(constant)} never varied)" if constant else ""
    share, low, high = (
        None if rest[name] is None else min(max(float(rest[name]), 0.0), 1.0) for name in ("share", "low", "high")
    )
    left = f"{percent(share)} ({span(low, high, '%')}) is left: jitter, and what is not linear"
    return [f"{text}{same}; {left}." if text else f"No token count varied{same}, so all variance is jitter."]


def _causes(summary: Summary) -> list[str]:
    causes = summary["tail"]["causes"]
    slow = summary["tail"]["slow_runs"]
    if not causes:
        return []
    flags = summary["tail"].get("flags") or []
    numbers = {row["flag"]: shares(row) for row in flags if row["cause"]}
    if slow == 1:
        cause = next(iter(causes))
        place = next(iter(summary["tail"].get("places") or {}), "")
        carried = "; ".join(f"{name} ({numbers[name]})" for name in cause.split() if name in numbers)
        sentence = f"The slowest run carries the flag {carried}."
        where = f" It took longer in {component_label(place)}." if place else ""
        return [_SLOWEST.get(cause, sentence) + where, *_common_flags(flags)]
    words = {
        "tokens": "by their token counts",
        "jitter": "within what one repeated request shows",
        "host_absence": "their thread was on no processor",
        "host_speed": "their thread's processor took longer, as in the repeated request",
        "unknown": "unknown",
    }
    listed = "; ".join(f"{words.get(cause, cause)} {number:,}" for cause, number in causes.items())
    places = (summary["tail"].get("places") or {}).items()
    where = ", ".join(f"{number:,} in {component_label(name)}" for name, number in places)
    found = [f"Causes of the {slow:,} slowest runs (1 %): {listed}{f' ({where})' if where else ''}."]
    found += [f"{name}: {inside}." for name, inside in numbers.items()]
    return [*found, *_common_flags(flags)]


def _common_flags(flags: Sequence[Mapping[str, Any]]) -> list[str]:
    """Flags of slow runs that are no cause, because the other runs carry them nearly as often."""
    listed = "; ".join(f"{row['flag']} ({shares(row)})" for row in flags if not row["cause"])
    return [f"No cause, because it is not clearly commoner among the slow: {listed}."] if listed else []


def _which_part(summary: Summary) -> list[str]:
    parts = [row for row in summary["components"] if row["part_of"] == "T_total"]
    stages = [row for row in parts if row["share"] is not None]
    if not stages:
        return [ALL_ZERO if parts else "The runs carry no stage times."]
    stages.sort(key=lambda row: -row["share"])
    first, others = stages[0], [row for row in stages[1:] if row["component"] != "T_residual"]
    inside = span(first["share_low"], first["share_high"], "%")
    # Shares are sums over sums, so that they add up; the median of a stage's time says something else.
    sentences = [
        f"{component_label(first['component'])}: {percent(first['share'])} of all time spent in generate()"
        f"{f' ({inside})' if inside else ''}; its median is {ms(first['median'])} a run."
    ]
    if others:
        listed = ", ".join(f"{component_label(r['component'])} {percent(r['share'])}" for r in others)
        sentences.append(f"Then, of all time spent there: {listed}.")
    loop = next((row for row in summary["components"] if row["component"] == "T_decode_loop"), None)
    if loop:
        sentences.append(
            f"Of all time spent decoding, {percent(loop['share'])} is the loop around the model, not its forwards."
        )
    outside = [row for row in summary["components"] if row["part_of"] == "T_request" and row["share"] is not None]
    if outside:
        listed = ", ".join(f"{component_label(r['component'])} {percent(r['share'])}" for r in outside)
        sentences.append(f"Outside generate(), of all time spent on requests: {listed}.")
    return sentences + _size(summary)


def _device(summary: Summary, provenance: Mapping[str, Any]) -> list[str]:
    """Does the device work in that time, and how far is it from the least time possible?"""
    on_cpu = (provenance.get("device") or {}).get("type") == "cpu"
    waiting = [] if on_cpu and not summary["launch_bound"]["requests"] else summary["launch_bound"]["sentences"]
    return [*waiting, *floor_sentences(summary["cost"], COMPONENT_LABELS)]


def _size(summary: Summary) -> list[str]:
    table = summary["time_and_parameters"]
    if not table:
        return []
    top = max(table, key=lambda row: float(row["parameter_share"]))
    return [
        f"Size beside time: the {component_label(top['component']).lower()} holds {percent(top['parameter_share'])} of "
        f"the parameters and takes {percent(top['time_share'])} of all time spent in generate()."
    ]


def _how_sure(summary: Summary, provenance: Mapping[str, Any]) -> list[str]:
    residual, sentences = summary["residual"], []
    middle = residual["median_abs_share"]
    if middle["value"] is not None:
        broken = residual["runs_with_negative"]
        negative = "no stage came out negative" if not broken else f"{count(broken, 'run')} had a negative stage"
        sentences.append(f"The parts miss the whole by {percent(middle['value'])} at the median; {negative}.")
        sentences += _goal(residual)
    if residual["sum_mismatch"]:
        sentences.append(
            f"In {count(residual['sum_mismatch'], 'run')} the stages do not add up to T_total: do not use them."
        )
    sentences += [
        *_busy_host(provenance),
        *([] if summary.get("serving") else [overhead_words(summary["instrument_overhead"])]),
        *agreement_words(
            summary.get("engine_agreement") or [],
            asynchronous=any(
                (session.get("engine") or {}).get("async_scheduling") for session in provenance.get("sessions") or []
            ),
        ),
        *_precision(summary),
        *_drift(summary),
        *_lengths(summary, provenance),
        *_failures(summary),
    ]
    said = [str(warning) for session in provenance.get("sessions") or [] for warning in session.get("warnings") or []]
    sentences += [f"Warned while measuring: {warning.rstrip('.')}." for warning in dict.fromkeys(said)]
    points = summary["runs"]["workload_points"]
    if points > 1:
        loads = serving.first_words(summary.get("serving") or {})
        apart = "Each load has a distribution of its own; they are not pooled."
        sentences.append(apart if loads else f"Runs of {points} sweep points are pooled here.")
    return sentences


def _busy_host(provenance: Mapping[str, Any]) -> list[str]:
    """That others used the processors when a session began."""
    for session in provenance.get("sessions") or []:
        load = (session.get("state_before") or {}).get("host_load") or {}
        if load and load["cores"] - load["busy"] < 1:
            return [
                f"The host was busy when the run began: others used {load['busy']:.1f} of "
                f"{count(load['cores'], 'processor')}, so times are longer and scatter more than on a quiet one."
            ]
    return []


def _goal(residual: Mapping[str, Any]) -> list[str]:
    goal = residual.get("goal")
    if goal is None:
        return []
    return [
        f"The goal for that is {percent(goal)} at {count(residual['median_output_tokens'], 'output token')}, the "
        f"median ({percent(LONG_GOAL)} from {LONG} tokens on, {percent(SHORT_GOAL)} below): "
        f"{'met' if residual['goal_met'] else 'missed'}."
    ]


def _precision(summary: Summary) -> list[str]:
    """How well the medians are known; a summary of an earlier version does not say."""
    said = (summary.get("precision") or {}).get("words")
    return [said] if said else []


def _drift(summary: Summary) -> list[str]:
    check = summary["aa_check"]
    if not check:
        return []
    stages = check["stages_in_words"] if check["verdict"] != "clean" else ""
    return [f"{check['words']}.", *([f"{stages}."] if stages else [])]


def _lengths(summary: Summary, provenance: Mapping[str, Any]) -> list[str]:
    sentences = []
    if (provenance.get("model") or {}).get("weights") == "random":
        sentences.append("Weights are random: times are real, answers are not.")
    itl = summary["itl_count"]
    if itl["gaps"] != itl["expected"]:
        sentences.append(f"Token gaps recorded: {itl['gaps']:,}, expected {itl['expected']:,}.")
    if itl["runs_in_quantiles"] < itl["runs"]:
        sentences.append(
            f"ITL quantiles come from a random {count(itl['runs_in_quantiles'], 'run')} of {itl['runs']:,} (seeded)."
        )
    return sentences


def _failures(summary: Summary) -> list[str]:
    found = summary["runs"]["failures"]
    sentences = [f"{count(row['rows'], 'row')} {row['status']}: {row['reason']}." for row in found[:5]]
    if len(found) > 5:
        sentences.append(f"{len(found) - 5} more kinds of failure are in summary.json.")
    if lines := summary["runs"]["lines_left_out"]:
        sentences.append(f"{left_out_words(lines)}.")
    return sentences


def flag_sentence(flags: Mapping[str, int]) -> Sequence[str]:
    """Flags of the measured runs in one sentence; none if no run carries one."""
    return [f"Flags: {', '.join(f'{name} {number}' for name, number in flags.items())}."] if flags else []

"""What controlled sweeps found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlmbench.analysis.floors import short_verdict
from vlmbench.analysis.frames import left_out_words
from vlmbench.analysis.overhead import overhead_words
from vlmbench.analysis.slices import KINDS, held_fixed
from vlmbench.figures.theme import caption, component_label
from vlmbench.report.narrative import serving
from vlmbench.text import count, digits, interval, percent

Summary = Mapping[str, Any]
_GOAL = 0.03  # median held-out error that the latency model aims at


def as_text(summary: Summary, provenance: Mapping[str, Any]) -> str:
    """Plain text: the line that names model, device and runtime, then question by question."""
    lines = [caption(provenance)]
    for question, sentences in answers(summary):
        lines += ["", question, *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(lines)


def answers(summary: Summary) -> list[tuple[str, list[str]]]:
    """(question, sentences); questions without an answer are left out."""
    found = [(f"What does one more {KINDS[kind].unit} cost?", list(_kind(summary, kind))) for kind in KINDS]
    if not summary["scaling"]:
        found.insert(0, ("What does one more token cost?", ["Nothing was swept over three measured counts or more."]))
    flops, server = summary["flops_latency"], summary.get("serving")
    if server:
        return [(question, said) for question, said in [*found, *_of_a_server(summary, server)] if said]
    found += [
        ("Do FLOPs tell the latency?", list(flops["words"]) if flops else []),
        ("Does the device work, or wait for the host?", [*summary["launch_bound"]["sentences"], *_verdicts(summary)]),
        ("Can the latency be predicted?", list(_model(summary))),
        ("How much energy does a request take?", (summary.get("energy") or {}).get("words", [])),
        ("How far can this be trusted?", list(_trust(summary))),
    ]
    return [(question, sentences) for question, sentences in found if sentences]


def _of_a_server(summary: Summary, server: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What is said of a sweep on a server: its loads where they were swept, and how far to trust it."""
    loads = serving.answers(server)[:1] if serving.swept_load(server) else []
    trust = [serving.NOT_SEEN, *serving.doubts(server), *_trust(summary)]
    return [*loads, ("How far can this be trusted?", trust)]


def comparison_answers(row: Summary) -> list[tuple[str, list[str]]]:
    """(question, sentences) of a comparison of tokens, an entry of ``comparisons`` in its summary."""
    flops, model = row["flops_latency"], row["latency_model"]
    found = [
        ("What do tokens cost against each other?", list(row["words"])),
        ("Do FLOPs tell the latency?", list(flops["words"]) if flops else []),
        ("Can the latency be predicted?", [model_words(model)] if model else []),
    ]
    return [(question, sentences) for question, sentences in found if sentences]


def _kind(summary: Summary, kind: str) -> Iterator[str]:
    if kind in summary["too_few_points"]:
        seen = summary["too_few_points"][kind]
        yield f"No slope: {count(seen, 'count')} measured, three are needed."
    entries = [entry for entry in summary["scaling"] if entry["kind"] == kind]
    if not entries:
        return
    first = entries[0]["fixed"]
    # The residual is a check of the instrument, not a cost of tokens; summary.json has its fit.
    shown = [entry for entry in entries if entry["fixed"] == first and entry["stage"] != "T_residual"]
    if entries[0]["held"]:
        yield f"Held fixed: {entries[0]['held']}."
    if entries[0]["note"]:
        yield f"Not held fixed: {entries[0]['note']}."
    hidden = {e["stage"] for e in shown if not e["measurable"] and _hidden(e)}
    yield from (f"{e['words']}." for e in shown if e["measurable"] or e["stage"] in hidden)
    still = [e["stage"] for e in shown if not e["measurable"] and e["stage"] not in hidden]
    if still:
        yield f"No measurable dependence in this range: {', '.join(still)}."
    whole = next((name for name in ("T_total", "T_request") if any(e["stage"] == name for e in entries)), "")
    totals = sorted((e for e in entries if e["stage"] == whole), key=lambda e: e["slope_ms"])
    if len(totals) > 1:
        low, high = (
            f"{digits(e['slope_ms'], 4)} ms ({interval(e['slope_low'], e['slope_high'], 4)}) with "
            f"{held_fixed(e['fixed'])}"
            for e in (totals[0], totals[-1])
        )
        yield f"Over {len(totals)} settings of what is held fixed, {whole}: {low}, up to {high}."


def _hidden(entry: Mapping[str, Any]) -> bool:
    """Whether a slope that the main fit cannot tell from 0 is there in the medians, or without flagged rows."""
    low, high = entry.get("slope_unflagged_low"), entry.get("slope_unflagged_high")
    told = low is not None and high is not None and (low > 0 or high < 0)
    low, high = entry["slope_of_medians_low"], entry["slope_of_medians_high"]
    return told or (low is not None and high is not None and (low > 0 or high < 0))


def _verdicts(summary: Summary) -> Iterator[str]:
    """How far above its floor each stage runs, and what keeps it there."""
    for stage in dict.fromkeys(row["stage"] for row in summary["roofline"]):
        rows = [row for row in summary["roofline"] if row["stage"] == stage and row.get("over_floor")]
        if not rows:
            continue
        factors = sorted(row["over_floor"] for row in rows)
        verdicts = "; ".join(dict.fromkeys(short_verdict(row["verdict"]) for row in rows))
        between = digits(factors[0]) if len(factors) == 1 else f"{digits(factors[0])} to {digits(factors[-1])}"
        yield f"{component_label(stage)}: {between} times its floor ({verdicts})."


def _model(summary: Summary) -> Iterator[str]:
    model = summary["latency_model"]
    if model["file"] is None:
        yield f"No latency model: {model['reason'].splitlines()[0]}." if model["reason"] else "No latency model."
        return
    yield model_words(model)


def model_words(model: Mapping[str, Any]) -> str:
    """How well a latency model foretells what it was not fitted to, and whether that is the goal.

    Args:
        model: ``file``, and ``held_out_error`` with ``points``, ``median`` and ``p90``.
    """
    error = model["held_out_error"]
    if error["median"] is None:
        return f"{model['file']} holds a model of all points; too few are left to check it."
    verdict = "within" if error["median"] <= _GOAL else "above"
    return (
        f"{model['file']}: median error {percent(error['median'])} at {count(error['points'], 'request')} left out of "
        f"the fit (9 in 10 below {percent(error['p90'])}), {verdict} the goal of {percent(_GOAL, 1)}."
    )


def _trust(summary: Summary) -> Iterator[str]:
    if summary["aa_check"]:
        yield f"{summary['aa_check']['words']}."
        stages = summary["aa_check"]["stages_in_words"]
        if summary["aa_check"]["verdict"] != "clean" and stages:
            yield f"{stages}."
    if said := (summary.get("precision") or {}).get("words"):
        yield said
    if not summary.get("serving"):
        yield overhead_words(summary["instrument_overhead"])
    failures = summary["runs"]["failures"]
    yield from (f"{count(row['rows'], 'row')} {row['status']}: {row['reason']}." for row in failures[:5])
    if len(failures) > 5:
        yield f"{len(failures) - 5} more kinds of failure are in summary.json."
    if lines := summary["runs"]["lines_left_out"]:
        yield f"{left_out_words(lines)}."

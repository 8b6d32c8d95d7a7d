"""The first screen: the answer in three sentences, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmbench.analysis.slices import KINDS
from vlmbench.report.narrative import serving
from vlmbench.report.narrative.latency import ALL_ZERO
from vlmbench.report.narrative.pieces import Piece, Sentence, bold, ci
from vlmbench.report.narrative.tail import lacks, request_tail, tail_sentence, whose_tail
from vlmbench.report.page.cells import heading, known, ms, ms_span, share_span
from vlmbench.report.page.parts import INTERVENTIONS, Part
from vlmbench.report.page.stories import Story
from vlmbench.text import count, digits, percent, span


def sentences(story: Story) -> list[Sentence]:
    """How long and where, how bad the tail, what a token more costs: one sentence each, as far as it was measured."""
    part = story.main
    if part is None:
        drift: Sentence = [str(story.comparison.get("aa_words") or "")]
        return [_costs(story), *([drift] if drift[0] else [])]
    if part.experiment == INTERVENTIONS:
        return [*saved(part), _where(part)]
    if not part.is_phase1:
        return [_costs(story), _where(part), _swept_trust(part)]
    if not (part.summary.get("headline") or {}).get("latency_metric"):
        return [["Nothing could be measured."], *_reasons(part)]
    if found := serving.first_words(part.summary.get("serving") or {}):
        return found
    return [_how_long(part), _tail(part), _costs(story)]


def saved(part: Part) -> list[Sentence]:
    """What the best method saves, and the best control beside it; nothing where no arm was timed."""
    rows = [row for row in part.summary.get("interventions") or [] if known(row.get("saved_ms"))]
    found: list[Sentence] = []
    for control, words in ((False, "Most is saved by "), (True, "Of the controls, which cost no thought, by ")):
        best = max((r for r in rows if bool(r.get("control")) == control), key=lambda r: r["saved_ms"], default=None)
        if best:
            inside = ms_span(best.get("low"), best.get("high"))
            piece = [
                words,
                bold(str(best.get("arm", ""))),
                f": {ms(best['saved_ms'])} ms",
                *ci(inside),
                " of generate()",
            ]
            found.append([*piece, f", {best['verdict']}." if best.get("verdict") else "."])
    return found


def _reasons(part: Part) -> list[Sentence]:
    failures = (part.summary.get("runs") or {}).get("failures") or []
    return [[f"{count(row['rows'], 'row')} {row['status']}: {row['reason']}."] for row in failures[:2]]


def _how_long(part: Part) -> Sentence:
    summary = part.summary
    metric = summary["headline"]["latency_metric"]
    entry = summary["distribution"][metric]["workload"]
    what = "A request, from image to text, takes " if metric == "T_request" else "One generate() call takes "
    pieces: Sentence = [what, bold(f"{ms(entry['p50']['value'])} ms"), *_quantile_ci(entry["p50"])]
    largest, inner = _largest(part), (summary["distribution"].get("T_total") or {}).get("workload")
    if metric == "T_request" and inner and (largest or _waiting(part)):  # shares are of this part, not of the whole
        pieces += [", ", bold(f"{ms(inner['p50']['value'])} ms"), " of it in generate()"]
    if largest:
        inside = share_span(largest.get("share_low"), largest.get("share_high"))
        name = heading(largest["component"])
        pieces += [". Of generate(), ", bold(percent(largest["share"])), *ci(inside), f" is {name}"]
    waiting = _waiting(part)
    if waiting:
        joint = "; yet for " if waiting[0] > 0.3 else "; for "
        pieces += [joint, *waiting[1], f" of generate() the {part.device_word} only waits for the host"]
    return [*pieces, "."]


def _quantile_ci(entry: Mapping[str, Any]) -> list[Piece]:
    inside = ms_span(entry.get("low"), entry.get("high"))
    if inside:
        return ci(inside)
    return [" ", {"ci": f"(no interval: {lacks(entry)})"}]


def _largest(part: Part) -> Mapping[str, Any] | None:
    stages = [
        row for row in part.summary.get("components") or [] if row["part_of"] == "T_total" and row["share"] is not None
    ]
    return max(stages, key=lambda row: float(row["share"]), default=None)


def _waiting(part: Part) -> tuple[float, list[Piece]] | None:
    found = part.summary.get("launch_bound") or {}
    value = found.get("launch_bound")
    if value is None:
        return None
    inside = (
        share_span(found.get("low"), found.get("high")) or f"no interval: {count(found.get('traces') or 0, 'trace')}"
    )
    return float(value), [bold(percent(value)), *ci(inside)]


def _tail(part: Part) -> Sentence:
    summary = part.summary
    entry = summary["distribution"][summary["headline"]["latency_metric"]]["workload"]
    told = (("p95", "One in twenty"), ("p90", "One in ten"))
    name, words = next(((q, w) for q, w in told if entry[q]["value"] is not None), (None, ""))
    if name is None:
        return tail_sentence(summary)
    pieces: Sentence = [f"{words} takes more than ", bold(f"{ms(entry[name]['value'])} ms"), *_quantile_ci(entry[name])]
    request, inner = request_tail(summary, ": {} is "), summary["headline"]["tail_ratio"]
    if not request or not inner or summary["tail"].get("metric") == "T_request":
        return [*pieces, "; ", *whose_tail(summary), "."]
    return [*pieces, *request, ". Of generate() itself: ", *tail_sentence(summary, lead=False)]


def _costs(story: Story) -> Sentence:
    """What one more token costs: by the comparison, by sweeps, or what the times between tokens say."""
    costs = {kind: entry for kind, entry, _ in story.costs()}
    token_costs = story.comparison.get("token_costs") or {}
    output, vision = token_costs.get("output") or costs.get("output"), token_costs.get("vision") or costs.get("vision")
    if output:
        return [*_one_more("output token", output), *_bought(story), *_also(vision, bool(_bought(story))), "."]
    if vision:
        return [*_one_more("vision token", vision), "; output tokens were not swept."]
    for kind, entry in costs.items():
        return [*_one_more(KINDS[kind].unit, entry), "."]
    part = story.main
    gap = ((part.summary.get("distribution") or {}).get("ITL") or {}).get("workload") if part else None
    if gap and gap["p50"]["value"] is not None:
        return [
            "One more output token costs about ",
            bold(f"{ms(gap['p50']['value'])} ms"),
            *_quantile_ci(gap["p50"]),
            ", the median time between tokens; what a vision token costs was not measured (experiment=phase2).",
        ]
    return ["What one more token costs was not measured: no token count was swept over three values or more."]


def slope(entry: Mapping[str, Any]) -> tuple[float, float | None, float | None]:
    """ms per token with its interval, without rows that did something for the first time where there are such."""
    if entry.get("slope_unflagged_ms") is not None:
        return entry["slope_unflagged_ms"], entry["slope_unflagged_low"], entry["slope_unflagged_high"]
    if entry.get("cost_unflagged_ms") is not None:
        return entry["cost_unflagged_ms"], entry["low_unflagged"], entry["high_unflagged"]
    if "cost_ms" in entry:
        return entry["cost_ms"], entry.get("low"), entry.get("high")
    return entry["slope_ms"], entry.get("slope_low"), entry.get("slope_high")


def _one_more(unit: str, entry: Mapping[str, Any]) -> list[Piece]:
    value, low, high = slope(entry)
    if low is not None and high is not None and low <= 0 <= high:
        return [f"One more {unit} costs no measurable time", *ci(f"{ms_span(low, high)} ms")]
    return [f"One more {unit} costs ", bold(f"{ms(value)} ms"), *ci(ms_span(low, high))]


def _bought(story: Story) -> list[Piece]:
    ratios = story.comparison.get("ratios_unflagged") or story.comparison.get("ratios") or {}
    row = ratios.get("output_over_vision") or {}
    if row.get("value") is None or row["value"] <= 0:
        return []
    inside = ms_span(row.get("low"), row.get("high"))
    return [", as much as ", bold(f"{digits(row['value'])} vision tokens"), *ci(inside)]


def _also(vision: Mapping[str, Any] | None, bought: bool) -> list[Piece]:
    if not vision:
        return ["; vision tokens were not swept"]
    if bought:
        return []
    value, low, high = slope(vision)
    if low is not None and high is not None and low <= 0 <= high:
        return ["; a vision token costs no measurable time", *ci(f"{ms_span(low, high)} ms")]
    return [", one more vision token ", bold(f"{ms(value)} ms"), *ci(ms_span(low, high))]


def _where(part: Part) -> Sentence:
    """Which stage takes most over all points of a sweep, and whether the device works in it."""
    from vlmbench.analysis.breakdown import component_table
    from vlmbench.report.phase1_summary import records

    rows = records(component_table(part.frame)) if part.frame is not None else []
    stages = [row for row in rows if row["part_of"] == "T_total"]
    largest = max((row for row in stages if known(row["share"])), key=lambda row: float(row["share"]), default=None)
    waiting = _waiting(part)
    if largest is None:
        return [ALL_ZERO if stages else "The runs carry no stage times."]
    name = heading(largest["component"])
    pieces: Sentence = [
        _over(part),
        bold(percent(largest["share"])),
        f" of generate() is {name}",
    ]
    if waiting:
        pieces += [", and for ", *waiting[1], f" of the time the {part.device_word} only waits for the host"]
    return [*pieces, "."]


def _over(part: Part) -> str:
    if part.experiment == INTERVENTIONS:
        return "In the baseline, "
    return f"Over all points of the sweep of {part.facts['sweep']} "


def _swept_trust(part: Part) -> Sentence:
    check = part.summary.get("aa_check") or {}
    if not check:
        return ["Whether the machine kept still is not known: too few repeats."]
    inside = span(check.get("low"), check.get("high"), "×").removesuffix("×")
    told = {"clean": "kept still", "drift": "drifted"}.get(check["verdict"], "was too noisy to tell whether it drifted")
    return [
        f"The machine {told}: second half of the repeats against the first ",
        bold(f"{check['ratio']:.3f}"),
        *ci(inside),
        ".",
    ]

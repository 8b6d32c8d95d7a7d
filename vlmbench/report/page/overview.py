"""All stories of a page side by side: what each takes, in which stages, and whether its device waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmbench.figures.theme import dtype_name
from vlmbench.report.narrative.pieces import Piece, bold
from vlmbench.report.page.cells import (
    STAGE_CODES,
    cell,
    heading,
    known,
    ms,
    ms_span,
    point_key,
    quantile_cell,
    rounded,
    share_span,
    table,
)
from vlmbench.report.page.first_screen import slope
from vlmbench.report.page.parts import Part
from vlmbench.report.page.stages import components
from vlmbench.report.page.stories import Story
from vlmbench.text import DASH, lasting, percent, whole

_UNLIKE = ("device", "dtype", "data", "output tokens", "vision tokens")
_APART_S = 3600.0  # runs closer in time are called measured together


def entry(story: Story) -> dict[str, Any]:
    """One story as a bar: median and P95 with intervals, stages, share of waiting."""
    part = story.main
    made: dict[str, Any] = {"label": story.label, **{k: story.facts[k] for k in ("model", "runtime", "device")}}
    made["sweeps"] = sorted({p.facts["sweep"] for p in story.parts})
    if part is None:
        return made
    parts = {row["component"]: row for row in components(part)}
    made["stages"] = {
        code: rounded(parts[name]["median"])
        for name, code in STAGE_CODES.items()
        if name in parts and name != "T_residual"
    }
    for name, key in (("p50", "mid"), ("p95", "high")):
        found = _whole(part).get(name) or {}
        made[key] = [rounded(found.get(end), 5) if known(found.get(end)) else None for end in ("value", "low", "high")]
    made["what"] = "T_request" if (part.summary.get("distribution") or {}).get("T_request") else "T_total"
    waits = part.summary.get("launch_bound") or {}
    made["waits"] = rounded(waits["launch_bound"]) if known(waits.get("launch_bound")) else None
    return made


def _whole(part: Part) -> Mapping[str, Any]:
    distribution = part.summary.get("distribution") or {}
    found: Mapping[str, Any] = (distribution.get("T_request") or distribution.get("T_total") or {}).get(
        "workload"
    ) or {}
    return found


def overview(stories: Sequence[Story]) -> dict[str, Any]:
    """The stories as a table; columns that none of them has anything for are left out."""
    lines = [_line(story) for story in stories]
    columns = [("Run", False), ("n", True), ("Median, ms", True), ("P95, ms", True), (heading("TTFT", unit=True), True)]
    columns += [(heading("ITL", unit=True), True), ("Largest stage", False), ("Device waits", True)]
    columns += [("One more output token, ms", True), ("One more vision token, ms", True)]
    kept = [i for i in range(len(columns)) if i == 0 or any(line[i]["t"] != DASH or "sub" in line[i] for line in lines)]
    return table(
        "overview",
        "Runs side by side (95 % interval)",
        [columns[i] for i in kept],
        [[line[i] for i in kept] for line in lines],
        note=unlike(stories),
    )


def _line(story: Story) -> list[dict[str, Any]]:
    part = story.main
    head = cell(story.label, story=True)
    costs: dict[str, Mapping[str, Any]] = dict((story.comparison.get("token_costs") or {}).items())
    for kind, found, _ in story.costs():
        costs.setdefault(kind, found)
    tokens = [_cost(costs.get(kind)) for kind in ("output", "vision")]
    if part is None:
        return [head, *[cell(DASH)] * 7, *tokens]
    distribution = part.summary.get("distribution") or {}
    whole = _whole(part)
    first = (distribution.get("TTFT") or distribution.get("TTFT_model") or {}).get("workload") or {}
    gap = (distribution.get("ITL") or {}).get("workload") or {}
    waits = part.summary.get("launch_bound") or {}
    runs = part.summary.get("runs") or {}
    n = runs.get("workload_runs") or (runs.get("ok_by_mode") or {}).get("instrumented", 0)
    return [
        head,
        cell(f"{n:,}"),
        *(
            quantile_cell(of.get(name), name)
            for of, name in ((whole, "p50"), (whole, "p95"), (first, "p50"), (gap, "p50"))
        ),
        _largest(part),
        cell(percent(waits.get("launch_bound")), sub=share_span(waits.get("low"), waits.get("high")))
        if known(waits.get("launch_bound"))
        else cell(DASH),
        *tokens,
    ]


def _largest(part: Part) -> dict[str, Any]:
    stages = [row for row in components(part) if row["part_of"] == "T_total" and known(row.get("share"))]
    if not stages:
        return cell(DASH)
    top = max(stages, key=lambda row: float(row["share"]))
    name = top["component"]
    return cell(heading(name), sw=STAGE_CODES.get(name), sub=percent(top["share"]))


def _cost(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if not found:
        return cell(DASH)
    value, low, high = slope(found)
    if low is not None and high is not None and low <= 0 <= high:
        return cell("none measurable", sub=ms_span(low, high))
    return cell(ms(value), sub=ms_span(low, high))


def unlike(stories: Sequence[Story]) -> str:
    """What the stories differ in that no comparison of times may pass over; empty if nothing."""
    differ = []
    for name in _UNLIKE:
        values = {_value(story, name) for story in stories} - {""}
        if len(values) > 1:
            listed = ", ".join(sorted(values, key=point_key)[:4]) + (" …" if len(values) > 4 else "")
            differ.append(f"{name} ({listed})")
    said = []
    if differ:
        said.append(
            f"These runs differ in {' and '.join(differ)}: their times are not differences of the models or runtimes "
            "alone."
        )
    begun = [begin for story in stories if (begin := _begin(story)) is not None]
    if len(begun) > 1 and max(begun) - min(begun) >= _APART_S:
        said.append(f"They were measured {lasting(max(begun) - min(begun))} apart.")
    return " ".join(said)


def _begin(story: Story) -> float | None:
    """When the run that stands for a story began, in seconds since 1970; None where that is not recorded."""
    sessions = (story.main.provenance.get("sessions") or []) if story.main else []
    return min((float(one["started_unix_s"]) for one in sessions if one.get("started_unix_s")), default=None)


def _tokens(story: Story, kind: str) -> float | None:
    """Median count of a kind of token of a story's data set; None where none was measured."""
    spread = ((story.main.summary.get("tokens") or {}) if story.main else {}).get(f"num_{kind}_tokens") or {}
    value = spread.get("median")
    return float(value) if known(value) else None


def _value(story: Story, name: str) -> str:
    if name.endswith(" tokens"):
        value = _tokens(story, name.removesuffix(" tokens"))
        return "" if value is None else whole(value)
    if name != "dtype":
        return story.facts[name]
    part = story.main
    return dtype_name(part.provenance) if part else ""


def said(stories: Sequence[Story]) -> list[list[Piece]]:
    """Fastest and slowest of the stories, and what they differ in; a token at a time where outputs differ in length."""
    medians = [(_whole(story.main).get("p50") or {}).get("value") if story.main else None for story in stories]
    timed = [(float(value), story) for value, story in zip(medians, stories, strict=True) if known(value)]
    if len(timed) < 2:
        return []
    timed.sort(key=lambda item: item[0])
    lengths = sorted({n for _, story in timed if (n := _tokens(story, "output")) is not None})
    lines: list[list[Piece]] = (
        _a_token(timed, lengths) if len(lengths) > 1 else [["At the median ", *_ends(timed), "."]]
    )
    if text := unlike(stories):
        lines.append([text])
    return lines


def _ends(timed: Sequence[tuple[float, Story]]) -> list[Piece]:
    (least, fastest), (most, slowest) = timed[0], timed[-1]
    return [
        "the fastest is ",
        bold(fastest.label),
        f" ({ms(least)} ms), the slowest ",
        bold(slowest.label),
        f" ({ms(most)} ms)",
    ]


def _a_token(timed: Sequence[tuple[float, Story]], lengths: Sequence[float]) -> list[list[Piece]]:
    """What may be compared of runs that answer with unlike numbers of tokens: the time between two of them."""
    listed = ", ".join(whole(n) for n in lengths[:-1][:4]) + (" …" if len(lengths) > 5 else "")
    lines: list[list[Piece]] = [
        [f"They answer with {listed} and {whole(lengths[-1])} output tokens, so their times are not compared."]
    ]
    gaps = [((s.main.summary["distribution"].get("ITL") or {}).get("workload") or {}) for _, s in timed if s.main]
    each = [
        (g["p50"]["value"], s)
        for g, (_, s) in zip(gaps, timed, strict=True)
        if known((g.get("p50") or {}).get("value"))
    ]
    if len(each) == len(timed):
        each.sort(key=lambda item: item[0])
        lines.append(["For each further output token (median time between tokens) ", *_ends(each), "."])
    return lines

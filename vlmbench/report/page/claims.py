"""What still holds: three claims about the latency of vision-language models, under each runtime that was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlmbench.analysis.claims import MOST, TAIL_FROM, Told, Verdict, claims_told
from vlmbench.report.page.cells import cell, known, share_span, table
from vlmbench.report.page.loads import loads
from vlmbench.report.page.overview import unlike
from vlmbench.report.page.stories import Story
from vlmbench.schema import label_of
from vlmbench.text import DASH, count, digits, factor, percent, span

_COLUMNS = (
    ("Run", False),
    ("The tail is the problem", False),
    ("The language model is the bottleneck", False),
    ("Token kinds cost differently", False),
)


def claims(stories: Sequence[Story]) -> dict[str, Any] | None:
    """The claims as a table, a row a story; None where nothing that they need was measured."""
    lines = [(story, *told(story)) for story in stories]
    if all(one.verdict is Verdict.UNMEASURED for _, *found in lines for one in found):
        return None
    rows = [
        [
            cell(story.label),
            _cell(story, tail, factor, f"{tail.of.upper()} over the median", _where(story)),
            _cell(
                story, share, percent, "of a request" if share.of == "T_request" else "of generate()", _waiting(story)
            ),
            _cell(story, kinds, digits, "vision tokens an output token"),
        ]
        for story, tail, share, kinds in lines
    ]
    note = " ".join(filter(None, [_note(), unlike(stories)]))
    return table("claims", "Verdicts by 95 % intervals", _COLUMNS, rows, note=note) | {"said": _said(lines)}


def _said(lines: Sequence[tuple[Story, Told, Told, Told]]) -> str:
    """Which claims hold, in one sentence: ``The tail is the problem: holds in 1 of 2 runs, cannot be told in 1; …``."""
    clauses = []
    for place, (name, _) in enumerate(_COLUMNS[1:], start=1):
        found = Counter(line[place].verdict for line in lines)  # type: ignore[union-attr]
        if len(lines) == 1:
            clauses.append(f"{name}: {next(iter(found))}")
            continue
        counted = [f"{verdict} in {found[verdict]:,}" for verdict in Verdict if found[verdict]]
        counted[0] += f" of {count(len(lines), 'run')}"
        clauses.append(f"{name}: {', '.join(counted)}")
    return f"{'; '.join([clauses[0], *(f'{c[:1].lower()}{c[1:]}' for c in clauses[1:])])}."


def told(story: Story) -> tuple[Told, Told, Told]:
    """The verdicts on a story's runs: tail, bottleneck, kinds of tokens; none of requests under several loads, which
    are never pooled.
    """
    part = story.main
    summary = part.summary if part and part.is_phase1 and loads(part) is None else {}
    return claims_told(summary, story.comparison)


def _cell(story: Story, found: Told, words: Any, of: str, more: str = "") -> dict[str, Any]:
    if found.value is None:
        why = f" ({found.of})" if found.of else _would(story, words)
        return cell(DASH, sub=f"{found.verdict}{why}")
    inside = (
        share_span(found.low, found.high)
        if words is percent
        else span(found.low, found.high, "×" if words is factor else "").removesuffix("×").strip()
    )
    number = f"{words(found.value)} ({inside})" if inside else f"{words(found.value)} (no interval)"
    return cell(f"{found.verdict[:1].upper()}{found.verdict[1:]}", sub=f"{number} {of}{more}")


def _would(story: Story, words: Any) -> str:
    """What would measure a claim that was not; empty where the run measured what it could."""
    if words is digits:
        return "; experiment=all sweeps both kinds of token"
    return "" if story.main and story.main.is_phase1 else "; experiment=phase1 measures a data set"


def _waiting(story: Story) -> str:
    """What share of ``generate()`` the device waits: the language model may take the time and not the work."""
    value = ((story.main.summary.get("launch_bound") or {}) if story.main else {}).get("launch_bound")
    return "" if value is None else f"; the device waits for {percent(value)} of generate()"


def _where(story: Story) -> str:
    """In which part of a request its variance lies most."""
    request = ((story.main.summary.get("tail") or {}) if story.main else {}).get("request") or {}
    parts = [row for row in request.get("variance_parts") or [] if known(row.get("share"))]
    most = max(parts, key=lambda row: float(row["share"]), default=None)
    return f"; {percent(most['share'])} of the variance is {label_of(most['part'])}" if most else ""


def _note() -> str:
    return (
        f"A tail counts from {TAIL_FROM:g} × the median on, a bottleneck from {percent(MOST, 2)} of a request on, a "
        f"difference of tokens where the interval leaves out 1; equal is within {TAIL_FROM:g} × either way. These "
        "limits are conventions. A claim whose interval holds its limit cannot be told."
    )

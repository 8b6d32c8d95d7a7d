"""The whole page as data: stories with all that charts and tables show, as many in detail as fit into its size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmbench.report.narrative.pieces import Sentence, plain
from vlmbench.report.page import claims, compared, first_screen, loads, overview, quality, stages, tail, tokens
from vlmbench.report.page.cells import of_grid
from vlmbench.report.page.lane import lane_of
from vlmbench.report.page.parts import Part, parts_of
from vlmbench.report.page.sample import ONE_REPEATED, requests_of
from vlmbench.report.page.stories import Story, stories_of
from vlmbench.report.table_cells import Grid, energy, memory, slopes
from vlmbench.schema import STAGES
from vlmbench.text import count

MOST_BYTES = 7_500_000
"""Of details in the page; what does not fit is named on it."""
_UNFINISHED = 5
_REQUESTS, _GAPS, _LANE = 6000, 400, 5000  # rows that stand one by one, over all runs of the page


def page_data(
    directories: Path | str | Sequence[Path | str],
    *,
    most_bytes: int = MOST_BYTES,
    summaries: Mapping[Path, Path] | None = None,
) -> dict[str, Any]:
    """Everything that a page shows of the runs in some directories.

    Args:
        directories: run directories, studies, or directories that hold some.
        most_bytes: of details; runs beyond stand in the overview alone, and the page says so.
        summaries: where summaries lie that are not beside their rows, by the directory of the rows.

    Returns:
        ``title``, ``stories`` (each with ``detail``, None beyond the limit), ``stages`` (code, label), ``overview``,
        ``claims``, ``cautions`` (of the sweeps), ``compared``, ``breakeven``, ``notes`` (what was left out, in words),
        ``unfinished`` (which runs are not over, and how far they are).

    Raises:
        InputError: there is nothing to show.
    """
    left_out: list[str] = []
    parts = parts_of(directories, left_out=left_out, summaries=summaries)
    stories = stories_of(parts)
    shares = max(len([part for part in parts if part.frame is not None]), 1)
    made, spent = [], 0
    for story in stories:
        detail = _detail(story, shares, stories) if spent < most_bytes else None
        spent += len(json.dumps(detail, ensure_ascii=False).encode()) if detail else 0
        made.append({**overview.entry(story), "detail": detail})
    beyond = [story.label for story, one in zip(stories, made, strict=True) if one["detail"] is None]
    notes = [f"Left out: {reason}" for reason in left_out]
    if beyond:
        notes.append(
            f"{len(stories) - len(beyond):,} of {count(len(stories), 'run')} are here in detail; the other "
            f"{len(beyond):,} stand in the overview. A page of fewer runs shows them: write that of one directory."
        )
    return {
        "title": _title(stories),
        "stories": made,
        "stages": [[stage.code, stage.label] for stage in STAGES if stage.code],
        "overview": overview.overview(stories),
        "overview_said": overview.said(stories),
        "claims": claims.claims(stories),
        "token_said": tokens.said(stories),
        "cautions": tokens.cautions(stories),
        "breakeven": tokens.break_even(stories),
        "arms": compared.interventions(parts),
        "compared": compared.tables(parts),
        "compared_said": compared.said(parts),
        "notes": notes,
        "unfinished": _unfinished(stories),
        "flops": tokens.flops(stories),
    }


def _unfinished(stories: Sequence[Story]) -> list[str]:
    """Which runs are not over, one sentence each; a few of many by name."""
    several = sum(len(story.parts) for story in stories) > 1
    said = []
    for story in stories:
        for part in filter(lambda part: part.unfinished, story.parts):
            text = f"{_run_name(story, part, stories)}: {part.unfinished}" if several else part.unfinished
            said.append(f"{text[:1].upper()}{text[1:]}. Numbers are of what was measured so far.")
    rest = len(said) - _UNFINISHED
    return [*said[:_UNFINISHED], *([f"And {count(rest, 'more run')} that are not over."] if rest > 0 else [])]


def _run_name(story: Story, part: Part, stories: Sequence[Story]) -> str:
    what = "data set" if part.is_phase1 else f"sweep of {part.facts['sweep']}"
    return f"{story.label}, {what}" if len(stories) > 1 else what


def _title(stories: Sequence[Story]) -> str:
    if len(stories) == 1:
        facts = stories[0].facts
        return f"Where the latency of {facts['model']} goes, on {facts['device']}"
    models, devices = ({story.facts[name] for story in stories} for name in ("model", "device"))
    what = f"{len(models):,} models" if len(models) > 1 else next(iter(models))
    where = next(iter(devices)) if len(devices) == 1 else f"{len(devices):,} devices"
    return f"Where the latency of {what} goes, on {where}"


def _detail(story: Story, shares: int, stories: Sequence[Story]) -> dict[str, Any]:
    """A story with all that its sections show."""
    part = story.main
    return {
        "answer": first_screen.sentences(story),
        "short": " ".join(plain(sentence) for sentence in first_screen.sentences(story)[:1]),
        "facts": quality.facts(story),
        "quality": quality.quality(story),
        "command": quality.command(part),
        "commands": [[p.name, quality.command(p)] for p in story.parts if quality.command(p)],
        "bar": stages.bar(part) if part else None,
        "stages_said": stages.said(part) if part else [],
        "tail_said": _tail_said(part) if part and part.is_phase1 else [],
        "loads_said": loads.said(part) if part else [],
        "causes": tail.causes(part) if part and part.is_phase1 and not _has_loads(part) else [],
        "sweeps_of": tokens.sweeps_of(story, stories),
        "tables": [made for made in _tables(story) if made],
        "parts": [_part(one, shares) for one in story.parts],
        "main": story.parts.index(part) if part else 0,
    }


def _has_loads(part: Part) -> bool:
    """Whether a server answered under several loads: their requests are never pooled."""
    return loads.loads(part) is not None


def _tail_said(part: Part) -> list[Sentence]:
    if _has_loads(part):
        return [["Each load has a distribution of its own; they are not pooled. Their percentiles stand under Load."]]
    return tail.said(part)


def _tables(story: Story) -> list[dict[str, Any] | None]:
    part = story.main
    if part is None:
        return []
    first: list[Callable[[Part], dict[str, Any] | None]] = [stages.stage_table, _grid(memory), _grid(energy)]
    if part.is_phase1:
        first += [loads.load_table] if _has_loads(part) else [tail.percentiles, tail.slowest, loads.load_table]
    return [
        *(make(part) for make in first),
        *(of_grid(slopes(sweep.summary)) for sweep in story.sweeps if sweep.summary.get("scaling")),
    ]


def _grid(make: Callable[[Mapping[str, Any]], Grid]) -> Callable[[Part], dict[str, Any] | None]:
    """A table of the terminal for the page; None where it has no rows."""

    def made(part: Part) -> dict[str, Any] | None:
        grid = make(part.summary)
        return of_grid(grid) if grid.rows else None

    return made


def _part(part: Part, shares: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": part.name,
        "sweep": part.facts["sweep"],
        "phase1": part.is_phase1,
        "busy": stages.busy(part),
        "roofline": stages.roofline(part),
        "quantiles": _quantiles(part.summary),
        "loads": loads.loads(part),
    }
    if part.frame is None:
        return made
    return made | {
        "requests": requests_of(
            part.frame, part.directory, limit=max(_REQUESTS // shares, 60), gaps=max(_GAPS // shares, 6)
        ),
        "lane": lane_of(part.frame, limit=max(_LANE // shares, 60)),
        "panels": tokens.panels(part) if not part.is_phase1 else [],
        "medians": stages.point_medians(part),
    }


def _quantiles(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Group to (name, value, low, high) of the percentiles of the time that the charts show."""
    distribution = summary.get("distribution") or {}
    metric = "T_request" if "T_request" in distribution else "T_total"
    found = {}
    for group, entry in (distribution.get(metric) or {}).items():
        found["workload" if group == "workload" else ONE_REPEATED] = [
            [name.upper(), entry[name]["value"], entry[name]["low"], entry[name]["high"]]
            for name in ("p50", "p90", "p95", "p99")
            if entry[name]["value"] is not None
        ]
    return found

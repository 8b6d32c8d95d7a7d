"""What one more token costs: rows, medians and fitted lines of every sweep, and token costs against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis import frames
from vlmbench.analysis.scaling import Scaling, fit_scaling
from vlmbench.analysis.slices import KINDS, X_LABELS, held_fixed, slices
from vlmbench.report.narrative.pieces import Piece, bold, ci
from vlmbench.report.page.cells import known, ms, ms_span, rounded, rounded_list
from vlmbench.report.page.first_screen import slope
from vlmbench.report.page.parts import Part
from vlmbench.report.page.stories import Story
from vlmbench.text import count, digits, percent, span

_STAGES = (
    "T_total", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "TTFT_model", "T_preprocess",
    "T_request",
)  # fmt: skip
_OF_A_SERVER = ("T_request", "TTFT", "TPOT")
_ROWS_A_FIT = 1200
_LINE = 25
_EXPLAINED = 0.5  # a line that explains less than half of the variance is named
_DRIFT = {"drift": "drifted", "too noisy": "too noisy to tell whether it drifted"}


def panels(part: Part) -> list[dict[str, Any]]:
    """One entry for each kind of token that a run swept: its rows, and the fit of each stage.

    Returns:
        ``kind``, ``x`` (label), ``held``; ``at`` (counts of the rows), ``flagged`` (1 where a row did something for the
        first time), ``fits`` (stage to ``ms`` of the rows, ``mid`` (count, median), ``line`` (count, mean, low, high),
        ``slope``); ``said``.
    """
    if part.frame is None:
        return []
    made = []
    whole = frames.whole_metric(part.frame)
    for kind in KINDS.values():
        for found in slices(part.frame, kind):
            stages = _STAGES if whole in _STAGES[:1] else _OF_A_SERVER
            fits = {name: fit for name in stages if (fit := fit_scaling(found, name)) is not None}
            if whole in fits:
                made.append(_panel(kind.name, found.x, held_fixed(found.fixed), found.rows, fits))
            break
    return made


def _panel(kind: str, x: str, held: str, frame: pd.DataFrame, fits: Mapping[str, Scaling]) -> dict[str, Any]:
    index = np.arange(len(frame))
    flags = frame["flags"].astype(object).astype(str).str.split()
    first = np.array([bool(frames.FIRST_TIME & set(names)) for names in flags], dtype=np.int64)
    said = ""
    if len(index) > _ROWS_A_FIT:
        total = frames.values(frame, next(iter(fits)))
        ranked = np.argsort(total, kind="stable")
        even = ranked[np.linspace(0, len(ranked) - 1, _ROWS_A_FIT - 200).round().astype(int)]
        index = np.unique(np.concatenate([even, np.flatnonzero(first)[:100], ranked[-100:]]))
        said = (
            f"{len(index):,} of {count(len(frame), 'run')} are drawn, spread over the ranks, the slowest among them; "
            "medians and lines are of all."
        )
    return {
        "kind": kind,
        "x": X_LABELS.get(x, x.replace("_", " ")),
        "unit": KINDS[kind].unit,
        "held": held,
        "at": rounded_list(frames.values(frame, x)[index], 7),
        "flagged": first[index].tolist(),
        "fits": {name: _fit(fit, frames.values(frame, name)[index]) for name, fit in fits.items()},
        "said": said,
    }


def _fit(fit: Scaling, values: Any) -> dict[str, Any]:
    grid = np.linspace(fit.low, fit.high, 2 if fit.shape == "linear" else _LINE)
    row = fit.as_row()
    value, low, high = slope(row)
    unflagged = fit.unflagged.fit if fit.unflagged is not None else None
    if unflagged is not None:  # the line that the headline's slope belongs to
        grid = np.linspace(fit.low, fit.high, 2)
        mean, half = unflagged.predict(np.column_stack([np.ones_like(grid), grid]))
        line = [mean, mean - half, mean + half]
    else:
        line = list(fit.predict(grid))
    return {
        "ms": rounded_list(values),
        "mid": [rounded_list([x, y], 5) for x, y in zip(fit.points["x"], fit.points["median"], strict=True)],
        "line": [rounded_list(entry, 5) for entry in zip(grid, *line, strict=True)],
        "slope": rounded_list([value, low, high], 5),
        "also": _also(fit),
        "words": _words(fit, value, low, high),
        "measurable": bool(fit.measurable or (low is not None and high is not None and (low > 0 or high < 0))),
    }


def _words(fit: Scaling, value: float, low: float | None, high: float | None) -> str:
    if low is not None and high is not None and low <= 0 <= high:
        return f"no measurable cost ({ms_span(low, high)} ms)"
    unit = "request" if fit.slice.kind.name == "batch" else "token"
    return f"{ms(value)} ms a {unit} ({ms_span(low, high)})"


def _also(fit: Scaling) -> str:
    """The slope over all runs, where the line leaves some out; empty where it leaves out none."""
    if fit.unflagged is None or fit.unflagged.fit is None:
        return ""
    over = f"{ms(fit.slope.value)} ms ({ms_span(fit.slope.low, fit.slope.high)})"
    left = count(fit.unflagged.flagged, "run")
    return f"The line leaves out {left} that did something for the first time; with them {over}."


def said(stories: Sequence[Story]) -> list[list[Piece]]:
    """What the section says beside its charts."""
    lines: list[list[Piece]] = []
    for story in stories[:4]:
        prefix: list[Piece] = [f"{story.label}: "] if len(stories) > 1 else []
        costs: dict[str, Mapping[str, Any]] = {}
        for kind, entry, _ in story.costs():
            costs.setdefault(kind, entry)
        for kind, entry in (story.comparison.get("token_costs") or {}).items():
            costs.setdefault(kind, entry)
        for kind in KINDS:
            if kind in costs:
                value, low, high = slope(costs[kind])
                if low is not None and high is not None and low <= 0 <= high:
                    lines.append(
                        [*prefix, f"One {KINDS[kind].unit}: no measurable cost", *ci(f"{ms_span(low, high)} ms"), "."]
                    )
                else:
                    lines.append(
                        [*prefix, f"One {KINDS[kind].unit}: ", bold(f"{ms(value)} ms"), *ci(ms_span(low, high)), "."]
                    )
    if len(stories) > 4:
        lines.append([f"And {len(stories) - 4} more; the table holds all."])
    return lines


def sweeps_of(story: Story, stories: Sequence[Story]) -> list[list[Piece]]:
    """Whose sweeps the section shows, where they are not of this story; nothing where it has its own."""
    if _swept(story):
        return []
    others = [other.label for other in stories if _swept(other)]
    if not others:
        return []
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return [["No token was swept in the run chosen above (", bold(story.label), "): the prices here are of ",
             bold("; ".join(others[:3])), f"{more}."]]  # fmt: skip


def _swept(story: Story) -> bool:
    return bool(story.comparison.get("token_costs")) or next(iter(story.costs()), None) is not None


def cautions(stories: Sequence[Story]) -> list[str]:
    """What weakens the slopes, a sentence a sweep, of the first stories that have any."""
    found = [(story, said) for story in stories if (said := _cautions(story))]
    lines = [f"{story.label}, {line}" if len(stories) > 1 else line for story, said in found[:4] for line in said]
    return [*lines, *([f"and {count(len(found) - 4, 'more run')} whose sweeps are doubtful"] if len(found) > 4 else [])]


def _cautions(story: Story) -> list[str]:
    """Drift, points that stopped early, throttling, too few counts, runs far from the line: a sentence a sweep."""
    found = []
    for part in story.sweeps:
        said = []
        check = part.summary.get("aa_check") or {}
        if check.get("verdict") in _DRIFT:
            inside = span(check.get("low"), check.get("high"), "×").removesuffix("×")
            said.append(f"{_DRIFT[check['verdict']]} (A/A {check['ratio']:.3f}{f', {inside}' if inside else ''})")
        points = part.summary.get("stopping") or []
        if unmet := sum(bool(point.get("unmet")) for point in points):
            said.append(f"{unmet} of {count(len(points), 'point')} stopped before the median was known as asked")
        throttled = [n for name, n in (part.summary.get("flags") or {}).items() if str(name).startswith("throttled")]
        if throttled:
            measured = int(((part.summary.get("runs") or {}).get("ok_by_mode") or {}).get("instrumented", 0))
            of = f"{max(throttled):,} of {count(measured, 'run')}" if measured else count(max(throttled), "run")
            said.append(f"throttled in {of}")
        entries = part.summary.get("scaling") or []
        whole = next((name for name in ("T_total", "T_request") if any(e["stage"] == name for e in entries)), None)
        for entry in entries:
            explained = entry.get("r2_unflagged") if entry.get("slope_unflagged_ms") is not None else entry.get("r2")
            if entry["stage"] == whole and entry.get("measurable") and known(explained) and explained < _EXPLAINED:
                said.append(f"the line explains only {percent(explained)} of the variance (R²)")
        few = part.summary.get("too_few_points") or {}
        said += [f"{n} counts of {KINDS[kind].unit}s, three are needed for a slope" for kind, n in few.items()]
        if said:
            found.append(f"sweep of {part.facts['sweep']}: {', '.join(said)}")
    return found


def flops(stories: Sequence[Story]) -> list[list[Piece]]:
    """Whether FLOPs tell the latency, of the first story that knows."""
    for story in stories:
        found = story.comparison.get("flops_latency") or {}
        together, ratio = found.get("together") or {}, found.get("language_over_vision_ms_per_tflop") or {}
        if not known(together.get("r2")):
            continue
        name = f"{story.label}: " if len(stories) > 1 else ""
        lines: list[list[Piece]] = [
            [
                f"{name}FLOPs explain ",
                bold(percent(together["r2"])),
                " of the variance of generate() over both sweeps together (one straight line).",
            ]
        ]
        if known(ratio.get("value")):
            lines.append(
                [
                    "A further TFLOP costs ",
                    bold(f"{digits(ratio['value'])} times"),
                    *ci(ms_span(ratio.get("low"), ratio.get("high"))),
                    " as much time when it is spent on output tokens as on vision tokens.",
                ]
            )
        return lines
    return []


def break_even(stories: Sequence[Story]) -> list[dict[str, Any]]:
    """How many vision and prompt tokens one output token buys, with intervals: ``label``, ``of``, ``at``, ``words``."""
    made = []
    for index, story in enumerate(stories):
        ratios = story.comparison.get("ratios_unflagged") or story.comparison.get("ratios") or {}
        for name, row in ratios.items():
            kind = name.removeprefix("output_over_")
            if not name.startswith("output_over_") or row.get("value") is None or row["value"] <= 0:
                continue
            low, high = row.get("low"), row.get("high")
            made.append(
                {
                    "story": index,
                    "of": f"{kind} tokens",
                    "at": [
                        rounded(row["value"]),
                        rounded(low) if known(low) else None,
                        rounded(high) if known(high) else None,
                    ],
                }
            )
    return made

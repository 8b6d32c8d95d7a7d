"""The two levels of a captured decode step within a process, and what the changes between them follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from published import ARCHIVE, CARD, MODELS, RUNTIMES, Published, rows_of, table

from vlmbench.text import count, digits

CAPTURED = ("cudagraph", "cudagraph_compiled")
_GAP = 1.006  # between two levels; neighbours within one are closer
_PAUSE_S = 1.5
_FEWEST = 40
_BESIDE = 5  # requests on either side of a gap, a fiftieth of them where that is more
_CHANGES = ("rises", "captured", "falls", "paused", "unmoved", "stayed")
_IN_TURNS = Path(f"{CARD}_llava_cudagraph")
_TRIED = "llava_1_5_7b"
_ALONE = (
    Path(f"{CARD}_llava_energy"),
    Path(ARCHIVE) / f"{CARD}_llava_cudagraph",
)  # no other process took turns with these


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Two levels of a decode step within a run.

    Args:
        low, high: medians, ms a token.
        runs, above: measured requests, and those at the upper level.
        rises, falls: changes from one measured request to the next.
        captured, paused: rises after graphs were captured; falls after the process had paused.
        unmoved: captures at the lower level after which the next request was there still.
        stayed: pauses at the upper level after which the next request was there still, nothing captured meanwhile.
    """

    low: float
    high: float
    runs: int
    above: int
    rises: int
    falls: int
    captured: int
    paused: int
    unmoved: int
    stayed: int


def levels_of(rows: Sequence[Mapping[str, Any]]) -> Levels | None:
    """Find the two levels between which the steps of a run change; None where there is no gap between two.

    Changes are counted within a process: a run that was continued changes nothing from one session to the next.

    Args:
        rows: all of a run, warm-up and bare ones included.
    """
    ordered = sorted((row for row in rows if row.get("T_request")), key=lambda row: float(row["started_unix_s"]))
    ends = [row["started_unix_s"] + (row["T_request"] + (row.get("T_capture") or 0.0)) / 1e3 for row in ordered]
    steps = {at: _step(row) for at, row in enumerate(ordered) if _is_measured(row)}
    sizes = sorted(steps.values())
    edge = max(len(sizes) // 50, _BESIDE)
    if len(sizes) < _FEWEST:
        return None
    gap, upper = max((sizes[at] / sizes[at - 1], sizes[at]) for at in range(edge, len(sizes) - edge + 1))
    if gap < _GAP:
        return None
    changes = dict.fromkeys(_CHANGES, 0)
    before: bool | None = None
    captured = paused = False
    process = None
    for at, row in enumerate(ordered):
        if row.get("session") != process:  # of a run that was continued: another process, maybe on another card
            before, captured, paused, process = None, False, False, row.get("session")
        captured |= bool(row.get("T_capture"))
        paused |= at > 0 and row["started_unix_s"] - ends[at - 1] >= _PAUSE_S
        if at not in steps:
            continue
        now = steps[at] >= upper
        if before is not None and now != before:
            changes["rises" if now else "falls"] += 1
            changes["captured" if now else "paused"] += captured if now else paused
        elif before is not None:
            changes["stayed" if now else "unmoved"] += paused and not captured if now else captured
        before, captured, paused = now, False, False
    low, high = ([step for step in sizes if (step >= upper) is above] for above in (False, True))
    return Levels(low=median(low), high=median(high), runs=len(sizes), above=len(high), **changes)


def _is_measured(row: Mapping[str, Any]) -> bool:
    return row["status"] == "ok" and row["mode"] == "instrumented"


def _step(row: Mapping[str, Any]) -> float:
    return float(row["T_LLM_decode"] / (row["num_output_tokens"] - 1))


def levels_words(results: Published) -> str:
    """Which captured runs have two levels of a decode step, and what the changes between them follow."""
    found, others = [], []
    for model in MODELS:
        for runtime in CAPTURED:
            run = results.run(f"{model}_{runtime}", "phase1")
            if run is None or run.mark:
                continue
            levels = levels_of(rows_of(results.results / run.folder))
            if levels is None:
                others.append(f"{MODELS[model]}, {RUNTIMES[runtime]}")
            else:
                found.append((model, runtime, levels))
    if not found:
        return ""
    total = {name: sum(getattr(levels, name) for *_, levels in found) for name in _CHANGES}
    rows = [
        [
            MODELS[model], RUNTIMES[runtime], digits(levels.low), digits(levels.high),
            f"{levels.above} of {count(levels.runs, 'request')}",
        ]
        for model, runtime, levels in found
    ]  # fmt: skip
    heads = ("model", "runtime", "lower level, ms a token", "upper level", "requests at the upper level")
    apart = (
        f" Not counted, because no gap between two levels has {_BESIDE} requests on either side: {'; '.join(others)}."
        if others
        else ""
    )
    return (
        f"A captured step has two levels within a process. {total['captured']} of {total['rises']} rises follow a "
        f"capture, and {total['unmoved']} captures are followed by none; {total['paused']} of {total['falls']} falls "
        f"follow a pause of {_PAUSE_S:g} s or more, as the turns of other processes are, and {total['stayed']} such "
        f"pauses, with no capture in between, by none.{apart}{_alone(results)}{_kernels(results)}"
        f"{tried_words(results)} Medians mix both:\n\n{table(heads, rows)}"
    )


def _alone(results: Published) -> str:
    """At which level runs are that took no turns."""
    said = []
    for folder in _ALONE:
        run = results.at(folder / "phase1")
        if run is not None:
            steps = [_step(row) for row in rows_of(results.results / run.folder) if _is_measured(row)]
            ends = f"{digits(min(steps))} to {digits(max(steps))} ms in all of {count(len(steps), 'request')}"
            said.append(f"{results.rows(run, ends)}{run.mark}")
    return f" LLaVA-1.5-7B without turns takes {', '.join(said)}." if said else ""


def tried_words(results: Published) -> str:
    """What was done to a captured step one thing at a time, and what that changed; nothing where nothing was tried."""
    file = results.results / f"{CARD}_captured" / "cudagraph.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    tried = [line for line in lines if (line["part"], line["model"]) == ("levels", _TRIED) and "before" in line]
    moved, left = [], []
    for one in tried:
        before, after = one["before"]["median"], one["ms_per_token"]["median"]
        if after / before > _GAP:  # what brings a step up is another question, asked at the lower level
            continue
        (moved if before / after > _GAP else left).append((one["after"], before, after))
    upper = max((before for _, before, _ in moved), default=0.0)
    left = [one for one in left if one[1] * _GAP > upper]  # tried at the upper level, too
    if not moved or not left:
        return ""
    names = [name for name, *_ in left]
    fell = " and ".join(f"after {name} {digits(after)}" for name, _, after in moved)
    before = digits(left[0][1])
    words = (
        f" One thing at a time, once each, after graphs were captured ([rows]({results.link}/{CARD}_captured)): a step "
        f"of {MODELS['llava']} that takes {before} ms takes as long after {', '.join(names[:-1])} and {names[-1]}, and "
        f"{fell} ms."
    )
    if all(name.startswith("another process") for name, *_ in moved) and any("pause" in name for name in names):
        words += " So here no pause brings it down, and another process does"
        told = any(name.startswith("another process runs") for name, *_ in moved + left)
        words += "." if told else "; whether by beginning or by its kernel this trial does not tell."
    return words


def step_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Split a traced request's decode step: ms in which a kernel runs, and ms in which none does.

    Args:
        row: of any run; None is returned for one that was not traced.
    """
    if row["mode"] != "trace" or row.get("busy_LLM_decode") is None:
        return None
    busy = float(row["busy_LLM_decode"] / (row["num_output_tokens"] - 1))
    return busy, _step(row) - busy


def _kernels(results: Published) -> str:
    """Where the time of the upper level goes, by traced requests of runs in turns and of runs without."""
    traced = []
    for folder in (_IN_TURNS, *_ALONE):
        run = results.at(folder / "phase1")
        rows = [] if run is None else rows_of(results.results / run.folder)
        steps = [step for row in rows if (step := step_of(row)) is not None]
        if run is None or not steps:
            return ""
        kernels = {row["kernels_LLM_decode"] for row in rows if step_of(row) is not None}
        traced.append((*(digits(median(part)) for part in zip(*steps, strict=True)), kernels, run.mark))
    if any(kernels != traced[0][2] for *_, kernels, _ in traced):
        return ""
    (busy, waits, _, _), *alone = traced
    without = " and ".join(f"{kernels}{mark}" for kernels, _, _, mark in alone)
    between = " and ".join(f"{rest}{mark}" for _, rest, _, mark in alone)
    return (
        f" By traced requests of these runs, of as many kernels each, kernels run for {without} ms of such a step and "
        f"none for {between} ms; in turns, at the lower level, {busy} and {waits} ms. So the upper level is not slower "
        "kernels but time between them; why, these rows do not tell."
    )

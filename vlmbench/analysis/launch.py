"""Is a stage slow because the device computes, or because it waits for the host?

Busy time comes from traced runs (``mode=trace``): a trace leaves the kernels' durations as they are but slows the host.
Elapsed time comes from the untraced, instrumented runs of the same request. ``launch_bound = 1 - busy / elapsed`` is
the share of a stage in which no device works: Python, operator dispatch, launches, waiting.

A traced request may have been ended early. Its decode is then scaled by the number of steps, which takes the busy time
of a step as constant: attention over a longer cache makes late steps a little busier than this says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.numbers import count, factor, ms, percent, span
from vlmbench.analysis.quantiles import median
from vlmbench.analysis.rows import measured, values

STAGES: tuple[str, ...] = ("setup", "vision_encoder", "projector", "LLM_prefill", "LLM_decode", "total")
COLUMNS: tuple[str, ...] = (
    *(f"{kind}_{stage}" for kind in ("busy", "kernels", "launches") for stage in STAGES),
    *(f"T_{stage}" for stage in STAGES),
    "num_output_tokens",
)
"""What :func:`vlmbench.analysis.load.load_runs` must read for this module."""

HOST_BOUND, DEVICE_BOUND = 0.5, 0.2
"""A stage is called host-bound from this share of waiting on, device-bound up to that one, mixed between them."""

_WORDS: Mapping[str, str] = {
    "setup": "setup",
    "vision_encoder": "vision encoder",
    "projector": "projector",
    "LLM_prefill": "LLM prefill",
    "LLM_decode": "LLM decode",
}
_TABLE = [
    "stage", "n", "busy_ms", "elapsed_ms", "elapsed_low", "elapsed_high", "elapsed_traced_ms",
    "launch_bound", "launch_bound_low", "launch_bound_high", "kernels", "launches", "verdict",
]  # fmt: skip


def launch_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Busy and elapsed time of each stage over the traced requests.

    Args:
        frame: rows of a run (or of some of its points) with :data:`COLUMNS`.

    Returns:
        One row a stage and one for ``total``: ``n`` traced requests; ``busy_ms``, ``elapsed_ms`` (untraced median,
        with interval), ``elapsed_traced_ms``: means over them, decode scaled to the untraced length;
        ``launch_bound``: 1 - Σ busy / Σ elapsed, its interval from that of the elapsed medians (None where n does not
        allow one); ``kernels`` and ``launches`` of a request; ``verdict``: host-bound, mixed or device-bound. No rows
        without a traced run on a device. Negative shares are possible (two clocks) and are left as they are.
    """
    pairs = [pair for pair in map(dict, _pairs(frame)) if pair]
    table = [row for stage in STAGES if (row := _stage(stage, [p[stage] for p in pairs if stage in p])) is not None]
    return pd.DataFrame(table, columns=_TABLE)


def launch_by_point(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`launch_table` of each point of a sweep, with its ``point_id`` and ``axis_*`` in front."""
    tables = []
    for point in frame["point_id"].astype(object).unique():
        rows = frame[frame["point_id"] == point]
        table = launch_table(rows)
        for name in reversed(["point_id", *(c for c in frame.columns if str(c).startswith("axis_"))]):
            table.insert(0, str(name), rows[name].astype(object).iloc[0])
        tables.append(table)
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["point_id", *_TABLE])


def _pairs(frame: pd.DataFrame) -> Iterable[dict[str, dict[str, float]]]:
    """For each traced run: stage to its busy and elapsed times."""
    untraced = measured(frame)
    for _, trace in measured(frame, "trace").iterrows():
        if pd.isna(trace.get("busy_total")):
            continue
        same_point = untraced[untraced["point_id"] == trace["point_id"]]
        same = same_point[same_point["sample_id"] == trace["sample_id"]]
        rows = same if len(same) else same_point
        if len(rows):
            yield {stage: entry for stage in STAGES if (entry := _entry(stage, trace, rows)) is not None}


def _entry(stage: str, trace: pd.Series, rows: pd.DataFrame) -> dict[str, float] | None:
    elapsed = median(values(rows, f"T_{stage}"))
    busy, traced = trace.get(f"busy_{stage}"), trace.get(f"T_{stage}")
    if elapsed.value is None or not elapsed.value > 0 or pd.isna(busy) or pd.isna(traced):
        return None
    steps = _steps(trace, rows)
    if stage == "LLM_decode":
        if not steps:
            return None
        busy, traced = busy * steps, traced * steps
    elif stage == "total" and steps:
        busy, traced = (
            whole + (steps - 1) * trace.get(f"{kind}_LLM_decode", 0.0)
            for whole, kind in ((busy, "busy"), (traced, "T"))
        )
    missing = float("nan")
    return {
        "busy": float(busy),
        "traced": float(traced),
        "elapsed": elapsed.value,
        "low": missing if elapsed.low is None else elapsed.low,
        "high": missing if elapsed.high is None else elapsed.high,
        "kernels": float(trace.get(f"kernels_{stage}", missing)),
        "launches": float(trace.get(f"launches_{stage}", missing)),
    }


def _steps(trace: pd.Series, rows: pd.DataFrame) -> float | None:
    """Decode steps of the untraced runs for each of the traced one; None without a traced step."""
    traced = float(trace["num_output_tokens"]) - 1
    whole = float(np.nanmedian(values(rows, "num_output_tokens"))) - 1
    return whole / traced if traced > 0 else None


def _stage(stage: str, entries: list[dict[str, float]]) -> dict[str, Any] | None:
    if not entries:
        return None
    mean = {name: float(np.mean([entry[name] for entry in entries])) for name in entries[0]}
    share = 1 - mean["busy"] / mean["elapsed"]
    return {
        "stage": stage,
        "n": len(entries),
        "busy_ms": mean["busy"],
        "elapsed_ms": mean["elapsed"],
        "elapsed_low": _known(mean["low"]),
        "elapsed_high": _known(mean["high"]),
        "elapsed_traced_ms": mean["traced"],
        "launch_bound": share,
        "launch_bound_low": _known(1 - mean["busy"] / mean["low"]),
        "launch_bound_high": _known(1 - mean["busy"] / mean["high"]),
        "kernels": _known(mean["kernels"]),
        "launches": _known(mean["launches"]),
        "verdict": "host-bound" if share >= HOST_BOUND else "device-bound" if share <= DEVICE_BOUND else "mixed",
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def top_kernels(rows: Iterable[Mapping[str, Any]], count: int = 10) -> pd.DataFrame:
    """The longest kernels (on a CPU: operators) of each stage over all traced runs.

    Args:
        rows: as :func:`vlmbench.records.reading.iter_rows` gives them.
        count: rows a stage.

    Returns:
        ``stage``, ``name``, ``calls`` and ``ms`` of a request (means over the traced runs), ``of`` (device kernels or
        host operators), longest first within a stage. A kernel below a run's own list counts as 0 there.
    """
    entries: list[tuple[str, str, int, float, str]] = []
    runs = 0
    for row in rows:
        if row.get("mode") == "trace" and row.get("status") == "ok" and row.get("top_kernels"):
            runs += 1
            kind = str(row.get("top_kernels_of", ""))
            entries += [(s, n, c, t, kind) for s, listed in row["top_kernels"].items() for n, c, t in listed]
    table = pd.DataFrame(entries, columns=["stage", "name", "calls", "ms", "of"])
    if not runs:
        return table
    table = table.groupby(["stage", "name", "of"], as_index=False, sort=False)[["calls", "ms"]].sum()
    table[["calls", "ms"]] /= runs
    order = {stage: index for index, stage in enumerate([*STAGES[:-1], "residual"])}
    table = table.sort_values(["stage", "ms"], key=lambda c: c.map(order) if c.name == "stage" else -c, kind="stable")
    return table.groupby("stage", sort=False).head(count)[["stage", "name", "calls", "ms", "of"]].reset_index(drop=True)


def launch_bound_summary(frame: pd.DataFrame, device_type: str = "") -> dict[str, Any]:
    """What the summary says beside the component profile, as plain data and in words.

    Args:
        frame: rows with :data:`COLUMNS`.
        device_type: ``cpu``, ``cuda``; empty if not known. It decides what is said where there is no share.

    Returns:
        ``requests`` traced; ``launch_bound`` of the whole with ``low`` and ``high``; ``tracing_factor``: traced over
        untraced ``T_total``; ``stages``: :func:`launch_table` as mappings; ``sentences``: the finding in words, or why
        there is none.
    """
    table = launch_table(frame)
    stages = [{str(k): v for k, v in row.items()} for row in table.astype(object).to_dict("records")]
    whole = next((row for row in stages if row["stage"] == "total"), None)
    return {
        "requests": 0 if whole is None else whole["n"],
        "launch_bound": None if whole is None else whole["launch_bound"],
        "low": None if whole is None else whole["launch_bound_low"],
        "high": None if whole is None else whole["launch_bound_high"],
        "tracing_factor": None if whole is None else whole["elapsed_traced_ms"] / whole["elapsed_ms"],
        "stages": stages,
        "sentences": _no_share(frame, device_type) if whole is None else _sentences(whole, stages[:-1]),
    }


def _no_share(frame: pd.DataFrame, device_type: str) -> list[str]:
    if device_type == "cpu":
        return ["On a CPU the device is the host: there is no waiting of one for the other."]
    if len(measured(frame, "trace")):
        return [
            "How much of generate() the device is busy is not known: the trace shows no kernels (on a CPU there are "
            "none; on a GPU, the profiler may not be allowed to look)."
        ]
    return [
        "How much of generate() the device is busy was not traced: measure with probe=[timeline,memory,clocks,kernels]."
    ]


def _sentences(whole: Mapping[str, Any], stages: list[dict[str, Any]]) -> list[str]:
    inside = span(whole["launch_bound_low"], whole["launch_bound_high"], "%")
    first = (
        f"The device is busy {ms(whole['busy_ms'])} of the {ms(whole['elapsed_ms'])} that generate() takes: "
        f"{percent(whole['launch_bound'])}{f' ({inside})' if inside else ''} is waiting for the host."
    )
    listed = "; ".join(f"{_WORDS[s['stage']]} {percent(s['launch_bound'])} ({s['verdict']})" for s in stages)
    slower = factor(whole["elapsed_traced_ms"] / whole["elapsed_ms"])
    how = (
        f"Busy time is from {count(whole['n'], 'traced request')}; elapsed time is from untraced runs of the same "
        f"(tracing stretches generate() to {slower})."
    )
    return [first, f"Waiting by stage: {listed}.", how]

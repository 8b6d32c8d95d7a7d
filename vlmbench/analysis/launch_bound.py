"""Is a stage slow because the device computes, or because it waits for the host?

Busy time comes from traced runs (``mode=trace``): a trace leaves the kernels' durations as they are but slows the host.
Elapsed time comes from untraced, instrumented runs of the same point whose requests have the same shape (equal counts
of input, vision and output tokens and of patches) as the traced one: one run of a request may be far from typical, and
others of its shape do the same work. Where no other has its shape, only its own runs are left, often a single one, and
the words say so. ``launch_bound = 1 - busy / elapsed`` is the share of a stage in which no device works: Python,
operator dispatch, launches, waiting.

A traced request may have been ended early. Its decode is then scaled by the number of steps, which takes the busy time
of a step as constant: attention over a longer cache makes late steps a little busier than this says. How many steps
were traced, of how many, stands beside every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.frames import measured, reference, values
from vlmbench.analysis.quantiles import finite, median
from vlmbench.analysis.regression import t_quantile
from vlmbench.schema import TOTAL_STAGES

STAGES: tuple[str, ...] = (*TOTAL_STAGES, "total")
COLUMNS: tuple[str, ...] = (
    *(f"{kind}_{stage}" for kind in ("busy", "kernels", "launches") for stage in STAGES),
    *(f"T_{stage}" for stage in STAGES),
    "num_output_tokens",
    "num_input_tokens",
    "num_vision_tokens",
    "num_vision_patches",
)
"""What :func:`vlmbench.analysis.frames.load_runs` must read for this module."""

LEAST_TRACES = 3
"""Traces without which the busy time has no error, and the share no interval."""

HOST_BOUND, DEVICE_BOUND = 0.5, 0.2
"""A stage is called host-bound from this share of waiting on, device-bound up to that one, mixed between them."""

_LEAST_AGAIN = 20  # repeats of one request that tell how far one run may lie from typical
_SHAPE = ("num_input_tokens", "num_vision_tokens", "num_vision_patches", "num_output_tokens")
_TABLE = [
    "stage", "n", "busy_ms", "elapsed_ms", "elapsed_low", "elapsed_high", "elapsed_traced_ms",
    "launch_bound", "launch_bound_low", "launch_bound_high", "kernels", "launches", "verdict",
    "traces", "untraced_runs", "untraced_fewest", "traced_steps", "steps", "scaled_most",
]  # fmt: skip

_BASIS = ("traces", "untraced_runs", "untraced_fewest", "traced_steps", "steps", "scaled_most")


def launch_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Busy and elapsed time of each stage over the traced requests.

    Args:
        frame: rows of a run (or of some of its points) with :data:`COLUMNS`.

    Returns:
        One row a stage and one for ``total``: ``n`` traced requests; ``busy_ms``, ``elapsed_ms`` (untraced median,
        with interval), ``elapsed_traced_ms``: means over them, decode scaled to the untraced length;
        ``launch_bound``: 1 - Σ busy / Σ elapsed, its interval from the error of the elapsed medians and that of the
        busy times (None below three traces, and where the elapsed medians have none); ``kernels`` and ``launches`` of
        a request; ``verdict``: host-bound, mixed or device-bound;
        ``traces`` (the same as ``n``), ``untraced_runs`` that elapsed times come from, in all, and ``traced_steps`` of
        the ``steps`` of a request that decoding took (means over the traces); ``untraced_fewest``: runs behind the
        elapsed time of the trace that has fewest; ``scaled_most``: ``steps`` over ``traced_steps`` of the trace where
        that is most. No rows without a traced run on a device.
        Negative shares are possible (two clocks) and are left as they are.
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


def _pairs(frame: pd.DataFrame) -> Iterable[dict[str, dict[str, Any]]]:
    """For each traced run: stage to its busy and elapsed times."""
    untraced, again = measured(frame), reference(frame)
    for _, trace in measured(frame, "trace").iterrows():
        if pd.isna(trace.get("busy_total")):
            continue
        rows = untraced_runs(untraced[untraced["point_id"] == trace["point_id"]], str(trace["sample_id"]))
        if len(rows):
            yield {stage: entry for stage in STAGES if (entry := _entry(stage, trace, rows, again)) is not None}


def untraced_runs(rows: pd.DataFrame, sample_id: str) -> pd.DataFrame:
    """The runs that stand for a traced request without the trace: all of its shape, its own among them.

    Args:
        rows: instrumented runs of the traced request's point.

    Returns:
        Rows with the token counts of its own runs (every shape that these have); its own runs alone where none has
        the same; all rows where it has no run of its own.
    """
    own = rows["sample_id"] == sample_id
    if not own.any():
        return rows
    counts = [name for name in _SHAPE if name in rows]
    shapes = list(zip(*(np.nan_to_num(values(rows, name), nan=-1.0) for name in counts), strict=True))
    mine = {shape for shape, is_own in zip(shapes, own, strict=True) if is_own}
    return rows[np.array([shape in mine for shape in shapes], dtype=np.bool_)] if counts else rows[own]


def _entry(stage: str, trace: pd.Series, rows: pd.DataFrame, again: pd.DataFrame) -> dict[str, Any] | None:
    elapsed = median(values(rows, f"T_{stage}"))
    if elapsed.low is None and elapsed.value:
        elapsed = _as_single(elapsed, finite(values(again, f"T_{stage}")))
    busy, traced = trace.get(f"busy_{stage}"), trace.get(f"T_{stage}")
    if elapsed.value is None or not elapsed.value > 0 or pd.isna(busy) or pd.isna(traced):
        return None
    traced_steps, whole_steps = _steps(trace, rows)
    steps = whole_steps / traced_steps if traced_steps > 0 else None
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
        "traced_steps": traced_steps if traced_steps > 0 else missing,
        "steps": whole_steps,
        "runs": frozenset(rows.index),
    }


def _as_single(elapsed: Estimate, again: NDArray[np.float64]) -> Estimate:
    """An elapsed time known from few runs, as if from one: off by as much as 95 % of the repeated request's."""
    if len(again) < _LEAST_AGAIN or not again.min() > 0 or elapsed.value is None:
        return elapsed
    low, high = np.quantile(again, (0.025, 0.975)) / np.median(again)
    return replace(elapsed, low=elapsed.value / float(high), high=elapsed.value / float(low), shortfall=None)


def _steps(trace: pd.Series, rows: pd.DataFrame) -> tuple[float, float]:
    """Decode steps of the traced run, and of the untraced ones."""
    return float(trace["num_output_tokens"]) - 1, float(np.nanmedian(values(rows, "num_output_tokens"))) - 1


def _stage(stage: str, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not entries:
        return None
    behind = [entry.pop("runs") for entry in entries]
    mean = {name: float(np.mean([entry[name] for entry in entries])) for name in entries[0]}
    share = 1 - mean["busy"] / mean["elapsed"]
    low, high = _share_ends(entries, mean)
    return {
        "stage": stage,
        "n": len(entries),
        "busy_ms": mean["busy"],
        "elapsed_ms": mean["elapsed"],
        "elapsed_low": _known(mean["low"]),
        "elapsed_high": _known(mean["high"]),
        "elapsed_traced_ms": mean["traced"],
        "launch_bound": share,
        "launch_bound_low": low,
        "launch_bound_high": high,
        "kernels": _known(mean["kernels"]),
        "launches": _known(mean["launches"]),
        "verdict": "host-bound" if share >= HOST_BOUND else "device-bound" if share <= DEVICE_BOUND else "mixed",
        "traces": len(entries),
        "untraced_runs": len(frozenset().union(*behind)),
        "untraced_fewest": min(map(len, behind)),
        "traced_steps": _known(mean["traced_steps"]),
        "steps": _known(mean["steps"]),
        "scaled_most": _known(max(entry["steps"] / entry["traced_steps"] for entry in entries)),
    }


def _share_ends(entries: list[dict[str, Any]], mean: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Ends of the interval of 1 - busy / elapsed: the error of the busy time and that of the elapsed one, squared and
    added on the logarithmic scale. None below three traces, or where the elapsed time has no interval.

    The busy time's error is the ratio estimator's over the traces, with Student's t: it holds how busy times differ
    from trace to trace (clocks, power) and how the traced requests differ in their share.
    """
    number, ratio = len(entries), mean["busy"] / mean["elapsed"]
    if number < LEAST_TRACES or not mean["busy"] > 0 or not mean["low"] > 0:
        return None, None
    errors = np.array([entry["busy"] - ratio * entry["elapsed"] for entry in entries])
    spread = float(np.sqrt(np.square(errors).sum() / (number - 1) / number))
    of_busy = t_quantile(number - 1) * spread / mean["busy"]
    up = float(np.hypot(of_busy, np.log(mean["elapsed"] / mean["low"])))
    down = float(np.hypot(of_busy, np.log(mean["high"] / mean["elapsed"])))
    return 1 - ratio * float(np.exp(up)), 1 - ratio * float(np.exp(-down))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def top_kernels(rows: Iterable[Mapping[str, Any]], count: int = 10) -> pd.DataFrame:
    """The longest kernels (on a CPU: operators) of each stage over all traced runs.

    Args:
        rows: as :func:`vlmbench.records.reading.iter_rows` gives them.

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


def launch_bound_summary(frame: pd.DataFrame) -> dict[str, Any]:
    """What the summary says beside the component profile, as plain data.

    Args:
        frame: rows with :data:`COLUMNS`.

    Returns:
        ``requests`` traced (also ``traces``); ``untraced_runs``, ``traced_steps`` and ``steps`` of the whole, see
        :func:`launch_table`; ``launch_bound`` of the whole with ``low`` and ``high``; ``tracing_factor``: traced over
        untraced ``T_total``; ``stages``: :func:`launch_table` as mappings.
    """
    table = launch_table(frame)
    stages = [{str(k): v for k, v in row.items()} for row in table.astype(object).to_dict("records")]
    whole = next((row for row in stages if row["stage"] == "total"), None)
    return {
        "requests": 0 if whole is None else whole["n"],
        **{name: None if whole is None else whole[name] for name in _BASIS},
        "launch_bound": None if whole is None else whole["launch_bound"],
        "low": None if whole is None else whole["launch_bound_low"],
        "high": None if whole is None else whole["launch_bound_high"],
        "tracing_factor": None if whole is None else whole["elapsed_traced_ms"] / whole["elapsed_ms"],
        "stages": stages,
    }


def looked_for_kernels(frame: pd.DataFrame, device_type: str) -> bool:
    """Whether a run was traced for kernels; runs of their own may as well have looked at memory.

    Args:
        frame: rows with their ``flags``.
        device_type: ``cpu``, ``cuda``; empty if not known.
    """
    traced = measured(frame, "trace")
    if device_type != "cuda":
        return len(traced) > 0
    return bool(traced["flags"].astype(object).astype(str).str.split().map(lambda f: "no_kernels_traced" in f).any())


_LAUNCH_BOUND = 0.5  # above, the device waits for the host more than it works


def on_gpu(frame: pd.DataFrame) -> bool:
    """Whether rows were measured on a GPU, by what they carry."""
    return "gpu_uuid" in frame and bool(frame["gpu_uuid"].notna().any())


def time_is_host(frame: pd.DataFrame) -> bool:
    """Whether processor time of the launching thread is the host's own: on a CPU, or where the GPU is mostly idle.

    A thread that waits for a GPU spins, which costs processor time, too.
    """
    if not on_gpu(frame):
        return True
    traced = values(frame[frame["mode"] == "trace"], "launch_bound_total")
    return bool(len(traced)) and not np.isnan(traced).all() and float(np.nanmedian(traced)) > _LAUNCH_BOUND

"""Which part eats the time, which part holds the parameters, and whether the parts add up to the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis import frames
from vlmbench.analysis.frames import sample_codes, values, workload
from vlmbench.analysis.quantiles import median
from vlmbench.analysis.ratios import ratio_of_sums, share_of_sums
from vlmbench.analysis.row_file import once
from vlmbench.schema import DECODE_PARTS, HOST_PARTS, MODEL_PARTS, TOTAL_PARTS, TOTAL_STAGES

PARAMETER_PARTS: tuple[str, ...] = (*(part.name for part in MODEL_PARTS), "other")

_COLUMNS = [
    "component", "part_of", "n", "median", "median_low", "median_high", "mean",
    "share", "share_low", "share_high", "share_of_request", "lag1", "effective_n",
]  # fmt: skip


LONG, LONG_GOAL, SHORT_GOAL = 32, 0.002, 0.01
"""Goals for the median of |T_residual| / T_total: the second from so many output tokens on, the third below."""


@once
def component_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Time of each part over the workload's measured runs.

    Returns:
        One row for each component that some run has: ``component``; ``part_of`` (``T_total``, ``T_LLM_decode`` or
        ``T_request``); ``n`` runs; ``median`` with interval and ``mean`` in ms; ``share`` of ``part_of`` with
        interval: sum over sum, so the shares of one whole add up to 1; ``share_of_request``; ``lag1`` and
        ``effective_n``: autocorrelation of the share's errors and the independent runs they are worth. A stage that a
        model does not have (a text-only request's vision encoder) has no row; where only some runs have it, runs
        without it count as 0 ms in shares and are left out of median and mean.
    """
    rows = workload(frame)
    codes = sample_codes(rows)
    wholes = [(TOTAL_PARTS, "T_total"), (DECODE_PARTS, "T_LLM_decode"), (HOST_PARTS, "T_request")]
    table: list[tuple[Any, ...]] = []
    for parts, whole in wholes:
        total = values(rows, whole)
        for name in parts:
            time = values(rows, name)
            if np.isnan(time).all():
                continue
            spent = np.where(np.isnan(time) & ~np.isnan(total), 0.0, time)
            share = ratio_of_sums(spent, total, clusters=codes)
            middle = median(time, clusters=codes)
            row: tuple[Any, ...] = (name, whole, int((~np.isnan(time)).sum()), middle.value, middle.low, middle.high)
            row += (float(np.nanmean(time)), share.value, share.low, share.high)
            row += (share_of_sums(spent, values(rows, "T_request")), share.lag1, share.effective_n)
            table.append(row)
    return pd.DataFrame(table, columns=_COLUMNS)


def llm_share(frame: pd.DataFrame) -> dict[str, Any]:
    """Share that prefill and decode together have of the workload's requests.

    Returns:
        ``whole`` (``T_request`` where requests were timed, else ``T_total``), ``value`` between 0 and 1 with ``low``
        and ``high``, ``n``, ``lag1``, ``effective_n``; empty where a run shows no decode.
    """
    rows = workload(frame)
    decode = values(rows, "T_LLM_decode")
    if np.isnan(decode).all():
        return {}
    whole = "T_total" if np.isnan(values(rows, "T_request")).all() else "T_request"
    share = ratio_of_sums(values(rows, "T_LLM_prefill") + decode, values(rows, whole), clusters=sample_codes(rows))
    return {"whole": whole, **share.as_dict()}


def residual_summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Do the parts add up? What a reader must know before believing the breakdown.

    Returns:
        ``runs``; ``median_abs_share`` (|T_residual| / T_total, with interval), ``p95_abs_share``, ``max_abs_share``;
        ``negative_stages``: stage name to the count of runs where it came out negative, and ``runs_with_negative``;
        ``goal`` for that median at ``median_output_tokens`` (0.2 % from 32 tokens on, 1 % below: what the cutting
        itself costs weighs more in a short run) and ``goal_met``, None where there is nothing to compare;
        ``sum_mismatch``: runs whose stages and residual do not give ``T_total`` within 0.001 %.
    """
    rows = workload(frame)
    total, residual = values(rows, "T_total"), values(rows, "T_residual")
    share = np.abs(residual) / np.where(total > 0, total, np.nan)  # nothing is a share of a whole of 0: sum_mismatch
    good = share[~np.isnan(share)]
    stages = {name: values(rows, name) for name in (*TOTAL_PARTS[:-1], *DECODE_PARTS)}
    negative = {name: int((time < 0).sum()) for name, time in stages.items()}
    parts = np.nansum([stages[name] for name in TOTAL_PARTS[:-1]], axis=0) + residual
    parts = parts + np.nan_to_num(values(rows, "T_undone_step"))
    middle, lengths = median(share, clusters=sample_codes(rows)), values(rows, "num_output_tokens")
    length = None if np.isnan(lengths).all() else float(np.nanmedian(lengths))
    goal = None if length is None else LONG_GOAL if length >= LONG else SHORT_GOAL
    return {
        "runs": len(good),
        "median_abs_share": middle.as_dict(),
        "median_output_tokens": length,
        "goal": goal,
        "goal_met": None if goal is None or middle.value is None else middle.value <= goal,
        "p95_abs_share": float(np.quantile(good, 0.95)) if len(good) else None,
        "max_abs_share": float(good.max()) if len(good) else None,
        "negative_stages": {name: count for name, count in negative.items() if count},
        "runs_with_negative": int(np.any([time < 0 for time in stages.values()], axis=0).sum()),
        "sum_mismatch": int((np.abs(parts - total) > 1e-5 * total).sum()),
    }


def parameter_table(provenance: Mapping[str, Any]) -> pd.DataFrame:
    """Parameters of each part: ``component``, ``parameters``, ``share``; empty if provenance counts none.

    A parameter that two parts share (tied embeddings) is counted where provenance counts it; what the parts lack of
    ``total`` is added to ``other``.
    """
    counted = (provenance.get("model") or {}).get("parameters") or {}
    parts = {name: int(counted[name]) for name in PARAMETER_PARTS if counted.get(name)}
    missing = int(counted.get("total") or 0) - sum(parts.values())
    if missing > 0:
        parts["other"] = parts.get("other", 0) + missing
    whole = sum(parts.values())
    rows = [{"component": name, "parameters": count, "share": count / whole} for name, count in parts.items()]
    return pd.DataFrame(rows, columns=["component", "parameters", "share"])


def time_and_parameters(components: pd.DataFrame, parameters: pd.DataFrame) -> pd.DataFrame:
    """Time beside size: does the largest part eat the most time?

    Args:
        components: of :func:`component_table`.
        parameters: of :func:`parameter_table`.

    Returns:
        ``component`` (``vision_encoder``, ``projector``, ``language_model`` with its head), ``parameters``,
        ``parameter_share``, ``time_ms`` (mean), ``time_share`` of ``T_total``, ``ms_per_billion``.
    """
    times = components[components["part_of"] == "T_total"].set_index("component")
    counts = dict(zip(parameters["component"], parameters["parameters"], strict=True))
    whole = sum(counts.values())
    rows = []
    for part in MODEL_PARTS:
        name = part.name
        have = [stage for stage in part.times if stage in times.index]
        count = counts.get(name, 0) + (counts.get("head", 0) if name == "language_model" else 0)
        if not have or not count:
            continue
        time = float(times.loc[have, "mean"].sum())
        rows.append(
            {
                "component": name,
                "parameters": count,
                "parameter_share": count / whole,
                "time_ms": time,
                "time_share": float(times.loc[have, "share"].sum()),
                "ms_per_billion": time / (count / 1e9),
            }
        )
    columns = ["component", "parameters", "parameter_share", "time_ms", "time_share", "ms_per_billion"]
    return pd.DataFrame(rows, columns=columns)


# Peak memory of each stage, from the runs that were made for it (mode ``trace``).

KINDS = ("allocated", "reserved")


def column(kind: str, stage: str) -> str:
    """``peak_allocated_LLM_prefill_bytes`` of ``allocated`` and ``T_LLM_prefill``."""
    return f"peak_{kind}_{stage.removeprefix('T_')}_bytes"


COLUMNS: tuple[str, ...] = tuple(column(kind, stage) for kind in KINDS for stage in TOTAL_STAGES)
"""What the probe ``memory_stages`` writes."""


def memory_by_stage(frame: pd.DataFrame) -> pd.DataFrame:
    """The most memory that each stage took in any run.

    Args:
        frame: rows of records.

    Returns:
        One row a stage that was watched, in the order they run: ``stage``, ``runs``, ``allocated_bytes`` (in tensors,
        weights included), ``reserved_bytes`` (held by the allocator), ``point_id`` of the run that allocated most. No
        rows where memory was not watched by stage: on a CPU, or without the probe.
    """
    traced = frames.measured(frame, "trace")
    found = []
    for stage in (f"T_{name}" for name in TOTAL_STAGES):
        allocated, reserved = (column(kind, stage) for kind in KINDS)
        known = traced[traced[allocated].notna()] if allocated in traced else traced.iloc[:0]
        if known.empty:
            continue
        held = known[reserved].max() if reserved in known else None
        found.append(
            {
                "stage": stage,
                "runs": len(known),
                "allocated_bytes": int(known[allocated].max()),
                "reserved_bytes": None if held is None or pd.isna(held) else int(held),
                "point_id": str(known["point_id"].iloc[int(known[allocated].argmax())]),
            }
        )
    names = ("stage", "runs", "allocated_bytes", "reserved_bytes", "point_id")
    return pd.DataFrame(found, columns=list(names)).astype({"reserved_bytes": object})

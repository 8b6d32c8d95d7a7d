"""What a phase-1 run found, as plain data: the content of ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis import breakdown, distribution, floors, frames, launch_bound, tail
from vlmbench.analysis.breakdown import COLUMNS as MEMORY_BY_STAGE
from vlmbench.analysis.breakdown import memory_by_stage
from vlmbench.analysis.drift import aa_summary
from vlmbench.analysis.energy import COLUMNS as ENERGY
from vlmbench.analysis.energy import energy_summary
from vlmbench.analysis.engine_figures import COLUMNS as ENGINE
from vlmbench.analysis.engine_figures import engine_agreement
from vlmbench.analysis.floors import peaks_of
from vlmbench.analysis.frames import TokenGaps, load_runs, load_token_gaps
from vlmbench.analysis.longer_run import lasted_s
from vlmbench.analysis.overhead import overhead_summary
from vlmbench.analysis.precision import precision_summary
from vlmbench.analysis.quantiles import needed
from vlmbench.analysis.scope import latency_scope
from vlmbench.analysis.variance import COLUMNS as HOST_USE
from vlmbench.analysis.variance import variance_parts, variance_sources
from vlmbench.errors import InputError
from vlmbench.records.comparable import with_mixture_named
from vlmbench.records.files import read_json, strict
from vlmbench.records.provenance import PROVENANCE_NAME, has_part_types
from vlmbench.records.reading import iter_rows
from vlmbench.records.run_directory import POINTS_NAME
from vlmbench.report.narrative.launch_bound import launch_bound_with_sentences
from vlmbench.schema import DECODE_PARTS, HOST_PARTS, SCHEMA_VERSION, TOTAL, TOTAL_PARTS

EXPERIMENT = "phase1_dataset_profiling"

COUNTS: tuple[str, ...] = (
    "num_vision_tokens", "num_vision_patches", "num_cross_attention_tokens", "num_crops", "num_images",
    "num_prompt_tokens", "num_input_tokens", "num_output_tokens",
)  # fmt: skip
MEMORY: tuple[str, ...] = ("peak_memory_allocated_bytes", "peak_memory_reserved_bytes", "peak_rss_bytes")

COLUMNS: tuple[str, ...] = (
    *distribution.LATENCIES,
    *TOTAL_PARTS,
    "T_undone_step",
    *DECODE_PARTS,
    *HOST_PARTS,
    *COUNTS,
    *MEMORY,
    *MEMORY_BY_STAGE,
    *launch_bound.COLUMNS,
    *floors.COLUMNS,
    *ENERGY,
    *HOST_USE,
    *ENGINE,
    "batch_size",
    "session",
    "started_unix_s",
    "reason",
)
"""The columns that phase 1 needs: reading no others keeps a run of many rows small in memory."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, read once: its rows, token gaps, provenance, how its points ended, and its longest kernels by stage."""

    frame: pd.DataFrame
    gaps: TokenGaps
    reference_gaps: TokenGaps
    provenance: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    kernels: Sequence[Mapping[str, Any]] = ()


def read_run(directory: Path | str) -> Run:
    """Read the records and the provenance of a run directory.

    Raises:
        InputError: no records, or files that cannot be read.
    """
    directory = Path(directory)
    frame = load_runs(directory, COLUMNS)
    paired = [name for name in frame["point_id"].cat.categories if name.startswith("paired,")]
    if paired:  # runs that are compared, not pooled
        frame = frame[~frame["point_id"].isin(paired)]
    return Run(
        frame=frame,
        gaps=load_token_gaps(directory, point_ids=_points(frames.workload(frame))),
        reference_gaps=load_token_gaps(directory, point_ids=_points(frames.reference(frame)), cluster="run"),
        provenance=provenance_of(directory),
        points=read_points(directory),
        kernels=_top_kernels(directory, frame),
    )


def _points(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame["point_id"].unique()]


def provenance_of(directory: Path) -> dict[str, Any]:
    """The provenance of a run directory, which names all that its sessions ran on; empty where there is none.

    Raises:
        InputError: the file holds something else.
    """
    path = directory / PROVENANCE_NAME
    found = read_json(path) or {}
    if not has_part_types(found):
        raise InputError(f"'{path}' is no provenance of vlmbench: parts of it are of another kind; restore it")
    return with_mixture_named(found)


def read_points(directory: Path) -> list[dict[str, Any]]:
    """How each point of a run ended, from its ``points.json``; empty where there is none.

    Raises:
        InputError: the file holds something else.
    """
    path = directory / POINTS_NAME
    points = (read_json(path) or {}).get("points", [])
    if not isinstance(points, list) or not all(isinstance(one, dict) and _is_point(one) for one in points):
        raise InputError(f"'{path}' must hold a list 'points' of mappings, each with its 'point_id'; measure again")
    return points


_POINT: Mapping[str, Any] = {
    "axes": dict, "measured": int, "failed": int, "ended_by": str | None, "unmet": list | None, "reason": str | None,
    "median_reach": float | int | None, "lag1": float | int | None, "effective_n": float | int | None,
    "missing_s": float | int | None,
}  # fmt: skip


def _is_point(one: Mapping[str, Any]) -> bool:
    named = isinstance(one.get("point_id"), str)
    return named and all(isinstance(one[name], kind) for name, kind in _POINT.items() if name in one)


def summarise(directory: Path | str) -> dict[str, Any]:
    """Everything that phase 1 says about a run, in the types of strict JSON; see :func:`summarise_run`."""
    return summarise_run(read_run(directory))


def summarise_frame(frame: pd.DataFrame) -> dict[str, Any]:
    """Summarise rows alone: as :func:`summarise_run`, with no token gaps, provenance or points."""
    full = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *COLUMNS])))
    full.attrs.update(frame.attrs)
    none = TokenGaps.none()
    return summarise_run(Run(frame=full, gaps=none, reference_gaps=none))


def summarise_run(run: Run) -> dict[str, Any]:
    """The summary of a run that has been read.

    Returns:
        ``headline`` (the few numbers that answer the three questions), ``runs`` (status counts, failures),
        ``distribution`` (metric → group → mean and quantiles with intervals), ``tail``, ``components``,
        ``llm_share`` (of prefill and decode together),
        ``launch_bound`` (how much of each stage the device waits for the host, from traced runs), ``top_kernels`` (the
        five longest of each stage, from the same), ``cost`` (FLOPs, floor, time over floor, shares of the peaks and
        verdict of each stage), ``parameters``, ``time_and_parameters``, ``residual``, ``instrument_overhead``,
        ``aa_check``, ``tokens``, ``itl_count``, ``memory``,
        ``memory_by_stage`` (peaks of each stage, from runs of their own on CUDA), ``flags``,
        ``energy`` (per request and per output token; None where it was not measured), ``stopping`` (what
        ended each point, from ``points.json``), ``precision`` (how well each point's median is known),
        ``engine_agreement`` (marks beside the engine's own figures; only where an engine gives some).
        Quantities are ms, shares between 0 and 1; what n does not allow is
        None with a note.
    """
    frame = run.frame
    latency = pd.concat(
        [
            part
            for part in (
                distribution.latency_table(frame),
                distribution.gap_table(run.gaps),
                distribution.gap_table(run.reference_gaps, "reference"),
            )
            if len(part)
        ]
        or [distribution.latency_table(frame)],
        ignore_index=True,
    )
    components = breakdown.component_table(frame)
    parameters = breakdown.parameter_table(run.provenance)
    metric = frames.whole_metric(frame)
    ratios = distribution.tail_ratios(frame, metric)
    work = frames.workload(frame)
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "experiment_name": EXPERIMENT,
        "scope": latency_scope(frame, run.provenance),
        "headline": _headline(latency, ratios, components),
        "runs": run_counts(
            frame,
            workload_runs=len(work),
            workload_points=work["point_id"].nunique(dropna=False),
            reference_runs=len(frames.reference(frame)),
            workload_lasted_s=lasted_s(frames.values(work, "session"), frames.values(work, "started_unix_s")),
        ),
        "distribution": _distribution(latency),
        "tail": _tail(frame, ratios, metric),
        "components": records(components),
        "llm_share": breakdown.llm_share(frame),
        "launch_bound": launch_bound_with_sentences(frame, device_type(run.provenance)),
        "top_kernels": list(run.kernels),
        "cost": _cost(run),
        "parameters": records(parameters),
        "time_and_parameters": records(breakdown.time_and_parameters(components, parameters)),
        "residual": breakdown.residual_summary(frame),
        "instrument_overhead": overhead_summary(frame),
        "aa_check": aa_summary(frame, metric),
        "tokens": {name: _spread(frames.values(work, name)) for name in COUNTS},
        "itl_count": _itl_count(frame, run.gaps),
        "memory": {name: _spread(frames.values(frames.measured(frame), name)) for name in MEMORY},
        "memory_by_stage": records(memory_by_stage(frame)),
        "flags": frames.as_counts(frames.flag_counts(frames.measured(frame)), "flag"),
        "energy": energy_summary(frame, run.provenance),
        "precision": precision_summary(frame, metric),
        "stopping": list(run.points),
    }
    if own := engine_agreement(frame):
        summary["engine_agreement"] = own
    found: dict[str, Any] = strict(summary)
    return found


def _top_kernels(directory: Path, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The longest kernels (on a CPU: operators) of each stage, from traced runs; empty without any."""
    if not len(frames.measured(frame, "trace")):
        return []  # the nested lists are read from the file, row by row: not for nothing
    return records(launch_bound.top_kernels(iter_rows(directory, itl=False), count=5))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as a list of mappings."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def run_counts(frame: pd.DataFrame, **more: float | None) -> dict[str, Any]:
    """What became of the rows: by status, by mode, the first failures; ``more`` numbers are put among them."""
    counts = frames.status_counts(frame)
    return {
        "rows": len(frame),
        "status": frames.as_counts(counts, "status"),
        "ok_by_mode": frames.as_counts(counts[counts["status"] == "ok"], "mode"),
        **more,
        "failures": records(frames.failures(frame).head(20)),
        "lines_left_out": frame.attrs.get("lines_left_out", 0),
    }


def _quantiles(row: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        name: row[name] for name in ("n", "samples", "lag1", "effective_n", "mean", "std", "min", "max")
    }
    for name in map(distribution.quantile_name, distribution.QUANTILES):
        entry[name] = {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
        if row[f"{name}_note"]:
            entry[name] |= {
                "note": row[f"{name}_note"],
                "shortfall": row[f"{name}_shortfall"],
                "n": row["samples"],
                "n_needed": needed(distribution.quantile_of(name)),
                "effective_n": row[f"{name}_effective_n"],
            }
    return entry


def _distribution(latency: pd.DataFrame) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in records(latency):
        found.setdefault(row["metric"], {})[row["group"]] = _quantiles(row)
    return found


def device_type(provenance: Mapping[str, Any]) -> str:
    """``cpu``, ``cuda``; empty if provenance does not say."""
    return str((provenance.get("device") or {}).get("type") or "")


def _cost(run: Run) -> dict[str, Any]:
    peaks = peaks_of(run.provenance, run.frame)
    return {
        "peaks": None if peaks is None else asdict(peaks),
        "stages": records(floors.floor_table(run.frame, peaks).astype(object)),
    }


def _tail(frame: pd.DataFrame, ratios: pd.DataFrame, metric: str) -> dict[str, Any]:
    slow = tail.slow_requests(frame, metric)
    return {
        "metric": metric,
        "ratios_to_median": records(ratios),
        "variance_split": records(tail.variance_split(frame, metric)),
        "variance_sources": records(variance_sources(frame)),
        "variance_parts": records(variance_parts(frame, "T_total", TOTAL_PARTS)),
        "request": _request_tail(frame),
        "slow_runs": slow.attrs.get("slow_runs", 0),
        "causes": tail.cause_counts(slow),
        "places": slow.attrs["places"],
        "flags": slow.attrs["flags"],
        "slow_requests": records(slow),
    }


def _request_tail(frame: pd.DataFrame) -> dict[str, Any]:
    """How bad the tail of whole requests is, and which of their parts it lies in."""
    rows = records(distribution.tail_ratios(frame, "T_request"))
    ratios = [row for row in rows if pd.notna(row["workload"])]
    timed = "T_request" in frame and bool(frame["T_request"].notna().any())
    return {
        "ratio": ratios[-1] if ratios else None,
        "note": rows[0]["workload_note"] if timed and not ratios else None,
        "variance_parts": records(variance_parts(frame, "T_request", (TOTAL, *HOST_PARTS))),
    }


def _headline(latency: pd.DataFrame, ratios: pd.DataFrame, components: pd.DataFrame) -> dict[str, Any]:
    of_workload = {row["metric"]: row for row in records(latency) if row["group"] == "workload"}
    metric = next((name for name in ("T_request", "T_total") if name in of_workload), None)
    row = of_workload[metric] if metric else {}
    top = next((q for q in ("p99", "p95", "p90") if pd.notna(row.get(q))), None)
    stages = [s for s in records(components) if s["part_of"] == "T_total" and pd.notna(s["share"])]
    largest = max(stages, key=lambda stage: float(stage["share"]), default={})
    allowed = [r for r in records(ratios) if pd.notna(r["workload"])]
    return {
        "latency_metric": metric,
        "median_ms": row.get("p50"),
        "tail_quantile": top,
        "tail_ms": row[top] if top else None,
        "tail_ratio": allowed[-1] if allowed else None,
        "largest_component": largest.get("component"),
        "largest_share": largest.get("share"),
    }


def _spread(data: Any) -> dict[str, Any] | None:
    good = data[~np.isnan(data)]
    if not len(good):
        return None
    return {"min": float(good.min()), "median": float(np.median(good)), "max": float(good.max()), "n": len(good)}


def _itl_count(frame: pd.DataFrame, gaps: TokenGaps) -> dict[str, Any]:
    """Are there exactly N × (T - 1) gaps? ``runs`` counts those that a random sample was drawn from, if one was."""
    lengths = frames.values(frames.workload(frame), "num_output_tokens")
    expected = int(np.nansum(lengths - 1))
    return {
        "gaps": gaps.gaps_total,
        "expected": expected,
        "runs": gaps.requests_total,
        "runs_in_quantiles": gaps.requests,
    }

"""The summary of a run in the forms of other benchmarks: llm-d's benchmark report, and MLPerf's result summary.

What a run does not know is absent: nothing is made up to fill a field. So are percentiles that n does not allow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmbench.figures.theme import device_name
from vlmbench.records.files import write_whole

Summary = Mapping[str, Any]

FOLDER = "exports"
LLMD_VERSION = "0.2"
"""Of the benchmark report of llm-d-benchmark (package ``llmd-benchmark-report``)."""

_LATENCIES = {
    "TTFT": ("time_to_first_token", "s"),
    "T_request": ("request_latency", "s"),
    "ITL": ("inter_token_latency", "s/token"),
}
_QUANTILES = ("p50", "p90", "p95", "p99")


def llmd_report(summary: Summary, provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """A run as llm-d's benchmark report, version 0.2; None for a run without latencies of requests.

    Args:
        summary: of phase 1.
    """
    latency = {}
    for metric, (name, unit) in _LATENCIES.items():
        entry = (summary.get("distribution") or {}).get(metric, {}).get("workload")
        if entry and entry.get("mean") is not None:
            latency[name] = {"units": unit, **_statistics(entry)}
    if not latency:
        return None
    model, runtime = provenance.get("model") or {}, provenance.get("runtime") or {}
    fingerprint = str(provenance.get("fingerprint") or "")
    counts = (summary.get("runs") or {}).get("status") or {}
    count = max(runtime.get("devices") or 1, runtime.get("processes") or 1)
    device = (provenance.get("device") or {}).get("name")
    engine: dict[str, Any] = {
        "kind": "inference_engine",
        "tool": str(runtime.get("engine") or "transformers"),
        "tool_version": str(model.get("transformers_version") or ""),
        "role": "replica",
        "replicas": 1,
        "model": {"name": str(model.get("name") or "")},
    }
    if device:
        split = {"tp": runtime.get("processes") or 1}
        engine["accelerator"] = {"model": str(device), "count": count, "parallelism": split}
    return {
        "version": LLMD_VERSION,
        "run": {"uid": fingerprint},
        "scenario": {
            "stack": [
                {
                    "metadata": {"schema_version": "0.0.1", "label": "model-0", "cfg_id": fingerprint},
                    "standardized": engine,
                    "native": {"args": {"weights": model.get("weights"), "runtime": runtime.get("name")}, "envars": {}},
                }
            ]
        },
        "results": {
            "request_performance": {
                "aggregate": {
                    "latency": latency,
                    "requests": {
                        "total": int(summary["runs"]["workload_runs"])
                        + sum(counts.get(s, 0) for s in ("error", "oom")),
                        "failures": sum(counts.get(s, 0) for s in ("error", "oom")),
                    },
                }
            }
        },
    }


def _statistics(entry: Mapping[str, Any]) -> dict[str, float]:
    """Mean, extremes and the percentiles that n allows, in seconds."""
    found = {name: entry.get(name) for name in ("mean", "min", "max")}
    found |= {name: (entry.get(name) or {}).get("value") for name in _QUANTILES}
    return {name: value / 1e3 for name, value in found.items() if value is not None}


def mlperf_summary(summary: Summary, provenance: Mapping[str, Any]) -> str:
    """The latencies of requests, one at a time, laid out as MLPerf Inference's result summary; empty without any.

    It is no submission and says so: rules of MLPerf (its models, data, durations, accuracy) are not checked.
    """
    entry = (summary.get("distribution") or {}).get("T_request", {}).get("workload")
    if not entry:
        return ""
    lines = ["=" * 48, "vlmbench, laid out as MLPerf Results Summary", "=" * 48]
    lines += [
        f"SUT name : {device_name(provenance) or 'unknown'}",
        "Scenario : SingleStream",
        "Mode     : PerformanceOnly",
    ]
    lines += [*_nanoseconds(entry), "Result is : no submission, rules of MLPerf are not checked", ""]
    lines += ["=" * 48, "Additional Stats", "=" * 48, f"Queries : {entry['n']}"]
    extremes = {"Min": entry.get("min"), "Max": entry.get("max"), "Mean": entry.get("mean")}
    lines += [f"{name} latency (ns) : {round(ms * 1e6)}" for name, ms in extremes.items() if ms is not None]
    return "\n".join(lines) + "\n"


def _nanoseconds(entry: Mapping[str, Any]) -> Iterator[str]:
    for name in _QUANTILES:
        value = (entry.get(name) or {}).get("value")
        if value is not None:
            yield f"{float(name[1:]):.2f} percentile latency (ns) : {round(value * 1e6)}"


def write_exports(directory: Path, summary: Summary, provenance: Mapping[str, Any]) -> list[Path]:
    """Write ``exports/llmd_benchmark_report.json`` and ``exports/mlperf_summary.txt`` where a run has what they need.

    Raises:
        MeasurementError: a file cannot be written.
    """
    report, text = llmd_report(summary, provenance), mlperf_summary(summary, provenance)
    files = []
    if report is not None:
        content = json.dumps(report, indent=2, allow_nan=False) + "\n"
        files.append(write_whole(directory / FOLDER / "llmd_benchmark_report.json", content))
    if text:
        files.append(write_whole(directory / FOLDER / "mlperf_summary.txt", text))
    return files

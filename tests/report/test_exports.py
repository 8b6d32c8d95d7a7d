"""A run in the forms of other benchmarks: their units, and nothing that the run does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, usual, write
from vlmbench.report.exports import llmd_report, mlperf_summary, write_exports
from vlmbench.report.phase1_summary import read_run, summarise
from vlmbench.report.request_trace import write_request_traces


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return summarise(write(tmp_path_factory.mktemp("run"), usual(100, 10)))


def test_llmd_has_seconds_and_only_percentiles_that_n_allows(summary: dict[str, Any]) -> None:
    report = llmd_report(summary, {**PROVENANCE, "fingerprint": "ab"})
    assert report is not None
    assert report["version"] == "0.2"
    assert report["run"] == {"uid": "ab"}
    latency = report["results"]["request_performance"]["aggregate"]["latency"]
    entry = summary["distribution"]["TTFT"]["workload"]
    assert latency["time_to_first_token"]["p50"] == pytest.approx(entry["p50"]["value"] / 1e3)
    assert latency["time_to_first_token"]["units"] == "s"
    assert latency["inter_token_latency"]["units"] == "s/token"
    assert "p99" not in latency["request_latency"], "100 runs give no P99"
    assert report["results"]["request_performance"]["aggregate"]["requests"] == {"total": 101, "failures": 1}


def test_mlperf_has_nanoseconds_and_is_no_submission(summary: dict[str, Any]) -> None:
    text = mlperf_summary(summary, PROVENANCE)
    value = summary["distribution"]["T_request"]["workload"]["p90"]["value"]
    assert f"90.00 percentile latency (ns) : {round(value * 1e6)}" in text
    assert "99.00 percentile" not in text
    assert "no submission" in text
    assert "SUT name : Planted GPU" in text


def test_files_are_written_where_there_are_latencies(summary: dict[str, Any], tmp_path: Path) -> None:
    files = write_exports(tmp_path, summary, PROVENANCE)
    assert [file.name for file in files] == ["llmd_benchmark_report.json", "mlperf_summary.txt"]
    json.loads(files[0].read_text())
    assert write_exports(tmp_path, {"distribution": {}}, PROVENANCE) == []


def test_the_median_and_the_p95_request_are_traces_of_their_own_stages(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run", usual(100, 10)))
    summary = summarise(tmp_path / "run")
    files = write_request_traces(tmp_path / "run", tmp_path / "to", run.frame, summary)
    assert [file.name for file in files] == ["request_p50.trace.json", "request_p95.trace.json"]
    made = json.loads(files[0].read_text())
    events = {event["name"]: event for event in made["traceEvents"]}
    wanted = summary["distribution"]["T_request"]["workload"]["p50"]["value"]
    times = run.frame.loc[run.frame["mode"] == "instrumented", "T_request"].dropna()
    assert events["request"]["dur"] / 1e3 == pytest.approx(min(times, key=lambda ms: abs(ms - wanted)))
    decode = events["LLM decode"]
    steps = [event for name, event in events.items() if name.startswith("token ")]
    assert steps
    assert min(step["ts"] for step in steps) == decode["ts"]
    assert sum(step["dur"] for step in steps) == pytest.approx(decode["dur"], rel=0.01)
    assert events["LLM prefill"]["ts"] + events["LLM prefill"]["dur"] == pytest.approx(decode["ts"])

"""Launch-bound shares from planted busy and elapsed times."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.analysis.made import PROVENANCE, row, write
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.launch_bound import COLUMNS, launch_by_point, launch_table, top_kernels
from vlmbench.figures.launch_bound import launch_bound_figure
from vlmbench.records.reading import iter_rows
from vlmbench.report import terminal_tables
from vlmbench.report.narrative.launch_bound import launch_bound_with_sentences
from vlmbench.report.phase1_summary import summarise
from vlmbench.schema import Mode

# Untraced: 1 + 8 + 1 + 20 + 3 × 10 = 60 ms. Traced: twice as slow, and only 2 of 3 decode steps.
BUSY = {"setup": 0.1, "vision_encoder": 6.0, "projector": 0.5, "LLM_prefill": 15.0, "LLM_decode": 4.0}
TOP = {"LLM_decode": [["gemm", 20, 3.0], ["softmax", 2, 0.5]], "vision_encoder": [["conv", 1, 5.0]]}


def trace(point: str = "dataset", sample: str = "s0", **changed: Any) -> dict[str, Any]:
    made = row(point, sample, mode=Mode.TRACE, gaps=[20.0, 20.0])
    times = {"T_setup": 2.0, "T_vision_encoder": 16.0, "T_projector": 2.0, "T_LLM_prefill": 40.0, "T_LLM_decode": 40.0}
    busy = {f"busy_{stage}": ms for stage, ms in BUSY.items()} | {"busy_total": sum(BUSY.values())}
    kernels = {f"{kind}_{stage}": 10 for kind in ("kernels", "launches") for stage in (*BUSY, "total")}
    top = {"top_kernels": TOP, "top_kernels_of": "device kernels"}
    return made | times | {"T_total": 100.0} | busy | kernels | top | changed


def loaded(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return load_runs(write(path, rows), COLUMNS)


def test_busy_is_traced_elapsed_is_untraced_and_decode_is_scaled(tmp_path: Path) -> None:
    table = launch_table(loaded(tmp_path, [row(repeat=i) for i in range(5)] + [trace()])).set_index("stage")
    shares = table["launch_bound"].to_dict()
    assert shares == pytest.approx({
        "setup": 0.9,
        "vision_encoder": 0.25,
        "projector": 0.5,
        "LLM_prefill": 0.25,
        "LLM_decode": 1 - 6.0 / 30,  # 2 ms busy a step, 3 steps
        "total": 1 - 27.6 / 60,
    })  # fmt: skip
    assert table.loc["total", "elapsed_traced_ms"] == pytest.approx(120)
    assert table["verdict"].to_dict() == {
        "setup": "host-bound", "vision_encoder": "mixed", "projector": "host-bound", "LLM_prefill": "mixed",
        "LLM_decode": "host-bound", "total": "host-bound",
    }  # fmt: skip


def test_the_interval_is_that_of_the_elapsed_median(tmp_path: Path) -> None:
    order = random.Random(0).sample(range(41), 41)
    rows = [row(repeat=i, prefill=18.0 + step * 0.1) for i, step in enumerate(order)]
    table = launch_table(loaded(tmp_path, [*rows, *(trace(repeat=i) for i in range(5))])).set_index("stage")
    prefill = table.loc["LLM_prefill"]
    assert prefill["launch_bound"] == pytest.approx(1 - 15 / 20)
    # busy times that do not differ add nothing to the error of the elapsed one
    assert prefill["launch_bound_low"] == pytest.approx(1 - 15 / prefill["elapsed_low"])
    assert prefill["launch_bound_low"] < prefill["launch_bound"] < prefill["launch_bound_high"]


def test_two_traces_say_nothing_of_how_busy_times_differ(tmp_path: Path) -> None:
    rows = [row(repeat=i, prefill=18.0 + i % 5) for i in range(41)]
    table = launch_table(loaded(tmp_path, [*rows, trace(), trace(repeat=1)])).set_index("stage")
    assert table.loc["LLM_prefill", "launch_bound"] == pytest.approx(1 - 15 / 20)
    assert table.loc["LLM_prefill", "launch_bound_low"] is None


def test_a_trace_is_paired_with_its_own_sample(tmp_path: Path) -> None:
    rows = [row(sample="s0"), row(sample="s1", prefill=200.0, tokens=(576, 21)), trace(sample="s1")]
    table = launch_table(loaded(tmp_path, rows)).set_index("stage")
    assert table.loc["LLM_prefill", "elapsed_ms"] == pytest.approx(200)


def test_elapsed_time_is_from_all_untraced_runs_of_the_traced_shape(tmp_path: Path) -> None:
    alike = [row(sample=f"s{i}", prefill=20.0 + 4 * i % 7) for i in range(14)]
    others = [
        row(sample="longer", gaps=[10.0] * 9, prefill=500.0),
        row(sample="more text", tokens=(576, 21), prefill=500.0),
        row(sample="other picture", tokens=(500, 96), prefill=500.0),
        row("elsewhere", "s0", prefill=500.0),
        row(sample="bare", mode=Mode.BARE),
    ]
    table = launch_table(loaded(tmp_path, [*alike, *others, trace(sample="s6")])).set_index("stage")
    assert table.loc["LLM_prefill", "elapsed_ms"] == pytest.approx(23)
    assert table.loc["LLM_prefill", "elapsed_low"] is not None
    assert table[["traces", "untraced_runs", "untraced_fewest"]].iloc[0].tolist() == [1, 14, 14]
    assert table[["traced_steps", "steps"]].to_numpy().tolist() == [[2, 3]] * len(table)


def test_a_shape_that_was_run_once_is_known_as_well_as_one_run_of_the_repeated_request(tmp_path: Path) -> None:
    again = [row("reference", "r", prefill=100.0 + i % 5, repeat=i) for i in range(40)]
    rows = [*again, *(row(sample=f"s{i}", tokens=(576, 20 + i)) for i in range(3))]
    rows += [trace(sample=f"s{i}") for i in range(3)]
    table = launch_table(loaded(tmp_path, rows)).set_index("stage")
    prefill = table.loc["LLM_prefill"]
    assert prefill["elapsed_low"] == pytest.approx(prefill["elapsed_ms"] * 102 / 104)
    assert prefill["elapsed_high"] == pytest.approx(prefill["elapsed_ms"] * 102 / 100)
    assert prefill["launch_bound_low"] < prefill["launch_bound"] < prefill["launch_bound_high"]


def test_the_words_carry_their_counts_and_the_scaling(tmp_path: Path) -> None:
    rows = [row(sample="odd", gaps=[10.0] * 30), row(sample="s0", tokens=(576, 21)), trace(sample="odd")]
    summary = launch_bound_with_sentences(loaded(tmp_path, rows))
    names = ("traces", "untraced_runs", "untraced_fewest", "traced_steps", "steps", "scaled_most")
    assert [summary[name] for name in names] == [1, 1, 1, 2, 30, 15]
    first, _, scaling, how, few = summary["sentences"]
    assert few.startswith("Its interval needs 3 traces at least")
    # busy: 25.6 ms traced, 4 ms of them for 2 decode steps: 21.6 + 30 × 2
    assert first.startswith("The device is busy 81.6 ms (1 trace, decoding scaled 15.0×) of the 330 ms")
    assert "(1 untraced run): " in first
    assert scaling.startswith("Traces hold 2 of 30 decode steps; the busy time of a step is taken as the same")
    assert how.startswith("Elapsed time of the traced request is from one untraced run, and no other run has its shape")


def test_traces_of_several_lengths_say_the_most_that_one_was_scaled(tmp_path: Path) -> None:
    rows = [row("p1", gaps=[10.0] * 4, repeat=i) for i in range(2)] + [trace("p1")]
    rows += [row("p2", gaps=[10.0] * 34, repeat=i) for i in range(2)] + [trace("p2")]
    summary = launch_bound_with_sentences(loaded(tmp_path, rows))
    assert [summary[name] for name in ("traced_steps", "steps", "scaled_most")] == [2, 19, 17]
    assert "(2 traces, decoding scaled up to 17.0×)" in summary["sentences"][0]
    assert "(4 untraced runs)" in summary["sentences"][0]
    assert "Traces hold 2 of 19 decode steps (means);" in summary["sentences"][2]


def test_a_whole_trace_is_not_called_scaled(tmp_path: Path) -> None:
    summary = launch_bound_with_sentences(
        loaded(tmp_path, [row(gaps=[10.0, 10.0], repeat=i) for i in (0, 1)] + [trace()])
    )
    assert "scaled" not in " ".join(summary["sentences"])
    assert "(2 untraced runs)" in summary["sentences"][0]
    assert summary["sentences"][-2].startswith("Elapsed time is from untraced runs of the same shape")


def test_points_keep_apart(tmp_path: Path) -> None:
    rows = [row("p1"), row("p2", prefill=40.0), trace("p1"), trace("p2")]
    table = launch_by_point(loaded(tmp_path, rows)).set_index(["point_id", "stage"])
    assert table.loc[("p1", "LLM_prefill"), "launch_bound"] == pytest.approx(0.25)
    assert table.loc[("p2", "LLM_prefill"), "launch_bound"] == pytest.approx(1 - 15 / 40)


def test_a_share_below_nothing_is_not_clamped(tmp_path: Path) -> None:
    table = launch_table(loaded(tmp_path, [row(), trace(busy_projector=1.25)])).set_index("stage")
    assert table.loc["projector", "launch_bound"] == pytest.approx(-0.25)


def test_a_trace_of_one_token_has_no_decode(tmp_path: Path) -> None:
    alone = trace(num_output_tokens=1, T_LLM_decode=0.0, busy_LLM_decode=0.0)
    assert "LLM_decode" not in set(launch_table(loaded(tmp_path, [row(), alone]))["stage"])


def test_the_summary_says_it_in_words(tmp_path: Path) -> None:
    summary = launch_bound_with_sentences(loaded(tmp_path, [row(), trace()]))
    assert summary["requests"] == 1
    assert summary["launch_bound"] == pytest.approx(0.54)
    assert summary["tracing_factor"] == pytest.approx(2)
    first, second, third, fourth, _ = summary["sentences"]
    assert first == (
        "The device is busy 27.6 ms (1 trace, decoding scaled 1.50×) of the 60.0 ms that generate() takes (1 untraced "
        "run): 54.0 % is waiting for the host."
    )
    assert "LLM decode 80.0 % (host-bound)" in second
    assert third.startswith("Traces hold 2 of 3 decode steps")
    assert "one untraced run" in fourth
    json.dumps(summary)


def test_without_a_device_or_a_trace_it_says_why(tmp_path: Path) -> None:
    on_cpu = {name: value for name, value in trace().items() if not name.startswith(("busy_", "kernels_", "launches_"))}
    frame = loaded(tmp_path / "cpu", [row(), on_cpu])
    (sentence,) = launch_bound_with_sentences(frame)["sentences"]
    assert "the trace shows no kernels" in sentence
    assert "On a CPU the device is the host" in launch_bound_with_sentences(frame, "cpu")["sentences"][0]
    assert launch_bound_figure(frame, PROVENANCE) is None
    memory_alone = launch_bound_with_sentences(frame, "cuda")["sentences"][0]
    assert "was not traced" in memory_alone
    unseen = loaded(tmp_path / "unseen", [row(), on_cpu | {"flags": ["no_kernels_traced"]}])
    assert "the profiler may not be allowed to look" in launch_bound_with_sentences(unseen, "cuda")["sentences"][0]
    bare = loaded(tmp_path / "none", [row()])
    assert (
        "was not traced: measure with probe=[timeline,memory,clocks,kernels]"
        in launch_bound_with_sentences(bare)["sentences"][0]
    )
    assert not len(launch_by_point(bare))


def test_top_kernels_are_means_over_traced_runs(tmp_path: Path) -> None:
    other = trace(sample="s1", top_kernels={"LLM_decode": [["gemm", 10, 1.0]]})
    table = top_kernels(iter_rows(write(tmp_path, [row(), trace(), other])), count=1)
    assert table[["stage", "name", "calls", "ms"]].to_numpy().tolist() == [
        ["vision_encoder", "conv", 0.5, 2.5],
        ["LLM_decode", "gemm", 15.0, 2.0],
    ]
    assert not len(top_kernels([]))


def test_the_longest_kernels_are_shown(tmp_path: Path) -> None:
    summary = summarise(write(tmp_path / "traced", [row(), row(repeat=1), trace()]))
    assert {entry["stage"] for entry in summary["top_kernels"]} == set(TOP)
    shown = " ".join(terminal_tables.as_text(terminal_tables.phase1(summary, PROVENANCE)).split())
    assert "Longest device kernels of a traced request, by stage" in shown
    assert summarise(write(tmp_path / "plain", [row()]))["top_kernels"] == []


def test_the_figure_has_a_bar_a_stage(tmp_path: Path) -> None:
    figure = launch_bound_figure(loaded(tmp_path, [row(), trace()]), PROVENANCE)
    assert figure is not None
    times, shares = figure.axes
    assert [label.get_text() for label in times.get_yticklabels()] == [
        "Setup", "Vision encoder", "Projector", "LLM prefill", "LLM decode", "generate()",
    ]  # fmt: skip
    assert [round(bar.get_width(), 3) for bar in times.patches[-2:]] == [60.0, 27.6]
    assert [text.get_text() for text in shares.texts][-1] == "waits 54.0 %"

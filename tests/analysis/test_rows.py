from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.made import row, usual, write
from vlmbench.analysis import frames
from vlmbench.analysis.frames import load_runs, values
from vlmbench.errors import InputError
from vlmbench.schema import Mode, Status


def test_only_ok_instrumented_rows_are_latencies(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, usual(50, 10)))
    assert len(frames.workload(frame)) == 50
    assert len(frames.reference(frame)) == 10
    assert len(frames.measured(frame)) == 60
    assert len(frames.measured(frame, "bare")) == 10
    assert frames.workload(frame)["T_setup"].max() == 1


def test_a_sweep_without_data_set_is_its_own_workload(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, [row("vision_tokens=64"), row("vision_tokens=128"), row("reference", "r")]))
    assert len(frames.workload(frame)) == 2
    assert len(frames.reference(frame)) == 1


def test_data_set_at_the_points_of_a_sweep(tmp_path: Path) -> None:
    made = [row(f"dataset,resolution={r}", f"s{i}") for r in (224, 336) for i in range(3)]
    made += [row("reference,resolution=224", "r"), *(row("reference,resolution=336", "r", repeat=i) for i in range(2))]
    frame = load_runs(write(tmp_path, made))
    assert len(frames.workload(frame)) == 6
    assert set(frames.reference(frame)["point_id"]) == {"reference,resolution=336"}


def test_counts_and_failures(tmp_path: Path) -> None:
    made = [row(flags=("gc_pause", "clock_change")), row(sample="b", flags=("gc_pause",)), row(sample="c")]
    made += [row(sample=f"e{i}", status=Status.ERROR, reason="bad image") for i in range(2)]
    made += [row(sample="o", status=Status.OOM), row(sample="t", mode=Mode.TRACE)]
    frame = load_runs(write(tmp_path, made))
    assert frames.as_counts(frames.status_counts(frame), "status") == {"ok": 4, "error": 2, "oom": 1}
    assert frames.flag_counts(frame).to_dict("records") == [
        {"flag": "gc_pause", "rows": 2},
        {"flag": "clock_change", "rows": 1},
    ]
    assert frames.failures(frame).to_dict("records") == [
        {"status": "error", "reason": "bad image", "rows": 2},
        {"status": "oom", "reason": "no reason given", "rows": 1},
    ]


def test_a_request_that_failed_again_counts_once_and_one_measured_later_not_at_all(tmp_path: Path) -> None:
    made = [row(sample="a", status=Status.ERROR, reason="bad image") for _ in range(3)]
    made += [row(sample="b", status=Status.OOM, mode=Mode.BARE, reason="needs 9 GiB"), row(sample="b")]
    made += [row("p=2", "", status=Status.SKIPPED, reason="too large"), row("p=2", "c")]
    made += [row("p=4", "", status=Status.SKIPPED, reason="too large")]
    made += [row(sample="d"), row(sample="d", status=Status.OOM, mode=Mode.TRACE, reason="no room to trace")]
    frame = load_runs(write(tmp_path, made))
    assert {(f["status"], f["reason"], f["rows"]) for f in frames.failures(frame).to_dict("records")} == {
        ("error", "bad image", 1),
        ("skipped", "too large", 1),
        ("oom", "no room to trace", 1),
    }


@pytest.mark.parametrize("flag", ["gc_pause", "clock_drop", "throttled:power", *sorted(frames.FIRST_TIME)])
def test_flags_that_make_a_run_slow(flag: str) -> None:
    assert frames.is_cause(flag)


@pytest.mark.parametrize(
    "flag",
    ["residual_above_goal", "negative_T_setup", "energy_below_resolution", "not_finite:T_total", "no_costs", "unheard"],
)
def test_flags_that_do_not(flag: str) -> None:
    assert not frames.is_cause(flag)


def test_a_time_that_is_a_text_is_named() -> None:
    with pytest.raises(InputError, match="'T_total' of a row must be a number"):
        values(pd.DataFrame({"T_total": ["fast", 1.0]}), "T_total")


def test_rows_of_the_workload_stay_where_a_repeated_request_has_the_same_label(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, [row(point="batch_size=2"), row(point="reference")]))
    frame.index = [0, 0]  # of two runs below each other
    assert frames.workload(frame)["point_id"].tolist() == ["batch_size=2"]

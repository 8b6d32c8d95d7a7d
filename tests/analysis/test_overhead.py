from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.analysis.made import row, write
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.overhead import overhead_summary, paired_ratios
from vlmbench.schema import Mode, Status


def pairs(n: int, overhead: float, *, drift: float = 0.0):
    noise = random.Random(0)
    for i in range(n):
        base = 20 + drift * i + noise.gauss(0, 0.01)
        yield row("reference", "r", repeat=i, prefill=base)
        yield row("reference", "r", repeat=i, prefill=base, mode=Mode.BARE, scale=1 / (1 + overhead))


def test_planted_overhead_survives_drift(tmp_path: Path) -> None:
    found = overhead_summary(load_runs(write(tmp_path, pairs(100, 0.01, drift=5.0))))
    assert found["value"] == pytest.approx(0.01, abs=1e-5)
    assert found["low"] <= 0.01 + 1e-5
    assert found["high"] >= 0.01 - 1e-5
    assert found["n"] == 100


def test_pairs_are_of_one_point_sample_and_repeat(tmp_path: Path) -> None:
    rows = [
        row("reference", "r", repeat=0),
        row("reference", "r", repeat=1, mode=Mode.BARE),
        row("dataset", "r", repeat=0, mode=Mode.BARE),
        row("dataset", "a", repeat=0),
        row("dataset", "a", repeat=0, mode=Mode.BARE, scale=0.5),
        row("dataset", "b", repeat=0),
        row("dataset", "b", repeat=0, mode=Mode.BARE, status=Status.ERROR, reason="x"),
    ]
    found = paired_ratios(load_runs(write(tmp_path, rows)))
    assert found[["point_id", "sample_id", "ratio"]].values.tolist() == [["dataset", "a", 2.0]]


def test_a_bare_run_of_no_time_makes_no_pair(tmp_path: Path) -> None:
    rows = [*pairs(12, 0.01), row(sample="z"), row(sample="z", mode=Mode.BARE) | {"T_total": 0.0}]
    found = overhead_summary(load_runs(write(tmp_path, rows)))
    assert (found["n"], found["value"]) == (12, pytest.approx(0.01, abs=1e-6))


def test_no_bare_runs(tmp_path: Path) -> None:
    found = overhead_summary(load_runs(write(tmp_path, [row()])))
    assert found["value"] is None
    assert found["note"] == "no bare runs to compare with"


def test_few_pairs_have_no_interval(tmp_path: Path) -> None:
    found = overhead_summary(load_runs(write(tmp_path, pairs(5, 0.01))))
    assert found["value"] == pytest.approx(0.01, abs=1e-5)
    assert (found["low"], found["high"], found["note"]) == (None, None, "n too small: 5 of 6")


def test_halves_of_two_sessions_are_no_pair(tmp_path: Path) -> None:
    rows = [row(sample="a"), row(sample="a", mode=Mode.BARE, scale=0.1) | {"session": 1}]
    rows += [row(sample="b") | {"session": 1}, row(sample="b", mode=Mode.BARE, scale=0.5) | {"session": 1}]
    found = paired_ratios(load_runs(write(tmp_path, rows)))
    assert found[["sample_id", "session", "ratio"]].values.tolist() == [["b", 1, 2.0]]


def flagged(point: str, mode: Mode, *flags: str):
    """The half of a pair that did more work than the other: ten times as long."""
    return row(point, "s", mode=mode, scale=10.0, flags=flags)


def test_pairs_of_unlike_work_are_left_out_counted_and_said(tmp_path: Path) -> None:
    rows = [
        *pairs(20, 0.01),
        flagged("a", Mode.BARE, "shape_changed"), row("a", "s"),
        flagged("b", Mode.INSTRUMENTED, "first_seen_length", "shape_changed"), row("b", "s", mode=Mode.BARE),
        flagged("c", Mode.BARE, "first_seen_length"), row("c", "s"),
    ]  # fmt: skip
    found = overhead_summary(load_runs(write(tmp_path, rows)))
    assert found["value"] == pytest.approx(0.01, abs=1e-5)
    assert (found["n"], found["pairs_left_out"]) == (20, 3)
    assert found["left_out_by_flag"] == {"first_seen_length": 2, "shape_changed": 2}
    assert found["words"] == (
        "Watching costs 1.00 % (1.00–1.00 %), from 20 pairs of runs, worth 11; 3 pairs are left out, whose halves did unlike "
        "work: first_seen_length 2, shape_changed 2."
    )


def test_other_flags_and_flags_of_both_halves_leave_a_pair_in(tmp_path: Path) -> None:
    rows = [row("a", "s", flags=("gc_pause",)), row("a", "s", mode=Mode.BARE, flags=("clock_drop",))]
    rows += [row("b", "s", flags=("shape_changed",)), row("b", "s", mode=Mode.BARE, flags=("shape_changed",))]
    found = overhead_summary(load_runs(write(tmp_path, rows)))
    assert (found["n"], found["pairs_left_out"]) == (2, 0)


def test_when_every_pair_did_unlike_work_the_cost_is_not_known(tmp_path: Path) -> None:
    rows = [row("a", "s", flags=("shape_changed",)), row("a", "s", mode=Mode.BARE)]
    found = overhead_summary(load_runs(write(tmp_path, rows)))
    assert found["value"] is None
    assert found["note"] == "no pair of runs that did alike work"
    assert found["words"] == (
        "What watching itself costs is not known: 1 pair is left out, whose halves did unlike work: shape_changed 1."
    )
    alone = overhead_summary(load_runs(write(tmp_path / "alone", [row()])))
    assert alone["words"] == "What watching itself costs is not known: no bare runs."

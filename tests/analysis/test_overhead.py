from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.analysis.made import row, write
from vlmbench.analysis.load import load_runs
from vlmbench.analysis.overhead import instrument_overhead, paired_ratios
from vlmbench.records.record import Mode, Status


def pairs(n: int, overhead: float, *, drift: float = 0.0):
    noise = random.Random(0)
    for i in range(n):
        base = 20 + drift * i + noise.gauss(0, 0.01)
        yield row("reference", "r", repeat=i, prefill=base)
        yield row("reference", "r", repeat=i, prefill=base, mode=Mode.BARE, scale=1 / (1 + overhead))


def test_planted_overhead_survives_drift(tmp_path: Path) -> None:
    found = instrument_overhead(load_runs(write(tmp_path, pairs(100, 0.01, drift=5.0))))
    assert found.value == pytest.approx(0.01, abs=1e-5)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.01 + 1e-5
    assert found.high >= 0.01 - 1e-5
    assert found.n == 100


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


def test_no_bare_runs(tmp_path: Path) -> None:
    found = instrument_overhead(load_runs(write(tmp_path, [row()])))
    assert found.value is None
    assert found.note == "no bare runs to compare with"


def test_few_pairs_have_no_interval(tmp_path: Path) -> None:
    found = instrument_overhead(load_runs(write(tmp_path, pairs(5, 0.01))))
    assert found.value == pytest.approx(0.01, abs=1e-5)
    assert (found.low, found.high, found.note) == (None, None, "n too small: 5 of 6")

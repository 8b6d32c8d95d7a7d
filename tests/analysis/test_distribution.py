from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.made import row, usual, write
from vlmbench.analysis.distribution import gap_table, latency_table, tail_ratios
from vlmbench.analysis.frames import load_runs, load_token_gaps
from vlmbench.schema import Status


def one(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_known_quantiles(tmp_path: Path) -> None:
    # prefill 1 … 1000 ms: T_total = 10 + prefill, so quantiles are known to the digit
    order = random.Random(0).sample(range(1, 1001), 1000)
    frame = load_runs(write(tmp_path, [row(sample=f"s{i}", prefill=float(v), gaps=[]) for i, v in enumerate(order)]))
    found = one(latency_table(frame), metric="T_total")
    assert (found["n"], found["samples"], found["group"]) == (1000, 1000, "workload")
    assert found["mean"] == pytest.approx(10 + 500.5)
    for name, value in (("p50", 510.5), ("p90", 910.1), ("p95", 960.05), ("p99", 1000.01)):
        assert found[name] == pytest.approx(value, rel=1e-6)
        assert found[f"{name}_low"] < value < found[f"{name}_high"]
    # ranks of the binomial for n = 1000: P50 between the 469th and the 532nd value, and a little wider, for that the
    # runs are independent is not known beforehand
    assert found["p50_low"] == pytest.approx(479, abs=12)
    assert found["p50_high"] == pytest.approx(542, abs=12)
    assert 700 < found["effective_n"] <= 1000
    assert not np.isnan(found["p99_low"])


def test_too_few_runs_give_no_upper_quantile(tmp_path: Path) -> None:
    found = one(latency_table(load_runs(write(tmp_path, [row(sample=f"s{i}") for i in range(50)]))), metric="T_total")
    assert found["p90"] is not None
    assert found["p99"] is None or np.isnan(found["p99"])
    assert found["p99_note"] == "n too small: 50 of 368"


def test_repeats_of_samples_are_clusters(tmp_path: Path) -> None:
    order = random.Random(1).sample(range(160), 160)
    made = [row(sample=f"s{i}", repeat=r, prefill=20.0 + i, gaps=[]) for i in order for r in range(10)]
    found = one(latency_table(load_runs(write(tmp_path, made))), metric="T_total")
    assert (found["n"], found["samples"]) == (1600, 160)
    assert found["p90"] == pytest.approx(173, abs=0.5)
    assert "n too small" in found["p99_note"], "1,600 runs of 160 samples are worth 160"


def test_tail_of_the_workload_over_the_tail_of_nothing(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, usual(400, 400)))
    ratios = tail_ratios(frame).set_index("quantile")
    p90 = ratios.loc["p90"]
    # output tokens spread evenly over 2 … 33: P90 / P50 = (30 + 10 * 29) / (30 + 10 * 16.5)
    assert p90["workload"] == pytest.approx(320 / 195, rel=0.06)
    assert p90["reference"] == pytest.approx(1.0, abs=0.01)
    assert p90["beyond_low"] < p90["workload"] / p90["reference"] < p90["beyond_high"]
    assert p90["beyond"] == pytest.approx(p90["workload"] / p90["reference"])


def test_without_reference_nothing_is_beyond(tmp_path: Path) -> None:
    ratios = tail_ratios(load_runs(write(tmp_path, [row(sample=f"s{i}") for i in range(50)])))
    assert ratios["beyond"].isna().all()
    assert ratios.set_index("quantile").loc["p90", "workload"] == pytest.approx(1.0)


def test_gaps_of_requests(tmp_path: Path) -> None:
    noise = random.Random(4)
    made = [row(sample=f"s{i}", gaps=[noise.gauss(10, 1) for _ in range(20)]) for i in range(400)]
    write(tmp_path, made)
    found = one(gap_table(load_token_gaps(tmp_path)), metric="ITL")
    assert (found["n"], found["samples"]) == (8000, 400)
    assert found["p50"] == pytest.approx(10, abs=0.1)
    assert found["p99"] == pytest.approx(12.33, abs=0.3)
    assert found["p99_low"] < found["p99"] < found["p99_high"]


def test_no_gaps_no_row(tmp_path: Path) -> None:
    write(tmp_path, [row(gaps=[])])
    assert gap_table(load_token_gaps(tmp_path)).empty


def test_nothing_measured_has_no_row(tmp_path: Path) -> None:
    failed = load_runs(write(tmp_path, [row(status=Status.ERROR, reason="x")]), ["T_total"])
    assert latency_table(failed).empty

"""Known answers: the verdict follows from the interval and the limit alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import row, write
from vlmbench.analysis.breakdown import llm_share
from vlmbench.analysis.claims import (
    Verdict,
    language_model_is_the_bottleneck,
    tail_is_the_problem,
    token_kinds_differ,
)
from vlmbench.analysis.frames import load_runs


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.21, 1.4, Verdict.HOLDS), (1.0, 1.19, Verdict.FAILS), (1.19, 1.21, Verdict.OPEN), (None, None, Verdict.OPEN)],
)
def test_a_tail_is_told_by_its_interval(low: float | None, high: float | None, expected: Verdict) -> None:
    ratio = {"quantile": "p95", "workload": 1.2, "workload_low": low, "workload_high": high}
    assert tail_is_the_problem({"tail": {"request": {"ratio": ratio}}}).verdict is expected
    assert tail_is_the_problem({"headline": {"tail_ratio": ratio}}).verdict is expected


def test_a_tail_that_the_run_does_not_carry_is_open_and_says_why() -> None:
    rows = [{"quantile": "p90", "workload": None, "workload_note": "too few independent runs: 404 are worth 13 of 36"}]
    found = tail_is_the_problem({"tail": {"request": {"ratio": None}, "ratios_to_median": rows}})
    assert (found.verdict, found.value, found.of) == (Verdict.OPEN, None, rows[0]["workload_note"])


def test_the_tail_of_generate_does_not_stand_for_a_request_that_carries_none() -> None:
    inner = {"quantile": "p99", "workload": 1.32, "workload_low": 1.29, "workload_high": 1.38}
    note = "too few independent runs: 900 are worth 25 of 36"
    found = tail_is_the_problem(
        {
            "tail": {"request": {"ratio": None, "note": note}, "ratios_to_median": [inner]},
            "headline": {"tail_ratio": inner},
        }
    )
    assert (found.verdict, found.value, found.of) == (Verdict.OPEN, None, note)
    untimed = {"tail": {"request": {"ratio": None, "note": None}}, "headline": {"tail_ratio": inner}}
    assert tail_is_the_problem(untimed).verdict is Verdict.HOLDS


def test_what_was_not_measured_is_no_verdict() -> None:
    assert tail_is_the_problem({}).verdict is Verdict.UNMEASURED
    assert language_model_is_the_bottleneck({"llm_share": {}}).verdict is Verdict.UNMEASURED
    assert token_kinds_differ({}).verdict is Verdict.UNMEASURED


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.01, 9.0, Verdict.HOLDS), (0.1, 0.9, Verdict.HOLDS), (0.9, 1.1, Verdict.FAILS), (0.5, 1.5, Verdict.OPEN)],
)
def test_tokens_cost_the_same_only_by_a_narrow_interval(low: float, high: float, expected: Verdict) -> None:
    ratios: dict[str, Any] = {"output_over_vision": {"value": 1.0, "low": low, "high": high}}
    assert token_kinds_differ({"ratios": ratios}).verdict is expected


def test_the_language_models_share_is_of_the_whole_request(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", prefill=20.0 + i % 3) for i in range(60)]  # 1 + 8 + 1 + 21 + 30 + 5.75 ms on average
    found = llm_share(load_runs(write(tmp_path, rows)))
    assert found["whole"] == "T_request"
    assert found["value"] == pytest.approx(51 / 66.75)
    assert language_model_is_the_bottleneck({"llm_share": found}).verdict is Verdict.HOLDS

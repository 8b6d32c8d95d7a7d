"""Two runs against each other: planted changes are found with their size, equal runs differ in nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import vlmbench
from tests.analysis.made import row, write
from vlmbench.analysis.compare import Change, compare
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.shift import shift_between


def a_run(directory: Path, seed: int, *, samples: int = 40, repeats: int = 5, **changed: float) -> pd.DataFrame:
    """Requests of different lengths, each repeated, with 1 % of noise."""
    noise = random.Random(seed)

    def times(name: str, value: float) -> float:
        return value * changed.get(name, 1.0) * noise.gauss(1, 0.01)

    rows: list[dict[str, Any]] = [
        row(
            sample=f"s{i}",
            repeat=repeat,
            started=float(repeat * samples + i),
            vision=times("vision", 8.0),
            prefill=times("prefill", 20.0 + i),
            gaps=[times("decode", 10.0)] * 3,
        )
        for repeat in range(repeats)
        for i in range(samples)
    ]
    return load_runs(write(directory, rows))


def test_the_stage_that_changed_is_named_with_its_ratio(tmp_path: Path) -> None:
    found = compare(a_run(tmp_path / "a", 1), a_run(tmp_path / "b", 2, prefill=1.2, vision=0.9))
    prefill, vision = found.changes["T_LLM_prefill"], found.changes["T_vision_encoder"]
    assert (prefill.change, vision.change) == (Change.SLOWER, Change.FASTER)
    assert prefill.ratio.value == pytest.approx(1.2, abs=0.01)
    assert vision.ratio.value == pytest.approx(0.9, abs=0.01)
    decode = found.changes["T_LLM_decode"]
    assert decode.change is Change.NONE_BEYOND
    assert decode.verdict().startswith("no difference beyond 0.")
    assert found.requests == 40
    assert found.words()[0] == "40 requests that both runs measured."
    assert list(found.table()["metric"]) == list(found.changes)
    assert found.as_dict()["changes"][0]["metric"] == "T_request"


def test_requests_measured_once_are_compared_in_pairs(tmp_path: Path) -> None:
    first = a_run(tmp_path / "a", 1, samples=80, repeats=1)
    found = compare(first, a_run(tmp_path / "b", 2, samples=100, repeats=1, decode=1.05))
    assert found.changes["T_LLM_decode"].change is Change.SLOWER
    assert found.changes["T_LLM_decode"].ratio.value == pytest.approx(1.05, abs=0.01)
    assert (found.requests, found.only_baseline, found.only_candidate) == (80, 0, 20)
    assert "20 that one alone measured are left out" in found.words()[0]


def test_too_few_runs_are_no_verdict(tmp_path: Path) -> None:
    found = compare(a_run(tmp_path / "a", 1, samples=1), a_run(tmp_path / "b", 2, samples=1))
    assert {change.change for change in found.changes.values()} == {Change.TOO_NOISY}
    assert "n too small: 5 of 10" in found.changes["T_total"].verdict()


def test_runs_without_a_common_request(tmp_path: Path) -> None:
    other = load_runs(write(tmp_path / "b", [row(sample="else")]))
    found = compare(a_run(tmp_path / "a", 1), other)
    assert not found.changes
    assert (found.only_baseline, found.only_candidate) == (40, 1)
    assert "no request in common" in found.words()[0]


def test_swapping_the_sides_inverts_the_ratio() -> None:
    noise = random.Random(0)
    first = [noise.gauss(100, 3) for _ in range(60)]
    second = [noise.gauss(110, 3) for _ in range(60)]
    there, back = (
        shift_between(first, ["r"] * 60, second, ["r"] * 60),
        shift_between(second, ["r"] * 60, first, ["r"] * 60),
    )
    assert (there.estimate.value or 0) * (back.estimate.value or 0) == pytest.approx(1)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.differs()


def test_directories_are_compared_by_their_public_name(tmp_path: Path) -> None:
    a_run(tmp_path / "a", 1)
    a_run(tmp_path / "b", 2, prefill=1.2)
    assert vlmbench.compare(tmp_path / "a", tmp_path / "b").changes["T_LLM_prefill"].change is Change.SLOWER

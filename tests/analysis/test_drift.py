"""The A/A check: planted drift is found with its size, noise is no clean bill, and calm is no alarm."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.made import row, write
from tests.analysis.swept import VISION, frame_of, sweep
from vlmbench.analysis.drift import aa_summary, halves_check
from vlmbench.analysis.frames import load_runs
from vlmbench.schema import Status


def test_halves_of_a_steady_run_agree() -> None:
    found = halves_check(frame_of(sweep("vision_tokens", VISION, repeats=10)))
    assert found is not None
    assert found.verdict == "clean"
    assert found.ratio == pytest.approx(1, abs=0.005)
    assert f"no drift beyond {100 * max(1 - found.estimate.low, found.estimate.high - 1):.2f}"[:20] in found.words()


def test_drift_is_found_with_its_size() -> None:
    frame = frame_of(sweep("vision_tokens", VISION, repeats=10))
    frame.loc[frame["repeat"] >= 5, "T_total"] *= 1.05
    found = halves_check(frame)
    assert found is not None
    assert found.verdict == "drift"
    assert found.ratio == pytest.approx(1.05, abs=0.005)
    assert "DRIFT" in found.words()


def test_noise_that_hides_drift_is_no_clean_bill() -> None:
    found = halves_check(frame_of(sweep("vision_tokens", VISION, repeats=6, noise=0.6)))
    assert found is not None
    assert found.verdict == "too noisy"
    assert "too noisy to tell" in found.words()


def test_halves_need_repeats() -> None:
    assert halves_check(frame_of(sweep("vision_tokens", VISION, repeats=3))) is None
    assert halves_check(frame_of(sweep("vision_tokens", VISION, repeats=1))) is None


def test_false_alarms_of_the_halves_check_are_rare() -> None:
    random, alarms = np.random.default_rng(0), 0
    for _ in range(60):
        frame = frame_of(sweep("vision_tokens", VISION[:6], repeats=10, noise=0.05, seed=int(random.integers(2**31))))
        found = halves_check(frame)
        assert found is not None
        alarms += found.verdict == "drift"
    assert alarms <= 8


@pytest.mark.parametrize(("slower", "verdict"), [(0.0, "clean"), (2.0, "drift")])
def test_a_single_repeated_request(tmp_path: Path, slower: float, verdict: str) -> None:
    noise = random.Random(2)
    made = [
        row("reference", "r", repeat=i, started=float(i), prefill=20 + noise.gauss(0, 0.5) + (slower if i >= 50 else 0))
        for i in range(100)
    ]
    random.Random(3).shuffle(made)  # the order of time counts, not that of the file
    made += [row(sample=f"s{i}", started=100.0 + i, prefill=90.0) for i in range(5)]
    check = halves_check(load_runs(write(tmp_path, made)))
    assert check is not None
    assert check.verdict == verdict
    assert check.ratio == pytest.approx((60 + slower) / 60, abs=0.004)
    assert "100 runs of one request" in check.words()


def test_the_session_goes_before_a_wall_clock_that_was_set_back(tmp_path: Path) -> None:
    noise = random.Random(2)
    made = [
        row("reference", "r", repeat=i, started=float(i - 7200 * late), prefill=20 + noise.gauss(0, 0.1) + 2 * late)
        | {"session": int(late)}
        for i in range(100)
        for late in [i >= 50]
    ]
    check = halves_check(load_runs(write(tmp_path, made)))
    assert check is not None
    assert check.ratio == pytest.approx(62 / 60, abs=0.004)


def test_samples_are_compared_with_themselves(tmp_path: Path) -> None:
    noise = random.Random(5)
    made = [
        row(
            sample=f"s{i}",
            repeat=r,
            started=100.0 * r + i,
            prefill=10.0 * i * noise.gauss(1.1 if r >= 2 else 1, 0.002),
            gaps=[],
        )
        for i in range(1, 41)
        for r in range(4)
    ]
    check = halves_check(load_runs(write(tmp_path, made)))
    assert check is not None
    assert (check.requests, check.verdict) == (40, "drift")
    assert check.ratio == pytest.approx(1.1, abs=0.01)
    assert "the 160 repeats of 40 requests" in check.words()


def test_different_samples_are_called_so(tmp_path: Path) -> None:
    check = halves_check(load_runs(write(tmp_path, [row(sample=f"s{i}", started=float(i)) for i in range(40)])))
    assert check is not None
    assert check.ratio == 1
    assert "different samples" in check.words()


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert halves_check(load_runs(write(tmp_path, [row()]))) is None
    failed = load_runs(write(tmp_path, [row(status=Status.ERROR, reason="x")]), ["T_total"])
    assert halves_check(failed) is None
    assert aa_summary(failed) is None


def test_a_stage_that_repeats_is_not_blamed_for_one_that_drifts() -> None:
    frame = frame_of(sweep("vision_tokens", VISION, repeats=10))
    late = frame["repeat"] >= 5
    frame.loc[late, "T_total"] += 0.1 * frame.loc[late, "T_LLM_decode"]
    frame.loc[late, "T_LLM_decode"] *= 1.1
    found = aa_summary(frame)
    assert found is not None
    verdicts = {stage: check["verdict"] for stage, check in found["by_stage"].items()}
    assert verdicts["T_LLM_decode"] == "drift"
    assert found["by_stage"]["T_LLM_decode"]["ratio"] == pytest.approx(1.1, abs=0.01)
    assert verdicts["T_LLM_prefill"] == "clean"
    assert "T_residual" not in verdicts
    assert "T_LLM_prefill 1.0" in found["stages_in_words"]

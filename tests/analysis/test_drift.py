"""The A/A check: planted drift is found with its size, noise is no clean bill, and calm is no alarm."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analysis.made import row, write
from tests.analysis.swept import VISION, frame_of, sweep
from vlmbench.analysis.drift import aa_summary, halves_check
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.shift import shift_in_time, shift_within
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


def test_rows_that_name_no_request_are_no_repeats() -> None:
    frame = frame_of(sweep("vision_tokens", VISION, repeats=10))
    more = frame.assign(sample_id=None, T_total=1000 * frame["T_total"])
    found, alone = (halves_check(rows) for rows in (pd.concat([frame, more], ignore_index=True), frame))
    assert found is not None
    assert alone is not None
    assert (found.requests, found.ratio) == (alone.requests, alone.ratio)


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


SIZES = (768, 1792, 3328)


def pictures(seed: int, *, drift: float = 1.0, unlike: bool = True, only_late: int = 0) -> list[dict[str, Any]]:
    """168 requests of three sizes whose prefill is as large: 48 large ones in the first half, 29 in the second, and
    so many of a fourth size in the second half alone.
    """
    noise, made = np.random.default_rng(seed), []
    for half, large in enumerate((48, 29) if unlike else (40, 40)):
        sizes = noise.permutation([SIZES[2]] * large + [SIZES[i % 2] for i in range(84 - large)])
        sizes[: only_late * half] = 5000
        for i, size in enumerate(sizes.tolist()):
            factor = float(np.exp(0.01 * noise.standard_normal())) * (drift if half else 1.0)
            made.append(row(sample=f"s{half}-{i}", started=84.0 * half + i, setup=0.0, vision=None, projector=None,
                            prefill=size / 10 * factor, gaps=[], tokens=(size, 20)))  # fmt: skip
    return made


def test_a_half_with_more_large_pictures_is_no_drift(tmp_path: Path) -> None:
    rows = pictures(1)
    check = halves_check(load_runs(write(tmp_path, rows)))
    assert check is not None
    assert check.verdict == "clean"
    assert check.ratio == pytest.approx(1, abs=0.005)
    assert "which are different samples, within 3 shapes of requests" in check.words()
    assert "half alone" not in check.words()
    times = [r["T_total"] for r in rows]
    assert shift_in_time(times, [False] * 84 + [True] * 84, [0] * 168, clip=False).differs(), "the mix alone would"


@pytest.mark.parametrize("unlike", [True, False])
def test_a_drift_within_shapes_is_found_with_its_size(tmp_path: Path, unlike: bool) -> None:
    check = halves_check(load_runs(write(tmp_path, pictures(2, drift=1.05, unlike=unlike))))
    assert check is not None
    assert check.verdict == "drift"
    assert check.ratio == pytest.approx(1.05, abs=0.006)


def test_runs_of_a_shape_that_one_half_alone_has_are_counted(tmp_path: Path) -> None:
    check = halves_check(load_runs(write(tmp_path, pictures(3, only_late=7))))
    assert check is not None
    assert (check.verdict, check.estimate.n, check.requests) == ("clean", 161, 3)
    assert "within 3 shapes of requests (7 runs of 1 shape that one half alone has not compared)" in check.words()


@pytest.mark.parametrize(("drift", "verdict"), [(1.0, "clean"), (1.1, "drift")])
def test_where_hardly_a_shape_comes_again_token_counts_are_taken_out(
    tmp_path: Path, drift: float, verdict: str
) -> None:
    noise = np.random.default_rng(4)
    made = []
    for i in range(200):
        late = i >= 100
        size = int(noise.integers(1000, 9000) * (0.7 if late else 1))
        took = (20 + size / 50) * float(np.exp(0.01 * noise.standard_normal())) * (drift if late else 1.0)
        made.append(row(sample=f"s{i}", started=float(i), setup=0.0, vision=None, projector=None, prefill=took, gaps=[],
                        tokens=(size, 20)))  # fmt: skip
    check = halves_check(load_runs(write(tmp_path, made)))
    assert check is not None
    assert check.verdict == verdict
    assert check.ratio == pytest.approx(drift, abs=0.02)
    assert "what token counts explain is taken out" in check.words()


def test_requests_of_one_shape_are_compared_as_they_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(5)
    made = [row(sample=f"s{i}", started=float(i), prefill=20 + float(noise.random()), gaps=[]) for i in range(60)]
    check = halves_check(load_runs(write(tmp_path, made)))
    times = load_runs(write(tmp_path, made))["T_total"].to_numpy(float)
    assert check is not None
    plain = shift_in_time(times, [False] * 30 + [True] * 30, [0] * 60, clip=False)
    assert check.shift == plain
    assert check.basis == "halves of the workload, which are different samples"


def test_shapes_that_are_not_known_are_called_so(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, [row(sample=f"s{i}", started=float(i)) for i in range(40)]))
    check = halves_check(frame.drop(columns=[name for name in frame if str(name).startswith("num_")]))
    assert check is not None
    assert "which are different samples of unknown shapes" in check.words()


def test_a_shift_within_equal_mixes_is_that_of_the_whole() -> None:
    noise = np.random.default_rng(6)
    times, later = np.exp(0.05 * noise.standard_normal(120)), np.arange(120) >= 60
    one, whole = shift_within(times, later, np.zeros(120)), shift_in_time(times, later, np.zeros(120), clip=False)
    assert one.estimate.value == pytest.approx(whole.estimate.value, rel=1e-12)
    assert one.estimate.low == pytest.approx(whole.estimate.low, abs=0.002)
    levels = np.tile([1.0, 3.0, 10.0], 40)
    mixed = shift_within(levels * times, later, levels)
    assert mixed.estimate.value == pytest.approx(whole.estimate.value, rel=1e-12)

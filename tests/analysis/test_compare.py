"""Two runs against each other: planted changes are found with their size, equal runs differ in nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import vlmbench
from tests.analysis.made import row, write
from vlmbench.analysis.compare import Change, Comparison, compare
from vlmbench.analysis.frames import load_runs, with_turns
from vlmbench.analysis.shift import partners, shift_between
from vlmbench.analysis.two_sides import judge
from vlmbench.report.comparison import as_dict, as_markdown, text


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


def test_requests_may_be_names_or_numbers_and_those_of_one_side_are_left_out() -> None:
    times = np.random.default_rng(3).uniform(90, 110, 60)
    named = shift_between(
        times[:50], [f"r{i:02d}" for i in range(50)], 2 * times[10:], [f"r{i:02d}" for i in range(10, 60)]
    )
    numbered = shift_between(times[:50], np.arange(50), 2 * times[10:], np.arange(10, 60))
    assert named == numbered
    assert named.requests == 40
    assert named.estimate.value == pytest.approx(2)


def test_what_depends_on_the_run_before_is_seen_in_the_order_of_either_side() -> None:
    """Two runs of a data set in unlike orders: the one that keeps still must not hide how slowly the other changes."""

    def ends(*, still_first: bool, shuffled: bool = True) -> list[tuple[float, float]]:
        found = []
        for seed in range(60):
            draws = np.random.default_rng(seed)
            noise = draws.standard_normal(400)
            for i in range(1, 400):
                noise[i] = 0.9 * noise[i - 1] + math.sqrt(1 - 0.9**2) * noise[i]
            names = draws.permutation(400) if shuffled else np.arange(400)
            still = (np.exp(0.01 * draws.standard_normal(400)), np.arange(400))
            sides = [still, (np.exp(0.05 * noise), names)][:: 1 if still_first else -1]
            told = shift_between(*sides[0], *sides[1]).estimate
            if told.low is not None and told.high is not None:  # some are worth too few
                found.append((told.low, told.high))
        assert len(found) > 40
        return found

    there, back = ends(still_first=True), ends(still_first=False)
    for found in (there, back, ends(still_first=True, shuffled=False)):
        assert np.mean([low <= 1 <= high for low, high in found]) > 0.88, "0.4 in the order of the still one"
    assert [high for _, high in there] == pytest.approx([1 / low for low, _ in back])


def test_directories_are_compared_by_their_public_name(tmp_path: Path) -> None:
    a_run(tmp_path / "a", 1)
    a_run(tmp_path / "b", 2, prefill=1.2)
    assert vlmbench.compare(tmp_path / "a", tmp_path / "b").changes["T_LLM_prefill"].change is Change.SLOWER


TURNS = ([4 * i + j for i in range(8) for j in (0, 3)], [4 * i + j for i in range(8) for j in (1, 2)])
"""Of two processes, there and back."""


def took_turns(
    directory: Path, side: int, seed: int, *, samples: int, code: float = 1.0, own: float = 1.0, id: str = "t"
) -> Path:
    """128 runs in turns of eight on a machine that is 30 % slower every second round, and 20 % slower at the end."""
    noise = random.Random(seed)
    rows = []
    for number, turn in enumerate(TURNS[side]):
        for place in range(8):
            at = 8 * turn + place
            state = (1.3 if turn // 2 % 2 else 1.0) * (1 + 0.2 * at / 256)
            asked = (8 * number + place) % samples
            made = row(
                sample=f"s{asked}", repeat=(8 * number + place) // samples, started=float(at),
                gaps=[(10 + asked) * state * code * noise.gauss(1, 0.01)] * 3,
            )  # fmt: skip
            rows.append({**made, "turn": turn, "yardstick_ms": 0.2 * state * noise.gauss(1, 0.01) * own})
    about = json.loads((write(directory, rows) / "provenance.json").read_text())
    about["sessions"] = [{"session": 0, "turns": {"id": id, "member": directory.name, "members": 2, "runs": 8}}]
    (directory / "provenance.json").write_text(json.dumps(about))
    return directory


@pytest.mark.parametrize("samples", [1, 8, 128])
def test_runs_that_took_turns_are_compared_in_pairs(tmp_path: Path, samples: int) -> None:
    first = took_turns(tmp_path / "a", 0, 1, samples=samples)
    found = vlmbench.compare(first, took_turns(tmp_path / "b", 1, 2, samples=samples))
    assert found.pairs == 128
    decode = found.changes["T_LLM_decode"]
    assert decode.change is Change.NONE_BEYOND, decode.words()
    assert decode.ratio.value == pytest.approx(1, abs=0.01)
    assert found.pace is not None
    assert not found.pace.changed
    assert "nothing is decided from it" in found.words()[1]
    slower = vlmbench.compare(first, took_turns(tmp_path / "c", 1, 3, samples=samples, code=1.1))
    assert slower.changes["T_LLM_decode"].change is Change.SLOWER
    assert slower.changes["T_LLM_decode"].ratio.value == pytest.approx(1.1, abs=0.01)
    alone = vlmbench.compare(first, took_turns(tmp_path / "d", 1, 3, samples=samples, code=1.1, id="other"))
    assert alone.pairs is None
    hidden = alone.changes["T_LLM_decode"].change is not Change.SLOWER
    assert hidden or samples == 128, "what the machine did hides it where requests do not pair the runs"


def test_the_pace_of_a_process_in_turns_is_shown_and_decides_nothing(tmp_path: Path) -> None:
    first = took_turns(tmp_path / "a", 0, 1, samples=128)
    found = vlmbench.compare(first, took_turns(tmp_path / "b", 1, 2, samples=128, own=1.1))
    assert found.pace is not None
    assert found.pace.changed
    assert found.changes["T_LLM_decode"].change is Change.NONE_BEYOND


def test_a_comparison_in_turns_says_so_everywhere(tmp_path: Path) -> None:
    sides = [took_turns(tmp_path / name, side, side, samples=128) for side, name in enumerate("ab")]
    told = judge(*sides)
    for said in (text(told), as_markdown(told), told.pairs[0].comparison.words()[0]):
        assert "measured in turns: 128 pairs" in said
    assert "ratio: in turns, 128 pairs" in as_markdown(told)
    assert as_dict(told)["pairs"][0]["in_turns"]["pairs"] == 128
    assert set(told.pairs[0].comparison.table()["pairs"]) == {128}


def few_pairs(first: pd.DataFrame, second: pd.DataFrame) -> Comparison:
    second.loc[second.index[48:], "turn"] += 100
    return compare(first, second, in_turns=True)


def test_too_few_pairs_are_compared_as_before_and_that_is_said(tmp_path: Path) -> None:
    first, second = (load_runs(took_turns(tmp_path / name, side, side, samples=128)) for side, name in enumerate("ab"))
    assert compare(first, second, in_turns=True).pairs == 128, "asked for, the rows need no provenance"
    assert compare(first, second).pairs is None
    found = few_pairs(first, second)
    assert found.pairs == 0
    assert "fewer than half" in found.words()[0]
    assert found.as_dict()["changes"] == [
        {**one, "p_value": pytest.approx(one["p_value"])} for one in compare(first, second).as_dict()["changes"]
    ]


def test_rows_of_other_turns_are_no_pairs(tmp_path: Path) -> None:
    first, second = (took_turns(tmp_path / name, side, side, samples=128) for side, name in enumerate("ab"))
    rows = [load_runs(side) for side in (first, second)]
    again = rows[1].assign(session=1)
    ids = [{"session": 0, "turns": {"id": "t"}}, {"session": 1, "turns": {"id": "u"}}]
    both = pd.concat([with_turns(part, {"sessions": ids}) for part in (rows[1].iloc[:64], again.iloc[64:])])
    found = compare(with_turns(rows[0], {"sessions": ids[:1]}), both)
    assert found.pairs == 64


def test_partners_are_the_nearest_in_turns_and_each_run_has_one() -> None:
    ours, theirs = partners([0, 0, 3, 3, 4, 4], ["r"] * 6, [1, 1, 2, 2, 5], ["r"] * 5)
    assert list(zip(ours, theirs, strict=True)) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    ours, theirs = partners([0, 2, 4, 6], ["a", "b", "a", "b"], [1, 3, 5, 21], ["b", "a", "b", "a"])
    assert list(zip(ours, theirs, strict=True)) == [(1, 0), (2, 1), (3, 2)], "the same request, not too far"
    ours, _ = partners([float("nan")] * 2, ["r"] * 2, [1, 2], ["r"] * 2)
    assert not len(ours)

"""How far out runs reach: how long P99 would take, and whose the slow turns are, where either is planted."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from vlmbench.analysis.longer_run import lasted_s
from vlmbench.report.narrative.latency import _how_long

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
far = pytest.importorskip("findings_far", reason="a source distribution has no scripts")


class Run:
    def __init__(
        self, folder: str, *, turns: dict[str, Any] | None = None, whole: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.mark, self.whole = Path(folder), "", whole
        self.provenance = {"sessions": [{"turns": turns}]}
        entry = {"workload": whole}
        self.summary = {"distribution": {"T_request": entry, "T_total": entry}}


class Results:
    """As much of the published results as the words ask for."""

    results = Path()

    def __init__(self, runs: dict[str, Run]) -> None:
        self.runs = runs

    def names(self) -> list[str]:
        return list(self.runs)

    def run(self, name: str, phase: str) -> Run | None:
        assert phase == "phase1"
        return self.runs.get(name)


def turns_of(states: list[float], noise: random.Random, *, sizes: tuple[int, ...] = (576,)) -> list[dict[str, Any]]:
    """Six requests a turn, as long as their tokens and the state of their turn make them."""
    return [
        {
            "session": 0, "turn": at, "started_unix_s": 100.0 + 3 * at + request / 2,
            "num_vision_tokens": (size := sizes[request % len(sizes)]),
            "T_total": size / 6 * state * noise.gauss(1, 0.01),
        }
        for at, state in enumerate(states)
        for request in range(6)
    ]  # fmt: skip


def spells(noise: random.Random, turns: int = 150) -> list[float]:
    found = [1.0]
    for _ in range(turns - 1):
        found.append(found[-1] if noise.random() < 0.7 else noise.choice([1.0, 1.6]))
    return found


def words_of(states: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of runs in turns whose turns had these states."""
    noise = random.Random(1)
    rows = {f"h200_{name}": turns_of(of, noise, sizes=(400, 576)) for name, of in states.items()}
    monkeypatch.setattr(far, "counted", lambda folder: rows[str(folder)])
    return str(far.alike_words(Results({name: Run(f"h200_{name}", turns={"id": "x"}) for name in states})))


@pytest.mark.parametrize("shared", [True, False])
def test_whose_slow_turns_are_is_told(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(1)
    found = [spells(noise) for _ in range(4)]
    states = {name: found[0 if shared else at] for at, name in enumerate("abcd")}
    own, others = far.together_in([states])
    assert (len(own.values), len(others.values)) == (4, 6)
    assert own.ends()[0] > 0.4, "each resembles its next turn"
    assert (others.ends()[0] > 0.7) if shared else (others.ends()[0] < 0 < others.ends()[1] < 0.3)
    said = words_of(states, monkeypatch)
    assert "goes together with that of the next turn of the same process: rank correlation 0." in said
    assert "over 4 runs (single ones" in said
    assert "over 6 pairs (single ones" in said
    assert ("not the machine as a whole" in said) is not shared


def test_turns_that_resemble_nothing_are_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    said = words_of({name: [1.0] * 150 for name in "abc"}, monkeypatch)
    assert "of the next turn of the same process cannot be told: rank correlation" in said
    assert "machine as a whole" not in said


def alike(random: np.random.Generator, lag: float, shared: float, members: int, turns: int = 150) -> dict[str, Any]:
    """Turns of which each resembles the next by a correlation, a share of their variance common to all members."""
    moved = lfilter([1.0], [1.0, -lag], random.normal(size=(members + 1, turns + 100)))[:, 100:]
    return {str(at): np.sqrt(shared) * moved[0] + np.sqrt(1 - shared) * one for at, one in enumerate(moved[1:])}


def rank(correlation: float) -> float:
    """Spearman's, of normal values with this correlation."""
    return 6 / np.pi * float(np.arcsin(correlation / 2))


@pytest.mark.parametrize("lag", [0.0, 0.4, 0.7])
@pytest.mark.parametrize("members", [2, 4])
def test_intervals_hold_what_is_planted_though_turns_depend_on_each_other(lag: float, members: int) -> None:
    random, seeds, shared = np.random.default_rng(7), 300, lag / 2
    held = np.zeros(2)
    for _ in range(seeds):
        own, others = far.together_in([alike(random, lag, shared, members)])
        for at, (one, truth) in enumerate(((own, rank(lag)), (others, rank(shared)))):
            low, high = one.ends()
            held[at] += low <= truth <= high
    assert (held / seeds >= 0.90).all(), held / seeds


@pytest.mark.parametrize(
    ("lag", "shared", "least", "most"),
    [
        (0.0, 0.0, 0.0, 0.02),  # white noise
        (0.6, 1.0, 0.0, 0.0),  # all of the machine as a whole
        (0.4, 0.2, 0.0, 0.06), (0.6, 0.3, 0.0, 0.06),  # half of it
        (0.4, 0.0, 0.9, 1.0),  # each its own
    ],
)  # fmt: skip
def test_how_often_it_is_said_that_it_is_not_the_machine(lag: float, shared: float, least: float, most: float) -> None:
    random, seeds = np.random.default_rng(8), 300
    said = resemble = 0
    for _ in range(seeds):
        own, others = far.together_in([alike(random, lag, shared, 4)])
        said += far.is_each_its_own(own, others)
        resemble += own.ends()[0] > 0
    assert least <= said / seeds <= most
    assert (resemble / seeds < 0.05) if lag == 0 else (resemble == seeds)


def test_groups_count_by_their_runs_whatever_their_turns() -> None:
    random = np.random.default_rng(9)
    groups = [alike(random, 0.5, 0.0, 2, 300), alike(random, 0.5, 0.0, 4, 120)]
    apart = [far.together_in([group])[0] for group in groups]
    own, _ = far.together_in(groups)
    assert own.mean == pytest.approx((2 * apart[0].mean + 4 * apart[1].mean) / 6)
    reach = [one.ends()[1] - one.mean for one in (own, *apart)]
    assert reach[0] == pytest.approx(np.hypot(reach[1] / 3, 2 * reach[2] / 3), rel=0.25)


def test_runs_of_other_groups_and_short_ones_are_not_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(2)
    rows = {f"h200_{name}": turns_of(spells(noise, 60 if name == "c" else 150), noise) for name in "abc"}
    monkeypatch.setattr(far, "counted", lambda folder: rows[str(folder)])
    runs = {name: Run(f"h200_{name}", turns={"id": "x" if name != "b" else "y"}) for name in "abc"}
    assert far.alike_words(Results(runs)) == ""


def _short(worth: float, independent: float) -> dict[str, Any]:
    """A workload of 900 requests worth so much at P99 and at the median, as a summary has it."""
    lacking = {"value": None, "n": 900, "n_needed": 368, "effective_n": worth, "shortfall": "too_few_independent"}
    known = {"value": 5.0, "low": 4.0, "high": 6.0}
    whole = {"n": 900, "samples": 900, "effective_n": independent, "mean": 5.0, "max": 9.0}
    return whole | {"p50": known, "p90": known, "p95": known, "p99": lacking}


@pytest.mark.parametrize(
    ("worth", "independent", "said"),
    [
        (92.0, 37.0, "7,200 requests, 60 minutes"),  # 2 x 900 x 368 / 92, 900 of them in 7.5 minutes
        (184.0, 140.0, "3,600 requests, 30 minutes"),
        (92.0, 34.0, "cannot be told"),
        (30.0, 37.0, "cannot be told"),
    ],
)
def test_how_long_p99_would_take_is_told_as_in_the_report(
    worth: float, independent: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = turns_of([1.0] * 150, random.Random(3))
    half = [row for row in requests if row["turn"] < 75]
    second = [
        row | {"session": 1, "started_unix_s": row["started_unix_s"] + 9e4} for row in requests if row not in half
    ]
    rows = half + second
    monkeypatch.setattr(far, "counted", lambda folder: rows)
    runs = {"llava_eager": Run("h200_e", whole=_short(worth, independent))}
    line = far.far_table(Results(runs)).splitlines()[2]
    assert line.endswith(f"| 900 requests in 7.5 minutes | {worth:.0f} and {worth:.0f} | – | – | {said} |")

    lasted = lasted_s([row["session"] for row in rows], [row["started_unix_s"] for row in rows])
    summary = {"headline": {"latency_metric": "T_total"}, "runs": {"workload_lasted_s": lasted}}
    summary["distribution"] = {"T_total": {"workload": runs["llava_eager"].whole}}
    words = [one for one in _how_long(summary) if one.startswith("At this dependence")]
    of_report = said.replace(" requests, ", " runs (") + ") for P99."
    assert words == ([] if said == "cannot be told" else [f"At this dependence it would take some {of_report}"])


def test_a_p99_that_is_given_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"value": 109.0, "low": 107.0, "high": 111.0, "n": 900, "effective_n": 726.0}
    monkeypatch.setattr(far, "counted", lambda folder: turns_of([1.0] * 150, random.Random(3)))
    runs = {"llava_cudagraph": Run("h200_c", whole={"effective_n": 700.0, "p99": told})}
    assert far.far_table(Results(runs)).endswith("| enough and enough | 109 (107–111) | 109 (107–111) | – |")

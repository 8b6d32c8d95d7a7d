"""How far out runs reach: how long P99 would take, and whose the slow turns are, where either is planted."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
far = pytest.importorskip("findings_far", reason="a source distribution has no scripts")


class Run:
    def __init__(self, folder: str, *, turns: dict[str, Any] | None = None, p99: dict[str, Any] | None = None) -> None:
        self.folder, self.mark = Path(folder), ""
        self.provenance = {"sessions": [{"turns": turns}]}
        entry = {"workload": {"p99": p99}}
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


@pytest.mark.parametrize("shared", [True, False])
def test_whose_slow_turns_are_is_told(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(1)
    states = [spells(noise) for _ in range(3)]
    rows = {
        f"h200_{name}": turns_of(states[0 if shared else at], noise, sizes=(400, 576))
        for at, name in enumerate(("a", "b", "c"))
    }
    monkeypatch.setattr(far, "counted", lambda folder: rows[str(folder)])
    runs = {name: Run(f"h200_{name}", turns={"id": "x"}) for name in ("a", "b", "c")}
    groups = far.in_turns(Results(runs))
    own, others = far.together_in(groups)
    assert len(own) == len(others) == 3
    assert min(own) > 0.4, "each resembles its next turn"
    assert (min(others) > 0.7) if shared else (max(map(abs, others)) < 0.3)
    assert ("not the machine as a whole" in far.alike_words(Results(runs))) is not shared


def test_runs_of_other_groups_and_short_ones_are_not_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(2)
    rows = {f"h200_{name}": turns_of(spells(noise, 60 if name == "c" else 150), noise) for name in "abc"}
    monkeypatch.setattr(far, "counted", lambda folder: rows[str(folder)])
    runs = {name: Run(f"h200_{name}", turns={"id": "x" if name != "b" else "y"}) for name in "abc"}
    assert far.alike_words(Results(runs)) == ""


def test_how_long_p99_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"value": None, "n": 900, "n_needed": 368, "effective_n": 92.0, "shortfall": "too_few_independent"}
    told = {"value": 109.0, "low": 107.0, "high": 111.0, "n": 900, "effective_n": 726.0}
    runs = {"llava_eager": Run("h200_e", p99=short), "llava_cudagraph": Run("h200_c", p99=told)}
    requests = turns_of([1.0] * 150, random.Random(3))
    second = [row | {"session": 1, "started_unix_s": row["started_unix_s"] + 9e4} for row in requests]
    monkeypatch.setattr(far, "counted", lambda folder: requests + second if str(folder) == "h200_e" else requests)
    eager, captured = far.far_table(Results(runs)).splitlines()[2:]
    assert "| 1,800 requests in 15 minutes | 92 and 92 | – | – | 60 minutes |" in eager, "time between sessions is none"
    assert "| enough and enough | 109 (107–111) | 109 (107–111) | – |" in captured

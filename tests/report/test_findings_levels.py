"""The two levels of a captured step: found where they are planted, with what their changes follow."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
levels = pytest.importorskip("findings_levels", reason="a source distribution has no scripts")


def rows(letters: str, *, captures: tuple[int, ...] = (), pauses: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """A measured request a letter: ``l`` or ``h``; a warm-up that captures, or 2 s of nothing, before some of them."""
    noise, now, found = random.Random(0), 100.0, []
    common = {"mode": "instrumented", "num_output_tokens": 8, "T_request": 70.0}
    for at, level in enumerate(letters):
        now += 2.0 if at in pauses else 0.01
        step = noise.uniform(6.12, 6.13) if level == "l" else noise.uniform(6.68, 6.70)
        if at in captures:
            found.append(
                {**common, "status": "warmup", "started_unix_s": now, "T_capture": 300.0, "T_LLM_decode": 99.0}
            )
            now += 0.38
        found.append({**common, "status": "ok", "started_unix_s": now, "T_LLM_decode": 7 * step})
        now += 0.07
    return found


def test_levels_are_found_with_what_their_changes_follow() -> None:
    found = levels.levels_of(rows("l" * 20 + "h" * 10 + "l" * 20 + "h" * 5, captures=(20, 50), pauses=(30, 40)))
    assert found == levels.Levels(
        low=pytest.approx(6.125, abs=0.005), high=pytest.approx(6.69, abs=0.01), runs=55, above=15,
        rises=2, falls=1, captured=2, paused=1, unmoved=0, stayed=0,
    )  # fmt: skip


def test_changes_that_follow_nothing_are_counted_as_such() -> None:
    found = levels.levels_of(rows("l" * 20 + "h" * 10 + "l" * 20, captures=(5,), pauses=(25,)))
    assert found is not None
    assert (found.rises, found.captured, found.falls, found.paused) == (1, 0, 1, 0)
    assert (found.unmoved, found.stayed) == (1, 1), "a capture that moves nothing, a pause that brings nothing back"


def test_nothing_changes_from_one_session_to_the_next() -> None:
    told = rows("l" * 20 + "h" * 10 + "l" * 20, captures=(20,), pauses=(30,))
    for row in told[-20:]:  # another process, that begins at the lower level
        row["session"] = 1
    found = levels.levels_of([{"session": 0, **row} for row in told])
    assert found is not None
    assert (found.rises, found.captured, found.falls, found.paused) == (1, 1, 0, 0)


def test_one_level_is_none() -> None:
    assert levels.levels_of(rows("l" * 60, captures=(10,), pauses=(30,))) is None
    assert levels.levels_of(rows("lh" * 10)) is None, "too few"
    assert levels.levels_of(rows("llll" + "h" * 36)) is None, "too few at one of them"


def test_a_traced_step_is_split_into_kernels_and_what_lies_between() -> None:
    traced = {"mode": "trace", "num_output_tokens": 8, "T_LLM_decode": 49.0, "busy_LLM_decode": 44.1}
    assert levels.step_of(traced) == pytest.approx((6.3, 0.7))
    assert levels.step_of(traced | {"mode": "instrumented"}) is None
    assert levels.step_of(traced | {"busy_LLM_decode": None}) is None


def test_what_was_tried_says_what_left_a_step_where_it_was_and_what_moved_it(tmp_path: Path) -> None:
    def line(after: str, before: float, now: float) -> str:
        times = {"before": {"median": before}, "ms_per_token": {"median": now}}
        return json.dumps({"part": "levels", "model": "llava_1_5_7b", "after": after, **times})

    file = tmp_path / "h200_captured" / "cudagraph.jsonl"
    results = SimpleNamespace(results=tmp_path, link="results")
    assert levels.tried_words(results) == ""
    file.parent.mkdir()
    still = [line("a pause of 3 s", 6.802, 6.801), line("memory given back", 6.801, 6.8)]
    file.write_text("\n".join(still))
    assert levels.tried_words(results) == "", "nothing moved it"
    file.write_text("\n".join([*still, line("another process begins and runs a kernel", 6.802, 6.232)]))
    said = levels.tried_words(results)
    assert "takes 6.80 ms takes as long after a pause of 3 s and memory given back, and after another process" in said
    assert said.endswith(
        "6.23 ms. So here no pause brings it down, and another process does; "
        "whether by beginning or by its kernel this trial does not tell."
    )
    both = [line(f"another process {did} a kernel", 6.802, 6.232) for did in ("begins and runs", "runs")]
    file.write_text("\n".join([*still, *both]))
    assert "another process does." in levels.tried_words(results)
    up = [line("graphs for a new length", 6.23, 6.8), line("a trivial graph", 6.23, 6.231)]
    file.write_text("\n".join([*still, line("another process begins and runs a kernel", 6.802, 6.232), *up]))
    assert levels.tried_words(results) == said, "what may bring a step up is not among what left it up"
    file.write_text("\n".join([still[1], line("a pause of 3 s", 6.8, 6.23)]))
    assert "no pause" not in levels.tried_words(results)

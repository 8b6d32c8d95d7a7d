"""A machine that changed is told from code that did: planted paces, planted times."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.made import row, write
from vlmbench.analysis.compare import Change, compare
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.two_sides import judge
from vlmbench.report.comparison import as_markdown, headline, text


def a_run(
    directory: Path, seed: int, *, machine: float = 1.0, code: float = 1.0, waited: float = 0.0, stage: float = 1.0
) -> pd.DataFrame:
    """100 requests, 1 % of noise, on a machine that takes ``machine`` times as long, whose thread waits for ``waited``
    of the time on top; decode follows the machine to the power of ``stage``.
    """
    noise = random.Random(seed)
    rows = []
    for i in range(100):
        now = machine * (1 + waited)
        times = {name: now * noise.gauss(1, 0.01) for name in ("setup", "vision", "projector", "prefill", "host")}
        made = row(sample=f"s{i}", started=float(i), gaps=[10 * now**stage * code * noise.gauss(1, 0.01)] * 3, **times)
        made["yardstick_ms"] = 0.2 * machine * noise.gauss(1, 0.02)
        made["thread_waited_ms"] = made["T_total"] * waited / (1 + waited)
        rows.append(made)
    write(directory, rows)
    return load_runs(directory)


def test_a_machine_that_kept_still_hides_no_regression(tmp_path: Path) -> None:
    found = compare(a_run(tmp_path / "a", 1), a_run(tmp_path / "b", 2, code=1.1))
    assert found.pace is not None
    assert not found.pace.changed
    assert found.changes["T_LLM_decode"].change is Change.SLOWER
    assert found.changes["T_LLM_prefill"].change is Change.NONE_BEYOND
    told = judge(tmp_path / "a", tmp_path / "b")
    assert told.exit_status == 1
    assert "the machine: " in text(told)
    assert judge(tmp_path / "b", tmp_path / "a").exit_status == 0


@pytest.mark.parametrize(
    "changed", [{"machine": 1.1}, {"machine": 0.9}, {"waited": 0.1}, {"machine": 1.1, "stage": 1.5}]
)
def test_what_a_changed_machine_explains_is_no_verdict_on_the_code(tmp_path: Path, changed: dict[str, float]) -> None:
    found = compare(a_run(tmp_path / "a", 1), a_run(tmp_path / "b", 2, **changed))
    assert found.pace is not None
    assert found.pace.changed
    assert found.pace.ratio.value == pytest.approx(changed.get("machine", 1) + changed.get("waited", 0), abs=0.01)
    assert {one.change for one in found.changes.values()} == {Change.MACHINE}
    told = judge(tmp_path / "a", tmp_path / "b")
    assert told.exit_status == 2
    assert headline(told).startswith(
        "Cannot be compared: the machine changed, which may explain or hide a change of T_"
    )
    assert "the machine changed: cannot be told" in as_markdown(told)


def test_what_is_beyond_the_machines_change_is_the_codes(tmp_path: Path) -> None:
    a_run(tmp_path / "a", 1)
    found = compare(load_runs(tmp_path / "a"), a_run(tmp_path / "b", 2, machine=1.03, code=1.3))
    assert found.changes["T_LLM_decode"].change is Change.SLOWER
    assert judge(tmp_path / "a", tmp_path / "b").exit_status == 1
    hidden = compare(load_runs(tmp_path / "a"), a_run(tmp_path / "c", 3, machine=1 / 1.1, code=1.1, stage=1.0))
    decode = hidden.changes["T_LLM_decode"]
    assert decode.ratio.value == pytest.approx(1, abs=0.01)
    assert decode.change is Change.MACHINE, "equal times on a faster machine are no equal code"


def test_runs_without_the_calculation_are_compared_as_they_are(tmp_path: Path) -> None:
    first, second = (
        a_run(tmp_path / name, seed, machine=machine) for name, seed, machine in (("a", 1, 1), ("b", 2, 1.1))
    )
    found = compare(first.drop(columns="yardstick_ms"), second)
    assert found.pace is None
    assert found.changes["T_total"].change is Change.SLOWER
    assert compare(first, second, same_machine=False).changes["T_total"].change is Change.SLOWER


def test_a_machine_that_wandered_allows_no_verdict(tmp_path: Path) -> None:
    first, second = a_run(tmp_path / "a", 1), a_run(tmp_path / "b", 2, code=1.1)
    second["yardstick_ms"] *= [1.0] * 50 + [1.5] * 50
    found = compare(first, second)
    assert found.pace is not None
    assert found.pace.ratio.low is None
    assert found.changes["T_LLM_decode"].change is Change.MACHINE
    assert found.changes["T_LLM_decode"].verdict() == "the machine may have changed: cannot be told"
    assert "it changed within the runs" in found.words()[1]


def test_the_calculation_beside_two_engines_tells_of_their_processes(tmp_path: Path) -> None:
    for name, seed, changed in (("a", 1, {}), ("b", 2, {"machine": 1.1})):
        a_run(tmp_path / name, seed, **changed)
    provenance = json.loads((tmp_path / "b" / "provenance.json").read_text())
    provenance["runtime"]["engine"] = "cudagraph"
    (tmp_path / "b" / "provenance.json").write_text(json.dumps(provenance))
    (pair,) = judge(tmp_path / "a", tmp_path / "b").pairs
    assert pair.comparison.pace is None
    assert pair.comparison.changes["T_total"].change is Change.SLOWER
    assert "the machine's speed is not told from the code's: runtime.engine differ" in pair.remarks

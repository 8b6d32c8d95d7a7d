"""Energy of requests and tokens from planted joules, in summaries, words, tables and pages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, row, write
from tests.analysis.swept import OUTPUT, sweep, write_run
from vlmbench.analysis.energy import COLUMNS, energy_summary
from vlmbench.analysis.frames import load_runs
from vlmbench.report import table_cells, terminal_tables
from vlmbench.report.narrative.latency import HOW_MUCH_ENERGY, answers
from vlmbench.report.page import write_page
from vlmbench.report.phase1 import write_phase1
from vlmbench.report.phase1_summary import summarise
from vlmbench.report.scaling import EXPERIMENTS, write_scaling
from vlmbench.text import span

IDLE_W, WINDOW_S = 80.0, 0.5


def joules(net: float, *, tokens: int = 4, batch: int = 1, gpus: int = 1, idle: bool = True) -> dict[str, Any]:
    """What the probe writes for a run of half a second that took ``net`` J above 80 W of idle power."""
    found: dict[str, Any] = {
        "energy_gross_j": net + IDLE_W * WINDOW_S,
        "energy_window_ms": 1e3 * WINDOW_S,
        "idle_power_w": IDLE_W if idle else None,
        "energy_resolution_ms": 100.0,
        "energy_gpus": gpus,
    }
    if idle:
        found |= {"energy_j": net, "energy_per_request_j": net / batch}
        found |= {"energy_per_output_token_j": net / (batch * tokens)}
    return found


def planted(n: int = 41) -> list[dict[str, Any]]:
    """Requests that take 100, 101 … J above idle, in random order, and make 4 tokens."""
    order = random.Random(1).sample(range(n), n)
    return [row(sample=f"s{i}") | joules(100.0 + i) for i in order]


def test_planted_energy_with_order_statistic_intervals(tmp_path: Path) -> None:
    found = energy_summary(load_runs(write(tmp_path, planted()), COLUMNS), PROVENANCE)
    assert found is not None
    request, token, gross = (found[name] for name in ("per_request_j", "per_output_token_j", "gross_per_run_j"))
    assert (request["value"], request["mean"], request["n"]) == (120, 120, 41)
    # ranks 14 and 28 of 41 enclose the median at 95 %, were the runs known to be independent
    assert request["low"] == pytest.approx(113, abs=2)
    assert request["high"] == pytest.approx(127, abs=2)
    assert (token["value"], token["low"], token["high"]) == (30, request["low"] / 4, request["high"] / 4)
    assert gross["value"] == 160
    assert (found["runs"], found["idle_power_w"], found["resolution_ms"]) == (41, 80, 100)
    assert (found["below_resolution"], found["negative"], found["gpus"], found["gpus_of_model"]) == (0, 0, 1, 1)
    assert found["words"] == [
        f"`generate()` of a request takes 120 J ({span(request['low'], request['high'], 'J')}) at the median of 41 runs, "
        "worth 24, 120 J on average; over its output tokens that is 30.0 J "
        f"({span(token['low'], token['high'], 'J')}) each, 30.0 J on average.",
        "That is the energy of the GPU above idle: 80.0 W are subtracted; with it a run takes 160 J "
        f"({span(gross['low'], gross['high'], 'J')}).",
    ]


def test_rows_below_the_resolution_are_counted_and_said(tmp_path: Path) -> None:
    rows = planted(8)
    for short in rows[:3]:
        short["flags"] = ["energy_below_resolution", "negative_energy"]
    found = energy_summary(load_runs(write(tmp_path, rows), COLUMNS), PROVENANCE)
    assert found is not None
    assert (found["below_resolution"], found["negative"]) == (3, 3)
    assert found["words"][-1].startswith("3 of 8 runs met no step of the energy counter (100 ms)")
    assert found["words"][-2] == "Withheld: 3 runs took less than an idle GPU."


@pytest.mark.parametrize(
    ("gpus", "processes", "said"),
    [(1, 2, "1 of the 2 GPUs that share the model above idle"), (2, 2, "2 GPUs together above idle")],
)
def test_whose_energy_it_is(tmp_path: Path, gpus: int, processes: int, said: str) -> None:
    provenance = PROVENANCE | {"runtime": {"processes": processes}}
    frame = load_runs(write(tmp_path, [row() | joules(100.0, gpus=gpus)]), COLUMNS)
    found = energy_summary(frame, provenance)
    assert found is not None
    assert said in " ".join(found["words"])


def test_without_idle_power_nothing_is_subtracted(tmp_path: Path) -> None:
    found = energy_summary(load_runs(write(tmp_path, [row() | joules(100.0, idle=False)]), COLUMNS), PROVENANCE)
    assert found is not None
    assert "per_request_j" not in found
    assert "A run takes 140 J at the median, with what an idle GPU takes in it." in found["words"]
    assert "its idle power is not known, so nothing is subtracted" in found["words"][1]


def test_only_watched_runs_of_the_workload_count(tmp_path: Path) -> None:
    rows = [row() | joules(100.0), row(sample="unwatched"), row("reference", "r") | joules(9999.0)]
    found = energy_summary(load_runs(write(tmp_path, rows), COLUMNS), PROVENANCE)
    assert found is not None
    assert (found["runs"], found["per_request_j"]["value"]) == (1, 100)


def test_phase_1_shows_it_everywhere(tmp_path: Path) -> None:
    report = write_phase1(write(tmp_path, planted()))
    assert report.summary["energy"]["per_request_j"]["value"] == 120
    assert HOW_MUCH_ENERGY in report.text
    request = report.summary["energy"]["per_request_j"]
    inside = span(request["low"], request["high"], "J")
    assert f"`generate()` of a request takes 120 J ({inside})" in report.text
    assert "(idle power of 80.0 W subtracted)" in report.text
    page = write_page(tmp_path).read_text()
    assert f"`generate()` of a request takes 120 J ({inside})" in page
    assert f"120 [{inside.removesuffix(' J')}]" in page


def test_without_the_probe_nothing_is_said(tmp_path: Path) -> None:
    summary = summarise(write(tmp_path, [row(sample=f"s{i}") for i in range(8)]))
    assert summary["energy"] is None
    assert HOW_MUCH_ENERGY not in dict(answers(summary, {}))
    assert not table_cells.energy(summary).rows
    assert "nergy" not in terminal_tables.as_text(terminal_tables.phase1(summary, {}))
    assert not table_cells.energy({}).rows  # a summary of an earlier version


def test_a_sweep_has_it_point_by_point(tmp_path: Path) -> None:
    rows = [
        r | joules(10.0 * r["num_output_tokens"], tokens=r["num_output_tokens"]) for r in sweep("output_tokens", OUTPUT)
    ]
    report = write_scaling(write_run(tmp_path, rows), experiment=EXPERIMENTS["phase3"])
    energy = report.summary["energy"]
    assert "per_request_j" not in energy
    assert {p["point_id"]: p["per_request_j"]["value"] for p in energy["points"]} == {
        f"output_tokens={n}": 10.0 * n for n in OUTPUT
    }
    assert "`generate()` of a request takes, at the median, 20.0 J at output_tokens=2 (10.0 J" in report.text
    assert "to 1,280 J at output_tokens=128 (10.0 J" in report.text
    assert [r[0] for r in table_cells.energy(report.summary).rows] == [f"output_tokens={n}" for n in OUTPUT]

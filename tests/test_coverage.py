"""A short version of benchmarks/coverage.py: intervals hold what they promise where runs depend on each other."""

from __future__ import annotations

import math

import pytest

from benchmarks.coverage import Cell, as_markdown, simulate

TRIALS = 60
CHANCE = 4 * math.sqrt(0.95 * 0.05 / TRIALS)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return simulate(TRIALS, ("quantiles", "shares", "halves", "loads"), columns=(0.0, 0.8), counts=(100,))


def test_intervals_hold_the_truth_under_dependence(cells: list[Cell]) -> None:
    asked = [cell for cell in cells if cell.table == "coverage" and cell.answered >= 0.5]
    assert {cell.column for cell in asked} == {0.0, 0.8}
    for cell in asked:
        assert cell.after >= 0.95 - CHANCE, cell
    worst = min(cell.before for cell in asked)
    assert worst < 0.7, "the method before does not"


def test_a_machine_that_does_not_drift_raises_few_alarms(cells: list[Cell]) -> None:
    alarms = [cell for cell in cells if cell.table == "alarms"]
    assert sum(cell.after for cell in alarms) / len(alarms) <= 0.07
    assert max(cell.before for cell in alarms) > 0.25


def test_a_real_drift_is_found(cells: list[Cell]) -> None:
    for cell in cells:
        if cell.table == "power" and cell.column == 0.0:
            assert cell.after >= 0.9


def test_the_tables_name_every_cell(cells: list[Cell]) -> None:
    said = as_markdown(cells)
    assert "| P50, n 100, lognormal |" in said
    assert "ρ 0.8" in said

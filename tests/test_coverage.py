"""A short version of benchmarks/coverage.py: intervals hold what they promise where runs depend on each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.coverage import Cell, as_markdown, simulate, taken

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
        if cell.table == "power" and cell.column == 0.0 and "shapes" not in cell.row:
            assert cell.after >= 0.9


def test_a_drift_of_unlike_requests_is_found_as_that_of_like_ones(cells: list[Cell]) -> None:
    unlike = [cell for cell in cells if "3 shapes" in cell.row]
    assert {cell.table for cell in unlike} == {"alarms", "power", "coverage"}
    for cell in unlike:
        if cell.table == "power":
            assert cell.after >= cell.before - CHANCE, cell
        elif cell.table == "alarms":
            assert cell.after <= 0.05 + CHANCE / 2, cell


def test_the_tables_name_every_cell(cells: list[Cell]) -> None:
    said = as_markdown(cells)
    assert "| P50, n 100, lognormal |" in said
    assert "ρ 0.8" in said


def test_intervals_hold_the_truth_of_runs_that_took_turns() -> None:
    found = simulate(TRIALS, ("quantiles", "shares"), columns=("in turns, levels",), counts=(100,))
    for cell in found:
        assert cell.after >= 0.95 - CHANCE or cell.answered < 0.5, cell


@pytest.mark.parametrize("kind", ["levels", "waves", "trend", "ρ 0.95"])
def test_what_a_machine_does_to_both_is_no_difference_of_runs_in_turns(kind: str) -> None:
    random = np.random.default_rng(1)

    def found(factor: float, *, in_turns: bool = True) -> float:
        told = [taken(random, 100, kind, "a data set", factor, in_turns=in_turns).differs() for _ in range(TRIALS)]
        return sum(told) / TRIALS

    assert found(1.0) <= 0.05 + CHANCE
    assert found(1.05) >= 0.6
    if kind in ("waves", "trend"):
        assert found(1.0, in_turns=False) > 0.5, "in sequence it is one"

"""The calculation beside the runs: rare where runs are short, beside each request where they are long, or off."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.test_runner import FAST, dataset, measure
from vlmbench.machine.yardstick import SHARE, Yardstick
from vlmbench.testing.planted import PlantedModel


def test_it_takes_a_small_share_of_the_time() -> None:
    stick = Yardstick()
    began = time.perf_counter_ns()
    assert stick.columns()["yardstick_ms"] > 0
    assert stick.columns() == {}, "it had its share"
    stick._began_ns -= int(2 * (time.perf_counter_ns() - began) / SHARE)
    assert stick.columns()["yardstick_ms"] > 0
    assert Yardstick(on=False).columns() == {}


@pytest.mark.parametrize("on", [True, False])
def test_rows_have_it_unless_it_is_off(tmp_path: Path, on: bool) -> None:
    _, rows = measure(tmp_path, PlantedModel(FAST), dataset(3), yardstick=on)
    found = [row["yardstick_ms"] for row in rows if "yardstick_ms" in row]
    assert bool(found) is on
    assert all(value > 0 for value in found)

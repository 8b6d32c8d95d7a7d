"""Pages of published rows, and of 100,000 made ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import row, write
from tests.page import published
from vlmbench.records.files import write_json
from vlmbench.report.page import write_page
from vlmbench.report.phase1_summary import summarise
from vlmbench.schema import Mode


@pytest.fixture(scope="session")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(published.study(tmp_path_factory.mktemp("browser") / "study"))


@pytest.fixture(scope="session")
def grid_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(published.grid(tmp_path_factory.mktemp("browser") / "grid"))


@pytest.fixture(scope="session")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 100,000 rows."""
    directory = tmp_path_factory.mktemp("browser") / "large"
    noise = random.Random(0)

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(50_000):
            reference = i % 4 == 0
            point, sample = ("reference", "ref") if reference else ("dataset", f"s{i:06d}")
            gaps = [10 * noise.lognormvariate(0, 0.1) for _ in range(7 if reference else 2 + i % 9)]
            flags = ("throttled:power",) if i % 50 == 0 else ()
            for mode in (Mode.INSTRUMENTED, Mode.BARE):
                yield row(
                    point, sample, repeat=i if reference else 0, mode=mode, gaps=gaps, started=1e9 + i,
                    flags=flags, prefill=20 * noise.lognormvariate(0, 0.1),
                )  # fmt: skip

    write_json(directory / "summary.json", summarise(write(directory, rows())))
    return write_page(directory)

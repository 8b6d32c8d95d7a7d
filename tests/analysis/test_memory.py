"""Peaks of stages come from the runs that were made for them, and from no others."""

from __future__ import annotations

import math

import pandas as pd

from vlmbench.analysis.breakdown import COLUMNS, memory_by_stage
from vlmbench.schema import TOTAL_STAGES, columns_of


def row(point: str, mode: str, status: str = "ok", **values: float) -> dict[str, object]:
    return {"point_id": point, "mode": mode, "status": status, **values}


def test_columns_are_those_of_the_probe() -> None:
    assert set(COLUMNS) == columns_of("probe memory_stages")


def test_the_most_of_each_stage_and_where() -> None:
    names = {"peak_allocated_LLM_prefill_bytes": 3.0, "peak_reserved_LLM_prefill_bytes": 8.0}
    frame = pd.DataFrame(
        [
            row("a", "trace", **names),
            row("b", "trace", **{name: value + 1 for name, value in names.items()}),
            row("b", "trace", "error", **dict.fromkeys(names, 99.0)),
            row("b", "instrumented"),
            row("c", "trace"),  # a kernel trace
        ]
    )
    assert memory_by_stage(frame).to_dict("records") == [
        {"stage": "T_LLM_prefill", "runs": 2, "allocated_bytes": 4, "reserved_bytes": 9, "point_id": "b"}
    ]


def test_nothing_where_nobody_watched() -> None:
    frame = pd.DataFrame([row("a", "trace"), row("a", "instrumented")])
    assert memory_by_stage(frame).empty
    assert memory_by_stage(frame.assign(**dict.fromkeys(COLUMNS, math.nan))).empty
    assert len(TOTAL_STAGES) * 2 == len(COLUMNS)

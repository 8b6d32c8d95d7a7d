"""Slopes with and without rows that did something for the first time, against planted ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.swept import OUTPUT, PROVENANCE, STEP, VISION, frame_of, sweep, write_run
from vlmbench.analysis.flops_latency import flops_latency
from vlmbench.analysis.results import ResultSet
from vlmbench.analysis.scaling import Scaling, describe, scalings
from vlmbench.analysis.token_costs import compare
from vlmbench.report.page import write_page
from vlmbench.report.scaling import EXPERIMENTS, write_scaling

FLAG = "first_seen_length"


def flagged_sweep(extra: float = 3000.0) -> list[dict[str, object]]:
    """An output sweep whose first run of the longest length took ``extra`` ms more; all first runs carry the flag."""
    rows = sweep("output_tokens", OUTPUT)
    for row in rows[: len(OUTPUT)]:
        row["flags"] = [FLAG]
    for name in ("T_LLM_decode", "T_total"):
        rows[len(OUTPUT) - 1][name] += extra  # type: ignore[operator]
    return rows


def with_flags(rows: list[dict[str, object]]) -> pd.DataFrame:
    return frame_of(rows).assign(flags=[" ".join(row["flags"]) for row in rows])  # type: ignore[arg-type]


def only(frame: pd.DataFrame, kind: str = "output") -> Scaling:
    (found,) = scalings(frame, kinds=[kind], stages=["T_total"])
    return found


def test_the_main_fit_keeps_every_row_and_the_second_gives_the_planted_slope() -> None:
    found = only(with_flags(flagged_sweep()))
    assert found.slope.value > 1.2 * STEP
    row = found.as_row()
    assert row["rows"] == 6 * len(OUTPUT)
    assert (row["flagged_rows"], row["flagged_by"]) == (len(OUTPUT), {FLAG: len(OUTPUT)})
    assert row["rows_unflagged"] == 5 * len(OUTPUT)
    assert row["points_unflagged"] == len(OUTPUT)
    assert row["slope_unflagged_ms"] == pytest.approx(STEP, rel=0.01)
    assert row["slope_unflagged_low"] <= STEP <= row["slope_unflagged_high"]
    assert row["r2_unflagged"] > 0.999 > row["r2"]


def test_the_second_slope_is_that_of_a_fit_of_the_other_rows_alone() -> None:
    rows = flagged_sweep()
    found = only(with_flags(rows)).as_row()
    alone = only(with_flags([row for row in rows if not row["flags"]])).as_row()
    for name in ("slope", "slope_low", "slope_high"):
        key = name.replace("slope", "slope_unflagged") + ("_ms" if name == "slope" else "")
        assert found[key] == pytest.approx(alone[name + ("_ms" if name == "slope" else "")], rel=1e-12)


def test_it_is_said_beside_the_main_figure() -> None:
    found = only(with_flags(flagged_sweep()))
    said = found.as_row()["unflagged_words"]
    assert said.startswith(f"without the 6 rows flagged {FLAG}: 15.0 (1")
    assert f"output tokens; {said}; R²" in describe(found)


@pytest.mark.parametrize("flag", ["gc_pause", "throttled:power", "residual_above_goal"])
def test_other_flags_change_nothing(flag: str) -> None:
    rows = [row | {"flags": [flag]} for row in sweep("output_tokens", OUTPUT)]
    found = only(with_flags(rows))
    assert found.unflagged is None
    assert found.as_row()["slope_unflagged_ms"] is None
    assert "without" not in describe(found)
    assert only(frame_of(rows)).unflagged is None  # rows of older files know no flags


def test_too_few_others_are_said_and_not_fitted() -> None:
    rows = sweep("output_tokens", OUTPUT)
    for row in rows:
        row["flags"] = [] if row["num_output_tokens"] in OUTPUT[:2] else ["shape_changed"]
    found = only(with_flags(rows))
    assert found.as_row()["slope_unflagged_ms"] is None
    assert found.as_row()["flagged_rows"] == 24
    assert "too few rows are left to fit without the 24 rows flagged shape_changed" in describe(found)


def test_a_narrower_range_is_said() -> None:
    rows = sweep("output_tokens", OUTPUT)
    for row in rows:
        row["flags"] = ["shape_changed"] if row["num_output_tokens"] == OUTPUT[-1] else []
    assert only(with_flags(rows)).as_row()["unflagged_words"].endswith(", from 2 to 64 only")


def test_a_slope_that_first_runs_hide_is_shown(tmp_path: Path) -> None:
    rows = sweep("output_tokens", OUTPUT, repeats=3)
    extra = np.random.default_rng(0).exponential(20_000, len(OUTPUT))[::-1]
    for row, more in zip(rows[: len(OUTPUT)], extra, strict=True):
        row["flags"], row["T_total"] = [FLAG], row["T_total"] + more
    text = write_scaling(write_run(tmp_path, rows), experiment=EXPERIMENTS["phase3"]).text
    assert "T_total: no measurable dependence" in text
    assert f"without the 6 rows flagged {FLAG}: 15.0 (" in text


def test_break_even_with_and_without() -> None:
    vision = ResultSet(path=Path("p2"), frame=with_flags(sweep("vision_tokens", VISION)), provenance=PROVENANCE)
    output = ResultSet(path=Path("p3"), frame=with_flags(flagged_sweep()), provenance=PROVENANCE)
    found = compare(vision, output)
    ratio = found.ratio_unflagged("output", "vision")
    assert ratio is not None
    assert ratio.low <= STEP / 0.05 <= ratio.high
    assert ratio.value == pytest.approx(300, rel=0.02)
    assert found.ratio("output", "vision").value > 360
    assert f"; without the 6 rows flagged {FLAG}: " in found.break_even()
    assert f"; without the 6 rows flagged {FLAG}: 15.0 (" in found.costs["output"].words()
    content = found.as_dict()
    assert content["ratios_unflagged"]["output_over_vision"]["value"] == pytest.approx(300, rel=0.02)
    assert content["token_costs"]["output"]["cost_unflagged_ms"] == pytest.approx(STEP, rel=0.01)
    assert content["token_costs"]["vision"]["cost_unflagged_ms"] is None
    plain = compare(vision, ResultSet(path=Path("p3"), frame=frame_of(sweep("output_tokens", OUTPUT)), provenance={}))
    assert plain.ratio_unflagged("output", "vision") is None
    assert plain.as_dict()["ratios_unflagged"] == {}
    assert "without" not in plain.break_even()


def test_flops_against_latency_with_and_without() -> None:
    found = flops_latency(with_flags(flagged_sweep()))
    assert found is not None
    row = found.as_dict()["language_scaling"]
    # 1.4e10 FLOP and STEP ms an output token
    assert row["ms_per_tflop_unflagged"] == pytest.approx(STEP / 0.014, rel=0.01)
    assert row["ms_per_tflop"] > 1.2 * STEP / 0.014
    assert row["flagged_rows"] == 6
    assert f"; without the 6 rows flagged {FLAG}: 1,0" in found.words()[0]
    plain = flops_latency(frame_of(sweep("output_tokens", OUTPUT)))
    assert plain is not None
    assert "without" not in plain.words()[0]


def test_table_headline_and_page_show_both(tmp_path: Path) -> None:
    report = write_scaling(write_run(tmp_path, flagged_sweep()), experiment=EXPERIMENTS["phase3"])
    assert report.summary["headline"]["output"]["slope_unflagged_ms"] == pytest.approx(STEP, rel=0.01)
    page = write_page(tmp_path).read_text()
    assert "Without first-time rows" in page
    assert f"without the 6 rows flagged {FLAG}: 15.0 (" in page

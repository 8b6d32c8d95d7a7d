"""Budgets on planted times: which settings fit, what is chosen, what became of a promise, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vlmbench.analysis.budget import (
    Budget,
    Fit,
    Promise,
    checked,
    refuse_if_nothing_fits,
    refuse_machines,
    settings_of,
    solve,
)
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.results import ResultSet
from vlmbench.errors import InputError
from vlmbench.figures.budget import budget_figure
from vlmbench.report.budget import as_dict, grid, headline, text, write

PROVENANCE: dict[str, Any] = {
    "model": {"name": "made-7b"},
    "device": {"type": "cuda", "name": "Made GPU"},
    "runtime": {"name": "eager", "dtype": "bfloat16"},
}


def _rows(vision: int, output: int, ms: float, *, n: int = 150, seed: int = 0) -> pd.DataFrame:
    """One point: independent times around ``ms``, 5 % of them more than 1.164 times as long (lognormal, σ 0.0924)."""
    times = ms * np.random.default_rng(seed + vision + output).lognormal(0, 0.0924, n)
    point = f"vision_tokens={vision},output_tokens={output}"
    return pd.DataFrame(
        {
            "status": "ok",
            "mode": "instrumented",
            "point_id": point,
            "sample_id": "one",
            "num_vision_tokens": vision,
            "num_output_tokens": output,
            "axis_vision_tokens": vision,
            "axis_output_tokens": output,
            "T_request": times,
        }
    )


def _run(*parts: pd.DataFrame, name: str = "run", provenance: dict[str, Any] = PROVENANCE) -> ResultSet:
    return ResultSet(path=Path(name), frame=pd.concat(parts, ignore_index=True), provenance=provenance)


SWEEP = _run(
    _rows(64, 8, 20), _rows(256, 8, 30), _rows(576, 8, 50), _rows(64, 32, 60), _rows(256, 32, 70), _rows(576, 32, 90)
)


def _solved(limit: float, percentile: float = 95, run: ResultSet = SWEEP) -> Budget:
    made = settings_of([run], metric="T_request", percentile=percentile)
    return solve(made, limit_ms=limit, percentile=percentile, metric="T_request")


def test_what_fits_is_over_and_cannot_be_told() -> None:
    """P95 is 1.164 times the planted time: 23, 35, 58, 70, 81, 105 ms."""
    found = _solved(81.5)
    fits = {one.point: one.fit for one in found.settings}
    assert fits["vision_tokens=64,output_tokens=32"] is Fit.FITS
    assert fits["vision_tokens=256,output_tokens=32"] is Fit.UNTOLD
    assert fits["vision_tokens=576,output_tokens=32"] is Fit.OVER
    assert headline(found) == "4 of 6 settings fit into 81.5 ms (P95 of T_request), 1 cannot be told."


def test_chosen_is_what_no_other_fitting_setting_has_as_much_of() -> None:
    found = _solved(75)
    assert [one.point for one in found.chosen] == [
        "vision_tokens=576,output_tokens=8",
        "vision_tokens=64,output_tokens=32",
    ]
    assert all(one.front for one in found.settings)


def test_the_front_leaves_out_what_costs_more_for_less() -> None:
    run = _run(_rows(64, 8, 20), _rows(256, 8, 15), _rows(576, 8, 50))
    found = _solved(75, run=run)
    assert [one.point for one in found.settings if not one.front] == ["vision_tokens=64,output_tokens=8"]


def test_of_two_runtimes_the_quicker_is_chosen() -> None:
    quick = {**PROVENANCE, "runtime": {"name": "cudagraph"}}
    runs = [_run(_rows(64, 8, 20)), _run(_rows(64, 8, 10), name="quick", provenance=quick)]
    refuse_machines(runs)
    made = settings_of(runs, metric="T_request", percentile=95)
    found = solve(made, limit_ms=40, percentile=95, metric="T_request")
    assert [one.runtime for one in found.chosen] == ["cudagraph"]
    assert found.differs == ("runtime",)


@pytest.mark.parametrize(
    ("again", "promise"),
    [
        (Estimate(value=60.0, low=55.0, high=70.0, n=150), Promise.KEPT),
        (Estimate(value=80.0, low=76.0, high=90.0, n=150), Promise.BROKEN),
        (Estimate(value=74.0, low=70.0, high=79.0, n=150), Promise.UNTOLD),
        (Estimate(value=None, n=20, n_needed=72), Promise.UNTOLD),
    ],
)
def test_promises(again: Estimate, promise: Promise) -> None:
    found = _solved(75)
    one = found.chosen[0]
    (check,) = checked(found, {one.key: again}).checks
    assert check.promise is promise
    assert check.words(75, "P95").startswith("promised P95 ≤ 75.0 ms, measured ")
    assert check.words(75, "P95").endswith(f": {promise}")


def test_what_was_measured_as_planted_keeps_its_promise_and_what_became_slower_breaks_it() -> None:
    found = _solved(75)
    keys = {one.point: one.key for one in found.chosen}
    same = _run(_rows(576, 8, 50, seed=7), _rows(64, 32, 66 * 1.3, seed=7))
    again = {keys[o.point]: o.latency for o in settings_of([same], metric="T_request", percentile=95)}
    assert [check.promise for check in checked(found, again).checks] == [Promise.KEPT, Promise.BROKEN]


def test_a_budget_below_the_cheapest_is_refused_in_two_lines() -> None:
    found = _solved(10)
    assert {one.fit for one in found.settings} == {Fit.OVER}, "judged all the same: they have a table and a figure"
    with pytest.raises(InputError) as error:
        refuse_if_nothing_fits(found)
    first, second = str(error.value).splitlines()
    assert first.startswith("latency_ms=10 is below what the cheapest setting takes: the P95 of T_request of the")
    assert "vision_tokens=64,output_tokens=8" in first
    least = float(second.removeprefix("Ask for latency_ms=").partition(" ")[0])
    assert _solved(least).chosen


def test_a_percentile_that_cannot_be_told_is_refused_in_two_lines() -> None:
    with pytest.raises(InputError) as error:
        refuse_if_nothing_fits(_solved(75, percentile=99))
    assert str(error.value).splitlines() == [
        "the P99 of T_request cannot be told at any setting: n too small: 150 of 368",
        "Measure more runs of each (measurement.stopping.min_samples=…), or ask for less: percentile=95.",
    ]


def test_what_goes_with_the_amount_on_the_axis_makes_no_kinds_of_its_own() -> None:
    found = _solved(75)
    found = replace(
        found, settings=tuple(replace(s, amounts={**s.amounts, "images": s.amounts["vision tokens"]}) for s in found.settings),
        differs=(*found.differs, "images"),
    )  # fmt: skip
    figure = budget_figure(found, PROVENANCE)
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [one for one in words if "images" in one] == []
    assert sum(len(line.get_xdata()) == 3 for line in figure.axes[0].lines) == 2, "a front for each kind"


def test_a_figure_is_drawn_of_what_can_be_told_alone(tmp_path: Path) -> None:
    found = _solved(60, run=_run(_rows(100, 8, 50, n=12)))
    assert all(one.latency.value is None for one in found.settings)
    assert [path.name for path in write(found, tmp_path, PROVENANCE)] == ["budget.json", "budget.md", "budget.tex"]


def test_what_is_advised_instead_can_be_told_of_so_many_runs() -> None:
    with pytest.raises(InputError, match=r"ask for less: percentile=50\."):
        refuse_if_nothing_fits(_solved(75, run=_run(_rows(64, 8, 20, n=30))))


def test_runs_of_different_machines_are_refused_in_two_lines() -> None:
    other = {**PROVENANCE, "device": {"type": "cuda", "name": "Other GPU"}}
    with pytest.raises(InputError) as error:
        refuse_machines([SWEEP, _run(_rows(64, 8, 20), provenance=other)])
    first, second = str(error.value).splitlines()
    assert first.endswith("and a budget is of one: device.name: Made GPU and Other GPU")
    assert second.startswith("Name runs of one machine")


def test_the_same_in_terminal_markdown_latex_json_and_a_figure(tmp_path: Path) -> None:
    found = _solved(75)
    one = found.chosen[-1]
    found = checked(found, {one.key: Estimate(value=60.0, low=55.0, high=70.0, n=150)}, ["A note."])
    files = write(found, tmp_path, PROVENANCE)
    assert {path.name for path in files} == {"budget.json", "budget.md", "budget.tex", "budget.png", "budget.pdf"}
    content = json.loads((tmp_path / "budget.json").read_text())
    assert content == as_dict(found)
    assert [row["promise"] for row in content["settings"] if row["promise"]] == ["kept"]
    markdown = (tmp_path / "budget.md").read_text()
    assert markdown.startswith("### 4 of 6 settings fit into 75.0 ms (P95 of T_request); promises: 1 kept.")
    assert "| vision tokens | output tokens | P95 of T_request, ms |" in markdown, "the amounts name the settings"
    assert "\n| 64 | 32 | " in markdown
    assert "64 & 32 & " in (tmp_path / "budget.tex").read_text()
    assert "promised P95 of T_request ≤ 75.0 ms, measured 60.0 ms (55.0–70.0 ms): kept" in text(found)
    assert len(grid(found).columns) == 6

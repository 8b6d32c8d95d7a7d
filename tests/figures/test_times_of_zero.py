"""Rows whose times are all 0 (a replay, a clock that does not move): figures are drawn, or it is said that they are not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.analysis import test_budget, test_first_steps
from tests.analysis.made import row, usual, write
from tests.analysis.swept import OUTPUT, PROMPT, PROVENANCE, VISION, frame_of, sweep, write_run
from tests.figures.seen import caption_of, outside, texts
from tests.figures.test_launch_bound_figure import trace
from tests.figures.test_runtimes_figure import FOUR, arm
from tests.page import published
from vlmbench.analysis.budget import settings_of, solve
from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.first_steps import first_times
from vlmbench.analysis.interventions import Saving
from vlmbench.analysis.serving import serving_table
from vlmbench.analysis.two_sides import judge
from vlmbench.errors import InputError
from vlmbench.figures.budget import budget_figure
from vlmbench.figures.first_steps import first_steps_figure
from vlmbench.figures.grid_overview import grid_figure
from vlmbench.figures.interventions import interventions_figure
from vlmbench.figures.runtimes import Runtime, stages_figure, tail_figure
from vlmbench.figures.serving import ttft_figure
from vlmbench.figures.style import FigureStyle, drawn_as
from vlmbench.report import write_report
from vlmbench.report.token_comparison import write_exp5


@pytest.fixture(autouse=True)
def small_figures() -> Iterator[None]:
    with drawn_as(FigureStyle(formats=("png",), dpi=72)):
        yield


def at_once(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with all times 0."""

    def none(name: str, value: Any) -> Any:
        if not name.startswith(("T_", "TTFT", "TPOT", "ITL", "busy_")) or value is None:
            return value
        return [0.0] * len(value) if isinstance(value, list) else 0.0

    return [{name: none(name, value) for name, value in made.items()} for made in rows]


def names(directory: Path) -> set[str]:
    return {path.stem for path in (directory / "figures").iterdir()}


def test_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path, at_once([*usual(80, 40), trace("s1")]))
    words = write_report("phase1", run)
    assert names(run) == {
        "latency_distribution", "request_distribution", "ttft_itl", "latency_vs_tokens", "over_time", "run_lane",
    }  # fmt: skip
    said = capsys.readouterr().err
    assert (
        "all times of T_total are 0, which has no parts; "
        "not drawn: components_pie, components_bars, request_timeline, stage_distributions." in said
    )
    assert "All times of generate() are 0, so no part has a share of them." in words
    assert "cannot be told: it is 0 at" in words
    assert "carry no stage times" not in words


def test_sweeps_and_their_comparison(tmp_path: Path) -> None:
    phase2 = write_run(tmp_path / "p2", at_once(sweep("vision_tokens", VISION) + sweep("prompt_tokens", PROMPT)))
    phase3 = write_run(tmp_path / "p3", at_once(sweep("output_tokens", OUTPUT)))
    for kind, run in (("phase2", phase2), ("phase3", phase3)):
        words = write_report(kind, run)
        assert "No latency model: a latency model needs times above 0 (the median of T_total is 0 at" in words
        assert "nan" not in words
        assert {"flops_latency", f"{'vision' if kind == 'phase2' else 'output'}_tokens_composition"} <= names(run)
    report = write_exp5(phase2, phase3, tmp_path / "out")
    assert "no correlation (the times never vary)" in report.text
    assert {"flops_latency", "token_costs", "break_even"} <= names(tmp_path / "out")


def test_loads(tmp_path: Path) -> None:
    run = published.served(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    figure = ttft_figure(serving_table(pd.DataFrame(at_once(rows)), closed=True), {})
    assert figure is not None
    assert outside(figure) == []
    write(run, at_once(rows), json.loads((run / "provenance.json").read_text()))
    write_report("phase1", run)
    assert "ttft_throughput" in names(run)


def test_a_pace_of_tokens_whose_interval_reaches_0_has_a_rate_without_one() -> None:
    rows = [
        {
            "point_id": "p", "sample_id": str(i), "repeat": 0, "status": "ok", "attempt": 0, "session": 0,
            "due_s": float(i), "TTFT": 5.0, "TPOT": 10.0 * (i % 3), "T_request": 9.0, "T_end": 9.0,
            "num_output_tokens": 4,
        }
        for i in range(9)
    ]  # fmt: skip
    (made,) = serving_table(pd.DataFrame(rows), closed=False).to_dict("records")
    assert made["tokens_per_s_user"] == 100
    assert pd.isna(made["tokens_per_s_user_low"])
    assert pd.isna(made["tokens_per_s_user_high"])


def test_methods() -> None:
    nothing = Saving(metric="T_total", saved=Estimate(value=0.0, low=0.0, high=0.0, n=40), baseline_ms=0.0)
    for promised in ({}, {"T_LLM_prefill": 12.0}):
        arms = [arm("method", 0.5, 0.0, savings={"T_total": nothing}, promised_ms=promised)]
        assert "saves 0 ms (0–0 ms)" in texts(interventions_figure(arms, PROVENANCE))


def test_a_budget_and_a_grid() -> None:
    run = test_budget._run(*(test_budget._rows(tokens, 8, 20).assign(T_request=0.0) for tokens in (64, 256, 576)))
    found = solve(settings_of([run], metric="T_request", percentile=50), limit_ms=10, percentile=50, metric="T_request")
    assert outside(budget_figure(found, PROVENANCE)) == []
    frame = frame_of(at_once(sweep("vision_tokens", VISION))).assign(group="one", run="r", model="m", device="d")
    for axes in ((), ("axis_vision_tokens",)):
        assert outside(grid_figure(frame, axes)) == []


def test_first_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = first_times(test_first_steps.ROWS)
    some = table.assign(first_ms=table["first_ms"].where(table["at"] != 101, 0.0))
    assert "Not drawn, for 0 has no place on a log scale: 1 shape." in caption_of(first_steps_figure({"a": some}, {}))
    assert "Not drawn" not in caption_of(first_steps_figure({"a": table}, {}))
    assert first_steps_figure({"a": table.assign(first_ms=0.0)}, {}) is None


def test_a_comparison_says_why_there_is_none(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, at_once(row(sample=f"s{i}", started=i) for i in range(30))) for name in ("a", "b")]
    with pytest.raises(InputError, match="of 30 requests in common none has a time above 0 in both"):
        judge(*runs)


def test_runtimes() -> None:
    nothing = Runtime(
        label="replay",
        summary={
            "components": [{"component": "T_LLM_decode", "median": 0.0}],
            "distribution": {"T_request": {"workload": {"p50": {"value": 0.0, "low": 0.0, "high": 0.0}}}},
        },
        tails={
            name: pd.DataFrame(
                {"quantile": ["p90"], "workload_note": ["no positive median"]}
                | {f"workload{end}": [None] for end in ("", "_low", "_high")}
            )
            for name in ("T_request", "T_total")
        },
    )
    words = caption_of(stages_figure([*FOUR, nothing], "n"))
    assert "not drawn, without stages above 0 ms or a whole request: replay" in words
    assert "replay: a median of 0 has no multiples" in texts(tail_figure([*FOUR, nothing], ""))
    assert stages_figure([FOUR[0], nothing], "") is None

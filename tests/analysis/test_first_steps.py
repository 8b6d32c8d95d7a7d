"""First times at a shape against later ones, with planted times."""

from __future__ import annotations

from typing import Any

from vlmbench.analysis.first_steps import PREFILL, STEP, VISION, first_time_summary, first_times
from vlmbench.figures.first_steps import first_steps_figure


def run(inputs: int, gaps: list[float], vision: float, prefill: float = 20.0) -> dict[str, Any]:
    return {
        "num_input_tokens": inputs,
        "num_vision_patches": 4 * inputs,
        "T_vision_encoder": vision,
        "T_LLM_prefill": prefill,
        "ITL": gaps,
    }


ROWS = [
    run(100, [500.0, 60.0], 900.0),  # the process's first run
    run(102, [62.0, 62.0], 30.0),  # its caches of 103 and 104: new, for the run before reached 102
    run(100, [21.0, 21.0], 10.0),
    run(101, [21.0, 65.0], 40.0),  # a cache of 102 was met in the first run; 103 in the second
    run(102, [20.0, 22.0], 12.0),
    run(100, [21.0, 19.0], 12.0),
]


def test_the_first_time_at_each_length_stands_against_the_median_of_later_ones() -> None:
    table = first_times(ROWS).set_index(["what", "at"])
    step = table.loc[STEP]
    assert step.loc[101, ["first_ms", "later_ms", "later_n", "began"]].tolist() == [500.0, 21.0, 2, True]
    assert step.loc[102, ["first_ms", "later_ms", "later_n", "began"]].tolist() == [60.0, 21.0, 3, True]
    assert step.loc[103, ["first_ms", "later_ms", "later_n", "began"]].tolist() == [62.0, 42.5, 2, False]
    assert step.loc[104, ["first_ms", "later_ms", "later_n", "began"]].tolist() == [62.0, 22.0, 1, False]
    assert table.loc[VISION].loc[408, ["first_ms", "later_ms", "began"]].tolist() == [30.0, 12.0, False]
    assert 404 not in table.loc[VISION].index, "met once: there is no later time"


def test_the_summary_keeps_the_first_run_of_the_process_apart() -> None:
    step, vision, prefill = first_time_summary(first_times(ROWS))
    assert (step["what"], vision["what"], prefill["what"]) == (STEP, VISION, PREFILL)
    assert step["shapes"] == 2
    assert step["extra_ms"] == (62 - 42.5) + (62 - 22)
    assert step["process_ms"] == (500 - 21) + (60 - 21)
    assert vision["ratio"] == 30 / 12


def test_nothing_met_twice_gives_nothing() -> None:
    table = first_times(ROWS[:2])
    assert table.empty
    assert first_steps_figure({"a": table}, {}) is None
    assert first_time_summary(table)[0]["first_ms"] is None


def test_the_figure_has_a_panel_a_kind_and_both_arms() -> None:
    table = first_times(ROWS)
    figure = first_steps_figure({"torch_chooses": table, "without_cudnn": table}, {})
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Decode step", "Vision encoder", "Prefill"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["torch chooses", "without cudnn"]


def test_a_kind_of_one_shape_has_no_panel_beside_one_of_several() -> None:
    table = first_times(ROWS)
    few = table[(table["what"] == STEP) | ~table.duplicated("what")]
    figure = first_steps_figure({"torch_chooses": few}, {})
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Decode step"]

from __future__ import annotations

import gc
import math
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tests.analysis.swept import OUTPUT, PROMPT, PROVENANCE, VISION, frame_of, one_stage, sweep
from tests.figures.seen import boxes, caption_of, outside, overlaps, smallest
from vlmbench.analysis.curve_shape import Missed
from vlmbench.analysis.floors import peaks_of, roofline_table
from vlmbench.analysis.flops_latency import flops_latency
from vlmbench.analysis.results import ResultSet
from vlmbench.analysis.scaling import scalings
from vlmbench.analysis.token_costs import Comparison, compare
from vlmbench.figures.panels import plus_minus
from vlmbench.figures.roofline import roofline_figure, si
from vlmbench.figures.scaling import composition_figure, flops_latency_figure, scaling_figure, select
from vlmbench.figures.style import SMALLEST_PT, FigureStyle, drawn_as
from vlmbench.figures.theme import save, theme
from vlmbench.figures.token_costs import break_even_figure, models_figure, token_costs_figure
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.text import digits

P2 = frame_of(sweep("vision_tokens", VISION) + sweep("prompt_tokens", PROMPT, seed=1))
P3 = frame_of(sweep("output_tokens", OUTPUT, seed=2))
FITS = scalings(pd.concat([P2, P3]))
STAGES = ("T_total", "T_setup", "T_vision_encoder", "T_LLM_prefill", "T_LLM_decode", "T_residual")

PEAKS = DevicePeaks(device="Made GPU", dtype="bfloat16", flops_per_s=1e15, bytes_per_s=1e12, source="datasheet")


def words(figure: Figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def result(frame: pd.DataFrame) -> ResultSet:
    return ResultSet(path=Path("run"), frame=frame, provenance=PROVENANCE)


def comparison() -> Comparison:
    return compare(result(P2), result(P3))


def test_a_panel_a_stage_with_points_fit_and_hollow_held_out_points(tmp_path: Path) -> None:
    fits = select(FITS, "vision", STAGES)
    with theme():
        figure = scaling_figure(fits, PROVENANCE, title="Vision tokens", columns=3)
        assert sum(axes.get_visible() for axes in figure.axes) == len(STAGES)
        first = figure.axes[0]
        dots = [line for line in first.lines if line.get_marker() == "o"]
        assert sorted(x for line in dots for x in line.get_xdata()) == sorted(VISION)
        (hollow,) = [line for line in dots if line.get_markerfacecolor() == "white"]
        assert tuple(hollow.get_xdata()) == fits[0].held_out
        assert "made-7b (random weights)" in words(figure)
        assert "held fixed: output tokens 8" in words(figure)
        assert "R²" in words(figure)
        for path in save(figure, tmp_path, "vision"):
            assert path.stat().st_size > 5000


@pytest.mark.parametrize("name", ["page", "paper", "talk"])
def test_no_text_lies_on_another(name: str) -> None:
    made = comparison()
    found = flops_latency(pd.concat([P2, P3]))
    assert found is not None
    with drawn_as(FigureStyle(name=name)), theme():
        for figure in (
            scaling_figure(select(FITS, "vision", STAGES), PROVENANCE, title="Vision tokens", columns=3),
            scaling_figure(select(FITS, "vision", STAGES[:2]), PROVENANCE, title="Vision tokens", columns=2),
            composition_figure(select(FITS, "vision", STAGES[1:]), PROVENANCE, title="Made of"),
            flops_latency_figure(found, PROVENANCE),
            token_costs_figure(made),
            break_even_figure(made),
            roofline_figure(roofline_table(pd.concat([P2, P3]), PEAKS), PROVENANCE, PEAKS),
        ):
            assert not overlaps(figure)
            assert not outside(figure)
            assert smallest(figure) >= SMALLEST_PT - 1e-9


@pytest.mark.parametrize("name", ["page", "paper", "talk"])
def test_a_fit_outside_the_intervals_of_medians_says_so_within_its_panel(name: str) -> None:
    missed = Missed(points=9, missed=8, above=0, furthest=0.0336, lifted=0.0, off_form=True)
    fits = [replace(fit, missed=missed) for fit in select(FITS, "vision", STAGES)]
    with drawn_as(FigureStyle(name=name)), theme():
        for columns in (2, 3):
            figure = scaling_figure(fits, PROVENANCE, title="Vision tokens", columns=columns)
            assert "R² 1.000, outside 8 of 9 medians' intervals" in words(figure)
            told = "lies outside 8 of 9 medians' intervals, up to 3.36 % from the median: the points"
            assert (told in " ".join(caption_of(figure).split())) == (name == "page"), "captions are the page's"
            assert not overlaps(figure)
            assert not outside(figure)


@pytest.mark.parametrize("name", ["page", "paper"])
@pytest.mark.parametrize("most", [1e3, 7e3, 3e4])
def test_the_words_of_the_roof_stand_inside(name: str, most: float) -> None:
    """Beside the slope, not over the axis and its numbers."""
    peaks = replace(PEAKS, flops_per_s=989e12, bytes_per_s=4.8e12)
    table = roofline_table(pd.concat([P2, P3]), peaks)
    table["intensity"] = np.geomspace(1.0, most, len(table))
    with drawn_as(FigureStyle(name=name)), theme():
        figure = roofline_figure(table, PROVENANCE, peaks)
        assert not overlaps(figure)
        (left,) = [x0 for words, x0, *_ in boxes(figure) if words.startswith("memory")]
        assert left > figure.axes[0].get_window_extent().x0


def few(rows: list[dict], slow: float = 1.0) -> pd.DataFrame:
    """Rows of a sweep, the last one slower by a factor."""
    last = rows[-1]
    last["T_LLM_decode"] *= slow
    last["T_total"] = sum(value for name, value in last.items() if name.startswith("T_") and name != "T_total")
    return frame_of(rows)


def test_few_runs_a_point_are_drawn_themselves(tmp_path: Path) -> None:
    fits = select(scalings(few(sweep("output_tokens", OUTPUT, repeats=10))), "output", ["T_total"])
    with theme():
        figure = scaling_figure(fits, PROVENANCE, title="Output tokens", columns=1)
    (axes,) = figure.axes
    (runs,) = [line for line in axes.lines if line.get_marker() == "."]
    assert len(runs.get_xdata()) == 60
    assert "5–95 %" not in caption_of(figure)
    assert "dots: runs; points: their medians with 95 % intervals" in caption_of(figure)
    (bars,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    last = fits[0].slice.rows.query("num_output_tokens == 128")["T_total"].sort_values().to_numpy()
    assert bars.get_segments()[-1][:, 1] == pytest.approx([last[1], last[8]], rel=1e-3), "near ranks 2 and 9 of 10"


def test_many_runs_a_point_are_drawn_as_their_spread(tmp_path: Path) -> None:
    fits = select(scalings(few(sweep("output_tokens", OUTPUT, repeats=72))), "output", ["T_total"])
    with theme():
        figure = scaling_figure(fits, PROVENANCE, title="Output tokens", columns=1)
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert "bars 5–95 % of the runs" in caption_of(figure)


@pytest.mark.parametrize(("slow", "inside"), [(1.5, True), (10.0, False)])
def test_a_slow_run_is_seen_or_counted(slow: float, inside: bool) -> None:
    frame = few(sweep("output_tokens", OUTPUT, repeats=10), slow)
    with theme():
        figure = scaling_figure(
            select(scalings(frame), "output", ["T_total"]), PROVENANCE, title="Output tokens", columns=1
        )
    (axes,) = figure.axes
    assert (float(frame["T_total"].max()) < axes.get_ylim()[1]) == inside
    triangles = [line for line in axes.lines if line.get_marker() == "^"]
    assert len(triangles) == (not inside)
    assert (
        "triangles: runs above the axis: Total (one generate call) 1 (up to 19.1 s)" in caption_of(figure)
    ) != inside


def test_all_that_is_held_fixed_is_named() -> None:
    with theme():
        figure = scaling_figure(select(FITS, "vision", ["T_total"]), PROVENANCE, title="Vision", columns=1)
        assert "held fixed: output tokens 8, prompt tokens 32" in caption_of(figure)
        texts_differ = frame_of(
            [row | {"num_prompt_tokens": 30 + i % 4} for i, row in enumerate(sweep("vision_tokens", VISION))]
        )
        fits = select(scalings(texts_differ), "vision", ["T_total"])
        assert "not held fixed: prompt tokens 30 to 33" in caption_of(
            scaling_figure(fits, PROVENANCE, title="Vision", columns=1)
        )


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (lambda tokens: {"num_images": tokens // 64}, "the axis grows by whole images of 64 vision tokens (1 to 16 images)"),
        (lambda tokens: {"num_images": 1, "num_crops": 1 + tokens // 300}, "the number of crops grows with the axis (1 to 4 crops)"),
        (lambda tokens: {"num_images": 1, "num_vision_patches": 4 * tokens}, "the axis grows by the image's size (256 to 4,096 vision patches)"),
        (lambda tokens: {}, "held fixed"),
    ],
)  # fmt: skip
def test_what_makes_vision_tokens_grow_is_named(added: Callable[[int], dict[str, int]], said: str) -> None:
    rows = [row | added(row["num_vision_tokens"]) for row in sweep("vision_tokens", VISION)]
    with theme():
        fits = select(scalings(frame_of(rows)), "vision", ["T_total"])
        assert said in caption_of(scaling_figure(fits, PROVENANCE, title="Vision", columns=1))


def test_stages_that_do_not_depend_are_said_so() -> None:
    frame = one_stage(lambda x: 20 + 0 * x, VISION, repeats=10, seed=3)
    with theme():
        figure = scaling_figure(scalings(frame), PROVENANCE, title="Flat", columns=1)
    assert "no measurable dependence" in words(figure)


def test_composition_stacks_medians() -> None:
    fits = select(FITS, "vision", STAGES[1:])
    with theme():
        figure = composition_figure(fits, PROVENANCE, title="Made of")
    assert "Vision encoder" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    top = figure.axes[0].collections[-1].get_datalim(figure.axes[0].transData).y1
    total = select(FITS, "vision", ["T_total"])[0].points["median"].max()
    assert top == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize(
    ("frame", "parts"),
    [(P2.iloc[: len(VISION) * 6], 1), (pd.concat([P2, P3]), 3), (P3, 1)],
    ids=["one", "all", "output"],
)
def test_flops_figure_has_all_scalings_on_one_axis(frame: pd.DataFrame, parts: int, tmp_path: Path) -> None:
    found = flops_latency(frame)
    assert found is not None
    assert len(found.parts) == parts
    with theme():
        figure = flops_latency_figure(found, PROVENANCE)
        (axes,) = figure.axes
        save(figure, tmp_path, "flops")
    dots = [line for line in axes.lines if line.get_linestyle() == "None"]
    for line, part in zip(dots, found.parts.values(), strict=True):
        assert list(line.get_xdata()) == list(part.flops)
        assert list(line.get_ydata()) == list(part.time)
        low, high = axes.get_ylim()
        assert low < part.time.min() < part.time.max() < high
    assert ("one line for all" in caption_of(figure)) == (parts > 1)
    assert ("log scale" in axes.get_xlabel()) == (axes.get_xscale() == "log") == (parts > 1)
    assert len(axes.get_legend().get_texts()) == parts


def test_costs_show_numbers_and_the_break_even_sentence(tmp_path: Path) -> None:
    found = comparison()
    with theme():
        figure = token_costs_figure(found)
        save(figure, tmp_path, "costs")
        text = words(figure)
        assert found.break_even() in text.replace("\n", " ")
        for unit in ("vision token", "prompt token", "output token"):
            assert unit in text
        assert re.search(r"0\.0\d+ ms \(0\.0\d+–0\.0\d+ ms\)", text)
        (axes,) = figure.axes
        assert not axes.patches, "a bar needs a zero, which a logarithmic axis has not"
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "ms per further token (log scale)"
        points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
        assert points[0] == found.costs["vision"].cost.value
        (interval, *_) = [c.get_segments()[0] for c in axes.collections if isinstance(c, LineCollection)]
        assert list(interval[:, 0]) == [found.costs["vision"].cost.low, found.costs["vision"].cost.high]
        assert text.count("LLM prefill: ") == 2, "output tokens do not move it"
        assert text.count("LLM decode: ") == 1


def test_a_stage_that_gets_faster_is_shown_and_said_so(tmp_path: Path) -> None:
    rows = sweep("vision_tokens", VISION)
    for row in rows:
        row["T_LLM_decode"] -= 0.01 * row["num_vision_tokens"]
        row["T_total"] -= 0.01 * row["num_vision_tokens"]
    with theme():
        figure = token_costs_figure(compare(result(frame_of(rows)), result(P3)))
    assert re.search(r"LLM decode: faster: -0\.00\d+ ms \(-0", words(figure))
    (axes,) = figure.axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "<"] == [axes.get_xlim()[0]]
    assert not overlaps(figure)


def test_large_numbers_are_written_out() -> None:
    rows = sweep("vision_tokens", VISION, noise=0.0)
    for row in rows:
        change = 0.0402 * row["num_vision_tokens"]
        row["T_vision_encoder"] -= change
        row["T_total"] -= change
    made = compare(result(frame_of(rows)), result(P3))
    found = flops_latency(pd.concat([frame_of(rows), P3]))
    assert found is not None
    with theme():
        for figure in (token_costs_figure(made), break_even_figure(made), flops_latency_figure(found, PROVENANCE)):
            assert not re.search(r"\de[+-]\d", words(figure)), words(figure)
        assert re.search(r"1 output token = 1,\d{3} vision tokens", words(break_even_figure(made)))


def test_break_even_counts_the_rows_of_both_sweeps() -> None:
    with theme():
        text = caption_of(break_even_figure(comparison()))
    assert f"n = {len(P2) + len(P3)} runs" in text
    assert "36 runs at 2 to 128 output tokens; held fixed: vision tokens 576, prompt tokens 32" in text


def test_costs_that_are_not_there_are_drawn_without_a_claim(tmp_path: Path) -> None:
    frame = P2.assign(T_total=100.0 + P2.index.to_numpy() % 7)
    found = compare(result(frame), result(P3))
    with theme():
        figure = token_costs_figure(found)
        save(figure, tmp_path, "costs")
        assert "not told from 0" in words(figure)
        save(break_even_figure(found), tmp_path, "break_even")


def test_break_even_and_models(tmp_path: Path) -> None:
    found = comparison()
    with theme():
        figure = break_even_figure(found)
        assert "1 output token = " in words(figure)
        save(figure, tmp_path, "break_even")
        save(models_figure([found, found]), tmp_path, "models")


@pytest.mark.parametrize("peaks", [None, PEAKS])
def test_roofline(peaks: DevicePeaks | None, tmp_path: Path) -> None:
    table = roofline_table(pd.concat([P2, P3]), peaks)
    with theme():
        figure = roofline_figure(table, PROVENANCE, peaks)
        save(figure, tmp_path, "roofline")
        text = words(figure)
        assert "LLM decode" in text
        assert ("compute: 1 PFLOP/s" in text) == (peaks is not None)
        assert ("datasheet" in text) == (peaks is not None)
        if peaks is not None:
            (roof,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 100]
            assert max(roof.get_ydata()) == 1e15
            for x, y in zip(*roof.get_data(), strict=True):
                assert y <= min(x * 1e12, 1e15) * (1 + 1e-9)


def test_figures_do_not_outlive_their_use() -> None:
    with theme():
        figure = token_costs_figure(comparison())
        gone = weakref.ref(figure)
        del figure
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (1408.2, 61.5, "1,408 ± 62"),
        (0.06291, 0.0081, "0.0629 ± 0.0081"),
        (19.6, 0.86, "19.60 ± 0.86"),
        (9.4e-5, 1.2e-6, "0.0000940 ± 0.0000012"),
        (5.0, 0.0, "5"),
        (1408.2, 1e-9, "1,408"),
        (17100.0, 0.0, "17,100"),
        (5.0, math.nan, "5"),
    ],
)
def test_plus_minus(value: float, half: float, text: str) -> None:
    assert plus_minus(value, half) == text


@pytest.mark.parametrize(
    ("value", "text"), [(9.89e14, "989 T"), (1e15, "1 P"), (4.8e12, "4.8 T"), (12, "12"), (3e9, "3 G")]
)
def test_si(value: float, text: str) -> None:
    assert si(value) == text


def test_costs_without_first_times_are_drawn_beside_the_others() -> None:
    rows = sweep("output_tokens", OUTPUT, seed=2)
    for row in rows:
        if row["repeat"] == 0 and row["num_output_tokens"] == OUTPUT[-1]:
            row["flags"] = ["first_seen_length"]
            row["T_LLM_decode"] += 3000.0
            row["T_total"] += 3000.0
    frame = pd.DataFrame(rows)
    made = compare(result(P2), result(frame.assign(flags=frame["flags"].map(" ".join))))
    assert made.ratio_unflagged("output", "vision") is not None
    with theme():
        costs, even = token_costs_figure(made), break_even_figure(made)
    (hollow,) = [line for line in costs.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert hollow.get_xdata()[0] == made.costs["output"].cost_unflagged.value
    assert f"without first times: {digits(hollow.get_xdata()[0])} ms" in words(costs)
    assert "hollow: without the runs flagged" in caption_of(costs)
    assert "dashed: without the runs flagged" in caption_of(even)
    assert "… without first times = " in words(even)
    assert not overlaps(costs)
    assert not overlaps(even)


@pytest.mark.parametrize("stages", [("T_total",), ("T_setup", "T_LLM_decode")])
def test_the_slope_without_first_times_is_the_totals(stages: tuple[str, ...]) -> None:
    rows = sweep("output_tokens", OUTPUT, seed=2)
    frame = pd.DataFrame(rows)
    flags = ["first_seen_length" if row["repeat"] == 0 else "" for row in rows]
    fits = select(scalings(frame.assign(flags=flags)), "output", stages)
    with theme():
        text = caption_of(scaling_figure(fits, PROVENANCE, title="Output tokens", columns=2))
    said = "Total (one generate call), ms/token without the 6 rows flagged first_seen_length: 15."
    assert (said in text) == ("T_total" in stages)


def test_a_batch_is_told_by_the_request_not_by_the_token() -> None:
    rows = one_stage(lambda x: 20 + 3 * x, (1, 2, 4, 8), repeats=10, seed=0)
    rows = rows.rename(columns={"num_vision_tokens": "axis_batch_size"})
    fits = scalings(rows)
    with theme():
        figure = scaling_figure(select(fits, "batch", ("T_total",)), PROVENANCE, title="Batch size", columns=1)
    assert "ms per further request" in words(figure)
    assert "token" not in words(figure)


def test_a_roofline_without_a_roof_says_so() -> None:
    table = roofline_table(P2, None)
    with theme():
        assert "no roof" in words(roofline_figure(table, PROVENANCE))
        assert "no roof" not in words(roofline_figure(table, PROVENANCE, PEAKS))


def test_a_roof_names_the_source_of_its_peaks_that_the_table_has_today() -> None:
    stored = {
        "device": "NVIDIA H200", "dtype": "bfloat16", "flops_per_s": 989e12, "bytes_per_s": 4.8e12,
        "source": "recalled, not checked",
    }  # fmt: skip
    two = {**stored, "flops_per_s": 2 * 989e12, "bytes_per_s": 2 * 4.8e12}
    own = {**stored, "flops_per_s": 700e12, "source": "measured: a product"}
    one, pair, measured = (peaks_of({"device_peaks": peaks}) for peaks in (stored, two, own))
    with theme():
        said = caption_of(roofline_figure(roofline_table(P2, one), PROVENANCE, one))
    assert "recalled" not in said
    assert "peaks: table H200-SXM; bfloat16 peak: " in said
    assert pair is not None
    assert pair.source.startswith("2 x (table H200-SXM; ")
    assert measured is not None
    assert measured.source == "measured: a product"


def test_points_of_a_roofline_that_lie_on_each_other_are_hollow() -> None:
    with theme():
        figure = roofline_figure(roofline_table(P2, PEAKS), PROVENANCE, PEAKS)
    marks = {line.get_label(): line for line in figure.axes[0].lines}
    assert marks["LLM decode"].get_markerfacecolor() == "none"
    assert marks["LLM prefill"].get_markerfacecolor() != "none"
    assert len(marks["LLM prefill"].get_xdata()) == len(VISION) + len(PROMPT)

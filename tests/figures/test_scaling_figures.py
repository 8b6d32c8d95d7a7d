from __future__ import annotations

import gc
import math
import re
import weakref
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.analysis.swept import OUTPUT, PROMPT, PROVENANCE, VISION, frame_of, one_stage, sweep
from vlmbench.analysis.comparison import Comparison, compare
from vlmbench.analysis.flops_latency import flops_latency
from vlmbench.analysis.phase_files import ResultSet
from vlmbench.analysis.roofline import roofline_table
from vlmbench.analysis.scaling import scalings
from vlmbench.cost.peaks import DevicePeaks
from vlmbench.figures.comparison import break_even_figure, models_figure, token_costs_figure
from vlmbench.figures.roofline import roofline_figure, si
from vlmbench.figures.scaling import composition_figure, flops_latency_figure, plus_minus, scaling_figure, select
from vlmbench.figures.theme import save, theme

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


def test_no_text_lies_on_another() -> None:
    with theme():
        figure = scaling_figure(select(FITS, "vision", STAGES), PROVENANCE, title="Vision tokens", columns=3)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = [t for axes in figure.axes for t in (axes.title, axes._left_title, *axes.texts, axes.xaxis.label)]
        texts += [figure._suptitle, figure._supxlabel]
        boxes = [(t, t.get_window_extent(renderer)) for t in texts if t is not None and t.get_text()]
        for i, (a, box) in enumerate(boxes):
            for b, other in boxes[i + 1 :]:
                width = min(box.x1, other.x1) - max(box.x0, other.x0)
                height = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert width <= 2 or height <= 2, (a.get_text(), b.get_text())


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


@pytest.mark.parametrize(("frame", "panels"), [(P2.iloc[: len(VISION) * 6], 1), (pd.concat([P2, P3]), 4), (P3, 1)])
def test_flops_figure_has_a_panel_a_scaling_and_one_for_all(frame: pd.DataFrame, panels: int, tmp_path: Path) -> None:
    found = flops_latency(frame)
    assert found is not None
    with theme():
        figure = flops_latency_figure(found, PROVENANCE)
        assert len(figure.axes) == panels
        assert ("Together" in words(figure)) == (panels > 1)
        save(figure, tmp_path, "flops")


def test_costs_show_numbers_and_the_break_even_sentence(tmp_path: Path) -> None:
    found = comparison()
    with theme():
        figure = token_costs_figure(found)
        save(figure, tmp_path, "costs")
        text = words(figure)
        assert found.break_even() in text
        for unit in ("vision token", "prompt token", "output token"):
            assert unit in text
        assert re.search(r"0\.0\d+ ± 0\.0\d+ ms", text)


def test_costs_that_are_not_there_are_drawn_without_a_claim(tmp_path: Path) -> None:
    frame = P2.assign(T_total=100.0 + P2.index.to_numpy() % 7)
    found = compare(result(frame), result(P3))
    with theme():
        figure = token_costs_figure(found)
        save(figure, tmp_path, "costs")
        assert "not told from 0" in words(figure)
        assert "no measurable cost" in words(figure)
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
        (9.4e-5, 1.2e-6, "(9.40 ± 0.12)·10^-5"),
        (5.0, 0.0, "5"),
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

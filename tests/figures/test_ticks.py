"""Labels of a logarithmic axis are plain numbers of one kind, and none runs into the next."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vlmbench.figures.roofline import si
from vlmbench.figures.theme import new_figure, plain_log_ticks, theme
from vlmbench.text import plain


def labels(low: float, high: float, *, width: float, axis: str = "x", write: object = plain) -> list[str]:
    with theme():
        figure = new_figure("t", width=width, height=3.0)
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log")
        (axes.set_xlim if axis == "x" else axes.set_ylim)(low, high)
        chosen = axes.xaxis if axis == "x" else axes.yaxis
        plain_log_ticks(chosen, write)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        shown = [tick.label1 for tick in chosen.get_major_ticks() if low <= tick.get_loc() <= high]
        assert not [text for text in chosen.get_minorticklabels() if text.get_text()]
        boxes = [text.get_window_extent() for text in shown]
        for before, after in pairwise(boxes):
            assert before.x1 < after.x0 if axis == "x" else before.y1 < after.y0
        return [text.get_text() for text in shown]


@settings(max_examples=15, deadline=None)
@given(exponent=st.floats(-5, 5), decades=st.floats(0.05, 9), width=st.sampled_from([2.5, 3.4, 8.0]))
def test_there_are_labels_and_they_stand_apart(exponent: float, decades: float, width: float) -> None:
    shown = labels(10**exponent, 10 ** (exponent + decades), width=width)
    assert len(shown) >= 2
    assert len(set(shown)) == len(shown)


def test_small_numbers_stand_apart_in_a_narrow_panel() -> None:
    assert labels(7e-5, 4e-3, width=3.4) == ["0.0001", "0.0003", "0.001", "0.003"]


def test_a_wide_one_has_the_finer_steps() -> None:
    assert labels(18, 1200, width=8.0) == ["20", "50", "100", "200", "500", "1,000"]


@pytest.mark.parametrize(("low", "high"), [(1.4e9, 9e10), (6e9, 6.4e10), (2e10, 7e10), (3e2, 2e4), (1e9, 3e15)])
def test_rates_have_prefixes_and_no_powers(low: float, high: float) -> None:
    shown = labels(low, high, width=7.4, axis="y", write=si)
    assert len(shown) >= 3
    assert all(text[-1] in "kMGTP0123456789" and "e" not in text and "$" not in text for text in shown)

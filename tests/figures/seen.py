"""What a reader of a figure sees: its words, and whether any of them lie on each other."""

from __future__ import annotations

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

Box = tuple[str, float, float, float, float]


def texts(figure: Figure | None) -> str:
    """All words, a text a line."""
    assert figure is not None
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def caption_of(figure: Figure | None) -> str:
    """The caption in one line."""
    assert figure is not None
    return str(figure.get_supxlabel()).replace("\n", " ")


def boxes(figure: Figure) -> list[Box]:
    """(words, x0, y0, x1, y1) in pixels of every text that is drawn, labels of ticks included."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    ticks = {tick_label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
             for tick in (*axis.majorTicks, *axis.minorTicks) for tick_label in (tick.label1, tick.label2)}  # fmt: skip
    shown = {label for axes in figure.axes if axes.axison and axes.get_visible() for axis in (axes.xaxis, axes.yaxis)
             for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}  # fmt: skip
    hidden = {axes for axes in figure.axes if not axes.get_visible()}
    bare = {label for axes in figure.axes if not axes.axison for label in (axes.xaxis.label, axes.yaxis.label)}
    found = []
    for text in figure.findobj(Text):
        drawn = text.get_visible() and text.get_text().strip() and text.axes not in hidden and text not in bare
        if not drawn or (text in ticks and text not in shown):
            continue
        box = text.get_window_extent(renderer)
        found.append((text.get_text(), box.x0, box.y0, box.x1, box.y1))
    return found


def overlaps(figure: Figure, slack: float = 1.5) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other by more than ``slack`` pixels both ways."""
    return [
        (a[0], b[0])
        for a, b in combinations(boxes(figure), 2)
        if min(a[3], b[3]) - max(a[1], b[1]) > slack and min(a[4], b[4]) - max(a[2], b[2]) > slack
    ]


def outside(figure: Figure, slack: float = 1.5) -> list[str]:
    """Texts that the edge of the figure cuts."""
    width, height = figure.bbox.width, figure.bbox.height
    return [
        words
        for words, x0, y0, x1, y1 in boxes(figure)
        if x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack
    ]


def smallest(figure: Figure) -> float:
    """Points of the smallest letters that are drawn."""
    seen = {words for words, *_ in boxes(figure)}
    return min(text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text() in seen)

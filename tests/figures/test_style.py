"""Figures for a paper and a talk: widths, letters, and captions beside them."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest

from vlmbench.errors import ConfigError
from vlmbench.figures.style import COLUMN_IN, TEXT_IN, FigureStyle, dot, drawn_as, pt, style
from vlmbench.figures.theme import add_caption, new_figure, save, theme


def draw(chosen: FigureStyle, *, width: float = 6.4) -> tuple[float, float, list[str]]:
    """Width in inches, size of tick labels, and the texts of a figure beside its axes."""
    with drawn_as(chosen), theme():
        figure = new_figure("What 50 % of x_1 costs", "made-vlm · n = 3", width=width, height=4.6)
        add_caption(figure, "A second line.\nA third")
        axes = figure.subplots()
        axes.plot([1, 2], [3, 4])
        texts = [text.get_text() for text in (figure._suptitle, figure._supxlabel) if text is not None]  # type: ignore[attr-defined]
        return figure.get_figwidth(), axes.get_xticklabels()[0].get_fontsize(), texts


def test_a_page_is_as_it_was() -> None:
    width, size, texts = draw(FigureStyle())
    assert (width, size) == (6.4, 9.5)
    assert texts[0] == "What 50 % of x_1 costs"
    assert len(texts) == 2


@pytest.mark.parametrize(("drawn", "wide"), [(6.4, COLUMN_IN), (9.0, TEXT_IN)])
def test_paper_is_one_or_two_columns_wide_with_words_outside(drawn: float, wide: float) -> None:
    width, size, texts = draw(FigureStyle(name="paper"), width=drawn)
    assert width == wide
    assert size == pytest.approx(7.0)
    assert texts == []


def test_width_and_letters_can_be_said() -> None:
    width, size, _ = draw(FigureStyle(name="paper", width_in=5.0, font_pt=9.0))
    assert (width, size) == (5.0, pytest.approx(9.0))
    width, size, texts = draw(FigureStyle(name="talk"))
    assert (width, size) == (10.0, pytest.approx(14.0))
    assert texts == ["What 50 % of x_1 costs"]


def test_the_caption_lies_beside_the_figure_as_text_and_latex(tmp_path: Path) -> None:
    with drawn_as(FigureStyle(name="paper")), theme():
        figure = new_figure("What 50 % of x_1 costs", "made-vlm · n = 3\nA note.")
        figure.subplots().plot([1, 2], [3, 4])
        paths = save(figure, tmp_path, "cost")
    assert [path.name for path in paths] == ["cost.png", "cost.pdf", "cost.txt", "cost.tex"]
    assert (tmp_path / "cost.txt").read_text() == "What 50 % of x_1 costs. made-vlm · n = 3. A note.\n"
    said = r"\caption{What 50 \% of x\_1 costs. made-vlm · n = 3. A note.}" + "\n" + r"\label{fig:cost}" + "\n"
    assert (tmp_path / "cost.tex").read_text() == said


@pytest.mark.parametrize("width", [2.6, 3.0, 3.4, 3.8, 4.2, 4.6, 5.0])
def test_no_line_of_a_caption_begins_with_a_lonely_number(width: float) -> None:
    with drawn_as(FigureStyle(width_in=width)), theme():
        figure = new_figure(
            "What", "llava_1_5_7b (random weights) · NVIDIA H200 · n = 5 traces\nheld fixed: batch size 1"
        )
    lines = figure.get_supxlabel().split("\n")
    assert len(lines) > 1
    assert not [line for line in lines if line.startswith(("=", "5", "1"))]


def test_letters_of_a_pdf_are_a_truetype_font_inside_it(tmp_path: Path) -> None:
    with drawn_as(FigureStyle(name="paper")), theme():
        figure = new_figure("Cost")
        figure.subplots().set_xlabel("Time per token")
        pdf = save(figure, tmp_path, "cost")[1].read_bytes()
    assert b"/FontFile2" in pdf, "a TrueType font is embedded"
    assert b"/Subtype /Type3" not in pdf
    assert b"DejaVuSansFigures" in pdf


def test_formats_are_chosen(tmp_path: Path) -> None:
    with drawn_as(FigureStyle(formats=("svg",))), theme():
        made = []
        for _ in range(2):
            figure = new_figure("Cost")
            figure.subplots().set_xlabel("Time per token")
            (path,) = save(figure, tmp_path, "cost")
            made.append(path.read_bytes())
    assert path.suffix == ".svg"
    assert b">Time per token</text>" in made[0], "text stays text"
    assert made[0] == made[1], "the same numbers give the same bytes"


def test_no_letter_is_below_six_points_unless_all_are() -> None:
    with drawn_as(FigureStyle(name="paper")):
        assert pt(7.5) == 6.0
        assert pt(9.5) == pytest.approx(7.0)
        assert dot(4.75) == pytest.approx(3.5)
    with drawn_as(FigureStyle(name="paper", font_pt=5.0)):
        assert pt(9.5) == pytest.approx(5.0)
        assert pt(8.0) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("chosen", "narrow"),
    [
        (FigureStyle(), False),
        (FigureStyle(name="paper"), True),
        (FigureStyle(name="paper", width_in=7.0), False),
        (FigureStyle(name="paper", width_in=3.3), True),
        (FigureStyle(name="talk"), False),
    ],
)
def test_one_column_has_no_room_for_two_panels(chosen: FigureStyle, narrow: bool) -> None:
    assert chosen.narrow(8.0, 1) == narrow


def test_a_page_leaves_no_captions_beside(tmp_path: Path) -> None:
    with theme():
        figure = new_figure("A title", "a caption")
        figure.subplots().plot([1, 2], [3, 4])
        assert [path.suffix for path in save(figure, tmp_path, "a")] == [".png", ".pdf"]


def test_the_style_ends_with_its_block() -> None:
    before = mpl.rcParams["font.size"]
    with drawn_as(FigureStyle(name="talk")):
        assert style().name == "talk"
        assert pt(9.5) == pytest.approx(14.0)
        with theme():
            assert mpl.rcParams["font.size"] == pytest.approx(14.0)
    assert style() == FigureStyle()
    assert mpl.rcParams["font.size"] == before


def test_a_stylesheet_of_ones_own_comes_last(tmp_path: Path) -> None:
    sheet = tmp_path / "mine.mplstyle"
    sheet.write_text("axes.grid: False\naxes.labelsize: 5\n")
    with drawn_as(FigureStyle(stylesheet=str(sheet))), theme():
        assert mpl.rcParams["axes.grid"] is False
        assert mpl.rcParams["axes.labelsize"] == 5
    with (
        drawn_as(FigureStyle(stylesheet="no-such-style")),
        pytest.raises(ConfigError, match=r"figures\.stylesheet"),
        theme(),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "poster"}, "'figures.style' must be one of page, paper, talk"),
        ({"width_in": 0.5}, "'figures.width' must be null or 1.5 to 40 inches"),
        ({"font_pt": 200.0}, "'figures.font_size' must be null or 3 to 60 points"),
        ({"dpi": 10}, "'figures.dpi' must be 50 to 1200"),
        ({"formats": ("gif",)}, "'figures.formats' must be some of png, pdf, svg"),
        ({"formats": ()}, "'figures.formats' must be some of png, pdf, svg"),
        ({"stylesheet": "/no/such.mplstyle"}, "'figures.stylesheet' names no file"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FigureStyle(**values)  # type: ignore[arg-type]

"""For what figures are drawn: a page, a paper, a talk. Imports no matplotlib, so that a command can choose early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from vlmbench.errors import ConfigError

STYLES: tuple[str, ...] = ("page", "paper", "talk")
COLUMN_IN, TEXT_IN = 3.3, 7.0
"""Width of one column and of two of a paper, inches."""

BASE_PT = 9.5  # of a figure for the page; sizes in drawing code are meant beside it
_FONT_PT: Mapping[str, float] = {"page": BASE_PT, "paper": 7.0, "talk": 14.0}
SMALLEST_PT = 6.0
"""No letter of a figure is smaller at its final size, unless all are asked to be."""
_NARROW_IN = 6.6  # a figure for the page that is no wider has one panel, and fits a column
_ONE_COLUMN_IN = 5.5  # below so many page inches panels stand above each other
_TALK_IN = 10.0
FORMATS: tuple[str, ...] = ("png", "pdf", "svg")


@dataclass(frozen=True, kw_only=True)
class FigureStyle:
    """How figures are drawn.

    Args:
        name: ``page`` (title and caption inside), ``paper`` (both beside the figure as ``.txt`` and ``.tex``, one or
            two columns wide), ``talk`` (large letters, title inside, caption beside).
        width_in: width of every figure in inches; None: as wide as its style says.
        font_pt: size of labels in points; None: 9.5, 7 and 14.
        stylesheet: a matplotlib style file, or the name of one of its styles, applied last; None for none.
        formats: of the files, of :data:`FORMATS`.
        dpi: pixels an inch of PNGs, and of what is drawn as pixels in the others.
    """

    name: str = "page"
    width_in: float | None = None
    font_pt: float | None = None
    stylesheet: str | None = None
    formats: tuple[str, ...] = ("png", "pdf")
    dpi: int = 200

    def __post_init__(self) -> None:
        if self.name not in STYLES:
            raise ConfigError(f"'figures.style' must be one of {', '.join(STYLES)} (got {self.name!r})")
        for name, value, low, high in (("width", self.width_in, 1.5, 40.0), ("font_size", self.font_pt, 3.0, 60.0)):
            if value is not None and not low <= value <= high:
                unit = "inches" if name == "width" else "points"
                raise ConfigError(f"'figures.{name}' must be null or {low:g} to {high:g} {unit} (got {value!r})")
        if not 50 <= self.dpi <= 1200:
            raise ConfigError(f"'figures.dpi' must be 50 to 1200 (got {self.dpi!r})")
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise ConfigError(f"'figures.formats' must be some of {', '.join(FORMATS)} (got {list(self.formats)})")
        if self.stylesheet and ("/" in self.stylesheet or self.stylesheet.endswith(".mplstyle")):
            path = Path(self.stylesheet)
            if not path.is_file():
                raise ConfigError(
                    f"'figures.stylesheet' names no file (got {self.stylesheet!r})\n"
                    "give the path of a matplotlib style file, or the name of one of its styles"
                )

    @property
    def scale(self) -> float:
        """What sizes of letters and marks are multiplied by."""
        return (self.font_pt or _FONT_PT[self.name]) / BASE_PT

    @property
    def title_inside(self) -> bool:
        """Whether the title stands in the figure."""
        return self.name != "paper"

    @property
    def caption_inside(self) -> bool:
        """Whether the caption stands in the figure; otherwise it is written beside it."""
        return self.name == "page"

    def width(self, page: float, columns: int | None = None) -> float:
        """Inches of a figure that is ``page`` inches wide on a page.

        Args:
            page: its width in the style ``page``.
            columns: columns of a paper that it takes; None: one if it is narrow on the page, else two.
        """
        if self.width_in is not None:
            return self.width_in
        if self.name == "page":
            return page
        if self.name == "talk":
            return _TALK_IN
        one = columns == 1 if columns is not None else page <= _NARROW_IN
        return COLUMN_IN if one else TEXT_IN

    def room(self, page: float, columns: int | None = None) -> float:
        """That width in page inches, which hold as many letters as an inch of a page does: what a layout goes by."""
        return self.width(page, columns) / self.scale

    def narrow(self, page: float, columns: int | None = None) -> bool:
        """Whether panels have no room beside each other."""
        return self.room(page, columns) < _ONE_COLUMN_IN


_PAGE = FigureStyle()
_style: ContextVar[FigureStyle] = ContextVar("figure_style")


def style() -> FigureStyle:
    """The style that is chosen now."""
    return _style.get(_PAGE)


@contextmanager
def drawn_as(chosen: FigureStyle) -> Iterator[None]:
    """Draw and save all figures inside in a style."""
    token = _style.set(chosen)
    try:
        yield
    finally:
        _style.reset(token)


def pt(size: float) -> float:
    """A size of letters as the chosen style has it, points; none is below 6 unless the style's own letters are."""
    chosen = style()
    return max(size * chosen.scale, min(SMALLEST_PT, chosen.scale * BASE_PT, size))


def dot(size: float) -> float:
    """A size of marks and lines as the chosen style has it, points."""
    return size * style().scale

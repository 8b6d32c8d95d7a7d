"""One look for all figures: colours, captions, and files that are whole or not there.

Figures are :class:`matplotlib.figure.Figure` objects made without pyplot, so nothing outlives its last reference: a
study of thousands of figures keeps none of them in memory. A figure function has this shape::

    with theme():
        fig = new_figure("What it shows", caption(provenance, n=len(frame)))
        axes = fig.subplots()
        ...
    save(fig, directory, "what_it_shows")

A component has one colour in every figure, that of :mod:`vlmbench.schema.stage_table`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import wrap
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib as mpl
import numpy as np
from matplotlib import rcsetup
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import Locator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from vlmbench.errors import ConfigError
from vlmbench.figures.style import dot, pt, style
from vlmbench.records.files import write_whole
from vlmbench.schema import MODEL_PARTS, STAGES
from vlmbench.text import latex, plain, worth

COMPONENT_COLOURS: Mapping[str, str] = {
    **{stage.column: stage.colour for stage in STAGES},
    **{part.name: part.colour for part in MODEL_PARTS},
    "other": "#BDBDBD",
}
"""Component (METHOD's times, and the stages that parameters are counted for) to its colour."""

COMPONENT_LABELS: Mapping[str, str] = {
    **{stage.column: stage.label for stage in STAGES},
    **{part.name: part.label for part in MODEL_PARTS},
    "other": "Other",
}
"""Component to the words that a figure or table shows for it."""

SERIES: tuple[str, ...] = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Colours of series that are not components (models, samples against a repeated request …), in order of use."""

DATASET_COLOUR, REFERENCE_COLOUR = SERIES[0], SERIES[1]
"""Requests of a data set; one identical request repeated."""

_words: WeakKeyDictionary[Figure, list[str]] = WeakKeyDictionary()
"""Figure to its title and captions, in the figure or not."""

_LETTERS = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
_LINES = (
    "lines.linewidth", "lines.markersize", "axes.linewidth", "grid.linewidth", "xtick.major.size", "ytick.major.size",
    "xtick.major.width", "ytick.major.width", "patch.linewidth",
)  # fmt: skip

_LETTERS_AN_INCH = 16  # of a caption; 8 points of DejaVu Sans
_TITLE_LINES, _LINE_HEIGHT = 2.0, 1.25

INK, MUTED = "#1A1A1A", "#5A5A5A"

_STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    # Ours, then matplotlib's own for what it lacks: the same picture on every machine. Why ours: fonts/README.md.
    "font.sans-serif": ["DejaVu Sans Figures", "DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": rcsetup.cycler(color=list(SERIES)),
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text in the PDF
    "svg.fonttype": "none",
    "svg.hashsalt": "vlmbench",
}


@cache
def _add_fonts() -> None:
    with as_file(files("vlmbench.figures") / "fonts") as folder:
        for file in sorted(folder.glob("*.ttf")):
            fontManager.addfont(file)


def luminance(colour: str) -> float:
    """Relative luminance of ``#RRGGBB``, from 0 to 1 (WCAG 2.2)."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@contextmanager
def theme() -> Iterator[None]:
    """Figures made and saved inside look alike; matplotlib's own settings come back afterwards."""
    _add_fonts()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        chosen = style()
        if chosen.scale != 1:
            params: Any = mpl.rcParams
            params.update({name: pt(float(params[name])) for name in _LETTERS})
            params.update({name: dot(float(params[name])) for name in _LINES})
        if chosen.stylesheet:
            use_stylesheet(chosen.stylesheet)
        yield


def use_stylesheet(name: str) -> None:
    """Apply a matplotlib style on top of this one.

    Raises:
        ConfigError: there is no such style, or it cannot be read.
    """
    from matplotlib import style as styles

    try:
        styles.use(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'figures.stylesheet' must be a matplotlib style file or the name of a style (got {name!r})\n"
            f"matplotlib says: {str(error).splitlines()[0]}"
        ) from error


def component_colour(component: str) -> str:
    """The fixed colour of a component; grey for one that is not known."""
    return COMPONENT_COLOURS.get(component, COMPONENT_COLOURS["other"])


def component_label(component: str) -> str:
    """The words for a component; its own name if it is not known."""
    return COMPONENT_LABELS.get(component, component)


def new_figure(
    title: str, caption_text: str = "", *, width: float = 8.0, height: float = 3.9, columns: int | None = None
) -> Figure:
    """An empty figure with a title above and a caption below, laid out to fit.

    Call it inside :func:`theme`.

    Args:
        caption_text: its caption; more may be added by :func:`add_caption`.
        height: inches on a page of what is drawn; title and caption come on top.
        columns: columns of a paper that it takes; None: one if it is narrow on the page, else two.
    """
    chosen = style()
    figure = Figure(figsize=(chosen.width(width, columns), height * chosen.scale), layout="constrained")
    pad = 0.06 if chosen.name == "page" else 0.02
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)  # type: ignore[union-attr, call-arg]
    _words[figure] = [title]
    if chosen.title_inside:
        figure.set_figheight(figure.get_figheight() + _TITLE_LINES * pt(12) / 72)
        figure.suptitle(title, x=0.01, ha="left", fontsize=pt(12), fontweight="bold", color=INK)
    if caption_text:
        add_caption(figure, caption_text)
    return figure


def add_caption(figure: Figure, text: str) -> None:
    """Put a caption below a figure that was made without one, because it says what was drawn meanwhile."""
    _words.setdefault(figure, [""]).append(text)
    if style().caption_inside:
        letters = int(figure.get_figwidth() * _LETTERS_AN_INCH / style().scale)
        said = _wrapped(text, letters)
        figure.set_figheight(figure.get_figheight() + (said.count("\n") + 1) * _LINE_HEIGHT * pt(8) / 72)
        figure.supxlabel(said, x=0.01, ha="left", fontsize=pt(8), color=MUTED)


_KEPT = re.compile(r"(?<=\bn) (?==)|(?<=\bn =) |(?<=\d) (?=\()| (?=[\d,.]+$)")  # "n = 5 (a)", a number that ends a line


def _wrapped(text: str, letters: int) -> str:
    """Lines of at most so many letters, broken at blanks: a narrow figure would cut its caption off."""
    lines = (wrap(_KEPT.sub("\N{NO-BREAK SPACE}", line), letters) or [""] for line in text.split("\n"))
    return "\n".join(part for one in lines for part in one).replace("\N{NO-BREAK SPACE}", " ")


def dtype_name(provenance: Mapping[str, Any]) -> str:
    """The data type of a run, ``bfloat16``; empty where it is not known, as of a server."""
    name = _text((provenance.get("runtime") or {}).get("dtype")).removeprefix("torch.")
    return "" if name == "auto" else name


def _text(value: Any) -> str:
    return str(value).strip() if value not in (None, "", {}, []) else ""


def model_name(provenance: Mapping[str, Any]) -> str:
    """The model's name, with ``(random weights)`` where nobody trained it."""
    model = provenance.get("model") or {}
    name = _text(model.get("name")) or _text(model.get("architecture")) or "unnamed model"
    return f"{name} (random weights)" if model.get("weights") == "random" else name


def runtime_name(provenance: Mapping[str, Any]) -> str:
    """How the model runs, in a few words: ``eager``, ``compiled``, and the attention kernel."""
    runtime = provenance.get("runtime") or {}
    compiled = runtime.get("compile")
    mode = _text(runtime.get("name")) or ("compiled" if compiled else "eager")
    attention = _text(runtime.get("attention"))
    return f"{mode}, {attention} attention" if attention else mode


def dataset_name(provenance: Mapping[str, Any]) -> str:
    """The data set's name, or the last word of the class that the configuration names; empty if neither is there."""
    name = _text((provenance.get("dataset") or {}).get("name"))
    config = (provenance.get("config") or {}).get("dataset") or {}
    return name or _text(config.get("name")) or _text(config.get("_target_")).rpartition(".")[2]


def device_name(provenance: Mapping[str, Any]) -> str:
    """What it ran on: ``NVIDIA H200``, ``2 × NVIDIA H200`` where the model is spread or split over two."""
    device, runtime = provenance.get("device") or {}, provenance.get("runtime") or {}
    if endpoint := (provenance.get("model") or {}).get("endpoint"):
        server, card = f"{_text(endpoint.get('dialect'))} server", _text(endpoint.get("device"))
        return f"{server} on {card}" if card else server  # no server says what it runs on
    name = _text(device.get("name")) or _text(device.get("type"))
    count = max(runtime.get("devices") or 1, runtime.get("processes") or 1)
    return f"{count} × {name}" if name and count > 1 else name


def caption(
    provenance: Mapping[str, Any],
    *,
    n: int | None = None,
    unit: str = "requests",
    effective: float | None = None,
    note: str = "",
) -> str:
    """The line under a figure: model, weights if random, device, dtype, runtime, data set, n.

    Args:
        provenance: content of ``provenance.json``; what it lacks is left out.
        n: how many independent observations the figure shows.
        effective: independent observations that the n are worth; None where that was not looked for.
        note: anything else a reader must know; stands on a line of its own.
    """
    parts = [
        model_name(provenance),
        device_name(provenance),
        dtype_name(provenance),
        runtime_name(provenance),
        dataset_name(provenance),
        f"n = {n:,} {unit}{worth(n, effective)}" if n is not None else "",
    ]
    line = " · ".join(part for part in parts if part)
    return f"{line}\n{note}" if note else line


def save(figure: Figure, directory: Path, name: str, *, dpi: int | None = None) -> tuple[Path, ...]:
    """Write ``name.png`` and ``name.pdf`` (or the formats of the style) into ``directory`` (made if missing); readers
    never see half a file.

    Where the style keeps the caption out of the figure, ``name.txt`` and ``name.tex`` hold it.

    Returns:
        The paths.
    """
    layout, old_dpi = figure.get_layout_engine(), figure.dpi
    dpi = dpi or style().dpi
    paths = [directory / f"{name}.{kind}" for kind in style().formats]
    try:
        with theme():
            if layout is not None:  # laid out once for all files
                figure.dpi = dpi
                layout.execute(figure)
                figure.set_layout_engine(None)
            for path in paths:
                kind = path.suffix[1:]
                # Without dates and with one salt the same numbers give the same bytes.
                dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
                metadata = {**dates, "Title": name}
                write_whole(path, partial(figure.savefig, format=kind, dpi=dpi, metadata=metadata))
    finally:
        figure.dpi = old_dpi
        figure.set_layout_engine(layout)
    return (*paths, *_captions(figure, directory / name))


def _captions(figure: Figure, stem: Path) -> list[Path]:
    """The caption as plain text and for LaTeX, where the figure does not hold it."""
    title, *rest = [
        ". ".join(line.strip().rstrip(".") for line in text.split("\n")) for text in _words.get(figure, [""])
    ]
    if style().caption_inside or not (title or rest):
        return []
    text = ". ".join(part.rstrip(".") for part in (title, *rest) if part) + "."
    tex = f"\\caption{{{latex(text)}}}\n\\label{{fig:{stem.name}}}\n"
    return [write_whole(stem.with_suffix(".txt"), text + "\n"), write_whole(stem.with_suffix(".tex"), tex)]


# Ticks of logarithmic axes: plain numbers, as many as have room beside each other.
# Why not matplotlib's LogLocator(subs=(1, 2, 5)): it does not know how wide labels are. In a panel 3.4 inches wide
# 0.0001, 0.0002, 0.0005 … run into each other, from 20 G to 70 G two labels are left, and on a narrow axis over eight
# decades none; subs="auto" or "all", fewer numticks, LogFormatter and AutoLocator fail tests/figures/test_ticks.py too.

_STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
_LETTER = 0.62  # width of a digit, of the height of the letters
_LINE = 1.6
_GAP_LETTERS = 1.5
_FEWEST = 3
_SHORT = 20  # a range of fewer times than this is shown by equal steps rather than by two of a decade's
_FARTHEST = 8  # decades between two labels


class RoomyLogLocator(Locator):
    """1, 2, 5, 10 … where the labels have room, else 1, 3, 10 …, else every decade, or every second, third …

    Where a range holds fewer than three of these, round numbers stand at equal steps.

    Args:
        write: a value to its label; its length is the room that it needs.
    """

    def __init__(self, write: Callable[[float], str]) -> None:
        self.write = write

    def __call__(self) -> Any:
        """Where the ticks are."""
        assert self.axis is not None
        low, high = sorted(self.axis.get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Ticks between two positive ends."""
        if not (0 < vmin < vmax and math.isfinite(vmax)):
            return np.array([])
        made = [self._at(steps, 1, 0, vmin, vmax) for steps in _STEPS]
        made += [self._at((1.0,), n, first, vmin, vmax) for n in range(2, _FARTHEST) for first in range(n)]
        equal = [_equal_steps(number, vmin, vmax) for number in (5, 4, 3, 2, 1)]
        many = [ticks for ticks in made if len(ticks) >= _FEWEST]
        two = [ticks for ticks in made if len(ticks) == _FEWEST - 1]
        order = [*many, *equal, *two] if vmax < _SHORT * vmin else [*many, *two, *equal]
        order += [ticks[[0, -1]] for ticks in (*equal, *many) if len(ticks) > 1]  # the ends alone
        return next((ticks for ticks in order if len(ticks) > 1 and self._fits(ticks, vmin, vmax)), order[0][:1])

    def _at(self, steps: tuple[float, ...], every: int, first: int, low: float, high: float) -> NDArray[np.float64]:
        """Steps in every so many decades."""
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = np.array([s * 10.0**d for d in decades if d % every == first for s in steps])
        return ticks[(ticks >= low * (1 - 1e-9)) & (ticks <= high * (1 + 1e-9))]

    def _fits(self, ticks: NDArray[np.float64], low: float, high: float) -> bool:
        if len(ticks) < 2:
            return True
        places = np.log(ticks) / math.log(high / low)
        return bool(np.min(np.diff(places) - self._needed(ticks)) >= 0)

    def _needed(self, ticks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Room between the middles of neighbours, as a share of the axis."""
        axis: Any = self.axis
        box = axis.axes.get_window_extent()
        upright = axis.axis_name == "y"
        size = axis.get_tick_params().get("labelsize") or axis.get_major_ticks(1)[0].label1.get_size()
        letters = float(size) * axis.axes.figure.dpi / 72
        if upright:
            return np.full(len(ticks) - 1, letters * _LINE / max(box.height, 1.0))
        widths = np.array([len(self.write(tick)) for tick in ticks], dtype=float)
        between = (widths[:-1] + widths[1:]) / 2 + _GAP_LETTERS
        return np.asarray(between * _LETTER * letters / max(box.width, 1.0))


def _equal_steps(number: int, low: float, high: float) -> NDArray[np.float64]:
    ticks = np.asarray(MaxNLocator(nbins=number, steps=[1, 2, 5, 10]).tick_values(low, high), dtype=np.float64)
    return ticks[(ticks >= low) & (ticks <= high)]


def plain_ticks(*axes: Axis) -> None:
    """Give axes plain numbers, none in powers of ten or beside an offset."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: plain(value))


def plain_log_ticks(axis: Axis, write: Callable[[float], str] = plain) -> None:
    """Give a logarithmic axis plain numbers, and no ticks between them that are labelled otherwise."""
    axis.set_major_locator(RoomyLogLocator(write))
    axis.set_major_formatter(lambda value, _: write(value))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())

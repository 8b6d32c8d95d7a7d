"""Ticks of logarithmic axes: plain numbers, as many as have room beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from vlmbench.text import plain

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


def plain_log_ticks(axis: Axis, write: Callable[[float], str] = plain) -> None:
    """Give a logarithmic axis plain numbers, and no ticks between them that are labelled otherwise.

    Args:
        axis: after its scale was set.
        write: a value to its label.
    """
    axis.set_major_locator(RoomyLogLocator(write))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())

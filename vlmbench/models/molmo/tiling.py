"""Geometry of Molmo's image preprocessing: how many crops, which tokens, and where each pooled vector goes.

An image becomes one low-resolution crop and rows x cols overlapping high-resolution crops. Neighbouring crops overlap
by the margins; every cell of the pooled high-resolution canvas is taken from exactly one crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class CropGeometry:
    """Constants of the preprocessing; the defaults are those of all released checkpoints.

    Args:
        crop_size: side of a crop, pixels.
        patch_size: side of a patch, pixels.
        margins: (low, high) margin of a crop that its neighbours cover, patches.
        pooling: side of the square of patches that becomes one vector.
        max_crops: most high-resolution crops; the low-resolution one is not counted.
    """

    crop_size: int = 336
    patch_size: int = 14
    margins: tuple[int, int] = (4, 4)
    pooling: int = 2
    max_crops: int = 12

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.crop_size < 1 or self.crop_size % self.patch_size:
            raise ValueError(
                f"'crop_size' must be a multiple of 'patch_size' (got {self.crop_size}, {self.patch_size})"
            )
        if self.pooling < 1 or any(n % self.pooling or n < 0 for n in (self.side, *self.margins)):
            raise ValueError(
                f"'margins' and the {self.side} patches of a crop must be multiples of 'pooling' "
                f"(got margins {self.margins}, pooling {self.pooling})"
            )
        if self.window < 1:
            raise ValueError(f"'margins' must leave a window in the {self.side} patches of a crop (got {self.margins})")
        if self.max_crops < 1:
            raise ValueError(f"'max_crops' must be 1 or more (got {self.max_crops})")

    @property
    def side(self) -> int:
        """Patches along a crop."""
        return self.crop_size // self.patch_size

    @property
    def cells(self) -> int:
        """Pooled vectors along a crop."""
        return self.side // self.pooling

    @property
    def window(self) -> int:
        """Pooled vectors along the part of a crop that is its own."""
        return (self.side - sum(self.margins)) // self.pooling

    @property
    def window_size(self) -> int:
        """Distance of neighbouring crops, pixels."""
        return self.window * self.pooling * self.patch_size

    @property
    def margin_size(self) -> int:
        """Both margins, pixels."""
        return sum(self.margins) * self.patch_size

    def canvas(self, tiling: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of the high-resolution canvas."""
        rows, cols = tiling
        return self.window_size * rows + self.margin_size, self.window_size * cols + self.margin_size

    def grid(self, tiling: tuple[int, int]) -> tuple[int, int]:
        """(rows, cols) of pooled vectors on the high-resolution canvas."""
        margin = sum(self.margins) // self.pooling
        return self.window * tiling[0] + margin, self.window * tiling[1] + margin

    def num_patch_tokens(self, tiling: tuple[int, int]) -> int:
        """``<im_patch>`` tokens of an image: positions that carry a vector."""
        rows, cols = self.grid(tiling)
        return self.cells**2 + rows * cols

    def num_image_tokens(self, tiling: tuple[int, int]) -> int:
        """All tokens of an image, with start, end and column tokens."""
        rows, cols = self.grid(tiling)
        return 4 + self.cells * (self.cells + 1) + rows * (cols + 1)


def select_tiling(height: int, width: int, geometry: CropGeometry) -> tuple[int, int]:
    """(rows, cols) of high-resolution crops for an image of ``height`` x ``width`` pixels.

    Among all tilings of at most ``max_crops`` crops: the one that enlarges least; where all shrink, the one that
    shrinks least; the first by (crops, rows) among equals. Images smaller than the margins make scales negative or
    infinite; the same rule holds. Calculated in float32, whose rounding decides ties.
    """
    most = geometry.max_crops
    tilings = [(r, c) for r in range(1, most + 1) for c in range(1, most + 1) if r * c <= most]
    tilings.sort(key=lambda rc: (rc[0] * rc[1], rc[0]))
    canvases = (np.array(tilings) * geometry.window_size).astype(np.float32)
    inner = np.array([height - geometry.margin_size, width - geometry.margin_size], dtype=np.float32)
    with np.errstate(divide="ignore"):
        scales = (canvases / inner).min(axis=-1)
    if np.all(scales < 1):
        return tilings[int(np.argmax(scales))]
    return tilings[int(np.argmin(np.where(scales < 1, np.float32(np.inf), scales)))]


@dataclass(frozen=True, kw_only=True)
class ImageTokenIds:
    """Ids of ``<im_start>``, ``<im_end>``, ``<im_patch>`` and ``<im_col>``."""

    start: int
    end: int
    patch: int
    col: int


def image_tokens(tiling: tuple[int, int], geometry: CropGeometry, ids: ImageTokenIds) -> NDArray[np.int64]:
    """Token ids of an image, (tokens,): the low-resolution grid, then the high-resolution one, each row by row."""
    parts: list[NDArray[np.int64]] = []
    for rows, cols in ((geometry.cells, geometry.cells), geometry.grid(tiling)):
        row = np.full(cols + 1, ids.patch, dtype=np.int64)
        row[-1] = ids.col
        parts += [np.array([ids.start]), np.tile(row, rows), np.array([ids.end])]
    return np.concatenate(parts).astype(np.int64)


def image_input_idx(tiling: tuple[int, int], geometry: CropGeometry, *, offset: int = 1) -> NDArray[np.int64]:
    """Position of each pooled vector in the row of tokens, (crops, vectors); -100 for vectors that are dropped.

    Args:
        tiling: (rows, cols).
        offset: position of the first image token (1: behind BOS).
    """
    cells, window = geometry.cells, geometry.window
    grid_cols = geometry.grid(tiling)[1]
    low_start = offset + 1  # behind <im_start>
    high_start = low_start + cells * (cells + 1) + 2  # behind <im_end> and <im_start>
    a, b = np.mgrid[:cells, :cells]
    crops = [low_start + a * (cells + 1) + b]
    for i in range(tiling[0]):
        for j in range(tiling[1]):
            kept = _own(a, i, tiling[0], geometry) & _own(b, j, tiling[1], geometry)
            position = high_start + (window * i + a) * (grid_cols + 1) + window * j + b
            crops.append(np.where(kept, position, -100))
    return np.stack(crops).reshape(len(crops), -1).astype(np.int64)


def _own(cell: NDArray[np.int64], index: int, count: int, geometry: CropGeometry) -> NDArray[np.bool_]:
    """Whether cells of crop ``index`` of ``count`` along an axis are its own; outer crops keep the outer margin."""
    low, high = (margin // geometry.pooling for margin in geometry.margins)
    first = 0 if index == 0 else low
    last = geometry.cells if index == count - 1 else geometry.cells - high
    return (cell >= first) & (cell < last)

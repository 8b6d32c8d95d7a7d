"""Molmo's image processor: letterbox, overlapping crops, patches, masks. Bit for bit what the original code makes.

Pixels are resized in float32 by torch's antialiased bilinear interpolation (which is torchvision's ``Resize``), padded
with 0 before normalising, and cut into crops row by row behind the low-resolution crop.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from vlmbench.models.molmo.rgb import to_rgb_array
from vlmbench.models.molmo.tiling import CropGeometry, select_tiling

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ABSENT = -1
"""What crops and masks of rows with fewer crops are padded with."""

FloatArray = NDArray[np.float32]


class MolmoImagesKwargs(TypedDict, total=False):
    """Arguments of :meth:`MolmoImageProcessor.preprocess` at call time.

    max_crops: most high-resolution crops; fewer of them, fewer vision tokens.
    """

    max_crops: int


class MolmoImageProcessor(BaseImageProcessor):
    """Images to crops of patches.

    Args:
        max_crops: most high-resolution crops (12 in the released checkpoints).
        crop_size: side of a crop, pixels.
        patch_size: side of a patch, pixels.
        overlap_margins: (low, high) margins of a crop that its neighbours cover, patches.
        pooling_size: side of the square of patches that becomes one vector.
        image_mean, image_std: of the three channels.
        kwargs: what transformers adds when it loads a saved processor.

    Raises:
        ValueError: sizes that do not divide each other.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_masks"]
    valid_kwargs = MolmoImagesKwargs

    def __init__(
        self,
        *,
        max_crops: int = 12,
        crop_size: int = 336,
        patch_size: int = 14,
        overlap_margins: Sequence[int] = (4, 4),
        pooling_size: int = 2,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_crops = max_crops
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.overlap_margins = list(overlap_margins)
        self.pooling_size = pooling_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.geometry()

    def geometry(self, max_crops: int | None = None) -> CropGeometry:
        """The constants, with ``max_crops`` in place of the processor's own where given."""
        low, high = self.overlap_margins
        return CropGeometry(
            crop_size=self.crop_size,
            patch_size=self.patch_size,
            margins=(low, high),
            pooling=self.pooling_size,
            max_crops=self.max_crops if max_crops is None else max_crops,
        )

    def preprocess(
        self, images: Any, *, max_crops: int | None = None, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Preprocess one image or a list of them (None for a row without an image).

        Args:
            images: what :func:`vlmbench.models.molmo.rgb.to_rgb_array` takes.
            max_crops: instead of the processor's own.
            return_tensors: ``"pt"`` or ``"np"`` (default).

        Returns:
            ``pixel_values`` float32 (B, crops, patches, patch_size * patch_size * 3), the low-resolution crop first,
            patches in raster order, each in (dy, dx, channel) order; ``image_masks`` float32 (B, crops, patches), the
            share of a patch that is not padding; ``image_tilings`` int64 (B, 2), (rows, cols), 0 without an image. Rows
            with fewer crops are filled up with -1.

        Raises:
            SampleError: an image that cannot be used.
            TypeError: an unknown argument.
        """
        if unknown := sorted(name for name, value in kwargs.items() if value is not None):
            raise TypeError(f"MolmoImageProcessor does not know {unknown}; it takes max_crops and return_tensors")
        listed = images if isinstance(images, list | tuple) else [images]
        geometry = self.geometry(max_crops)
        made = [None if image is None else self._preprocess_one(to_rgb_array(image), geometry) for image in listed]
        crops = max((len(one[0]) for one in made if one is not None), default=0)
        patches = geometry.side**2
        pixels = np.full((len(made), crops, patches, 3 * geometry.patch_size**2), ABSENT, dtype=np.float32)
        masks = np.full((len(made), crops, patches), ABSENT, dtype=np.float32)
        tilings = np.zeros((len(made), 2), dtype=np.int64)
        for row, one in enumerate(made):
            if one is not None:
                pixels[row, : len(one[0])], masks[row, : len(one[1])], tilings[row] = one
        data = {"pixel_values": pixels, "image_masks": masks, "image_tilings": tilings}
        return BatchFeature(data, tensor_type=return_tensors or "np")

    def _preprocess_one(
        self, image: NDArray[np.uint8], geometry: CropGeometry
    ) -> tuple[FloatArray, FloatArray, tuple[int, int]]:
        """Crops (T, patches, pixels), masks (T, patches), (rows, cols)."""
        rows, cols = tiling = select_tiling(image.shape[0], image.shape[1], geometry)
        size, step = geometry.crop_size, geometry.window_size
        # The strides of a channels-last image stay, as in the original; torch picks its kernel by them.
        scaled = torch.from_numpy(image).permute(2, 0, 1).to(torch.float32) / 255
        low, _ = letterbox(scaled, (size, size))
        canvas, real = letterbox(scaled, geometry.canvas(tiling))
        canvas = self._normalise(canvas)
        corners = [(step * i, step * j) for i in range(rows) for j in range(cols)]
        crops = [self._normalise(low)] + [canvas[y : y + size, x : x + size] for y, x in corners]
        masks = [real[y : y + size, x : x + size, None] for y, x in corners]
        pixels = np.stack([_patches(crop, geometry) for crop in crops])
        shares = [_patches(mask, geometry).astype(np.float32).mean(axis=-1) for mask in masks]
        # The released models are trained with this row order: the masks begin with the first high-resolution crop, one
        # row too early, and -1 fills the last row. An off-by-one of the original that has to stay.
        shares.append(np.full_like(shares[0], -1))
        return pixels, np.stack(shares), tiling

    def _normalise(self, image: FloatArray) -> FloatArray:
        image -= np.array(self.image_mean, dtype=np.float32)
        image /= np.array(self.image_std, dtype=np.float32)
        return image


def letterbox(image: torch.Tensor, size: tuple[int, int]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Resize into ``size`` without changing the aspect ratio, centred on 0.

    Args:
        image: (3, H, W) float32 in [0, 1].
        size: (height, width).

    Returns:
        (height, width, 3) float32, and (height, width) that is True where the image is.
    """
    height, width = np.float32(image.shape[1]), np.float32(image.shape[2])
    scale = min(np.float32(size[0]) / height, np.float32(size[1]) / width)
    # A line of a few thousand pixels would vanish; the original fails there.
    new_height, new_width = max(1, int(height * scale)), max(1, int(width * scale))
    resized = interpolate(
        image[None], size=(new_height, new_width), mode="bilinear", align_corners=False, antialias=True
    )[0].clamp(0.0, 1.0)
    top, left = (size[0] - new_height) // 2, (size[1] - new_width) // 2
    inside = (slice(top, top + new_height), slice(left, left + new_width))
    padded = np.zeros((*size, 3), dtype=np.float32)
    padded[inside] = resized.permute(1, 2, 0).numpy()
    real = np.zeros(size, dtype=np.bool_)
    real[inside] = True
    return padded, real


def _patches(crop: NDArray[Any], geometry: CropGeometry) -> NDArray[Any]:
    """(size, size, channels) -> (patches, patch_size * patch_size * channels)."""
    side, patch = geometry.side, geometry.patch_size
    grid = crop.reshape(side, patch, side, patch, crop.shape[-1]).transpose(0, 2, 1, 3, 4)
    return grid.reshape(side * side, -1)

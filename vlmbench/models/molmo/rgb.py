"""Any image to upright 8-bit RGB, or an error that says what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlmbench.errors import SampleError

MAX_PIXELS = 178_956_970
"""Larger images are refused (two copies in float32 of this one take 4 GB); Pillow's own limit for an error."""

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def to_rgb_array(image: Any) -> NDArray[np.uint8]:
    """(height, width, 3) uint8.

    EXIF rotation is applied; of an animation the first (current) frame counts; an alpha channel is dropped, as in the
    original code; 16-bit greyscale keeps its high byte (Pillow would clip it to white).

    Args:
        image: a PIL image of any mode; a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a uint8 tensor
            (3, H, W).

    Raises:
        SampleError: empty, of more than :data:`MAX_PIXELS` pixels, or of a mode that has no defined RGB value.
        TypeError: something else.
    """
    if isinstance(image, Image.Image):
        _check_size(*image.size)
        return np.array(_pil_to_rgb(ImageOps.exif_transpose(image)))  # a copy: torch wants it writable
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise SampleError(
                f"an image tensor must be uint8 of shape (3, H, W) (got {image.dtype}, {tuple(image.shape)})"
            )
        image = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    raise TypeError(f"an image must be a PIL image, an array or a tensor (got {type(image).__name__})")


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise SampleError(f"an image must have at least one pixel (got {width}x{height})")
    if width * height > MAX_PIXELS:
        raise SampleError(f"an image may have at most {MAX_PIXELS:,} pixels (got {width}x{height}); make it smaller")


def _pil_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise SampleError(f"an image of mode '{image.mode}' must hold values 0..65535 (got {low}..{high})")
        if image.mode in _SIXTEEN_BIT or high > 0xFF:  # mode "I" is also what 16-bit files open as
            values = values >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise SampleError("an image of mode 'F' (floating point) has no defined white; convert it to 8 bits first")
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise SampleError(f"an image of mode '{image.mode}' cannot be made RGB: {error}") from error


def _array_to_rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise SampleError(
            f"an image array must be uint8 of shape (H, W) or (H, W, 1|3|4) (got {array.dtype}, {array.shape})"
        )
    _check_size(array.shape[1], array.shape[0])
    if array.ndim == 2:
        array = array[:, :, None]
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
    return np.ascontiguousarray(array)

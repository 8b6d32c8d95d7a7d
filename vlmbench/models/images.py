"""Encoded bytes to what a processor takes: an upright RGB image, or an error that names the sample's image."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmbench.errors import SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(encoded: bytes, *, name: str, size: tuple[int, int] | None = None) -> Image:
    """One image: first frame, EXIF rotation applied, any mode to RGB, resized when asked.

    Transparency is laid on white; 16-bit greyscale keeps its highest eight bits (PIL alone would clip it to white).

    Args:
        encoded: JPEG, PNG, GIF … bytes.
        name: what the error calls it.
        size: (width, height) in pixels to resize to (bicubic), aspect ratio not kept.

    Raises:
        SampleError: not an image, truncated, or more pixels than PIL's decompression-bomb limit.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # checked below, with a better message
            opened = Pillow.open(io.BytesIO(encoded))
        limit = Pillow.MAX_IMAGE_PIXELS
        if limit is not None and opened.width * opened.height > limit:
            raise SampleError(f"image '{name}' has {opened.width}x{opened.height} pixels; the limit is {limit:,}")
        image = _to_rgb(ImageOps.exif_transpose(opened))
    except Pillow.DecompressionBombError as error:
        raise SampleError(f"image '{name}' is too large to decode safely: {error}") from error
    except UnidentifiedImageError as error:
        raise SampleError(f"image '{name}' is not an image that PIL knows ({len(encoded)} bytes)") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise SampleError(f"image '{name}' cannot be decoded: {error}") from error
    return image if size is None or image.size == size else image.resize(size, Pillow.Resampling.BICUBIC)


def _to_rgb(image: Image) -> Image:
    from PIL import Image as Pillow

    image.load()
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        return _deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Pillow.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image) -> Image:
    """More than eight bits a pixel: 16-bit values are divided by 256; wider ones too when they exceed 255."""
    import numpy as np
    from PIL import Image as Pillow

    values = np.asarray(image, dtype=np.float64)
    if image.mode in _SIXTEEN_BIT or (values.size and float(values.max()) > 255):
        values = values / 256
    grey = np.nan_to_num(np.clip(values, 0, 255)).astype(np.uint8)
    return Pillow.fromarray(grey).convert("RGB")


def decode_all(encoded: Sequence[bytes], *, names: Sequence[str], size: tuple[int, int] | None = None) -> list[Image]:
    """:func:`decode` for the images of a request, in order."""
    return [decode(data, name=name, size=size) for data, name in zip(encoded, names, strict=True)]

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
        SampleError: not an image, truncated, more pixels than PIL's decompression-bomb limit, or pixels without a
            defined white.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Too many pixels is checked below, with a better message; damaged metadata does not matter to a model.
            warnings.simplefilter("ignore")
            opened = Pillow.open(io.BytesIO(encoded))
            limit = Pillow.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise SampleError(
                    f"image '{name}' has {opened.width}x{opened.height} pixels; the limit is {limit:,}: make it smaller"
                )
            image = _to_rgb(ImageOps.exif_transpose(opened), name)
    except SampleError:
        raise
    except Pillow.DecompressionBombError as error:
        raise SampleError(f"image '{name}' is too large to decode safely, make it smaller: {error}") from error
    except UnidentifiedImageError as error:
        raise SampleError(f"image '{name}' is not an image that PIL knows ({len(encoded)} bytes)") from error
    except Exception as error:  # damaged bytes make PIL's many decoders raise anything: TypeError, struct.error …
        raise SampleError(f"image '{name}' cannot be decoded: {error or type(error).__name__}") from error
    return image if size is None or image.size == size else image.resize(size, Pillow.Resampling.BICUBIC)


def _to_rgb(image: Image, name: str) -> Image:
    from PIL import Image as Pillow

    image.load()
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        return _deep_grey(image, name)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Pillow.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image, name: str) -> Image:
    """More than eight bits a pixel: integers up to 65,535 lose their lower byte; floating point counts as 0..255."""
    import numpy as np
    from PIL import Image as Pillow

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (low >= 0 and (high == 0 or 1 < high <= 255)):
            raise SampleError(
                f"image '{name}' holds floating-point values {low:g}..{high:g}; they must be 0..255 "
                "(0..1 would be taken for black)"
            )
    elif low < 0 or high > 0xFFFF:
        raise SampleError(f"image '{name}' holds values {low:.0f}..{high:.0f}; greyscale must be 0..255 or 0..65535")
    elif image.mode in _SIXTEEN_BIT or high > 0xFF:  # mode "I" is what some 16-bit files open as
        values = values >> 8
    return Pillow.fromarray(values.astype(np.uint8)).convert("RGB")


def decode_all(encoded: Sequence[bytes], *, names: Sequence[str], size: tuple[int, int] | None = None) -> list[Image]:
    """:func:`decode` for the images of a request, in order."""
    return [decode(data, name=name, size=size) for data, name in zip(encoded, names, strict=True)]

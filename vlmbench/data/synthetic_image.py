"""Pictures that cost a decoder and a processor what a photo costs: real JPEG bytes, seeded.

Smooth light, a few shapes with hard edges, and texture of several scales: a JPEG encoder finds about as much to code
in it as in a photo, so that file sizes (and with them decoding times) are those of COCO's photos.
"""

from __future__ import annotations

import io
import random

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

JPEG_QUALITY = 90
# Weight of each size among COCO's photos; the rest has a long side of 640 and a short one of 360 to 556.
_SIZES = {(640, 480): 23.0, (640, 427): 13.0, (480, 640): 8.0, (640, 426): 5.0, (427, 640): 4.5}
_REST = 100 - sum(_SIZES.values())
_LANDSCAPE_SHARE = 0.75  # of the rest: landscape to portrait 3 : 1


def draw_size(rng: random.Random) -> tuple[int, int]:
    """(width, height) in pixels, distributed as in COCO."""
    choice = rng.choices([*_SIZES, None], weights=[*_SIZES.values(), _REST])[0]
    if choice is not None:
        return choice
    short = rng.randint(360, 556)
    return (640, short) if rng.random() < _LANDSCAPE_SHARE else (short, 640)


# Pixels of the long-tailed sizes: at 32 × 32 a token, as Qwen3-VL counts, 809 to 61,566 vision tokens, the range of the
# product pictures of MLPerf's vision-language task. The shape in between is not published: a Pareto law cut off at both
# ends, whose median is 1.5 and whose P99 36 million pixels.
_PIXELS = (809 * 1024, 61_566 * 1024)
_EXPONENT = 1.2


def draw_long_tailed_size(rng: random.Random) -> tuple[int, int]:
    """(width, height) in pixels: most near a megapixel, a few of tens; sides up to 2 : 1 either way."""
    least, most = _PIXELS
    beyond = 1 - rng.random() * (1 - (least / most) ** _EXPONENT)
    pixels = least * beyond ** (-1 / _EXPONENT)
    ratio = 2 ** rng.uniform(-1, 1)
    return round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)


def _random_pixels(rng: Generator, size: tuple[int, int], cell: int) -> Image.Image:
    shape = (size[1] // cell + 2, size[0] // cell + 2, 3)
    return Image.fromarray(rng.integers(0, 256, size=shape, dtype=np.uint8))


def _light(rng: Generator, size: tuple[int, int]) -> Image.Image:
    """Colours that change smoothly, over 160 pixels and over 20; put together while small, enlarged once."""
    fine = _random_pixels(rng, size, 20)
    coarse = _random_pixels(rng, size, 160).resize(fine.size, Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.25).resize(size, Image.Resampling.BILINEAR)


def _shapes(rng: Generator, picture: Image.Image) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    for _ in range(int(rng.integers(4, 12))):
        x, y = int(rng.integers(-50, width)), int(rng.integers(-50, height))
        w, h = (int(v) for v in rng.integers(20, 240, size=2))
        colour = tuple(int(v) for v in rng.integers(0, 256, size=3))
        kind = rng.integers(0, 3)
        if kind == 0:
            draw.ellipse((x, y, x + w, y + h), fill=colour)
        elif kind == 1:
            draw.rectangle((x, y, x + w, y + h), fill=colour)
        else:
            draw.polygon([(x, y + h), (x + w // 2, y), (x + w, y + h)], fill=colour)


def render_jpeg(*, seed: int, image: int, size: tuple[int, int]) -> bytes:
    """The encoded picture of that number: the same bytes for the same numbers and library versions.

    Args:
        size: (width, height) in pixels.
    """
    rng = np.random.default_rng((seed, image))
    picture = _light(rng, size)
    _shapes(rng, picture)
    # Grain on all three channels alike, as light is; its strength is what differs most between photos, and decides
    # the size of the file.
    width, height = size
    grain = Image.frombytes("L", (width, height), rng.bytes(width * height)).convert("RGB")
    picture = Image.blend(picture, grain, float(rng.uniform(0.04, 0.30)))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

"""Decoding: any mode, any orientation, or an error that names the image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmbench.errors import SampleError
from vlmbench.models.inputs import decode


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


GRADIENT = np.tile(np.linspace(0, 255, 8, dtype=np.uint8), (6, 1))  # 8 wide, 6 high


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "CMYK", "YCbCr", "LA", "RGBA"])
def test_modes(mode):
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    stored = Image.fromarray(GRADIENT).convert("RGB").convert(mode, palette=Image.Palette.ADAPTIVE)
    assert stored.mode == mode
    image = decode(encoded(stored, kind), name="x")
    assert image.mode == "RGB"
    assert image.size == (8, 6)
    if mode != "1":
        assert np.abs(np.asarray(image, dtype=int)[..., 0] - GRADIENT).max() <= 3


def test_sixteen_bits_keep_their_range():
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert (np.asarray(decode(encoded(deep), name="x"))[..., 1] == GRADIENT).all()


def test_floating_point_pixels():
    image = decode(encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"), name="x")
    assert (np.asarray(image)[..., 2] == GRADIENT).all()


@pytest.mark.parametrize(
    "values",
    [
        GRADIENT.astype(np.float32) / 255,  # would be black
        GRADIENT.astype(np.float32) * 9,
        np.full((3, 3), np.nan, np.float32),
        GRADIENT.astype(np.int32) * 100_000,  # would be white
        -GRADIENT.astype(np.int32),
    ],
)
def test_pixels_without_a_defined_white_are_refused(values):
    with pytest.raises(SampleError, match=r"image 'deep\.tiff' holds"):
        decode(encoded(Image.fromarray(values), "TIFF"), name="deep.tiff")


def test_thirty_two_bit_integers_that_hold_sixteen():
    image = decode(encoded(Image.fromarray(GRADIENT.astype(np.int32) * 257), "TIFF"), name="x")
    assert (np.asarray(image)[..., 0] == GRADIENT).all()


def test_first_frame_of_an_animated_webp():
    frames = [Image.new("RGB", (5, 5), color) for color in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    red, green, _ = decode(data, name="x").getpixel((2, 2))
    assert (red > 200, green < 50) == (True, True)


def test_cmyk_jpeg_keeps_its_colours():
    """JPEG stores CMYK inverted; Adobe's marker says so."""
    image = decode(encoded(Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK"), "JPEG", quality=95), name="x")
    assert np.abs(np.array(image.getpixel((8, 8))) - (200, 30, 60)).max() < 12


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(clear), name="x").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image = decode(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif), name="x")
    assert image.size == (4, 8)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (5, 5), color) for color in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, name="x").getpixel((2, 2)) == (255, 0, 0)


def test_resize_and_one_pixel():
    one = encoded(Image.new("RGB", (1, 1), (9, 9, 9)))
    assert decode(one, name="x").size == (1, 1)
    assert decode(one, name="x", size=(30, 20)).size == (30, 20)


def test_too_many_pixels():
    with pytest.raises(SampleError, match=r"'big\.png'.*(20000x20000|too large)"):
        decode(encoded(Image.new("1", (20_000, 20_000))), name="big.png")
    with pytest.raises(SampleError, match="10000x10000"):
        decode(encoded(Image.new("1", (10_000, 10_000))), name="big.png")


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(Image.fromarray(GRADIENT).resize((200, 200)))[:120]])
def test_what_is_no_image(data):
    with pytest.raises(SampleError, match=r"'bad\.jpg'"):
        decode(data, name="bad.jpg")


SEEDS = [
    encoded(Image.fromarray(GRADIENT).convert("RGB"), kind, **options)
    for kind, options in (("JPEG", {}), ("PNG", {}), ("GIF", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {}), ("DDS", {}))
]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_a_sample_error(data):
    """Whatever PIL's decoders raise on them, and whatever they warn of."""
    image = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(image), 300) - 1))
        image[at] = data.draw(st.integers(0, 255))
    try:
        mode = decode(bytes(image), name="x").mode
    except SampleError as error:
        mode = str(error)
    assert mode == "RGB" or mode.startswith("image 'x' ")

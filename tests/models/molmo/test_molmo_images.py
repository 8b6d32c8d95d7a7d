from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmbench.errors import SampleError
from vlmbench.models.molmo import rgb
from vlmbench.models.molmo.image_processing import CLIP_MEAN, CLIP_STD, MolmoImageProcessor
from vlmbench.models.molmo.rgb import to_rgb_array

PROCESSOR = MolmoImageProcessor()


def synthetic(width: int, height: int) -> np.ndarray:
    y, x, c = np.mgrid[:height, :width, :3]
    return ((3 * x + 5 * y + 40 * c) % 256).astype(np.uint8)


def test_masks_and_pixels_of_the_reference(oracles: dict[str, Any]) -> None:
    for want in oracles["preprocess"]:
        made = PROCESSOR(synthetic(*want["size_wh"]))
        pixels, masks = made["pixel_values"][0], made["image_masks"][0]
        assert pixels.shape == (want["n_crops_total"], 576, 588)
        assert made["image_tilings"][0].tolist() == want["tiling_rows_cols"]
        digest = hashlib.sha256(np.ascontiguousarray(masks).tobytes()).hexdigest()[:16]
        assert digest == want["image_masks_float32_sha256_16"]
        samples = [pixels[tuple(at)] for at in oracles["pixel_samples_at"]]
        assert np.allclose(samples, want["pixel_samples"], atol=1e-6, rtol=0)
        assert abs(pixels.mean(dtype=np.float64) - want["images_mean"]) < 1e-6
        assert abs(pixels.std(dtype=np.float64) - want["images_std"]) < 1e-6


def plainly(image: np.ndarray, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """The same steps written down once more, pixel ranges first: crops (T, 336, 336, 3) and high-resolution masks."""

    def fit(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        h, w = image.shape[:2]
        scale = min(np.float32(height) / np.float32(h), np.float32(width) / np.float32(w))
        new = (max(int(np.float32(h) * scale), 1), max(int(np.float32(w) * scale), 1))
        chw = torch.from_numpy(image).permute(2, 0, 1).float().div(255).unsqueeze(0).contiguous()
        small = torch.nn.functional.interpolate(chw, new, mode="bilinear", antialias=True, align_corners=False)
        top, left = (height - new[0]) // 2, (width - new[1]) // 2
        edges = (left, width - new[1] - left, top, height - new[0] - top)
        whole = torch.nn.functional.pad(small[0].clamp(0, 1), edges)
        inside = torch.nn.functional.pad(torch.ones(new), edges)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        return ((whole - mean) / std).permute(1, 2, 0), inside

    canvas, inside = fit(224 * rows + 112, 224 * cols + 112)
    crops, masks = [fit(336, 336)[0]], []
    for i in range(rows):
        for j in range(cols):
            crops.append(canvas[224 * i : 224 * i + 336, 224 * j : 224 * j + 336])
            masks.append(inside[224 * i : 224 * i + 336, 224 * j : 224 * j + 336])
    return torch.stack(crops).numpy(), torch.stack(masks).numpy()


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 9))
@example(width=1, height=1, seed=0)
@example(width=4000, height=1, seed=0)
@example(width=1, height=4000, seed=0)
@example(width=3000, height=10, seed=0)
@example(width=112, height=113, seed=0)  # the margins: scales of both signs, and infinite
@example(width=112, height=112, seed=0)
@example(width=300, height=5000, seed=0)
@example(width=2500, height=2500, seed=0)
def test_bit_identical_to_the_steps_written_plainly(width: int, height: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    made = PROCESSOR(image)
    rows, cols = (int(n) for n in made["image_tilings"][0])
    crops, masks = plainly(image, rows, cols)
    for crop, patches in zip(crops, made["pixel_values"][0], strict=True):
        for index in (0, 25, 311, 575):
            y, x = 14 * (index // 24), 14 * (index % 24)
            assert np.array_equal(patches[index], crop[y : y + 14, x : x + 14].reshape(-1))
    shares = made["image_masks"][0]
    assert (shares[-1] == -1).all()  # the last row is no crop's mask
    for mask, share in zip(masks, shares, strict=False):
        assert np.allclose(mask.reshape(24, 14, 24, 14).mean(axis=(1, 3)).reshape(-1), share, atol=1e-7)


def test_rows_with_fewer_crops_are_filled_up_with_minus_one() -> None:
    small, large = synthetic(100, 100), synthetic(640, 480)
    made = PROCESSOR([small, large, None], return_tensors="pt")
    assert made["pixel_values"].shape == (3, 7, 576, 588)
    assert (made["pixel_values"][0, 2:] == -1).all()
    assert (made["pixel_values"][2] == -1).all()
    assert (made["image_masks"][0, 2:] == -1).all()
    alone = PROCESSOR(small, return_tensors="pt")
    assert torch.equal(made["pixel_values"][0, :2], alone["pixel_values"][0])
    assert made["image_tilings"].tolist() == [[1, 1], [2, 3], [0, 0]]


def test_max_crops_at_call_time() -> None:
    made = PROCESSOR(synthetic(1344, 1008), max_crops=4)
    assert made["image_tilings"][0].prod() <= 4
    with pytest.raises(TypeError, match="do_resize"):
        PROCESSOR(synthetic(10, 10), do_resize=True)


def test_saved_and_loaded(tmp_path: Any) -> None:
    MolmoImageProcessor(max_crops=5).save_pretrained(tmp_path)
    again = MolmoImageProcessor.from_pretrained(tmp_path)
    assert again.max_crops == 5
    image = synthetic(640, 480)
    want = MolmoImageProcessor(max_crops=5)(image)["pixel_values"]
    assert np.array_equal(again(image)["pixel_values"], want)


# ------------------------------------------------------------------------------------- images of other kinds


def test_greyscale_palette_cmyk_bilevel_and_alpha() -> None:
    colour = Image.fromarray(synthetic(40, 30))
    assert np.array_equal(to_rgb_array(colour), synthetic(40, 30))
    grey = colour.convert("L")
    assert np.array_equal(to_rgb_array(grey), np.repeat(np.asarray(grey)[:, :, None], 3, axis=2))
    palette = colour.quantize(16)
    assert np.array_equal(to_rgb_array(palette), np.asarray(palette.convert("RGB")))
    cmyk = colour.convert("CMYK")
    assert np.array_equal(to_rgb_array(cmyk), np.asarray(cmyk.convert("RGB")))
    assert set(np.unique(to_rgb_array(colour.convert("1")))) <= {0, 255}
    rgba = colour.copy()
    rgba.putalpha(7)
    assert np.array_equal(to_rgb_array(rgba), synthetic(40, 30))


def test_palette_with_transparency() -> None:
    image = Image.fromarray(synthetic(20, 20)).quantize(8)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=b"\x00" * 8)
    assert to_rgb_array(Image.open(buffer)).shape == (20, 20, 3)


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = (np.arange(0, 65536, 64, dtype=np.uint16)).reshape(32, 32)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    made = to_rgb_array(Image.open(buffer))
    assert np.array_equal(made[:, :, 0], (values >> 8).astype(np.uint8))
    assert np.array_equal(to_rgb_array(Image.fromarray(values.astype(np.int32))), made)
    with pytest.raises(SampleError, match=r"0\.\.65535"):
        to_rgb_array(Image.fromarray(values.astype(np.int32) * 70_000))


def test_exif_rotation_is_applied() -> None:
    image = Image.fromarray(synthetic(60, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    made = to_rgb_array(Image.open(buffer))
    assert made.shape == (60, 20, 3)
    assert np.array_equal(made, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert to_rgb_array(Image.open(buffer))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 3)])
def test_tiny_and_thin_images(size: tuple[int, int]) -> None:
    made = PROCESSOR(Image.new("RGB", size, "white"))
    assert made["pixel_values"].shape[0] == 1
    assert np.isfinite(made["pixel_values"]).all()


def test_arrays_and_tensors() -> None:
    image = synthetic(30, 20)
    assert np.array_equal(to_rgb_array(torch.from_numpy(image).permute(2, 0, 1)), image)
    assert np.array_equal(to_rgb_array(image[:, :, :1]), np.repeat(image[:, :, :1], 3, axis=2))
    assert np.array_equal(to_rgb_array(image[:, :, 0]), np.repeat(image[:, :, :1], 3, axis=2))


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "uint8"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "shape"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "one pixel"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "tensor"),
        (Image.new("F", (4, 4)), "'F'"),
    ],
)
def test_what_is_no_image_is_a_sample_error(image: Any, word: str) -> None:
    with pytest.raises(SampleError, match=word):
        to_rgb_array(image)


def test_a_name_is_not_an_image() -> None:
    with pytest.raises(TypeError, match="str"):
        to_rgb_array("photo.jpg")


def test_huge_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rgb.MAX_PIXELS < 20_000 * 20_000
    monkeypatch.setattr(rgb, "MAX_PIXELS", 99)
    with pytest.raises(SampleError, match="10x10"):
        to_rgb_array(Image.new("RGB", (10, 10)))

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.models.molmo.tiling import CropGeometry, ImageTokenIds, image_input_idx, image_tokens, select_tiling

GEOMETRY = CropGeometry()
IDS = ImageTokenIds(start=50280, end=50281, patch=50282, col=50283)
SIZES = st.integers(1, 4000)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_tilings_tokens_and_positions_of_the_reference(oracles: dict[str, Any]) -> None:
    for want in oracles["preprocess"]:
        width, height = want["size_wh"]
        tiling = select_tiling(height, width, GEOMETRY)
        assert list(tiling) == want["tiling_rows_cols"]
        assert list(GEOMETRY.canvas(tiling)) == want["resized_canvas_hw"]
        tokens, positions = image_tokens(tiling, GEOMETRY, IDS), image_input_idx(tiling, GEOMETRY)
        assert len(tokens) == GEOMETRY.num_image_tokens(tiling) == want["n_image_tokens"]
        assert (tokens == IDS.patch).sum() == GEOMETRY.num_patch_tokens(tiling) == want["n_patch_tokens"]
        assert len(positions) == want["n_crops_total"]
        assert (positions >= 0).sum(axis=1).tolist() == want["valid_idx_per_crop"]
        assert positions.max() == want["idx_max"]
        row = np.concatenate([[oracles["ids"]["bos"]], tokens, np.arange(11, 18)])
        assert digest(row) == want["input_ids_int64_sha256_16"]
        assert digest(positions) == want["image_input_idx_int64_sha256_16"]


def test_token_counts_of_all_tilings(oracles: dict[str, Any]) -> None:
    counts = oracles["image_tokens_by_tiling"]
    assert len(counts) == sum(12 // rows for rows in range(1, 13))
    for name, count in counts.items():
        rows, cols = map(int, name.split("x"))
        assert GEOMETRY.num_image_tokens((rows, cols)) == len(image_tokens((rows, cols), GEOMETRY, IDS)) == count


@given(height=SIZES, width=SIZES, most=st.integers(1, 36), offset=st.integers(0, 500))
def test_every_patch_token_gets_exactly_one_vector_in_raster_order(
    height: int, width: int, most: int, offset: int
) -> None:
    geometry = CropGeometry(max_crops=most)
    tiling = select_tiling(height, width, geometry)
    assert 1 <= tiling[0] * tiling[1] <= most
    positions = image_input_idx(tiling, geometry, offset=offset)
    kept = positions[positions >= 0]
    patches = offset + np.flatnonzero(image_tokens(tiling, geometry, IDS) == IDS.patch)
    assert sorted(kept) == patches.tolist()
    for crop in positions:  # within a crop, later vectors stand later
        assert (np.diff(crop[crop >= 0]) > 0).all()
    assert set(np.unique(positions[positions < 0])) <= {-100}


@given(height=st.integers(113, 4000), width=st.integers(113, 4000))
def test_the_tiling_enlarges_least_or_shrinks_least(height: int, width: int) -> None:
    def scale(rows: int, cols: int) -> np.float32:
        return min(np.float32(224 * rows) / np.float32(height - 112), np.float32(224 * cols) / np.float32(width - 112))

    chosen = scale(*select_tiling(height, width, GEOMETRY))
    scales = [scale(r, c) for r in range(1, 13) for c in range(1, 13) if r * c <= 12]
    enlarging = [s for s in scales if s >= 1]
    assert chosen == (min(enlarging) if enlarging else max(scales))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (112, 112), (112, 500), (1, 4000), (4000, 1), (111, 2000)])
def test_images_within_the_margins_have_a_tiling(height: int, width: int) -> None:
    rows, cols = select_tiling(height, width, GEOMETRY)
    assert rows * cols <= 12


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"crop_size": 335}, "crop_size"),
        ({"margins": (3, 4)}, "margins"),
        ({"margins": (12, 12)}, "window"),
        ({"max_crops": 0}, "max_crops"),
        ({"pooling": 5}, "pooling"),
    ],
)
def test_impossible_geometry_is_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        CropGeometry(**arguments)

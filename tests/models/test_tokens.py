"""Counts are read off the tensors; each layout has a known answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.models.shipped import processor_only, request
from vlmbench.errors import SampleError
from vlmbench.models.token_counts import ImageMarks, observe

IMAGE = 99


def ids(text: int, image: int, batch: int = 1) -> torch.Tensor:
    return torch.tensor([[1] * text + [IMAGE] * image] * batch)


def count(inputs, *, patch=14, batch=1, images=1):
    marks = ImageMarks(image_token_ids=(IMAGE,), patch_size=(patch, patch))
    return observe(inputs, marks, batch_size=batch, num_images=images, num_prompt_tokens=5)


def test_fixed_size_image():
    seen = count({"input_ids": ids(12, 576), "pixel_values": torch.zeros(1, 3, 336, 336)})
    assert (seen.num_input_tokens, seen.num_vision_tokens, seen.num_prompt_tokens) == (588, 576, 5)
    assert (seen.num_vision_patches, seen.num_crops, seen.num_images) == (576, 1, 1)
    assert seen.num_cross_attention_tokens is None


def test_a_batch_counts_one_row():
    seen = count({"input_ids": ids(2, 576, batch=3), "pixel_values": torch.zeros(3, 3, 336, 336)}, batch=3)
    assert (seen.num_vision_tokens, seen.num_vision_patches, seen.num_crops) == (576, 576, 1)


def test_padding_is_no_input():
    inputs = {"input_ids": ids(10, 4), "attention_mask": torch.tensor([[0] * 3 + [1] * 11])}
    assert count({**inputs, "pixel_values": torch.zeros(1, 3, 28, 28)}).num_input_tokens == 11


def test_patches_with_a_grid():
    inputs = {
        "input_ids": ids(7, 782),
        "pixel_values": torch.zeros(3128, 1176),
        "image_grid_thw": torch.tensor([[1, 34, 46], [1, 34, 46]]),
    }
    seen = count(inputs, images=2)
    assert (seen.num_vision_tokens, seen.num_vision_patches, seen.num_crops) == (782, 3128, 2)


def test_empty_crops_of_unlike_images_do_not_count():
    pixels = torch.ones(2, 5, 3, 336, 336)
    pixels[1, 3:] = 0
    seen = count({"input_ids": ids(1, 10), "pixel_values": pixels}, images=2)
    assert (seen.num_crops, seen.num_vision_patches) == (8, 8 * 576)


def test_empty_tiles_by_mask():
    mask = torch.ones(1, 4, 28, 28, dtype=torch.long)
    mask[0, 3] = 0
    inputs = {"input_ids": ids(1, 3), "pixel_values": torch.ones(1, 4, 3, 28, 28), "pixel_attention_mask": mask}
    assert count(inputs, images=2).num_crops == 3


def test_crops_already_cut_into_patches():
    seen = count({"input_ids": ids(1, 7 * 144), "pixel_values": torch.zeros(7, 576, 588)})
    assert (seen.num_crops, seen.num_vision_patches) == (7, 7 * 576)


def test_patch_mask():
    mask = torch.tensor([[1] * 200 + [0] * 56])
    inputs = {"input_ids": ids(1, 50), "pixel_values": torch.zeros(1, 256, 768), "pixel_attention_mask": mask}
    assert count(inputs).num_vision_patches == 200


def test_cross_attention():
    inputs = {
        "input_ids": ids(8, 1),
        "pixel_values": torch.zeros(1, 1, 4, 3, 560, 560),
        "aspect_ratio_mask": torch.tensor([[[1, 1, 0, 0]]]),
        "cross_attention_mask": torch.ones(1, 9, 1, 4),
    }
    seen = count(inputs)
    assert seen.num_vision_tokens == 0
    assert seen.num_cross_attention_tokens == 4 * 1601
    assert (seen.num_crops, seen.num_vision_patches) == (2, 6400)


def test_no_image():
    seen = count({"input_ids": ids(6, 0)}, images=0)
    assert (seen.num_vision_tokens, seen.num_vision_patches, seen.num_crops, seen.num_images) == (0, None, None, 0)


def test_positions_marked_instead_of_ids():
    inputs = {"input_ids": torch.ones(1, 9), "image_embeds_position_mask": torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0, 0]])}
    assert count(inputs).num_vision_tokens == 3


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"image_token_index": 7, "vision_config": SimpleNamespace(patch_size=14)}, ((7,), (14, 14))),
        ({"image_patch_id": 3, "image_token_id": 8}, ((3,), None)),
        ({"vision_config": SimpleNamespace(patch_size=[16, 8])}, ((), (16, 8))),
    ],
)
def test_marks_of_a_configuration(config, expected):
    marks = ImageMarks.from_config(SimpleNamespace(**config))
    assert (marks.image_token_ids, marks.patch_size) == expected


def test_an_id_can_be_given():
    assert ImageMarks.from_config(SimpleNamespace(image_token_id=8), image_token_id=4).image_token_ids == (4,)


def test_a_question_that_is_no_text_is_refused_as_a_question() -> None:
    model = processor_only("qwen2_5_vl_7b")
    with pytest.raises(SampleError, match=r"the question holds a character that is no Unicode text \(\\ud83d\)"):
        model.prepare(request(question="a broken \ud83d here"))
    with pytest.raises(SampleError, match=r"the question holds the image token <\|image_pad\|>"):
        model.prepare(request(question="what is <|image_pad|>?"))

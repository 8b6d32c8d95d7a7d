"""Token counts observed on prepared inputs.

Nothing here trusts a formula: image positions are counted in ``input_ids``, crops and patches on the pixel tensors and
grids that the processor really made. From the configuration come only the id that marks an image position and the side
of a patch, which no input tensor shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.request import TokenCounts

if TYPE_CHECKING:
    import torch


# Names under which configurations keep the id of an image position, the most specific first: Molmo's models have both
# an image token (expanded away by the processor) and a patch token (what the language model sees).
_IMAGE_ID_NAMES = ("image_patch_id", "image_token_id", "image_token_index", "media_token_id", "im_patch_id")
_PIXEL_NAMES = ("pixel_values", "images", "image_patches", "flattened_patches", "pixel_values_images")
_MASK_NAMES = ("pixel_attention_mask", "image_masks_valid", "patch_attention_mask")


@dataclass(frozen=True, kw_only=True)
class ImageMarks:
    """What of a configuration is needed to count.

    Args:
        image_token_ids: ids of image positions in ``input_ids``.
        patch_size: (height, width) of a patch in pixels; None where images reach the model already cut into patches.
    """

    image_token_ids: tuple[int, ...]
    patch_size: tuple[int, int] | None

    @classmethod
    def from_config(cls, config: Any, *, image_token_id: int | None = None) -> ImageMarks:
        """Read from a transformers configuration; ``image_token_id`` overrides the id."""
        found = image_token_id
        for name in _IMAGE_ID_NAMES:
            if found is None and isinstance(value := getattr(config, name, None), int):
                found = value
        return cls(image_token_ids=() if found is None else (found,), patch_size=_patch_size(config))


def _patch_size(config: Any) -> tuple[int, int] | None:
    for holder in (getattr(config, "vision_config", None), config):
        size = getattr(holder, "patch_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def observe(
    inputs: Mapping[str, Any], marks: ImageMarks, *, batch_size: int, num_images: int, num_prompt_tokens: int
) -> TokenCounts:
    """The counts of one row of a batch of equal rows.

    Args:
        inputs: what the processor made: ``input_ids`` of shape (batch, length), pixel tensors, grids, masks.
        marks: see :class:`ImageMarks`.
        num_prompt_tokens: tokens of the user's own text (known from the prompt, not visible in the tensors).
    """
    input_ids: torch.Tensor = inputs["input_ids"]
    crossing = "cross_attention_mask" in inputs
    patches, crops = _patches_and_crops(inputs, marks, batch_size, num_images)
    return TokenCounts(
        num_input_tokens=_row_length(inputs),
        num_prompt_tokens=num_prompt_tokens,
        num_vision_tokens=0 if crossing or not num_images else _image_positions(input_ids, inputs, marks),
        num_vision_patches=patches,
        num_crops=crops,
        num_cross_attention_tokens=_cross_attention_tokens(inputs, marks, batch_size) if crossing else None,
        num_images=num_images,
    )


def clip_as_images(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a clip by the names that images have, so that they are counted alike."""
    names = {"pixel_values_videos": "pixel_values", "video_grid_thw": "image_grid_thw"}
    return {names.get(name, name): value for name, value in inputs.items()}


def _row_length(inputs: Mapping[str, Any]) -> int:
    """Tokens of the first row, padding left out."""
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return int(mask[0].sum())
    return int(inputs["input_ids"].shape[1])


def _image_positions(input_ids: torch.Tensor, inputs: Mapping[str, Any], marks: ImageMarks) -> int:
    row = input_ids[0]
    count = sum(int((row == index).sum()) for index in marks.image_token_ids)
    if count:
        return count
    for name in ("image_embeds_position_mask", "mm_token_type_ids"):  # Kosmos-2 and others mark positions, not ids
        if (marked := inputs.get(name)) is not None:
            return int((marked[0] == 1).sum())
    return 0


def pixel_tensor(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """The image tensor among the inputs, if there is one."""
    for name in _PIXEL_NAMES:
        value = inputs.get(name)
        if value is not None and hasattr(value, "shape") and value.dim() >= 2:
            tensor: torch.Tensor = value
            return tensor
    return None


def _is_image_like(shape: tuple[int, ...], patch: tuple[int, int] | None) -> bool:
    """(…, channels, height, width) rather than (…, patches, features).

    Three crops of flattened patches look like three channels; the length of a flattened RGB patch tells them apart.
    """
    flattened = patch is not None and shape[-1] == 3 * patch[0] * patch[1] and shape[-2] != shape[-1]
    return len(shape) >= 4 and shape[-3] in (1, 3, 4) and not flattened


def _patches_and_crops(
    inputs: Mapping[str, Any], marks: ImageMarks, batch_size: int, num_images: int
) -> tuple[int | None, int | None]:
    pixels = pixel_tensor(inputs)
    if pixels is None or not num_images:
        return None, None
    shape = tuple(pixels.shape)
    grid_rows = _grid_rows(inputs)
    if _is_image_like(shape, marks.patch_size):
        crops = _real_crops(pixels, inputs, num_images)
        processed = math.prod(shape[:-3]) if "aspect_ratio_mask" in inputs else crops  # Mllama encodes empty tiles too
        high, wide = marks.patch_size or (shape[-2], shape[-1])
        patches = processed * (shape[-2] // high) * (shape[-1] // wide)
    else:
        mask = next((inputs[n] for n in _MASK_NAMES if getattr(inputs.get(n), "shape", None) == shape[:-1]), None)
        patches = int((mask != 0).sum()) if mask is not None else math.prod(shape[:-1])
        crops = math.prod(shape[:-2]) if len(shape) > 2 else num_images * batch_size
    if grid_rows is not None:
        crops = grid_rows
    return patches // batch_size, crops // batch_size


def _grid_rows(inputs: Mapping[str, Any]) -> int | None:
    """Images according to a grid tensor of shape (images, 2 or 3): one row each."""
    for name, value in inputs.items():
        is_grid = "grid" in name and "video" not in name and hasattr(value, "dim")
        if is_grid and value.dim() == 2 and value.shape[1] in (2, 3):
            return int(value.shape[0])
    return None


def _real_crops(pixels: torch.Tensor, inputs: Mapping[str, Any], num_images: int) -> int:
    """Crops with an image in them: rows of unlike images are padded with empty crops, which models skip."""
    leading = math.prod(pixels.shape[:-3])
    if (tiles := inputs.get("aspect_ratio_mask")) is not None:
        return int(tiles.sum())
    if pixels.dim() == 4 or num_images == 1:
        return leading
    mask = inputs.get("pixel_attention_mask")
    source = mask if mask is not None else pixels
    return int(source.reshape(leading, -1).ne(0).any(dim=1).sum())


def _cross_attention_tokens(inputs: Mapping[str, Any], marks: ImageMarks, batch_size: int) -> int | None:
    """Keys that the text attends to, all tiles of all images, each with its class token (Mllama)."""
    pixels = pixel_tensor(inputs)
    if pixels is None or marks.patch_size is None:
        return None
    high, wide = marks.patch_size
    tiles = math.prod(pixels.shape[:-3]) // batch_size
    return int(tiles * ((pixels.shape[-2] // high) * (pixels.shape[-1] // wide) + 1))

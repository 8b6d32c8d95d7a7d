"""Molmo's processor: prompt format, special tokens, batches padded on the left."""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="misc, assignment, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin

from vlmbench.errors import SampleError, UnreachablePointError
from vlmbench.models.molmo.image_processing import MolmoImagesKwargs
from vlmbench.models.molmo.tiling import ImageTokenIds, image_input_idx, image_tokens, select_tiling

IMAGE_TOKENS = {"start": "<im_start>", "end": "<im_end>", "patch": "<im_patch>", "col": "<im_col>"}
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}"
    "{%- set parts = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') -%}"
    "{%- set text = parts | join('') -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ ' User: ' + text }}"
    "{%- elif message['role'] == 'assistant' -%}{{ ' Assistant: ' + text + eos_token }}"
    "{%- else -%}{{ raise_exception('Molmo knows the roles user and assistant only, not ' + message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' Assistant:' }}{%- endif -%}"
)
"""Images do not appear: their tokens always come first. The answer begins with a space token."""


class MolmoProcessorKwargs(ProcessingKwargs, total=False):
    """Arguments of :class:`MolmoProcessor` at call time."""

    images_kwargs: MolmoImagesKwargs
    _defaults = {}  # noqa: RUF012  # transformers before 5.18 looks for it


def format_prompt(text: str) -> str:
    """A user's text as the models were trained on it: `` User: {text} Assistant:``, with the leading space."""
    return f" User: {text} Assistant:"


class MolmoProcessor(ProcessorMixin):
    """Images and text to what :class:`~vlmbench.models.molmo.modeling.MolmoForConditionalGeneration` takes.

    Args:
        image_processor: :class:`~vlmbench.models.molmo.image_processing.MolmoImageProcessor`.
        tokenizer: with the tokens ``<im_start>``, ``<im_end>``, ``<im_patch>`` and ``<im_col>``; their ids, BOS (EOS
            where there is none) and padding are read from it.
        chat_template: Jinja; Molmo's own where absent.

    Raises:
        ValueError: the tokenizer lacks one of the tokens, or both BOS and EOS.
    """

    valid_processor_kwargs = MolmoProcessorKwargs
    model_input_names: ClassVar[list[str]] = [
        "input_ids",
        "attention_mask",
        "pixel_values",
        "image_masks",
        "image_input_idx",
    ]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        vocabulary = tokenizer.get_vocab()
        if missing := [token for token in IMAGE_TOKENS.values() if token not in vocabulary]:
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}: it is not that of a Molmo checkpoint")
        self.image_ids = ImageTokenIds(**{name: vocabulary[token] for name, token in IMAGE_TOKENS.items()})
        self.image_token = IMAGE_TOKENS["patch"]
        self.image_token_id = self.image_ids.patch
        bos = tokenizer.bos_token_id
        self.bos_token_id = tokenizer.eos_token_id if bos is None else bos
        if self.bos_token_id is None:
            raise ValueError("the tokenizer must have a BOS or an EOS token: a prompt begins with it")
        self.pad_token_id = self.bos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        max_length: int | None = None,
        max_crops: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one request or a batch; one image a row at most, its tokens right behind BOS.

        Args:
            images: one image, or one entry a text: an image, a list of at most one image, or None.
            text: a finished prompt that begins with `` User:`` (a chat template's output), or a user's bare text, which
                is put into the prompt format.
            return_tensors: ``"pt"`` or ``"np"``.
            padding: True: to the longest row; ``"max_length"``: to ``max_length``; False: rows must be equally long.
            padding_side: ``"left"`` (what generation needs) or ``"right"``; positions of the image move along.
            max_length: length in tokens for ``padding="max_length"``; longer rows are refused, never cut.
            max_crops: instead of the image processor's own.
            kwargs: ``text_kwargs``, ``images_kwargs``, ``common_kwargs`` as dicts of the above.

        Returns:
            ``input_ids``, ``attention_mask`` int64 (B, S); with images also ``pixel_values`` and ``image_masks`` as the
            image processor makes them, and ``image_input_idx`` int64 (B, crops, vectors).

        Raises:
            SampleError: an image that cannot be used, or a text with the name of an image token in it.
            TypeError: an unknown argument.
            UnreachablePointError: more than one image for a text.
            ValueError: texts and images that do not belong together, or rows too long for ``max_length``.
        """
        if kwargs:
            options = _flatten(kwargs)
            settings = {
                "return_tensors": return_tensors,
                "padding": padding,
                "padding_side": padding_side,
                "max_length": max_length,
                "max_crops": max_crops,
            }
            return self(images, text, **{**settings, **options})
        if text is None:
            raise ValueError("'text' must be given: Molmo answers a text, with or without an image")
        texts = [text] if isinstance(text, str) else list(text)
        rows = _one_image_each(images, len(texts))
        data: dict[str, Any] = {}
        tilings: list[tuple[int, int] | None] = [None] * len(texts)
        if any(image is not None for image in rows):
            made = self.image_processor.preprocess(rows, max_crops=max_crops, return_tensors="np")
            tilings = [(int(r), int(c)) if r else None for r, c in made["image_tilings"]]
            data = {name: made[name] for name in ("pixel_values", "image_masks")}
        ids = [self._ids(one, tiling) for one, tiling in zip(texts, tilings, strict=True)]
        length = _padded_length(ids, padding, max_length)
        starts = [length - len(row) if padding_side == "left" else 0 for row in ids]
        data = {**_pad(ids, starts, length, self.pad_token_id), **data}
        if "pixel_values" in data:
            data["image_input_idx"] = self._positions(tilings, starts, data["pixel_values"].shape[1])
        return BatchFeature(data, tensor_type=return_tensors)

    def _ids(self, text: str, tiling: tuple[int, int] | None) -> NDArray[np.int64]:
        """BOS, the image's tokens, the text's tokens."""
        prompt = text if text.startswith(" User:") else format_prompt(text)
        if found := [token for token in IMAGE_TOKENS.values() if token in prompt]:
            # The tokenizer would make image positions of it, to which no vector belongs.
            raise SampleError(f"a text must not hold {', '.join(found)}: the processor puts image tokens itself")
        parts = [np.array([self.bos_token_id], dtype=np.int64)]
        if tiling is not None:
            parts.append(image_tokens(tiling, self.image_processor.geometry(), self.image_ids))
        parts.append(np.array(self.tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=np.int64))
        return np.concatenate(parts)

    def _positions(
        self, tilings: Sequence[tuple[int, int] | None], starts: Sequence[int], crops: int
    ) -> NDArray[np.int64]:
        """(B, crops, vectors): positions in the padded rows; -100 where a vector is dropped, -1 for absent crops."""
        geometry = self.image_processor.geometry()
        positions = np.full((len(tilings), crops, geometry.cells**2), -1, dtype=np.int64)
        for row, (tiling, start) in enumerate(zip(tilings, starts, strict=True)):
            if tiling is not None:
                index = image_input_idx(tiling, geometry)
                positions[row, : len(index)] = np.where(index >= 0, index + start, index)
        return positions

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, max_crops: int | None = None, **_: Any
    ) -> MultiModalData:
        """Vision tokens (``<im_patch>``) and crops of images of (height, width) pixels, without any pixels."""
        if image_sizes is None:
            return MultiModalData()
        geometry = self.image_processor.geometry(max_crops)
        tilings = [select_tiling(height, width, geometry) for height, width in image_sizes]
        return MultiModalData(
            num_image_tokens=[geometry.num_patch_tokens(tiling) for tiling in tilings],
            num_image_patches=[1 + rows * cols for rows, cols in tilings],
        )


_GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
_KNOWN = ("return_tensors", "padding", "padding_side", "max_length", "max_crops")
# What transformers' own callers pass along: true or false makes no difference here.
_INDIFFERENT = ("add_special_tokens", "return_mm_token_type_ids", "return_dict")


def _flatten(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Nested keyword groups as transformers has them in one; refuses what would be ignored silently."""
    flat: dict[str, Any] = {}
    for name, value in kwargs.items():
        flat.update((value or {}) if name in _GROUPS else {name: value})
    unknown = [n for n, value in flat.items() if n not in (*_KNOWN, *_INDIFFERENT) and not _absent(value)]
    if unknown:
        raise TypeError(f"MolmoProcessor does not know {sorted(unknown)}; it takes {', '.join(_KNOWN)}")
    return {name: value for name, value in flat.items() if name in _KNOWN and value is not None}


def _absent(value: Any) -> bool:
    """``videos=None``, ``truncation=False``, ``audio=[]``: nothing is asked for."""
    return value is None or value is False or (isinstance(value, list | tuple) and not value)


def _one_image_each(images: Any, count: int) -> list[Any]:
    """One image or None a text."""
    if images is None:
        return [None] * count
    rows = list(images) if isinstance(images, list | tuple) else [images]
    if len(rows) != count:
        raise ValueError(f"there must be one image (or None) a text: got {len(rows)} for {count} text(s)")
    for index, row in enumerate(rows):
        if isinstance(row, list | tuple):
            if len(row) > 1:
                raise UnreachablePointError(f"Molmo 1 takes one image a prompt (got {len(row)} in row {index})")
            rows[index] = row[0] if row else None
    return rows


def _padded_length(ids: Sequence[NDArray[np.int64]], padding: bool | str, max_length: int | None) -> int:
    """Length of all rows after padding."""
    longest = max(len(row) for row in ids)
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"'padding' must be True, False, 'longest' or 'max_length' (got {padding!r})")
    if padding == "max_length" and max_length is None:
        raise ValueError("padding='max_length' needs 'max_length'")
    if max_length is not None and longest > max_length:
        raise ValueError(f"'max_length' is {max_length} tokens, but a row has {longest}; rows are never cut")
    if padding in (False, "do_not_pad") and any(len(row) != longest for row in ids):
        raise ValueError("rows of different lengths need padding=True")
    return max_length if padding == "max_length" and max_length is not None else longest


def _pad(
    ids: Sequence[NDArray[np.int64]], starts: Sequence[int], length: int, pad_token_id: int
) -> dict[str, NDArray[np.int64]]:
    """Token ids and mask, (B, length) each."""
    input_ids = np.full((len(ids), length), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, (tokens, start) in enumerate(zip(ids, starts, strict=True)):
        input_ids[row, start : start + len(tokens)] = tokens
        attention_mask[row, start : start + len(tokens)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}

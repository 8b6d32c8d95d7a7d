"""Many requests prepared by a model's own processor, each image and each text worked on once.

A sweep asks for the same picture at the same size with a hundred prompts and output lengths. What the image processor
makes of a picture depends on the picture and the call's arguments only (it never sees the text), so its answer is
remembered under exactly these; everything that does see both, the processor's own expansion of image positions into the
text and the tokenizer, runs for every pair. No count is put together here: all are observed on finished inputs.
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmbench.models.inputs import decode_all
from vlmbench.models.protocol import Prepared
from vlmbench.models.token_counts import observe
from vlmbench.models.transformers_model import read_images

if TYPE_CHECKING:
    from vlmbench.models.transformers_model import TransformersModel
    from vlmbench.request import Request

KEPT_BYTES = 512 * 2**20
"""Pictures and what was made of them, kept at most; what does not fit is made again."""


class Preparer:
    """Prepares requests as :meth:`TransformersModel.prepare` does, to the last value, without doing any work twice.

    Args:
        model: any; it is not changed.
        kept_bytes: memory for pictures and for what the image processor made of them.
    """

    def __init__(self, model: TransformersModel, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._room = kept_bytes
        self._pictures: dict[Any, list[Any]] = {}
        self._held: dict[int, Any] = {}  # pictures by id: an id means nothing once its picture is gone
        self._made: dict[Any, Any] = {}
        self._lengths: dict[tuple[str, int], int] = {}
        self._model = replace(model, processor=self._remembering(model.processor))

    def prepare(self, request: Request) -> Prepared:
        """See :meth:`TransformersModel.prepare`.

        Raises:
            SampleError: an image that cannot be read or decoded, or that the processor refuses.
            UnreachablePointError: a target that the model cannot reach, a knob that it does not have.
        """
        model = self._model
        request = model.resolve(request)
        images = self._images(request)
        text = request.sample.question
        inputs = model.process(images, model.prompter.render(text, num_images=len(images)), request)
        if (text, len(images)) not in self._lengths:
            self._lengths[text, len(images)] = model.prompter.text_tokens(text, num_images=len(images))
        counts = observe(
            inputs,
            model.marks,
            batch_size=request.batch_size,
            num_images=len(images),
            num_prompt_tokens=self._lengths[text, len(images)],
        )
        sizes = tuple(image.size for image in images)
        return Prepared(inputs=inputs, count=lambda: counts, output=request.output, decoded_pixels=sizes)

    def _images(self, request: Request) -> list[Any]:
        """The decoded pictures of a request: those of a sample at one size are the same every time."""
        sources = request.images
        key = (request.sample.sample_id, tuple(source.name for source in sources), request.image_size)
        if key in self._pictures:
            return self._pictures[key]
        images = decode_all(read_images(request), names=[source.name for source in sources], size=request.image_size)
        if self._fits(sum(4 * image.width * image.height for image in images)):
            self._pictures[key] = images
            self._held.update((id(image), image) for image in images)
        return images

    def _fits(self, size: int) -> bool:
        if size > self._room:
            return False
        self._room -= size
        return True

    def _remembering(self, processor: Any) -> Any:
        """The processor with an image processor that remembers; one that is called otherwise just does not."""
        kind = type(processor.image_processor)
        preprocess: Callable[..., Any] | None = getattr(kind, "preprocess", None)
        if preprocess is None:
            return processor

        def remembered(itself: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
            key = self._key(images, args, kwargs)
            if key is None:
                return preprocess(itself, images, *args, **kwargs)
            if key not in self._made:
                made = preprocess(itself, images, *args, **kwargs)
                if not self._fits(_bytes_of(made)):
                    return made
                self._made[key] = made
            return _fresh(self._made[key])  # processors take things out of what they get

        own = copy.copy(processor)
        own.image_processor = copy.copy(processor.image_processor)
        own.image_processor.__class__ = type(kind.__name__, (kind,), {"preprocess": remembered})
        return own

    def _key(self, images: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What determines the answer; None for pictures that are not held, or arguments that cannot be compared."""
        pictures, rest = self._ids(images), repr((args, sorted(kwargs.items())))
        return None if pictures is None or " at 0x" in rest else (pictures, rest)

    def _ids(self, images: Any) -> Any:
        if isinstance(images, list | tuple):
            inner = [self._ids(image) for image in images]
            return None if None in inner or not inner else tuple(inner)
        return id(images) if id(images) in self._held else None


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _bytes_of(value: Any) -> int:
    if _is_array(value):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(_bytes_of(item) for item in value.values())
    return sum(_bytes_of(item) for item in value) if isinstance(value, list | tuple) else 64


def _fresh(value: Any) -> Any:
    """A copy of every container, with the same arrays in it: nobody writes into pixels."""
    if _is_array(value):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_fresh(item) for item in value)
    if isinstance(value, dict):
        return {name: _fresh(item) for name, item in value.items()}
    if isinstance(value, UserDict):  # BatchFeature
        own = copy.copy(value)
        own.data = _fresh(value.data)
        return own
    return value

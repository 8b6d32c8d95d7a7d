"""A dry run: what every request of a sweep will cost, from a model's YAML, its own processor and no weights.

Token counts are not guessed: the model's processor prepares each distinct image and prompt, exactly as a measured run
would (:mod:`vlmbench.cost.planning`). Only what the model would compute is predicted.
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmbench.cost.bytes import Parameters
from vlmbench.cost.flop_counting import count_generate, text_inputs
from vlmbench.cost.flop_sharing import Counter
from vlmbench.cost.prediction import Overheads, Prediction, Predictor
from vlmbench.cost.run_costs import TOLERANCE, grids_of
from vlmbench.errors import UnreachablePointError
from vlmbench.machine.peaks import PeaksAnswer
from vlmbench.models.inputs import decode_all
from vlmbench.models.protocol import Prepared
from vlmbench.models.transformers_model import TransformersModel, read_images
from vlmbench.models.weightless import GhostError, ghost_inputs
from vlmbench.request import Output, Request, TokenCounts

if TYPE_CHECKING:
    pass
    from vlmbench.models.transformers_model import TransformersModel
    from vlmbench.request import Request


# Many requests prepared by a model's own processor, each image and each text worked on once.

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
        prepared = model.assemble(request, self._images, self._text_tokens)
        _ = prepared.counts  # while its pictures are at hand
        return prepared

    def _text_tokens(self, text: str, images: int) -> int:
        if (text, images) not in self._lengths:
            self._lengths[text, images] = self._model.prompter.text_tokens(text, num_images=images)
        return self._lengths[text, images]

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


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What preparing one row showed: its counts, the images' grids, and inputs whose floats are shapes only."""

    counts: TokenCounts
    grids: Sequence[tuple[int, int]] | None
    inputs: Mapping[str, Any]


class Planner:
    """Predicts requests of one model on one device.

    The closed form answers where it holds. That it does is checked once, by counting the language model on a few
    tokens; where it does not, or the vision part is not known, every distinct image is counted instead (slower).

    Args:
        model: from :func:`weightless`.
        peaks: of the device, or why there are none.
        dtype: of weights and cache.
        memory_bytes: the device's memory, where known.
        overheads: between floor and expected time.

    Raises:
        ClosedFormError: not even the language model has a closed form.
    """

    def __init__(
        self,
        model: TransformersModel,
        *,
        peaks: PeaksAnswer,
        dtype: str = "bfloat16",
        memory_bytes: int | None = None,
        overheads: Overheads | None = None,
    ) -> None:
        self.model = model
        self.predictor = Predictor(
            model.module.config,
            dtype=dtype,
            peaks=peaks,
            memory_bytes=memory_bytes,
            overheads=overheads,
            parameters=Parameters.of_model(model.module, model.anatomy),
        )
        self._preparer = Preparer(model)
        self._seen: dict[str, _Seen] = {}
        holds = not self.predictor.unknown and self._closed_form_holds()
        self._counter = None if holds else Counter(model.module, model.anatomy)

    def _closed_form_holds(self) -> bool:
        decoder = self.predictor.closed.decoder
        tokens = 8
        try:
            texts = text_inputs(self.model.module.config, tokens)
            found = count_generate(self.model.module, texts, new_tokens=2, anatomy=self.model.anatomy)
        except GhostError:
            return True  # takes no text alone: nothing to compare with
        counted = (found.prefill, found.steps[0])
        closed = (decoder.prefill(tokens) + 2 * decoder.head_elements, decoder.step(tokens + 1))
        return all(abs(b / a - 1) <= TOLERANCE for a, b in zip(counted, closed, strict=True))

    def _look(self, request: Request) -> _Seen:
        if request.over_cache or request.frames is not None:
            raise UnreachablePointError("runs over a filled cache and clips are measured, not predicted")
        if request.turns > 1:
            request = self.model.resolve(request)  # earlier answers are as long as an answer may be
        # Neither batch nor output changes what one row looks like.
        alone = replace(request.rows[0], output=Output(max_new_tokens=1, forced=True))
        key = repr(replace(alone, sample=replace(alone.sample, images=())))
        if key not in self._seen:
            prepared = self._preparer.prepare(alone)
            self._seen[key] = _Seen(
                counts=prepared.counts,
                grids=grids_of(prepared.inputs, prepared.counts.num_images),
                inputs=ghost_inputs(prepared.inputs),
            )
        return self._seen[key]

    def counts(self, request: Request) -> TokenCounts:
        """What the model would see of one row; each distinct image and prompt is prepared once.

        Raises:
            UnreachablePointError: the model cannot reach this point; a run would skip it.
            SampleError: an image that cannot be used.
        """
        return self._look(request).counts

    def plan(self, request: Request) -> Prediction:
        """One point: its counts, FLOPs, bytes, floors, memory need and expected time.

        Raises:
            UnreachablePointError, SampleError: as of :meth:`counts`.
            ClosedFormError: the counts lack what the vision tower needs.
            GhostError: the closed form does not hold and the model cannot be counted.
        """
        seen, output_tokens = self._look(request), request.output.max_new_tokens
        counted = None
        if self._counter is not None:
            counted = self._counter.count(seen.inputs, output_tokens=output_tokens) * request.batch_size
        return self.predictor.predict(
            seen.counts, output_tokens, batch_size=request.batch_size, grids=seen.grids, counted=counted
        )

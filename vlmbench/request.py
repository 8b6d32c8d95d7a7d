"""What is asked of a model: images, a prompt and how long the answer may be. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vlmbench.errors import SampleError, VlmbenchError

MOST_TOKENS = 1_048_576
"""What one count of a request (tokens, images, rows of a batch) may be: more is a slip, and would fill the memory."""
MOST_SIDE = 16_384
"""Pixels of a side of an image: two of them make 268 million, 0.8 GB."""


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """An encoded image (JPEG, PNG …) that is read when asked for, never earlier.

    Args:
        name: what error messages call it: a path, ``zip!member``, ``synthetic/17``.
        read: returns the encoded bytes; raises :class:`vlmbench.errors.SampleError` when it cannot.
        size: (width, height) in pixels where known without decoding.
    """

    name: str
    read: Callable[[], bytes]
    size: tuple[int, int] | None = None

    def encoded(self) -> bytes:
        """Read the image.

        Raises:
            SampleError: it cannot be read, for whatever reason: ``read`` may be of another package.
        """
        try:
            data = self.read()
        except (VlmbenchError, MemoryError):
            raise
        except Exception as error:
            said = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            raise SampleError(f"image '{self.name}' cannot be read: {said}") from error
        if not isinstance(data, bytes | bytearray):
            raise SampleError(f"image '{self.name}' must be read as bytes (got {type(data).__name__})")
        return bytes(data)


@dataclass(frozen=True, kw_only=True)
class Output:
    """How long the answer may be.

    Args:
        max_new_tokens: upper bound on generated tokens.
        forced: True suppresses the end-of-sequence token, so that exactly ``max_new_tokens`` come out;
            False lets the model stop (a natural length).
    """

    max_new_tokens: int
    forced: bool

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"'max_new_tokens' must be 1 or more (got {self.max_new_tokens})")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One entry of a data set: a question about images.

    Args:
        sample_id: names the sample within its data set; no two samples share one.
        question: the user's text, verbatim (prompt formats are added by the data set's template or the model).
        images: in reading order; may be empty.
        answers: reference answers, where the data set has them.
    """

    sample_id: str
    question: str
    images: tuple[ImageSource, ...]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, or a batch: a sample and the knobs that a sweep turns.

    Args:
        sample: what is asked.
        output: how long the answer may be.
        batch_size: how many requests run as one batch.
        companions: the samples of the other requests of a batch of different ones, ``batch_size`` - 1 of them; empty
            where a batch is of copies.
        num_images: when set, the sample's images are repeated (cyclically) or cut to this many.
        prompt_tokens: when set, the user's text is replaced by exactly this many tokens of random ordinary words.
        image_size: when set, (width, height) in pixels to which each image is resized before the processor sees it.
        turns: of a conversation about the images, of which this request is the last: the question is asked in each.
        earlier_answers: texts that stand for the answers of the turns before it, ``turns`` - 1 of them, each as long as
            an answer may be; the model's ``resolve`` fills them in.
        reuse_cache: go on from a cache that holds the turns before, instead of encoding and prefilling all again.
        frames: when set, a clip of so many frames, made from the first image, is shown instead of the images.
        clip: that clip, encoded; the model's ``resolve`` fills it in.
        kv_length: when set, the answer begins over a cache of so many tokens, the last one included, which no prefill
            made (``num_images`` is 0 then).
        vision_tokens: when set, the target that the model's own processor is searched for
            (:mod:`vlmbench.models.vision.target_settings` turns it into ``image_size`` and ``processor_kwargs``).
        processor_kwargs: extra call-time arguments for the model's processor (``max_pixels`` …).
        seed: of the random words.
        intervention: the arm of a comparison that this request is of (:class:`vlmbench.runner.arms.ArmOf`); None for
            the model as it is.
    """

    sample: Sample
    output: Output
    batch_size: int = 1
    companions: tuple[Sample, ...] = ()
    num_images: int | None = None
    prompt_tokens: int | None = None
    image_size: tuple[int, int] | None = None
    turns: int = 1
    earlier_answers: tuple[str, ...] = ()
    reuse_cache: bool = False
    frames: int | None = None
    clip: bytes = field(default=b"", repr=False)
    kv_length: int | None = None
    vision_tokens: int | None = None
    processor_kwargs: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    intervention: Any = None

    def __post_init__(self) -> None:
        if self.companions and len(self.companions) != self.batch_size - 1:
            raise ValueError(
                f"a batch of {self.batch_size} needs {self.batch_size - 1} companions (got {len(self.companions)})"
            )

    @property
    def rows(self) -> tuple[Request, ...]:
        """Each different request of the batch by itself, the first one first; one where the batch is of copies."""
        samples = (self.sample, *self.companions)
        return tuple(
            replace(self, sample=sample, batch_size=1, companions=(), seed=self.seed + row)
            for row, sample in enumerate(samples)
        )

    @property
    def over_cache(self) -> bool:
        """Whether the run begins over a cache that is filled before its clock."""
        return self.kv_length is not None or (self.reuse_cache and self.turns > 1)

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The images of this request, ``num_images`` applied; none beside a clip."""
        have = () if self.frames is not None else self.sample.images
        if self.num_images is None or not have:
            return have
        return tuple(have[i % len(have)] for i in range(self.num_images))


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """What the model really sees, observed on the prepared inputs of one request (of one row of a batch).

    A count that does not exist for an architecture is None, never 0: a cross-attention model has
    ``num_vision_tokens = 0`` and a ``num_cross_attention_tokens``; an encoder-free model has no ``num_vision_patches``.
    """

    num_input_tokens: int
    num_prompt_tokens: int
    num_vision_tokens: int
    num_vision_patches: int | None = None
    num_crops: int | None = None
    num_cross_attention_tokens: int | None = None
    num_images: int = 0

    @classmethod
    def mean(cls, each: Sequence[TokenCounts]) -> TokenCounts:
        """The means of the counts of several requests, rounded down; a count that one of them lacks is None."""

        def of(name: str) -> int | None:
            counts = [getattr(one, name) for one in each]
            return None if None in counts else sum(counts) // len(counts)

        return cls(**{f.name: of(f.name) for f in fields(cls)})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, int | None]:
        """The counts by name, for a record."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

"""A stand-in for VQA v2 that needs no files: questions and answers from a seed, sizes of images as there or others."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from vlmbench.data.options import check_prompt, fill
from vlmbench.data.synthetic_text import question_and_answers
from vlmbench.request import ImageSource, Sample

# Questions about ten images in a row: 5.3 on average, at least 3, as in VQA v2; each block has its own order.
_QUESTIONS = (3, 3, 4, 4, 5, 5, 6, 6, 7, 10)
_BLOCK = sum(_QUESTIONS)
_SIZES = {"coco": "synthetic_vqa", "long_tail": "synthetic_long_tail"}  # sizes of images: name of the data set
_KEPT_IMAGES = 8  # encoded images in memory, some 150 kB each: questions about one image follow each other

_MOST_SAMPLES = 10_000_000  # their order is held in memory


@dataclass(frozen=True, kw_only=True)
class SyntheticVQA:
    """Seeded questions about seeded pictures, in the proportions of VQA v2.

    A sample depends on the seed and its index only, not on which samples were taken before it or how many there are.

    Args:
        num_samples: how many questions; nothing grows with it.
        seed: of everything.
        prompt: the user's text around the ``{question}``.
        sizes: of images: ``coco`` (as in VQA v2) or ``long_tail`` (0.8 to 63 million pixels, few of them large).
    """

    num_samples: int = 400
    seed: int = 0
    prompt: str = "{question}"
    sizes: str = "coco"

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= _MOST_SAMPLES:
            raise ValueError(f"'num_samples' must be 1 to {_MOST_SAMPLES:,} (got {self.num_samples:,})")
        if self.seed < 0:
            raise ValueError(f"'seed' must be 0 or more (got {self.seed})")
        if self.sizes not in _SIZES:
            raise ValueError(f"'sizes' must be one of {', '.join(_SIZES)} (got {self.sizes!r})")
        check_prompt(self.prompt)

    @property
    def name(self) -> str:
        """``synthetic_vqa``, or ``synthetic_long_tail`` by its sizes."""
        return _SIZES[self.sizes]

    def open(self) -> SyntheticSamples:
        """The samples; nothing is made before it is asked for."""
        return SyntheticSamples(num_samples=self.num_samples, seed=self.seed, prompt=self.prompt, sizes=self.sizes)


class SyntheticSamples:
    """The samples of a :class:`SyntheticVQA`; ``sample_id`` is ``<image>-<question about it>``."""

    def __init__(self, *, num_samples: int, seed: int, prompt: str, sizes: str = "coco") -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._prompt = prompt
        self._sizes = sizes
        self._jpeg: Callable[[int], bytes] = lru_cache(maxsize=_KEPT_IMAGES)(self._render)

    def __reduce__(self) -> tuple[Callable[..., SyntheticSamples], tuple[()], None, None, None]:
        # A copy in another process renders its own images.
        make = partial(
            SyntheticSamples,
            num_samples=self._num_samples,
            seed=self._seed,
            prompt=self._prompt,
            sizes=self._sizes,
        )
        return make, (), None, None, None

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Sample:
        if not -self._num_samples <= index < self._num_samples:
            raise IndexError(f"sample {index} of {self._num_samples}")
        index %= self._num_samples
        image, about_it = self._image_of(index)
        question, answers = question_and_answers(self._rng("question", index))
        return Sample(
            sample_id=f"{image:07d}-{about_it}",
            question=fill(self._prompt, question),
            images=(ImageSource(name=f"synthetic/{image}", read=partial(self._read, image), size=self._size(image)),),
            answers=answers,
        )

    def _read(self, image: int) -> bytes:
        return self._jpeg(image)

    def _rng(self, what: str, number: int) -> random.Random:
        return random.Random(f"{self._seed}/{what}/{number}")

    def _image_of(self, index: int) -> tuple[int, int]:
        """(number of the image, number of the question about it)."""
        block, offset = divmod(index, _BLOCK)
        counts = list(_QUESTIONS)
        self._rng("block", block).shuffle(counts)
        image = 0
        while offset >= counts[image]:
            offset -= counts[image]
            image += 1
        return block * len(_QUESTIONS) + image, offset

    def _size(self, image: int) -> tuple[int, int]:
        from vlmbench.data.synthetic_image import draw_long_tailed_size, draw_size

        return (draw_size if self._sizes == "coco" else draw_long_tailed_size)(self._rng("size", image))

    def _render(self, image: int) -> bytes:
        from vlmbench.data.synthetic_image import render_jpeg

        return render_jpeg(seed=self._seed, image=image, size=self._size(image))

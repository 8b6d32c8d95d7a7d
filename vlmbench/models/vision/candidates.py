"""Candidate image sizes and processor settings, with the number of vision tokens that each is predicted to make.

Predictions are the processor's own size arithmetic (``_get_num_multimodal_tokens``, thousands of sizes in one call),
corrected by two runs of the processor for each setting: some arithmetics count delimiters with the image positions.
Where the arithmetic is missing, or blind to a setting, a few shapes are run instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmbench.errors import SampleError
from vlmbench.models.processors import allowed_image_arguments
from vlmbench.models.token_counts import observe

if TYPE_CHECKING:
    from vlmbench.models.protocol import Processes
    from vlmbench.request import Request, TokenCounts


Size = tuple[int, int]  # (width, height) in pixels

MODERATE_ASPECT = 3.0  # long side by short side of ordinary photographs, and then some
EXTREME_ASPECT = 50.0  # a prime number of tokens is one row of patches; processors refuse 200 and more
_STEPS = 96  # candidate sides: 1 … 96 units
_UNIT = 28  # pixels, where the processor shows no unit of its own
_PIXEL_LIMIT = 64_000_000
_LARGE = 4_000_000  # pixels; an image above takes long to prepare, so it is chosen last
_SHAPES_TO_RUN = ((1, 1), (3, 2), (2, 1), (3, 1), (4, 1))
_ORDINARY_SIZE = (640, 480)
# Call-time settings that change the number of tokens and exist under these names in several families.
_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"do_image_splitting": False},
    {"do_pan_and_scan": True},
    {"max_patches": 40},
)
_CLEARLY_MORE = 1.25
_BLIND_TO = "do_pan_and_scan"  # no arithmetic knows of it


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to some number of vision tokens.

    Args:
        tokens: the count, predicted.
        size: (width, height) of each image in pixels.
        num_images: images in the request.
        processor_kwargs: call-time arguments of the processor.
    """

    tokens: int
    size: Size
    num_images: int = 1
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def aspect(self) -> float:
        """Long side by short side."""
        return max(self.size) / min(self.size)

    def distance(self, size: Size) -> float:
        """How far the number of pixels is from that of ``size``: the absolute logarithm of their ratio."""
        return abs(math.log(self.size[0] * self.size[1] / (size[0] * size[1])))

    def changes(self, request: Request) -> dict[str, Any]:
        """The fields of a request to replace."""
        return {
            "image_size": self.size,
            "num_images": self.num_images,
            "processor_kwargs": {**request.processor_kwargs, **self.processor_kwargs},
        }


@dataclass(frozen=True, kw_only=True)
class _Arithmetic:
    """The processor's arithmetic under one setting; ``correct`` turns its answer into image positions."""

    setting: Mapping[str, Any]
    kwargs: Mapping[str, Any]
    correct: Callable[[int], int]


def original_size(request: Request) -> Size:
    """Size of the request's first image where it is known; an ordinary photograph's elsewhere."""
    return next((image.size for image in request.sample.images if image.size is not None), _ORDINARY_SIZE)


def observed_tokens(
    model: Processes, size: Size, *, num_images: int = 1, processor_kwargs: Mapping[str, Any]
) -> int | None:
    """Vision tokens of blank images of a size, by the real processor; None where it refuses them.

    Of a cross-attention model: the keys that its text attends to, for it has no image positions in its sequence.
    """
    counts = observed_counts(model, size, num_images=num_images, processor_kwargs=processor_kwargs)
    return None if counts is None else seen_tokens(counts)


def observed_counts(
    model: Processes, size: Size, *, num_images: int = 1, processor_kwargs: Mapping[str, Any]
) -> TokenCounts | None:
    """All counts of blank images of a size, by the real processor; None where it refuses them."""
    from PIL import Image

    from vlmbench.request import Output, Request, Sample

    images = [Image.new("RGB", size, (127, 127, 127))] * num_images
    blank = Request(
        sample=Sample(sample_id="blank", question="", images=()),
        output=Output(max_new_tokens=1, forced=True),
        processor_kwargs=processor_kwargs,
    )
    try:
        inputs = model.process(images, model.prompter.render("", num_images=num_images), blank)
    except SampleError:
        return None
    return observe(inputs, model.marks, batch_size=1, num_images=num_images, num_prompt_tokens=0)


def seen_tokens(counts: TokenCounts) -> int:
    """What a target of vision tokens aims at: image positions, or the keys of cross-attention where there are some."""
    return counts.num_vision_tokens or counts.num_cross_attention_tokens or 0


def _edge(size: Any, name: str) -> int | None:
    value = dict(size).get(name) if size is not None else None
    return value if isinstance(value, int) else None


def _unit(processor: Any) -> int:
    """Pixels by which a side must change to change the count, as far as the image processor shows it."""
    images = processor.image_processor
    patch, merge = getattr(images, "patch_size", None), getattr(images, "merge_size", None)
    if isinstance(patch, int) and isinstance(merge, int):
        return patch * merge
    tile = _edge(getattr(images, "max_image_size", None), "longest_edge") or _edge(
        getattr(images, "size", None), "height"
    )
    return max(_UNIT, tile // 4) if tile is not None else _UNIT


def _settings(processor: Any) -> list[Mapping[str, Any]]:
    """Settings to try, the processor's own first."""
    allowed = allowed_image_arguments(processor)
    settings: list[Mapping[str, Any]] = [{}, *(setting for setting in _SETTINGS if set(setting) <= allowed)]
    images = processor.image_processor
    tile = _edge(getattr(images, "max_image_size", None), "longest_edge")
    if tile is not None and _edge(getattr(images, "size", None), "longest_edge") is not None:
        # Images are scaled to the longest edge before they are tiled: that edge, in tiles, is the knob.
        settings += [{"size": {"longest_edge": tile * count}} for count in (1, 2, 3, 5, 6)]
    return settings


def _grid(unit: int) -> list[Size]:
    steps = range(1, _STEPS + 1)
    pairs = [(a, b) for a, b in itertools.product(steps, steps) if max(a, b) <= MODERATE_ASPECT * min(a, b)]
    return [(a * unit, b * unit) for a, b in pairs if a * b * unit * unit <= _PIXEL_LIMIT]


def _factor_pairs(target: int, unit: int) -> list[Size]:
    """Sizes of a x b units with a * b = target: exact for the families with one token a unit."""
    pairs = [(target // b, b) for b in range(1, math.isqrt(target) + 1) if target % b == 0]
    pairs += [(b, a) for a, b in pairs]
    return [(a * unit, b * unit) for a, b in pairs if max(a, b) <= EXTREME_ASPECT * min(a, b)]


def _predicted(processor: Any, sizes: Sequence[Size], kwargs: Mapping[str, Any]) -> list[int] | None:
    arithmetic = getattr(processor, "_get_num_multimodal_tokens", None)
    if arithmetic is None or _BLIND_TO in kwargs:
        return None
    try:
        return [int(n) for n in arithmetic(image_sizes=[(h, w) for w, h in sizes], **kwargs)["num_image_tokens"]]
    except Exception:  # a private interface: whatever goes wrong, the processor itself still answers
        return None


def _correction(
    model: Processes, sizes: Sequence[Size], predicted: Sequence[int], kwargs: Mapping[str, Any]
) -> Callable[[int], int]:
    """From what the arithmetic says to image positions.

    Two observations, at the smallest count and at a larger one (not the next: two orders of the same tiles may differ
    by their row separators), tell a fixed surplus (delimiters of an image) from a proportional one (delimiters of a
    tile). What they get wrong, the check of the finalists finds out.
    """
    order = sorted(range(len(sizes)), key=lambda i: (predicted[i], sizes[i][0] * sizes[i][1]))
    low = order[0]
    high = next((i for i in order if predicted[i] >= _CLEARLY_MORE * predicted[low]), low)
    seen_low = observed_tokens(model, sizes[low], processor_kwargs=kwargs)
    seen_high = observed_tokens(model, sizes[high], processor_kwargs=kwargs) if high != low else seen_low
    if not seen_low or not seen_high:
        return lambda n: n
    surplus, steps = predicted[low] - seen_low, predicted[high] / seen_high
    if predicted[high] - seen_high == surplus:
        return lambda n: n - surplus
    tile = math.gcd(seen_low, seen_high)
    return lambda n: round(n / steps / tile) * tile


class Candidates:
    """What a model's processor can reach with one image, for one set of call-time arguments."""

    def __init__(self, model: Processes, request: Request) -> None:
        self.original = original_size(request)
        self._processor = model.processor
        self._unit = _unit(model.processor)
        self._arithmetic: list[_Arithmetic] = []
        self._run: list[Setting] = []
        sizes = [self.original, *_grid(self._unit)]
        ways: list[Setting] = []
        for setting in _settings(model.processor):
            kwargs = {**request.processor_kwargs, **setting}
            predicted = _predicted(model.processor, sizes, kwargs)
            if predicted is None:
                ways += self._observed(model, setting, kwargs)
                continue
            arithmetic = _Arithmetic(
                setting=setting, kwargs=kwargs, correct=_correction(model, sizes, predicted, kwargs)
            )
            self._arithmetic.append(arithmetic)
            ways += self._ways(arithmetic, sizes, predicted)
        self.ways = self._best(ways)

    def for_target(self, target: int) -> list[Setting]:
        """The ways, with those added that only this target suggests."""
        sizes = _factor_pairs(target, self._unit)
        ways = list(self.ways)
        for arithmetic in self._arithmetic[:1]:
            ways += self._ways(arithmetic, sizes, _predicted(self._processor, sizes, arithmetic.kwargs) or [])
        return self._best(ways)

    def _ways(self, arithmetic: _Arithmetic, sizes: Sequence[Size], predicted: Sequence[int]) -> list[Setting]:
        return [
            Setting(tokens=arithmetic.correct(count), size=size, processor_kwargs=arithmetic.setting)
            for size, count in zip(sizes, predicted, strict=False)
        ]

    def _observed(self, model: Processes, setting: Mapping[str, Any], kwargs: Mapping[str, Any]) -> list[Setting]:
        found = []
        for wide, high in _SHAPES_TO_RUN:
            size = (wide * 448, high * 448)
            tokens = observed_tokens(model, size, processor_kwargs=kwargs)
            found.append(Setting(tokens=tokens or 0, size=size, processor_kwargs=setting))
        return found

    def _best(self, ways: Sequence[Setting]) -> list[Setting]:
        """One way for each setting and count: the image as it is, else nearest to a square, then to its size.

        Large images come after those of any moderate shape: their preparation would outlast the model.
        """
        best: dict[tuple[str, int], tuple[tuple[Any, ...], Setting]] = {}
        for way in ways:
            key = (repr(way.processor_kwargs), way.tokens)
            large = way.size[0] * way.size[1] > _LARGE
            extreme = way.aspect > MODERATE_ASPECT
            rank = (way.size != self.original, extreme, large, way.aspect, way.distance(self.original))
            if way.tokens > 0 and (key not in best or rank < best[key][0]):
                best[key] = (rank, way)
        return [way for _, way in best.values()]

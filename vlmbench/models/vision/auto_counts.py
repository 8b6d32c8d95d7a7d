"""Which counts of vision tokens a sweep measures when it leaves them to the model: ``vision_tokens: auto``.

The same processor gives the same counts, whether weights are loaded or not, so a dry run, a run and the run that
continues it have the same points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vlmbench.errors import ConfigError, UnreachablePointError
from vlmbench.models.vision.candidates import MODERATE_ASPECT, observed_counts, observed_tokens, original_size
from vlmbench.models.vision.target_settings import MOST_IMAGES, candidates_of
from vlmbench.sweep import spread

if TYPE_CHECKING:
    from vlmbench.models.protocol import Processes
    from vlmbench.request import Request


LEAST_COUNTS = 3
"""A slope needs three."""
_TEXT = 256  # positions left for a question whose length is not set, and for what the template adds
_TRIES = 3


def spread_vision_tokens(model: Processes, request: Request, most: int, *, positions: int | None = None) -> list[int]:
    """Up to ``most`` distinct, roughly log-spaced counts that are observed when they are aimed at, ascending.

    What varies is the size of one image where that gives enough counts (the processor's own settings, so crops where
    it makes them), else size and processor settings, else the number of images.

    Args:
        model: any model; only its processor is used.
        request: of one sample with an image; its ``processor_kwargs`` stay.
        positions: of the language model's sequence, where known: counts beyond them are left out.

    Raises:
        ConfigError: fewer than three counts can be reached; says which, and which other sweeps there are.
    """
    name = type(model.processor).__name__
    if not request.sample.images:
        raise ConfigError(
            f"sweep.axes.vision_tokens=auto needs a sample with an image, and '{request.sample.sample_id}' has none. "
            "Choose another with measurement.base_sample=N, or sweep=prompt_tokens, sweep=language_tokens"
        )
    room = _room(model, request, positions)
    best: list[int] = []
    for counts in _by_preference(model, request):
        found = _reached(model, request, [count for count in counts if count <= room], most)
        if len(found) > len(best):
            best = found
        if len(best) >= most:
            break
    if len(best) >= LEAST_COUNTS:
        return best
    reachable = f"only {', '.join(map(str, best))}" if best else "none"
    raise ConfigError(
        f"sweep.axes.vision_tokens=auto: a slope needs {LEAST_COUNTS} counts of vision tokens, and {name} reaches "
        f"{reachable} (image size, processor settings and number of images were tried). Choose sweep=prompt_tokens or "
        "sweep=language_tokens, or measure one count with sweep.axes.vision_tokens=[N]"
    )


def _room(model: Processes, request: Request, positions: int | None) -> float:
    """The highest count that the sequence has room for; no limit where images are attended to from outside it."""
    counts = observed_counts(model, original_size(request), processor_kwargs=request.processor_kwargs)
    if positions is None or (counts is not None and counts.num_cross_attention_tokens is not None):
        return math.inf
    return positions - (request.prompt_tokens or 0) - request.output.max_new_tokens - _TEXT


def _by_preference(model: Processes, request: Request) -> Iterator[list[int]]:
    """Predicted counts, ascending: by size, by size and processor settings, by number of images."""
    ways = [way for way in candidates_of(model, request).ways if way.aspect <= MODERATE_ASPECT]
    images = request.num_images or 1
    plain = {images * way.tokens for way in ways if not way.processor_kwargs}
    single = {images * way.tokens for way in ways}
    yield sorted(plain)
    if single > plain:
        yield sorted(single)
    if request.num_images is None and plain:
        one = min(plain)
        yield sorted(single | {count * one for count in range(1, MOST_IMAGES + 1)})


def _reached(model: Processes, request: Request, counts: Sequence[int], most: int) -> list[int]:
    """Counts of a spread selection that are observed; what cannot be reached is replaced by others, a few times."""
    reached: set[int] = set()
    open_counts = list(counts)
    for _ in range(_TRIES):
        for target in spread(sorted({*reached, *open_counts}), most):
            if target in reached or len(reached) >= most:
                continue
            open_counts.remove(target)
            if (count := _observed(model, request, target)) is not None:
                reached.add(count)
        open_counts = [count for count in open_counts if count not in reached]
        if len(reached) >= most or not open_counts:
            break
    return sorted(reached)


def _observed(model: Processes, request: Request, target: int) -> int | None:
    """What is seen when this count is aimed at, if aiming at what is seen leads there again; None otherwise."""
    for _ in range(2):
        try:
            aimed = model.resolve(replace(request, vision_tokens=target, prompt_tokens=None))
        except UnreachablePointError:
            return None
        size, kwargs = aimed.image_size, aimed.processor_kwargs
        if size is None:
            return None
        seen = observed_tokens(model, size, num_images=len(aimed.images), processor_kwargs=kwargs)
        if not seen or seen == target:
            return seen or None
        target = seen
    return None

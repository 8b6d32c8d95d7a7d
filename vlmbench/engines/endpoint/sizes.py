"""Which images give how many vision tokens on a server: asked with requests for one token, never assumed.

An image's tokens are what it adds to the prompt by the server's own count, placeholders around it included; where the
server counts image tokens by themselves, they are that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from vlmbench.engines.endpoint.exchange import Result
from vlmbench.errors import ConfigError, UnreachablePointError
from vlmbench.request import Output, Request
from vlmbench.sweep import spread
from vlmbench.text import whole

SIDES = (56, 112, 168, 224, 336, 448, 560, 672, 896, 1120, 1344)
"""Sides of square images that are asked first, pixels: multiples of what usual patches and mergers take together."""
TOLERANCE = 0.02  # of the target, as for a model in this process
_LEAST_COUNTS = 3  # a slope needs three
_MOST_IMAGES, _TRIES = 16, 6
Setting = tuple[int, int]  # side in pixels, number of images


@dataclass(kw_only=True)
class Sizes:
    """What a server makes of images of different sizes.

    Args:
        ask: sends a request and waits for its answer.
        base: a request with an image; its text is sent with every one.
    """

    ask: Callable[[Request], Result]
    base: Request
    _seen: dict[Setting, int | None] = field(init=False, default_factory=dict)
    _text: int | None = field(init=False, default=None)

    def spread(self, most: int) -> list[int]:
        """Up to ``most`` distinct counts, ascending and roughly log-spaced: by image size, else by number of images.

        Raises:
            ConfigError: the sample has no image, or fewer than three counts were seen.
        """
        if not self.base.images:
            raise ConfigError(
                f"sweep.axes.vision_tokens=auto needs a sample with an image, and '{self.base.sample.sample_id}' has "
                "none\nchoose another with measurement.base_sample=N"
            )
        images = len(self.base.images)
        counts = self._counts((side, images) for side in SIDES)
        if len(counts) < _LEAST_COUNTS and self.base.num_images is None:
            counts = self._counts((SIDES[3], number) for number in range(1, most + 1))
        if len(counts) < _LEAST_COUNTS:
            made = ", ".join(map(str, sorted(counts))) or "none"
            raise ConfigError(
                f"sweep.axes.vision_tokens=auto: a slope needs {_LEAST_COUNTS} counts of vision tokens, and this "
                f"server makes {made} of images of {SIDES[0]} to {SIDES[-1]} pixels\n"
                "choose sweep=prompt_tokens or sweep=language_tokens; is runtime.dialect the server's own?"
            )
        apart: list[int] = []
        for count in sorted(counts):
            if not apart or count > (1 + TOLERANCE) * apart[-1]:
                apart.append(count)
        return spread(apart, most)

    def resolve(self, request: Request) -> Request:
        """The request with the image size and number of images that make its ``vision_tokens``.

        Raises:
            UnreachablePointError: none that was asked comes close enough; names the nearest counts.
        """
        target = request.vision_tokens
        if target is None:
            return request
        if not request.images:
            raise UnreachablePointError(f"vision_tokens={target} needs a sample with an image; this one has none")
        images = len(request.images)
        counts = self._counts((side, images) for side in SIDES)
        for found in itertools.chain(
            [counts], self._nearer(counts, target, images, several=request.num_images is None)
        ):
            near = min(found, key=lambda count: abs(count - target), default=None)
            if near is not None and abs(near - target) <= TOLERANCE * target:
                side, number = found[near]
                return replace(request, vision_tokens=None, image_size=(side, side), num_images=number)
        seen = {count for (_, number), count in self._seen.items() if count and number >= images}
        nearest = [
            max((c for c in seen if c < target), default=None),
            min((c for c in seen if c > target), default=None),
        ]
        said = " and ".join(str(count) for count in nearest if count is not None) or "none was seen"
        raise UnreachablePointError(
            f"vision_tokens={target} cannot be reached within {whole(100 * TOLERANCE)} % on this server; "
            f"nearest: {said}"
        )

    def _nearer(
        self, counts: dict[int, Setting], target: int, images: int, *, several: bool
    ) -> Iterator[dict[int, Setting]]:
        """Sizes between two that were asked, then several equal images where their number is open."""
        low = max((c for c in counts if c < target), default=None)
        high = min((c for c in counts if c > target), default=None)
        if low is not None and high is not None:
            below, above = counts[low][0], counts[high][0]
            for _ in range(_TRIES):
                side = (below + above) // 2
                found = self._counts([(side, images)])
                yield found
                count = next(iter(found), None)
                below, above = (side, above) if count is not None and count < target else (below, side)
        if several:
            for count, (side, number) in sorted(counts.items(), reverse=True):
                times = round(target / count)
                if 2 <= times * number <= _MOST_IMAGES and abs(times * count - target) <= TOLERANCE * target:
                    yield self._counts([(side, times * number)])

    def _counts(self, settings: Iterable[Setting]) -> dict[int, Setting]:
        """Count to the setting that makes it, the smallest first where several do."""
        found: dict[int, Setting] = {}
        for setting in settings:
            if count := self._count(setting):
                found.setdefault(count, setting)
        return found

    def _count(self, setting: Setting) -> int | None:
        """Vision tokens of so many square images of a side; None where the server refuses them or does not count."""
        if setting not in self._seen:
            side, number = setting
            values = self._values(replace(self.base, image_size=(side, side), num_images=number))
            count = values.get("num_vision_tokens")
            if count is None and values.get("num_input_tokens") is not None:
                if self._text is None:
                    self._text = self._values(replace(self.base, num_images=0)).get("num_input_tokens")
                count = None if self._text is None else values["num_input_tokens"] - self._text
            self._seen[setting] = count
        return self._seen[setting]

    def _values(self, request: Request) -> dict[str, Any]:
        short = replace(request, vision_tokens=None, output=Output(max_new_tokens=1, forced=request.output.forced))
        result = self.ask(short)
        return dict(result.values) if result.ok else {}

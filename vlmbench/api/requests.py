"""Requests as users write them in Python, as samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.data.opening import opened, refuse_doubles, watched
from vlmbench.errors import InputError
from vlmbench.request import ImageSource, Sample

if TYPE_CHECKING:
    from vlmbench.data.protocol import Samples

_PAIR = "'requests' must be a list of (image, text) or ([image, …], text), of samples, or a data set"


def samples_of(requests: Any) -> Samples:
    """Return the samples that a user's requests are.

    Args:
        requests: ``(image, text)`` pairs, samples, a data set (opened or not).

    Raises:
        InputError: there is none, or one of them is no request; the message says which.
    """
    if hasattr(requests, "open") and not isinstance(requests, Path):
        return opened(requests)
    if isinstance(requests, str | bytes | Path | dict) or not hasattr(requests, "__len__"):
        raise InputError(f"{_PAIR} (got {type(requests).__name__})")
    if not len(requests):
        raise InputError(f"{_PAIR} (got an empty one)")
    if isinstance(requests, list | tuple):
        samples = [_sample(index, request) for index, request in enumerate(requests)]
        refuse_doubles(samples)
        return samples
    held: Samples = watched(requests, type(requests).__name__)
    if held is not requests:  # else it was opened here
        try:
            first = requests[0]
        except (TypeError, KeyError, IndexError):
            first = None
        if not isinstance(first, Sample):
            raise InputError(f"{_PAIR} (got {type(requests).__name__})")
    return held


def _sample(index: int, request: Any) -> Sample:
    if isinstance(request, Sample):
        return request
    if not isinstance(request, tuple | list) or len(request) != 2:
        raise InputError(f"{_PAIR} (request {index} is {_described(request)})")
    if not isinstance(request[1], str):
        raise InputError(f"{_PAIR} (the text of request {index} is {_described(request[1])})")
    images, text = request
    several: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
    name = f"request/{index}"
    return Sample(
        sample_id=str(index),
        question=text,
        images=tuple(_image(image, f"{name}/{number}") for number, image in enumerate(several) if image is not None),
    )


def _image(image: Any, name: str) -> ImageSource:
    if isinstance(image, ImageSource):
        return image
    if isinstance(image, str | Path):
        return ImageSource(name=str(image), read=Path(image).read_bytes)
    if isinstance(image, bytes | bytearray):
        held = bytes(image)
        return ImageSource(name=name, read=lambda: held)
    if hasattr(image, "save") and hasattr(image, "size"):

        @cache
        def encoded() -> bytes:
            memory = io.BytesIO()
            image.save(memory, format="PNG")
            return memory.getvalue()

        return ImageSource(name=name, read=encoded, size=tuple(image.size))
    raise InputError(f"an image must be a PIL image, a path or encoded bytes (got {_described(image)} in {name})")


def _described(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__

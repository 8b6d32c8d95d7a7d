"""Sweeps: axes, their points, and the request that each point makes. Standard library only.

An axis is named after the knob that it turns:

=================== ==========================================================================
``vision_tokens``   target number of vision tokens; reached through the model's own processor; ``auto`` or ``auto(N)``
                    instead of a list: N counts that the model can reach, found before anything is measured
``image_width``, ``image_height``, ``resolution`` (square side)  pixels, before the processor
``images``          number of images in a request
``prompt_tokens``   number of text tokens of the user's prompt (random ordinary words)
``output_tokens``   forced number of new tokens
``frames``          of a clip that is shown instead of the images, where the model takes video
``turns``           questions about the same images, one after the other; the last one is measured
``reuse_cache``     0: a later turn encodes and prefills everything again; 1: it goes on from the cache of those before
``kv_length``       tokens in the cache when the first token is there, with no prefill run for them; no image is given
``batch_size``      requests run as one batch, different ones (``measurement.batch``)
``processor.NAME``  call-time argument NAME of the model's processor
``intervention.N``  argument N of the method that is measured (:mod:`vlmbench.interventions`): keep, selector …
``load.NAME``       of a server: concurrency (users of a closed loop), rate_per_s (arrivals of an open loop)
=================== ==========================================================================
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vlmbench.request import MOST_SIDE, MOST_TOKENS, Output, Request

_PROCESSOR_PREFIX = "processor."
INTERVENTION_PREFIX = "intervention."
LOAD_PREFIX = "load."
NESTED = ("processor", "intervention", "load")
"""Axes that stand below one name on the command line: ``sweep.axes.intervention.keep=[…]``."""
_AUTO_AXIS = "vision_tokens"
_LEAST_CACHE = 8  # tokens: a few more than are prefilled to learn the cache's layout
_AUTO_POINTS, _LEAST_AUTO_POINTS = 6, 3
_LOW, _HIGH = 16, 576  # where a model reaches any count: from a thumbnail to LLaVA-1.5's image
_SIDES = frozenset({"resolution", "image_width", "image_height"})
_MOST_VALUES = 10_000
_SPAN = 6  # the highest count is this many times the lowest, where that is above _HIGH
_T = TypeVar("_T")


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"a value of axis '{name}' must be a whole number of {least} or more (got {value!r})")
    most = MOST_SIDE if name in _SIDES else MOST_TOKENS
    if value > most:
        raise ValueError(f"a value of axis '{name}' must be {most:,} or less (got {value:,})")
    return value


def _set_width(request: Request, value: int) -> Request:
    height = request.image_size[1] if request.image_size else value
    return replace(request, image_size=(value, height))


def _set_height(request: Request, value: int) -> Request:
    width = request.image_size[0] if request.image_size else value
    return replace(request, image_size=(width, value))


def _set_kv_length(request: Request, value: int) -> Request:
    output = Output(max_new_tokens=request.output.max_new_tokens, forced=True)  # nothing ends an answer to random keys
    return replace(request, kv_length=value, num_images=0, prompt_tokens=None, output=output)


# axis name -> (least value, how it changes a request)
KNOBS: Mapping[str, tuple[int, Callable[[Request, int], Request]]] = {
    "vision_tokens": (1, lambda r, v: replace(r, vision_tokens=v)),
    "resolution": (1, lambda r, v: replace(r, image_size=(v, v))),
    "image_width": (1, _set_width),
    "image_height": (1, _set_height),
    "images": (0, lambda r, v: replace(r, num_images=v)),
    "prompt_tokens": (1, lambda r, v: replace(r, prompt_tokens=v)),
    "output_tokens": (1, lambda r, v: replace(r, output=Output(max_new_tokens=v, forced=True))),
    "frames": (1, lambda r, v: replace(r, frames=v)),
    "turns": (1, lambda r, v: replace(r, turns=v)),
    "reuse_cache": (0, lambda r, v: replace(r, reuse_cache=bool(v))),
    "kv_length": (_LEAST_CACHE, _set_kv_length),
    "batch_size": (1, lambda r, v: replace(r, batch_size=v)),
}


def turns_vision(axis: str) -> bool:
    """Whether an axis changes how much the model sees."""
    return axis in ("vision_tokens", "resolution", "image_width", "image_height", "images") or axis.startswith(
        _PROCESSOR_PREFIX
    )


def auto_points(name: str, spec: object) -> int | None:
    """How many values an axis ``auto`` or ``auto(N)`` asks for; None for a list or a range.

    Raises:
        ValueError: an axis whose values cannot be found by asking the model, or N below 3 (a slope needs three).
    """
    found = re.fullmatch(r"auto(?:\(\s*(\d+)\s*\))?", spec.strip()) if isinstance(spec, str) else None
    if found is None:
        return None
    if name != _AUTO_AXIS:
        raise ValueError(f"only axis '{_AUTO_AXIS}' can be auto; give axis '{name}' a list or a range")
    points = int(found[1]) if found[1] else _AUTO_POINTS
    if points < _LEAST_AUTO_POINTS:
        raise ValueError(
            f"axis '{name}': auto(N) needs N of {_LEAST_AUTO_POINTS} or more, fewer make no slope (got {points}); "
            "give a list instead"
        )
    return points


def spaced(spec: Mapping[str, Any]) -> list[int]:
    """Values of a range: ``{start, stop, step}`` or ``{start, stop, num, spacing: linear|log}``, both ends included.

    Log spacing rounds to whole numbers and drops doubles.

    Raises:
        ValueError: keys missing, unknown or contradicting.
    """
    allowed = {"start", "stop", "step", "num", "spacing"}
    if unknown := set(spec) - allowed:
        raise ValueError(f"a range has the keys {sorted(allowed)} (got also {sorted(unknown)})")
    if "start" not in spec or "stop" not in spec or ("step" in spec) == ("num" in spec):
        raise ValueError(f"a range needs 'start', 'stop' and one of 'step', 'num' (got {dict(spec)})")
    start, stop = spec["start"], spec["stop"]
    for name in ("start", "stop", "step", "num"):
        if name in spec and (isinstance(spec[name], bool) or not isinstance(spec[name], int)):
            raise ValueError(f"'{name}' of a range must be a whole number (got {spec[name]!r})")
    if stop < start:
        raise ValueError(f"'stop' must not be below 'start' (got start={start}, stop={stop})")
    if "step" in spec:
        if "spacing" in spec:
            raise ValueError("'spacing' goes with 'num', not with 'step'")
        if spec["step"] < 1:
            raise ValueError(f"'step' must be 1 or more (got {spec['step']})")
        _not_too_many((stop - start) // spec["step"] + 1)
        return list(range(start, stop + 1, spec["step"]))
    num, spacing = spec["num"], spec.get("spacing", "linear")
    if num < 2:
        raise ValueError(f"'num' must be 2 or more (got {num})")
    _not_too_many(num)
    if spacing == "linear":
        values = [start + (stop - start) * i / (num - 1) for i in range(num)]
    elif spacing == "log":
        if start < 1:
            raise ValueError(f"log spacing needs 'start' of 1 or more (got {start})")
        values = [math.exp(math.log(start) + (math.log(stop) - math.log(start)) * i / (num - 1)) for i in range(num)]
    else:
        raise ValueError(f"'spacing' must be linear or log (got {spacing!r})")
    return sorted({round(v) for v in values})


def _not_too_many(values: int) -> None:
    if values > _MOST_VALUES:
        raise ValueError(f"a range has at most {_MOST_VALUES:,} values (got {values:,})")


def spread(counts: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the counts, ascending and roughly log-spaced.

    Args:
        counts: distinct, ascending, 1 or more each.
        most: 2 or more.

    Returns:
        from the lowest of at least 16 to the highest of at most 576, or of at most 6 times the lowest where that is
        more; higher ones too where there would be too few. The lowest count of all where none is 16 or more.
    """
    low = next((index for index, count in enumerate(counts) if count >= _LOW), 0)
    counts = counts[low:]
    if len(counts) <= most:
        return list(counts)
    top = max(_HIGH, _SPAN * counts[0], counts[most - 1])
    inside = [count for count in counts if count <= top]
    ratio = inside[-1] / inside[0]
    chosen: set[int] = set()
    for step in range(most):
        ideal = inside[0] * ratio ** (step / (most - 1))
        chosen.add(min(inside, key=lambda count: abs(math.log(count / ideal))))
    while len(chosen) < most:  # two aims met at one count: the gaps are filled, the widest first
        left = [count for count in inside if count not in chosen]
        chosen.add(max(left, key=lambda count: min(abs(math.log(count / other)) for other in chosen)))
    return sorted(chosen)


def short_range(name: str, text: str) -> dict[str, Any]:
    """``log(64, 2048, 10)``, ``linear(64, 2048, 10)`` (start, stop, how many) or ``range(64, 2048, 64)`` (…, step).

    Raises:
        ValueError: something else.
    """
    found = re.fullmatch(r"(log|linear|range)\((\d+),\s*(\d+),\s*(\d+)\)", text.strip())
    if found is None:
        auto = ", or auto, auto(N)" if name == _AUTO_AXIS else ""
        raise ValueError(
            f"axis '{name}' must be a list or a range: log(start, stop, num), linear(start, stop, num), "
            f"range(start, stop, step){auto} (got {text!r})"
        )
    start, stop, third = (int(found[i]) for i in (2, 3, 4))
    if found[1] == "range":
        return {"start": start, "stop": stop, "step": third}
    return {"start": start, "stop": stop, "num": third, "spacing": found[1]}


def axis_names(axes: Mapping[str, Any]) -> tuple[str, ...]:
    """The full names of configured axes: ``load.concurrency`` of ``{load: {concurrency: …}}``."""
    return tuple(_named(axes))


def _named(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Axis name to values, with those that were nested under one of :data:`NESTED` by their full names."""
    named: dict[str, Any] = {}
    for name, spec in axes.items():
        if name in NESTED and isinstance(spec, Mapping):
            named.update({f"{name}.{knob}": values for knob, values in spec.items()})
        else:
            named[str(name)] = spec
    return named


def _check_load(name: str, value: object) -> None:
    """Concurrency is a whole number of 1 or more, a rate any number above 0."""
    if name == "load.concurrency":
        _whole(name, value, 1)
    elif name != "load.rate_per_s":
        raise ValueError(f"axis '{name}' must be load.concurrency or load.rate_per_s")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"a value of axis '{name}' must be a number above 0 (got {value!r})")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One knob and its values, in the order given, doubles dropped."""

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"axis '{self.name}' has no values; give a list or a range")
        if self.name in KNOBS:
            for value in self.values:
                _whole(self.name, value, KNOBS[self.name][0])
                if self.name == "reuse_cache" and value > 1:
                    raise ValueError(f"a value of axis 'reuse_cache' must be 0 or 1 (got {value!r})")
        elif self.name.startswith(LOAD_PREFIX):
            for value in self.values:
                _check_load(self.name, value)
        elif not self.name.startswith((_PROCESSOR_PREFIX, INTERVENTION_PREFIX)):
            raise ValueError(
                f"axis '{self.name}' must be one of {', '.join(KNOBS)}, processor.NAME, intervention.NAME or load.NAME"
            )

    @classmethod
    def parse(cls, name: str, spec: Any) -> Axis:
        """From YAML: a list, a range mapping (see :func:`spaced`), or a range in short (see :func:`short_range`).

        The short form is for the command line, where Hydra cannot put a mapping in a list's place.
        """
        if isinstance(spec, str):
            spec = short_range(name, spec)
        if isinstance(spec, Mapping):
            values: tuple[Any, ...] = tuple(spaced(spec))
        elif isinstance(spec, list | tuple):
            values = tuple(tuple(value) if isinstance(value, list) else value for value in spec)
            if doubles := [value for place, value in enumerate(values) if value in values[:place]]:
                raise ValueError(
                    f"axis '{name}' has {doubles[0]!r} twice; give each value once: it is a point, measured as often "
                    "as measurement.stopping says"
                )
        else:
            raise ValueError(f"axis '{name}' must be a list or a range {{start, stop, step|num}} (got {spec!r})")
        return cls(name=name, values=values)

    def shown(self, value: Any) -> Any:
        """The value as rows hold it: a list as ``1+3``, and then all values of the axis as texts."""
        if not any(isinstance(each, tuple) for each in self.values):
            return value
        return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def apply(self, request: Request, value: Any) -> Request:
        """The request with this knob turned; a method's arguments are turned by its arm
        (:mod:`vlmbench.runner.arms`), and a load is no part of a request: neither is turned here.
        """
        if self.name.startswith((INTERVENTION_PREFIX, LOAD_PREFIX)):
            return request
        if self.name in KNOBS:
            return KNOBS[self.name][1](request, value)
        knob = self.name.removeprefix(_PROCESSOR_PREFIX)
        return replace(request, processor_kwargs={**request.processor_kwargs, knob: value})


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell of a sweep."""

    index: int
    axes: tuple[Axis, ...]
    values: tuple[Any, ...]

    @property
    def id(self) -> str:
        """Stable name: ``vision_tokens=64,output_tokens=8``; ``single`` for the sweep without axes."""
        return ",".join(f"{name}={value}" for name, value in self.target.items()) or "single"

    @property
    def target(self) -> dict[str, Any]:
        """Axis name to the value aimed at."""
        return {a.name: a.shown(v) for a, v in zip(self.axes, self.values, strict=True)}

    def without(self, prefix: str) -> Point:
        """The point without the axes whose names begin so."""
        kept = [(a, v) for a, v in zip(self.axes, self.values, strict=True) if not a.name.startswith(prefix)]
        return replace(self, axes=tuple(a for a, _ in kept), values=tuple(v for _, v in kept))

    def apply(self, request: Request) -> Request:
        """The request that this point makes of a base request."""
        for axis, value in zip(self.axes, self.values, strict=True):
            request = axis.apply(request, value)
        return request


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid: the product of its axes; none for one single point.

    Args:
        name: names the sweep in records and figures.
        axes: axis name to a list of values, a range, or ``auto`` (``vision_tokens`` only).
    """

    name: str
    axes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.auto is None:
            self.parsed()
            return
        others = {name: spec for name, spec in _named(self.axes).items() if name != _AUTO_AXIS}
        replace(self, axes=others)
        if unclear := [name for name in others if turns_vision(name)]:
            raise ValueError(
                f"axis '{_AUTO_AXIS}' cannot be auto beside {', '.join(unclear)}, which changes what can be reached; "
                f"give '{_AUTO_AXIS}' a list, or leave the other out"
            )

    @property
    def auto(self) -> int | None:
        """How many counts of vision tokens are to be found by asking the model; None where none are.

        Raises:
            ValueError: another axis is ``auto``, or for too few values.
        """
        wanted = [auto_points(name, spec) for name, spec in _named(self.axes).items()]
        return next((points for points in wanted if points is not None), None)

    def found(self, values: Sequence[int]) -> Sweep:
        """The sweep with ``auto`` replaced by what was found."""
        return replace(self, axes={**self.axes, _AUTO_AXIS: list(values)})

    def parsed(self) -> tuple[Axis, ...]:
        """The axes, checked.

        Raises:
            ValueError: an axis that is not known, has no values (``auto`` has none before the model was asked), or has
                a value out of range.
        """
        return tuple(Axis.parse(name, spec) for name, spec in _named(self.axes).items())

    def points(self) -> Iterator[Point]:
        """All cells in grid order (the runner measures them interleaved, in a seeded random order)."""
        axes = self.parsed()
        for index, values in enumerate(itertools.product(*(a.values for a in axes))):
            yield Point(index=index, axes=axes, values=values)

    def __len__(self) -> int:
        return math.prod(len(a.values) for a in self.parsed())


def shuffled(points: list[_T], *, seed: int, round_index: int) -> list[_T]:
    """The items in the seeded random order of one round, so that drift does not become a slope."""
    order = list(points)
    random.Random(f"{seed}/{round_index}").shuffle(order)
    return order

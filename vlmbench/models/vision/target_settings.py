"""Which image size, number of images or processor setting gives a target number of vision tokens.

Found by asking the model's own processor, never by a formula of ours: :mod:`vlmbench.models.vision.candidates` ranks
candidates by the processor's size arithmetic, and the processor itself, run on blank images, has the last word.

Preference, in this order: one image of moderate shape that hits the target exactly; one that comes within the
tolerance; an exact one of extreme shape; the same with another processor setting (tiles off, pan and scan on …);
several equal images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError
from vlmbench.models.vision.candidates import MODERATE_ASPECT, Candidates, Setting, observed_tokens, original_size
from vlmbench.text import whole

if TYPE_CHECKING:
    from vlmbench.models.protocol import Processes
    from vlmbench.request import Request


TOLERANCE = 0.02  # of the target; a miss within it is taken, the record holds target and observed count
_DOUBT = 0.1  # predictions this far off are still checked
_FINALISTS, _DOUBTFUL = 8, 2
MOST_IMAGES = 64


def candidates_of(model: Processes, request: Request) -> Candidates:
    """The candidates of a model, found once for each set of processor arguments and image size."""
    key = ("candidates", repr(sorted(request.processor_kwargs.items())), original_size(request))
    found: Candidates = model.remember(key, lambda: Candidates(model, request))
    return found


def reach_vision_tokens(
    model: Processes, target: int, request: Request, *, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """What to change in a request so that the model sees ``target`` vision tokens, or as many as the tolerance allows.

    Args:
        model: any model; only its processor is used.
        target: image positions in the language model, all images of the request together; of a cross-attention model
            the keys that its text attends to.
        request: its ``processor_kwargs`` stay; its ``num_images``, when set, is kept.
        tolerance: fraction of the target that the count may miss it by.

    Returns:
        values for the request's fields ``image_size``, ``num_images`` and ``processor_kwargs``.

    Raises:
        UnreachablePointError: no setting comes close enough; names the nearest counts that can be reached.
    """
    if not request.sample.images:
        raise UnreachablePointError(f"vision_tokens={target} needs a sample with an image; this one has none")
    ways = _ways(model, request, target, tolerance)
    seen: dict[int, Setting] = {}
    for way in _finalists(ways, target, tolerance):
        kwargs = {**request.processor_kwargs, **way.processor_kwargs}
        tokens = observed_tokens(model, way.size, num_images=way.num_images, processor_kwargs=kwargs)
        if not tokens:
            continue
        seen.setdefault(tokens, replace(way, tokens=tokens))
        if tokens == way.tokens and abs(tokens - target) <= tolerance * target:
            return way.changes(request)
    for tokens in sorted(seen, key=lambda count: abs(count - target)):  # predictions were off: the best that was seen
        if abs(tokens - target) <= tolerance * target:
            return seen[tokens].changes(request)
    raise UnreachablePointError(_unreachable(model, target, {*seen, *(way.tokens for way in ways)}, tolerance))


def _finalists(ways: Iterable[Setting], target: int, tolerance: float) -> list[Setting]:
    """The ways worth a run of the processor, best first: what is predicted close, and two that are nearly so."""

    def rank(way: Setting) -> tuple[float, ...]:
        miss = abs(way.tokens - target)
        moderate = way.aspect <= MODERATE_ASPECT
        close = miss <= tolerance * target
        tier = 0 if miss == 0 and moderate else 1 if close and moderate else 2 if miss == 0 else 3
        return (way.num_images, not close, bool(way.processor_kwargs), tier, miss, way.aspect)

    ranked = sorted((way for way in ways if abs(way.tokens - target) <= max(tolerance, _DOUBT) * target), key=rank)
    close = [way for way in ranked if abs(way.tokens - target) <= tolerance * target]
    return [*close[:_FINALISTS], *[way for way in ranked if way not in close][:_DOUBTFUL]]


def _ways(model: Processes, request: Request, target: int, tolerance: float) -> list[Setting]:
    """Ways with the request's number of images; with as many as it takes where the request leaves it open."""
    found = candidates_of(model, request)
    if request.num_images is not None and request.num_images != 1:
        return _repeated(model, request, found.ways, request.num_images)
    single = found.for_target(target)
    if request.num_images == 1 or not single or min(abs(w.tokens - target) for w in single) <= tolerance * target:
        return single
    plain = sorted((way for way in single if not way.processor_kwargs), key=lambda way: way.aspect)
    several = []
    for way in plain[:16]:
        for count in {target // way.tokens, -(-target // way.tokens)}:
            if 2 <= count <= MOST_IMAGES:
                several.append(replace(way, num_images=count, tokens=count * way.tokens))
    return [*single, *several]


def _repeated(model: Processes, request: Request, single: list[Setting], count: int) -> list[Setting]:
    """``count`` equal images; a model may treat several unlike one (LLaVA-OneVision gives up its tiles)."""
    probe = min(single, key=lambda way: way.size[0] * way.size[1], default=None)
    if probe is None or count < 1:
        return []
    kwargs = {**request.processor_kwargs, **probe.processor_kwargs}
    together = observed_tokens(model, probe.size, num_images=count, processor_kwargs=kwargs)
    if together is not None and together != count * probe.tokens:
        return [replace(probe, num_images=count, tokens=together)]
    return [replace(way, num_images=count, tokens=count * way.tokens) for way in single]


def _unreachable(model: Processes, target: int, counts: set[int], tolerance: float) -> str:
    name = type(model.processor).__name__
    if not counts:
        return f"vision_tokens={target}: no image that was tried makes {name} put image positions into the sequence"
    below = max((count for count in counts if count < target), default=None)
    above = min((count for count in counts if count > target), default=None)
    nearest = " and ".join(str(count) for count in (below, above) if count is not None)
    return f"vision_tokens={target} cannot be reached within {whole(100 * tolerance)} % by {name}; nearest: {nearest}"

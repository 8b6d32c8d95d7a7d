"""What can be known before anything is measured: whether the points of a sweep will make a slope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmbench.errors import SampleError, UnreachablePointError
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.request import Output, Request
from vlmbench.sweep import turns_vision
from vlmbench.workload import Series

SLOPE = 3
"""Counts that a slope needs."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """How far the model can follow a sweep of what it sees.

    Args:
        counts: observed counts of vision tokens (cross-attention: keys), ascending; no more than were looked for.
        asked: distinct settings of image size, number of images, processor and target that the sweep asks for.
        unreachable: point id to reason, of those that were looked at.
    """

    counts: tuple[int, ...]
    asked: int
    unreachable: dict[str, str]


def vision_counts(model: VisionLanguageModel, series: Sequence[Series]) -> Foreseen:
    """The counts of vision tokens that the points make; prepares one request a setting, until three counts are seen.

    Args:
        model: prepares requests; nothing is generated.
        series: the points of a controlled sweep.
    """
    settings: dict[str, tuple[str, Request]] = {}
    for one in series:
        request = one.request(0)
        alone = replace(request, batch_size=1, prompt_tokens=None, output=Output(max_new_tokens=1, forced=True))
        settings.setdefault(repr(replace(alone, sample=replace(alone.sample, images=()))), (one.point_id, alone))
    counts: set[int] = set()
    unreachable: dict[str, str] = {}
    for point, request in settings.values():
        if len(counts) >= SLOPE:
            break
        try:
            seen = model.prepare(request).counts
        except (UnreachablePointError, SampleError) as error:
            unreachable[point] = str(error)
            continue
        counts.add(seen.num_vision_tokens or seen.num_cross_attention_tokens or 0)
    return Foreseen(counts=tuple(sorted(counts)), asked=len(settings), unreachable=unreachable)


def no_slope(model: VisionLanguageModel, series: Sequence[Series]) -> str | None:
    """Why a sweep of what the model sees will make no slope, in words; None where it will, or was not meant to.

    Args:
        model: prepares requests.
        series: the points of a controlled sweep.
    """
    swept = [one for one in series if any(turns_vision(name) for name in one.axes)]
    if not swept:
        return None
    found = vision_counts(model, swept)
    if len(found.counts) >= SLOPE or (found.asked < SLOPE and not found.unreachable):
        return None
    made = ", ".join(map(str, found.counts)) or "none"
    all_reasons = list(dict.fromkeys(found.unreachable.values()))
    left = len(all_reasons) - _SHOWN
    reasons = "\n  ".join(all_reasons[:_SHOWN]) + (f"\n  and {left} more" if left > 0 else "")
    return (
        f"no slope over vision tokens can be fitted: it needs {SLOPE} counts, and the {found.asked} settings of this "
        f"sweep make {len(found.counts)} ({made}); sweep=vision_tokens finds what this model reaches"
        + (f"\n  {reasons}" if reasons else "")
    )


def output_counts(series: Sequence[Series]) -> set[int]:
    """The forced numbers of output tokens that the points ask for."""
    return {one.axes["output_tokens"] for one in series if "output_tokens" in one.axes}

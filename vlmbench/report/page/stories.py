"""Runs that belong together: one model on one device in one runtime, with its data set and its sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlmbench.figures.theme import device_name, model_name, runtime_name
from vlmbench.report.page.parts import COMPARISON, Part

_LOOK = ("model", "runtime", "device", "data")


@dataclass(kw_only=True)
class Story:
    """Runs of one model on one device in one runtime.

    Args:
        facts: model, device, runtime and data, as the filters name them.
        parts: its runs, the data set's first.
        comparison: what a token comparison says of it; empty if there is none.
        label: what sets it apart from the others of the page.
    """

    facts: Mapping[str, str]
    parts: list[Part] = field(default_factory=list)
    comparison: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def main(self) -> Part | None:
        """The run that the first sections show: that of the data set, else the first sweep."""
        return next((part for part in self.parts if part.is_phase1), self.parts[0] if self.parts else None)

    @property
    def sweeps(self) -> list[Part]:
        """Its runs of sweeps."""
        return [part for part in self.parts if not part.is_phase1]

    def costs(self) -> Iterator[tuple[str, Mapping[str, Any], Part]]:
        """(kind of token, its entry in ``headline``, run) of all sweeps."""
        for part in self.sweeps:
            for kind, entry in (part.summary.get("headline") or {}).items():
                yield kind, entry, part


def stories_of(parts: Sequence[Part]) -> list[Story]:
    """The stories of the runs of a page, in their order, each with a label of its own."""
    found: list[Story] = []
    for part in parts:
        if part.experiment == COMPARISON:
            for row in part.summary.get("comparisons") or []:
                _compared(found, row)
        else:
            _home(found, part).parts.append(part)
    found.sort(key=lambda story: not any(part.is_phase1 for part in story.parts))  # the page opens with a data set
    for story, label in zip(found, _labels(found), strict=True):
        story.label = label
    return found


def _home(found: list[Story], part: Part) -> Story:
    facts, slot = part.facts, _slot(part)
    key = _key(facts)
    for story in found:
        same_data = story.facts["data"] == facts["data"] or not (part.is_phase1 or story.main is None)
        if _key(story.facts) == key and same_data and slot not in map(_slot, story.parts):
            return story
    found.append(Story(facts=facts))
    return found[-1]


def _slot(part: Part) -> str:
    return "phase1" if part.is_phase1 else f"{part.experiment} {part.facts['sweep']} {part.name.rpartition('/')[2]}"


def _key(facts: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(facts[name] for name in ("model", "runtime", "device"))


def _compared(found: list[Story], row: Mapping[str, Any]) -> None:
    of = row.get("provenance") or {}
    facts = {
        "model": model_name(of),
        "device": device_name(of),
        "runtime": runtime_name(of),
        "data": "",
        "sweep": "",
    }
    for story in found:
        if _key(story.facts) == _key(facts) and not story.comparison:
            story.comparison = row
            return
    found.append(Story(facts=facts, comparison=row))


def _labels(stories: Sequence[Story]) -> list[str]:
    random = " (random weights)"
    if (
        all(story.facts["model"].endswith(random) for story in stories) and len(stories) > 1
    ):  # then it tells nothing apart
        stories = [
            replace(story, facts={**story.facts, "model": story.facts["model"].removesuffix(random)})
            for story in stories
        ]
    varying = [key for key in _LOOK if len({story.facts[key] for story in stories}) > 1]
    named = [", ".join(s.facts[key] for key in varying if s.facts[key]) or s.facts["model"] for s in stories]
    for index, name in enumerate(list(named)):
        place = stories[index].parts[0].name if stories[index].parts else ""
        if named.count(name) > 1 and place not in ("", "."):
            named[index] = f"{name} · {place}"
    return named

"""Figures that show runs side by side, from the runs of a page: a model's runtimes, and the models of a runtime."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmbench.analysis.distribution import tail_ratios
from vlmbench.analysis.frames import load_runs
from vlmbench.figures.runtimes import Runtime, models_figure, stages_figure, tail_figure, tokens_figure
from vlmbench.figures.theme import dtype_name, save
from vlmbench.records.comparable import sessions_of, turn_ids
from vlmbench.report.page.first_screen import slope
from vlmbench.report.page.parts import parts_of
from vlmbench.report.page.stories import Story, stories_of
from vlmbench.schema import TOTAL
from vlmbench.text import count, lasting, note, whole

_REQUEST, _HOUR_S = "T_request", 3600.0
_COMPILED = {"step": "decode_compile", "prefill": "prefill_compile"}
_ORDER = ("eager", "compiled", "cudagraph", "vllm", "endpoint")


def draw_side_by_side(directory: Path, runs: Sequence[Path], summaries: Mapping[Path, Path]) -> tuple[Path, ...]:
    """Draw ``figures/runtimes*`` of every model that the runs have under two runtimes or more, and
    ``figures/models_RUNTIME`` of every runtime that they have of two models or more.

    Args:
        directory: where ``figures/`` goes.
        runs: directories of runs, studies or grids.
        summaries: where their summaries lie, by the directory of the rows.

    Returns:
        The files; none where neither is.
    """
    stories = stories_of(parts_of(list(runs), rows=False, left_out=[], summaries=summaries))
    together: dict[tuple[str, str], list[Story]] = {}
    for story in stories:
        together.setdefault((story.facts["model"], story.facts["device"]), []).append(story)
    shown = {key: found for key, found in together.items() if len({_name(one) for one in found}) > 1}
    files: list[Path] = []
    for (model, device), found in shown.items():
        name = "" if len(shown) == 1 else "_" + re.sub(r"[^a-z0-9]+", "_", model.partition(" (")[0].lower()).strip("_")
        drawn = list(_figures(found, model, device))
        if not drawn:
            note(f"runtimes of {model} are not drawn side by side: no two have stages, tails or costs above 0.")
        for stem, figure in drawn:
            files += save(figure, directory / "figures", f"{stem}{name}")
    return (*files, *_draw_models(directory, stories))


def _draw_models(directory: Path, stories: Sequence[Story]) -> Iterator[Path]:
    under: dict[tuple[str, str], list[Story]] = {}
    for story in stories:
        if story.main and story.main.is_phase1:
            under.setdefault((_name(story), story.facts["device"]), []).append(story)
    devices = Counter(name for name, _ in under)
    for (name, device), found in under.items():
        one_each = {story.facts["model"]: story for story in found}
        if len(one_each) < 2:
            continue
        if len(one_each) < len(found):
            note(f"models under {name} are not drawn side by side: of one there are several runs. Give one of each.")
            continue
        shown = [replace(_runtime(story), label=model.partition(" (")[0]) for model, story in one_each.items()]
        counts = sorted({one.summary["runs"]["workload_runs"] for one in shown})
        random = "random weights" if all("random weights" in model for model in one_each) else ""
        about = " · ".join(filter(None, (name, device, _dtype(found), random)))
        n = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        figure = models_figure(shown, f"{about} · n = {n} requests a model\n{told_together(found, of_models=True)}")
        if figure is None:
            note(f"models under {name} are not drawn side by side: no two have stages above 0 and a whole request.")
        else:
            stem = re.sub(r"[^a-z0-9]+", "_", f"models {name} {device if devices[name] > 1 else ''}".lower()).strip("_")
            yield from save(figure, directory / "figures", stem)


def _figures(stories: Sequence[Story], model: str, device: str) -> Iterator[tuple[str, Any]]:
    ordered = sorted(stories, key=_place)
    runtimes = [_runtime(story) for story in ordered]
    about = " · ".join(filter(None, (model, device, _dtype(ordered))))
    data = [story for story in ordered if story.main and story.main.is_phase1]
    swept = [replace(story, parts=story.sweeps) for story in ordered if story.sweeps]
    counted = ", ".join(f"{s.main.summary['runs']['workload_runs']:,} ({_name(s)})" for s in data if s.main)
    of_data = f"{about} · n = {counted}\n{told_together(data)}"
    yield from (
        (stem, figure)
        for stem, figure in (
            ("runtimes", stages_figure(runtimes, of_data)),
            ("runtimes_tail", tail_figure(runtimes, of_data)),
            ("runtimes_tokens", tokens_figure(runtimes, f"{about} · n = {_swept(swept)}\n{told_together(swept)}")),
        )
        if figure is not None
    )


def _dtype(stories: Sequence[Story]) -> str:
    """The data type of all runs; empty where they have several."""
    found = {dtype_name(s.parts[0].provenance) for s in stories if s.parts}
    return found.pop() if len(found) == 1 else ""


def _swept(stories: Sequence[Story]) -> str:
    """How many runs the sweeps of each runtime have."""
    runs = {_name(s): [(p.summary.get("runs") or {}).get("ok_by_mode") or {} for p in s.parts] for s in stories}
    return ", ".join(f"{sum(one.get('instrumented', 0) for one in found):,} ({name})" for name, found in runs.items())


def _name(story: Story) -> str:
    """The runtime's name, and what of it was compiled before it was captured."""
    runtime = (story.parts[0].provenance.get("runtime") or {}) if story.parts else {}
    compiled = [what for what in ("step", "prefill") if runtime.get(_COMPILED[what])]
    said = f", {' and '.join(compiled)} compiled" if compiled else ""
    return story.facts["runtime"].partition(",")[0] + said


def _place(story: Story) -> int:
    name = _name(story).partition(",")[0]
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _runtime(story: Story) -> Runtime:
    part = story.main if story.main and story.main.is_phase1 else None
    tails = {}
    if part is not None:
        frame = load_runs(part.directory, (TOTAL, _REQUEST, "session", "started_unix_s"))
        tails = {metric: tail_ratios(frame, metric) for metric in (_REQUEST, TOTAL)}
    found = story.comparison.get("token_costs") or {}
    return Runtime(
        label=_name(story),
        summary={} if part is None else part.summary,
        tails=tails,
        costs={kind: slope(entry) for kind, entry in found.items()},
    )


def told_together(stories: Sequence[Story], *, of_models: bool = False) -> str:
    """How runs belong together, and whether their answers are of one length.

    Args:
        of_models: the runs are of several models, of which groups took turns with each other.
    """
    told = [story for story in stories if story.parts]
    names = () if of_models else [_name(story) for story in told]
    said = [measured_together([story.parts[0].provenance for story in told], names)]
    counts = [(s.main.summary.get("tokens") or {}).get("num_output_tokens") for s in stories if s.main]
    lengths = sorted({float(spread["median"]) for spread in counts if spread})
    if len(lengths) == 1:
        said.append(f"{whole(lengths[0])} output tokens")
    elif lengths:
        said.append(f"unlike answers: {', '.join(map(whole, lengths))} output tokens")
    return "; ".join(filter(None, said))


def measured_together(provenances: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """Tell whether runs are of one card and host, and how far apart in time; what is not recorded is not said.

    For example ``one card and host; measured within the hour``, or ``in turns``, ``in turns in 2 groups``.

    Args:
        names: what each is called, to tell those that took no turns apart from those that did.
    """
    turns = [turn_ids(provenance) for provenance in provenances]
    took = [bool(turns[i] & set().union(*turns[:i], *turns[i + 1 :])) for i in range(len(turns))]
    if not names or all(took) or not any(took):
        return _together(provenances, turns)
    chosen = [p for p, in_turns in zip(provenances, took, strict=True) if in_turns]
    said = [_together(chosen, [ids for ids, in_turns in zip(turns, took, strict=True) if in_turns])]
    alone = [(name, p) for name, p, in_turns in zip(names, provenances, took, strict=True) if not in_turns]
    return "; ".join([*said, *(f"{name} apart from these{_apart(p, chosen)}" for name, p in alone)])


def _known(provenances: Sequence[Mapping[str, Any]], part: str, name: str) -> set[Any]:
    """What runs say of their device or host, each session for itself: a run that was continued may be of several."""
    ran = [one for p in provenances for one in (p, *sessions_of(p))]
    return {(one.get(part) or {}).get(name) for one in ran} - {None}


def _begun(provenances: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(one["started_unix_s"]) for p in provenances for one in sessions_of(p) if one.get("started_unix_s")]


def _together(provenances: Sequence[Mapping[str, Any]], turns: Sequence[set[str]]) -> str:
    cards, hosts = _known(provenances, "device", "uuid"), _known(provenances, "host", "host")
    said = []
    if len(cards) == 1 and len(hosts) == 1:
        said.append("one card and host")
    elif cards and hosts:
        # of one name are hosts of several virtual machines, too: that they are one is not said
        said.append(f"{count(len(cards), 'card')} of one kind{f', {len(hosts)} hosts' if len(hosts) > 1 else ''}")
    begun = _begun(provenances)
    groups = set(map(frozenset, turns))
    if len(turns) > 1 and set.intersection(*turns):
        said.append("measured in turns")
    elif all(groups) and len(groups) < len(turns):
        said.append(f"measured in turns in {len(groups)} groups")
    elif len(provenances) > 1 and begun:
        apart = max(begun) - min(begun)
        said.append("measured within the hour" if apart <= _HOUR_S else f"measured {lasting(apart)} apart")
    return "; ".join(said)


def _apart(alone: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """``, on another card of the kind, 8.6 hours later``."""
    cards, theirs = _known([alone], "device", "uuid"), _known(others, "device", "uuid")
    where = (", on the same card" if cards <= theirs else ", on another card of the kind") if cards and theirs else ""
    begun, before = _begun([alone]), _begun(others)
    if not begun or not before:
        return where
    later = min(begun) - min(before)
    return f"{where}, {lasting(abs(later))} {'later' if later > 0 else 'earlier'}"

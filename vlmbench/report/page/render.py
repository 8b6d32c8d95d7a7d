"""The page as one file: the template with style, script and data inside, so that it opens without a request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlmbench import __version__
from vlmbench.figures.theme import caption, luminance
from vlmbench.records.reading import RECORDS_NAMES
from vlmbench.report.narrative import interventions, latency, scaling
from vlmbench.report.page.cells import of_grid
from vlmbench.report.page.contents import page_data
from vlmbench.report.page.parts import COMPARISON, INTERVENTIONS, TITLES, Part, parts_of
from vlmbench.report.page.sample import ONE_REPEATED
from vlmbench.report.provenance_table import facts, software
from vlmbench.report.table_cells import grids
from vlmbench.report.terminal_tables import memory
from vlmbench.schema import STAGES

SCRIPTS = ("core.js", "request.js", "tail.js", "load.js", "tokens.js", "side.js", "lane.js", "main.js")
_BLACK = "#15181c"
_MOST_SECTIONS = 24  # more would make the page long and heavy; the overview and summary.json hold their numbers
_SHOWN_ELSEWHERE = frozenset({"components", "slopes"})


def render(
    directories: Path | str | Sequence[Path | str],
    template: Any,
    beside: Path,
    summaries: Mapping[Path, Path] | None = None,
) -> str:
    """The HTML of the runs in some directories.

    Args:
        directories: run directories, studies, or directories that hold some.
        template: the page's, of jinja2.
        beside: the directory that the page lies in: files at and below it are named, not linked: a page that is
            mailed leaves them behind.
        summaries: where summaries lie that are not beside their rows, by the directory of the rows.

    Raises:
        InputError: there is nothing to show.
    """
    data = _unbroken(page_data(directories, summaries=summaries))
    from markupsafe import Markup

    parts = parts_of(directories, rows=False, left_out=[], summaries=summaries)
    shown = parts[:_MOST_SECTIONS]
    first = next((story["detail"] for story in data["stories"] if story["detail"]), _nothing())
    has = _sections(data)
    provenances = [part.provenance for part in parts if part.provenance]
    said = json.dumps([data["title"], [story["detail"] for story in data["stories"][:1]]], ensure_ascii=False)
    return str(
        template.render(
            page=data,
            first=first,
            has=has,
            nav=[(key, short) for key, short in _NAV if has.get(key, True)],
            missing=list(_missing(data, has)),
            sections=[_unbroken(_section(part)) for part in shown],
            more_sections=f"{len(parts) - len(shown):,} more are in their own directories."
            if len(parts) > len(shown)
            else "",
            commands=_commands(data),
            provenance=facts(provenances),
            software=software(next(iter(provenances), {})),
            files=list(_files(beside, shown, summaries or {})),
            glossary=[(name, meaning) for name, meaning in GLOSSARY if _is_used(name, said)],
            css=Markup(f"{stage_styles()}\n{_asset('page.css')}"),  # noqa: S704 (our own file)
            script=Markup("\n".join(["(() => {", '"use strict";', *(_asset(name) for name in SCRIPTS), "})();"])),  # noqa: S704
            data=Markup(_json(data)),  # noqa: S704 (escaped there)
            version=__version__,
        )
    )


_UNIT = re.compile(r"(?<=\d) (?=(?:%|×|[mµ]?s|min|GiB|[GT]B/s|[GT]FLOP(?:/s)?|[BMk])(?!\w))")
_VERBATIM = frozenset({"command", "commands", "requests", "lane", "pick"})  # what is copied, or compared with itself


def _unbroken(value: Any) -> Any:
    """The texts of the page with each number held to its unit: no line ends with ``1.00`` and begins with ``%``."""
    if isinstance(value, str):
        return _UNIT.sub("\N{NO-BREAK SPACE}", value)
    if isinstance(value, Mapping):
        return {name: one if name in _VERBATIM else _unbroken(one) for name, one in value.items()}
    return [_unbroken(one) for one in value] if isinstance(value, list | tuple) else value


GLOSSARY = (
    ("( … )", "the 95 % interval: measured again like this, the value would lie there 19 times in 20"),
    ("generate()", "what the model does: from prepared inputs to the last token, without the host’s work around it"),
    ("Setup", "inside generate(), before the vision encoder starts: the library’s own work on the host"),
    ("Projector", "turns the image’s features into tokens of the language model"),
    ("LLM prefill", "from the image’s features to the first token of the answer: the prompt is read in one pass"),
    ("LLM decode", "all later tokens, one pass of the language model each"),
    ("Residual", "generate() minus all its stages: a check of the clock, not a stage"),
    ("P95", "19 of 20 requests take less; P50 is the median"),
    ("independent runs", "neighbours resemble each other, so n runs tell as much as fewer independent ones would"),
    ("A/A check", "second half of the run against its first: of requests that were repeated, anything but 1 is the "
     "machine, not the model; where none was, the halves are different requests, compared within shapes"),
    ("device waits", "share of a time in which the GPU has no work, because the host has not launched it yet"),
    ("probes", "points in time set while a request runs; what setting them costs is the cost of watching"),
    ("marked run", "a run with a known cause of an odd time: a clock or power limit, a pause, a shape seen first"),
    ("bare, cold, warm-up, traced", "runs beside the measured ones, in no number: without probes, the first, before "
     "times are steady, with each kernel recorded"),
    ("floor", "the least time that the work needs at the device’s peak rates; a bound, not a goal"),
    ("MFU, MBU", "share of the device’s peak FLOP/s, and of its peak bytes/s, that a stage reaches"),
    ("eager, compiled, cudagraph", "Python launches each kernel; kernels fused by torch.compile; launched as one "
     "recorded graph a step"),
    ("synthetic_vqa", "images and questions made by a program from a seed: lengths like those of a data set, no "
     "answers"),
    ("random weights", "the architecture without a checkpoint: times are those of the model, answers mean nothing"),
)  # fmt: skip
"""(word, what it means) of the words that the page uses without saying them."""


def _is_used(name: str, text: str) -> bool:
    """Whether a word of the glossary can stand on the page of runs whose data are this text."""
    if name in ("random weights", "synthetic_vqa", "Setup", "Projector", "Residual"):
        return name in text
    if name in ("floor", "MFU, MBU"):
        return "Times its floor" in text
    return name != "device waits" or "waits" in text


_NAV = (
    ("time", "Time"),
    ("tail", "Tail"),
    ("load", "Load"),
    ("tokens", "Tokens"),
    ("side", "Runs"),
    ("claims", "What holds"),
    ("help", "What helps"),
    ("runs", "Machine"),
    ("provenance", "Provenance"),
    ("words", "In words"),
)


def _nothing() -> dict[str, Any]:
    names = (
        "answer", "facts", "quality", "stages_said", "tail_said", "loads_said", "causes", "sweeps_of", "tables",
        "parts",
    )  # fmt: skip
    return {"command": "", **{name: [] for name in names}}


def _sections(data: Mapping[str, Any]) -> dict[str, bool]:
    """Which sections have something to show."""
    parts = [part for story in data["stories"] if story["detail"] for part in story["detail"]["parts"]]
    costs = bool(data["token_said"] or data["breakeven"] or any(part.get("panels") for part in parts))
    return {
        "time": any(
            story["detail"] and (story["detail"]["bar"] or story["detail"]["stages_said"]) for story in data["stories"]
        ),
        "tail": any(part["phase1"] and part.get("requests") for part in parts),
        "tokens": costs,
        "load": any(
            table["name"] == "loads"
            for story in data["stories"]
            if story["detail"]
            for table in story["detail"]["tables"]
        ),
        "side": len(data["stories"]) > 1,
        "claims": data["claims"] is not None,
        "help": bool(data["arms"] or data["compared"]),
        "lane": any(part.get("lane") for part in parts),
        "traced": any(part["busy"] for part in parts),
        "repeated": any(
            group["name"] == ONE_REPEATED for part in parts for group in (part.get("requests") or {}).get("groups", [])
        ),
        "runs": any(part.get("lane") for part in parts),
    }


def _missing(data: Mapping[str, Any], has: Mapping[str, bool]) -> Iterator[str]:
    """What the page cannot say, and what would."""
    if not has["tail"]:
        yield "No data set was measured here, so nothing is said of the distribution and its tail (experiment=phase1)."
    if not has["tokens"]:
        yield (
            "No token count was swept here, so no slope says what a further token costs: experiment=phase2 turns "
            "vision tokens, phase3 output tokens."
        )
    parts = [part for story in data["stories"] if story["detail"] for part in story["detail"]["parts"]]
    if parts and not any(part.get("requests") for part in parts):
        yield "The rows (records.jsonl) of these runs are not beside their summaries, so no request is drawn."


def _section(part: Part) -> dict[str, Any]:
    summary, provenance = part.summary, part.provenance
    last = part.name.rpartition("/")[2]
    title = "Time against prompt tokens" if last == "prompt_tokens" else TITLES.get(part.experiment, part.experiment)
    lines = [memory(summary)] if summary.get("memory") else []
    return {
        "anchor": part.experiment if part.name == "." else part.name.replace("/", "-"),
        "name": part.name,
        "title": title,
        "setting": caption(provenance)
        if provenance
        else "; ".join(caption(row["provenance"]) for row in summary.get("comparisons") or []),
        "answers": list(_answers(part)),
        "tables": [of_grid(grid) for grid in grids(summary) if grid.name not in _SHOWN_ELSEWHERE],
        "lines": [line for line in (*lines, *latency.flag_sentence(summary.get("flags") or {})) if line],
    }


def _answers(part: Part) -> Iterator[tuple[str, Sequence[str]]]:
    if part.is_phase1:
        yield from latency.answers(part.summary, part.provenance)
    elif part.experiment == INTERVENTIONS:
        yield from interventions.answers(part.summary)
    elif part.experiment != COMPARISON:
        yield from scaling.answers(part.summary)
    else:
        rows = part.summary["comparisons"]
        for row in rows:
            model = f" ({caption(row['provenance'])})" if len(rows) > 1 else ""
            yield from ((f"{question}{model}", said) for question, said in scaling.comparison_answers(row))


def _commands(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for story in data["stories"][:_MOST_SECTIONS]:
        for name, command in (story["detail"] or {}).get("commands", []):
            found.setdefault(command, name)
    return [(name, command) for command, name in found.items()]


def _files(beside: Path, parts: Sequence[Part], summaries: Mapping[Path, Path]) -> Iterator[str]:
    """Data and figures for papers at and below the page, relative to it; pictures as one pattern."""
    for part in parts:
        written = summaries.get(part.directory, part.directory)
        named = (written / "summary.json", *(part.directory / name for name in RECORDS_NAMES))
        named += (part.directory / "provenance.json", written / f"{part.experiment}.json")
        for path in named:
            if path.is_file() and path.is_relative_to(beside):
                yield path.relative_to(beside).as_posix()
        if written.is_relative_to(beside) and any((written / "figures").glob("*.pdf")):
            yield (written / "figures" / "*.pdf").relative_to(beside).as_posix()


def _asset(name: str) -> str:
    return (files("vlmbench.report") / "templates" / "page" / name).read_text(encoding="utf-8").strip()


def stage_styles() -> str:
    """CSS of the stages' colours: a variable each for light and dark, and classes for bars, boxes and text on them."""
    stages = [stage for stage in STAGES if stage.code]
    lines = []
    for root, which in ((":root", 0), (':root[data-theme="dark"]', 1)):
        colours = (f"--{s.code}: {s.page[which]}; --on-{s.code}: {_ink_on(s.page[which])};" for s in stages)
        lines.append(f"{root} {{ {' '.join(colours)} }}")
    for s in stages:
        filled = f".c-{s.code} {{ fill: var(--{s.code}); }} .b-{s.code} {{ background: var(--{s.code}); }}"
        lines.append(f"{filled} svg text.on-{s.code} {{ fill: var(--on-{s.code}); }}")
    return "\n".join(lines)


def _ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour (contrast of WCAG 2.2)."""
    light = luminance(colour)
    return "#fff" if 1.05 / (light + 0.05) > (light + 0.05) / (luminance(_BLACK) + 0.05) else _BLACK


def _json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

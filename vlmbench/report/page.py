"""The page of a run or of a whole study: words, tables, figures and provenance in one ``report.html``.

It links the figures beside it and nothing else, so a directory that is copied whole shows it anywhere, without a
network. Needs jinja2 (the ``experiments`` extra).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbench import __version__
from vlmbench.analysis.slices import KINDS
from vlmbench.errors import ConfigError, InputError
from vlmbench.figures.theme import caption, component_colour
from vlmbench.records.files import write_whole
from vlmbench.report.narrative import phase1, scaling
from vlmbench.report.narrative.captions import figure_files
from vlmbench.report.phase1_summary import EXPERIMENT as PHASE1
from vlmbench.report.phase1_summary import provenance_of, read_json
from vlmbench.report.provenance_table import facts, software
from vlmbench.report.table_cells import Grid, grids
from vlmbench.report.terminal_tables import memory
from vlmbench.text import digits, interval

PAGE = "report.html"
TITLES: Mapping[str, str] = {
    PHASE1: "Latency of a data set, part by part",
    "phase2_scaling": "Time against token counts",
    "exp4b_language_tokens": "Time against output length",
    "exp5_token_comparison": "What tokens cost against each other",
}
_SCALING = ("headline", "scaling", "too_few_points", "roofline", "launch_bound", "latency_model", "aa_check")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    PHASE1: ("headline", "distribution", "components", "launch_bound", "cost", "tail", "aa_check"),
    "phase2_scaling": _SCALING,
    "exp4b_language_tokens": _SCALING,
    "exp5_token_comparison": ("headline", "comparisons"),
}
_PARTS = ("phase1", "phase2", "prompt_tokens", "phase3")
_DATA = ("summary.json", "records.jsonl", "provenance.json")

Answers = list[tuple[str, list[str]]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One experiment on the page.

    Args:
        anchor, title: of the heading.
        setting: the line that names model, device and runtime.
        short: the answer in a line or two.
        answers: (question, sentences).
        grids: its tables.
        lines: memory and flags.
        figures: with paths relative to the page.
        files: the data behind it, relative to the page.
        provenance: of its run.
    """

    anchor: str
    title: str
    setting: str
    short: Sequence[str]
    answers: Answers
    grids: Sequence[Grid]
    lines: Sequence[str]
    figures: Sequence[Any]
    files: Sequence[str]
    provenance: Mapping[str, Any]


def write_page(directory: Path | str) -> Path:
    """Write ``report.html`` of a run directory, or of a study directory that holds one run a part.

    Returns:
        Its path.

    Raises:
        ConfigError: jinja2 is not installed.
        InputError: no ``summary.json`` is there, nor in a part.
        MeasurementError: the page cannot be written.
    """
    template = environment().get_template("report.html.j2")
    directory = Path(directory)
    found = list(sections(directory))
    provenance = next((s.provenance for s in found if s.provenance), {})
    text = template.render(
        title=found[0].title if len(found) == 1 else "Where the latency goes",
        setting=caption(provenance) if provenance else "",
        short=[line for s in found for line in s.short] if len(found) > 1 else [],
        sections=found,
        provenance=facts([s.provenance for s in found]),
        software=software(provenance),
        colour=component_colour,
        width=lambda share: 0 if share is None else round(100 * min(abs(share), 1), 1),
        version=__version__,
    )
    return write_whole(directory / PAGE, text)


def environment() -> Any:
    """Templates of the package.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("report.html and tables/ need jinja2: pip install 'vlmbench-latency[experiments]'") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vlmbench.report"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
    )


def summaries(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(folder relative to the directory, summary) of the run itself, or of each part of a study and what they say
    together, which comes last.

    Raises:
        InputError: there is none, or one that another version wrote.
    """
    found = {name: read_json(directory / name / "summary.json") for name in (*_PARTS, ".")}
    if not any(found.values()):
        raise InputError(f"no summary.json at '{directory}'; give a run directory, or write its report first")
    for name, summary in found.items():
        if summary:
            _check(directory / name / "summary.json", summary)
            yield name, summary


def _check(path: Path, summary: Mapping[str, Any]) -> None:
    experiment = summary.get("experiment_name")
    missing = [name for name in _NEEDED.get(str(experiment), ()) if name not in summary]
    if experiment not in TITLES:
        raise InputError(f"'{path}' is of experiment '{experiment}'; a page shows {', '.join(TITLES)}")
    if missing:
        raise InputError(
            f"'{path}' lacks {', '.join(missing)}: another version wrote it; run the same command again to renew it"
        )


def sections(directory: Path) -> Iterator[Section]:
    """The sections of the page, in reading order.

    Raises:
        InputError: no ``summary.json`` is there, nor in a part.
    """
    for name, summary in summaries(directory):
        folder = directory / name
        provenance = provenance_of(folder)
        experiment = str(summary.get("experiment_name", ""))
        title = TITLES.get(experiment, experiment)
        if name == "prompt_tokens":
            title = "Time against prompt tokens"
        files = [*_DATA, f"{experiment}.json"]
        answers = _answers(summary, provenance)
        yield Section(
            anchor=experiment if name == "." else name,
            title=title,
            setting=_setting(summary, provenance),
            short=list(_short(summary, answers)),
            answers=answers,
            grids=grids(summary),
            lines=list(_lines(summary)),
            figures=figure_files(directory, folder / "figures"),
            files=[(Path(name) / file).as_posix() for file in files if (folder / file).is_file()],
            provenance=provenance,
        )


def _setting(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    if provenance:
        return caption(provenance)
    return "; ".join(caption(row["provenance"]) for row in summary.get("comparisons") or [])


def _answers(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> Answers:
    if summary.get("experiment_name") == PHASE1:
        return phase1.answers(summary, provenance)
    if "comparisons" not in summary:
        return scaling.answers(summary)
    found: Answers = []
    for row in summary["comparisons"]:
        model = f" ({caption(row['provenance'])})" if len(summary["comparisons"]) > 1 else ""
        found += [(f"{question}{model}", said) for question, said in scaling.comparison_answers(row)]
    return found


def _short(summary: Mapping[str, Any], answers: Answers) -> Iterator[str]:
    if summary.get("experiment_name") == PHASE1:
        yield from (sentences[0] for question, sentences in answers if question in (phase1.HOW_LONG, phase1.WHICH_PART))
    elif "comparisons" in summary:
        for ratio, row in zip(summary["headline"], summary["comparisons"], strict=True):
            yield " ".join(filter(None, [ratio, row.get("aa_words")]))
    else:
        for kind, cost in summary["headline"].items():
            inside = f"{interval(cost['slope_low'], cost['slope_high'])} ms"
            low, high = cost["range"]
            without = f"; {cost['unflagged_words']}" if cost.get("unflagged_words") else ""
            yield (
                f"One more {KINDS[kind].unit} costs {digits(cost['slope_ms'])} ms of generate() ({inside}), measured "
                f"from {low:,.0f} to {high:,.0f}{without}."
            )


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    if summary.get("memory") and (line := memory(summary)):
        yield line
    yield from phase1.flag_sentence(summary.get("flags") or {})

"""Reports: summaries in words, tables, figures and pages made of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench import plugins
from vlmbench.errors import ConfigError, InputError
from vlmbench.text import shown

if TYPE_CHECKING:
    from vlmbench.report.phase_file import Answer


def write_report(kind: str, directory: Path, to: Path | None = None, *, extra_figures: Sequence[str] = ()) -> str:
    """Write what an experiment promises: summary, phase file, figures, ``report.html`` and ``tables/``.

    Args:
        kind: phase1, phase2, phase3, interventions or none.
        directory: where the rows lie.
        to: where to write; beside the rows if None.
        extra_figures: entry points of ``vlmbench.figures``, drawn beside the experiment's own.

    Returns:
        The answer in words; empty for none.

    Raises:
        ConfigError: no such entry point.
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    from vlmbench.analysis.row_file import read_once

    with read_once():
        text = _summarise(kind, directory, to)
        if not text:
            return ""
        for name in extra_figures:
            _draw_extra(name, directory, to or directory)
        return f"{text}\n\n{write_pages(to or directory, directory, {directory: to or directory})}"


def write_quick_report(kind: str, directory: Path) -> str:
    """Write ``summary.json`` and ``report.html`` of a run that was told to stop: no figures, no phase file.

    Returns:
        Where the page is, in one line; empty for an experiment without a report.

    Raises:
        InputError: nothing was measured yet.
        MeasurementError: a file cannot be written.
    """
    from vlmbench.analysis.row_file import read_once
    from vlmbench.report.page import write_page

    with read_once():
        if not _summarise(kind, directory, None, quick=True):
            return ""
        try:
            page = write_page(directory)
        except ConfigError as error:
            return f"no page: {error}"
    return f"what there is: {shown(page)}"


def _summarise(kind: str, directory: Path, to: Path | None, *, quick: bool = False) -> str:
    """Write summary, phase file and figures of a kind of report; returns its words, empty for none."""
    if kind == "phase1":
        from vlmbench.report.phase1 import write_phase1

        return write_phase1(directory, to, quick=quick).text
    if kind in ("phase2", "phase3"):
        from vlmbench.report.scaling import EXPERIMENTS, write_scaling

        return write_scaling(directory, to, experiment=EXPERIMENTS[kind], quick=quick).text
    if kind == "interventions":
        from vlmbench.report.interventions import write_interventions

        return write_interventions(directory, to, quick=quick)
    return ""


def answer(kind: str, directory: Path) -> Answer:
    """Say what the rows of a run directory hold, as :func:`write_report` would write it.

    Args:
        kind: phase1, phase2, phase3 or interventions.

    Raises:
        InputError: the directory holds no records, or broken ones.
    """
    if kind == "phase1":
        from vlmbench.report.phase1 import answer as of_phase1

        return of_phase1(directory)
    if kind == "interventions":
        from vlmbench.report.interventions import answer as of_methods

        return of_methods(directory)
    from vlmbench.report.scaling import EXPERIMENTS
    from vlmbench.report.scaling import answer as of_sweep

    return of_sweep(directory, EXPERIMENTS[kind])


def _draw_extra(name: str, directory: Path, to: Path) -> None:
    """Draw the figure of a plug-in: a function from all rows and the provenance to a figure, or to None for no data."""
    from vlmbench.analysis.frames import load_runs
    from vlmbench.figures.theme import save
    from vlmbench.report.phase1_summary import provenance_of

    figure = plugins.load("vlmbench.figures", name)(load_runs(directory).copy(), provenance_of(directory))
    if figure is not None:
        save(figure, to / "figures", name)


def write_pages(
    directory: Path, runs: Path | Sequence[Path] | None = None, summaries: Mapping[Path, Path] | None = None
) -> str:
    """Write ``report.html`` and ``tables/`` of runs whose summaries are there; says so in one line.

    Without jinja2 (the ``experiments`` extra), or with summaries of another version, the line says why there is none:
    the results themselves are written already.

    Args:
        directory: where they go.
        runs: what they show; the directory itself if None.
        summaries: where summaries lie that are not beside their rows, by the directory of the rows.

    Raises:
        MeasurementError: a file cannot be written.
    """
    from vlmbench.report.page import write_page
    from vlmbench.report.paper_tables import write_tables

    try:
        page = write_page(directory, runs, summaries)
        write_tables(directory, runs, summaries)
    except (ConfigError, InputError) as error:
        return f"No page: {str(error).rstrip('.')}."
    return f"The same with figures: {page.name}; tables for papers: tables/."

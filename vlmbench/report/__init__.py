"""Reports: summaries in words, tables, figures and pages made of records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmbench import plugins
from vlmbench.errors import ConfigError, InputError


def write_report(kind: str, directory: Path, *, extra_figures: Sequence[str] = ()) -> str:
    """Write what an experiment promises: summary, phase file, figures, ``report.html`` and ``tables/``.

    Args:
        kind: phase1, phase2, phase3, interventions or none.
        directory: a run directory.
        extra_figures: entry points of ``vlmbench.figures``, drawn beside the experiment's own.

    Returns:
        The answer in words; empty for none.

    Raises:
        ConfigError: no such entry point.
        InputError: the directory holds no records, or broken ones.
        MeasurementError: a file cannot be written.
    """
    if kind == "phase1":
        from vlmbench.report.phase1 import write_phase1

        text = write_phase1(directory).text
    elif kind == "phase2":
        from vlmbench.report.scaling import write_phase2

        text = write_phase2(directory).text
    elif kind == "phase3":
        from vlmbench.report.scaling import write_phase3

        text = write_phase3(directory).text
    elif kind == "interventions":
        from vlmbench.report.interventions import write_interventions

        text = write_interventions(directory)
    else:
        return ""
    for name in extra_figures:
        _draw_extra(name, directory)
    return f"{text}\n\n{write_pages(directory)}"


def _draw_extra(name: str, directory: Path) -> None:
    """Draw the figure of a plug-in: a function from all rows and the provenance to a figure, or to None for no data."""
    from vlmbench.analysis.frames import load_runs
    from vlmbench.figures.theme import save
    from vlmbench.report.phase1_summary import provenance_of

    figure = plugins.load("vlmbench.figures", name)(load_runs(directory), provenance_of(directory))
    if figure is not None:
        save(figure, directory / "figures", name)


def write_pages(directory: Path) -> str:
    """Write ``report.html`` and ``tables/`` of a run or study whose summaries are there; says so in one line.

    Without jinja2 (the ``experiments`` extra), or with summaries of another version, the line says why there is none:
    the results themselves are written already.

    Raises:
        MeasurementError: a file cannot be written.
    """
    from vlmbench.report.page import write_page
    from vlmbench.report.paper_tables import write_tables

    try:
        page = write_page(directory)
        write_tables(directory)
    except (ConfigError, InputError) as error:
        return f"No page: {error}."
    return f"The same with figures: {page.name}; tables for papers: tables/."

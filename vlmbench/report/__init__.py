"""Reports: summaries in words, tables, figures and pages made of records."""

from __future__ import annotations

from pathlib import Path

from vlmbench.errors import ConfigError, InputError


def write_report(kind: str, directory: Path) -> str:
    """Write what an experiment promises: summary, phase file, figures, ``report.html`` and ``tables/``.

    Args:
        kind: phase1, phase2, phase3 or none.
        directory: a run directory.

    Returns:
        The answer in words; empty for none.

    Raises:
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
    else:
        return ""
    return f"{text}\n\n{write_pages(directory)}"


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

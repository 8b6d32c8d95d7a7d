"""The page of a run, a study or a grid: one ``report.html`` that holds everything, with nothing to load.

``parts`` reads the runs, ``stories`` puts together what belongs together, ``contents`` turns them into sentences,
tables and series of bounded size, ``render`` puts these into the template. Needs jinja2 (the ``experiments`` extra).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmbench.records.files import write_whole
from vlmbench.report.page.render import render
from vlmbench.report.templating import environment

PAGE = "report.html"


def write_page(
    directory: Path | str,
    runs: Path | str | Sequence[Path | str] | None = None,
    summaries: Mapping[Path, Path] | None = None,
) -> Path:
    """Write ``report.html`` of a run directory, of a study, or of a directory that holds several of them.

    Args:
        directory: where the page goes.
        runs: what it shows; the directory itself if None.
        summaries: where summaries lie that are not beside their rows, by the directory of the rows.

    Returns:
        Its path.

    Raises:
        ConfigError: jinja2 is not installed.
        InputError: no ``summary.json`` is there, nor in a part.
        MeasurementError: the page cannot be written.
    """
    template = environment().get_template("page/page.html.j2")
    directory = Path(directory)
    return write_whole(directory / PAGE, render(directory if runs is None else runs, template, directory, summaries))

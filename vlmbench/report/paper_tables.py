"""The tables of a run or a study as files for papers and notes: LaTeX (booktabs) and Markdown.

Why a template and not pandas' ``Styler.to_latex(hrules=True)``: it writes the same but for the indentation, and needs
four lines more here than the template of 13 lines that it would replace.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmbench.records.files import write_whole
from vlmbench.report.page.parts import parts_of
from vlmbench.report.paper_numbers import Macro, macros, tex_macros
from vlmbench.report.references import references
from vlmbench.report.table_cells import Grid, grids
from vlmbench.report.templating import environment
from vlmbench.text import latex

FOLDER = "tables"


def write_tables(
    directory: Path | str,
    runs: Path | Sequence[Path] | None = None,
    summaries: Mapping[Path, Path] | None = None,
) -> list[Path]:
    """Write ``tables/<name>.tex``, ``.md`` and ``.csv`` of a run, of a study ``tables/<part>_<name>`` of each part.

    Beside them lie ``numbers.tex`` (macros of the headline numbers) and ``references.bib``.

    The LaTeX needs the package booktabs.

    Args:
        directory: where they go.
        runs: what they show; the directory itself if None.
        summaries: where summaries lie that are not beside their rows, by the directory of the rows.

    Returns:
        The paths, in order.

    Raises:
        ConfigError: jinja2 is not installed.
        InputError: no ``summary.json`` is there, nor in a part.
        MeasurementError: a file cannot be written.
    """
    template = environment().get_template("table.tex.j2")
    directory = Path(directory)
    files = []
    numbers: list[Macro] = []
    named: Counter[str] = Counter()
    provenances = []
    left_out: list[str] = []  # the page names them
    for part in parts_of(runs or directory, rows=False, left_out=left_out, summaries=summaries):
        name = "" if part.name == "." else part.name
        named[name] += 1
        if named[name] > 1:  # two runs of one name
            name = f"{name} {named[name]}"
        for grid in grids(part.summary):
            prefix = f"{re.sub('[/ ]', '_', name)}_" if name else ""
            path = directory / FOLDER / f"{prefix}{grid.name}"
            files.append(write_whole(path.with_suffix(".tex"), template.render(grid=grid, tex=tex, stem=path.name)))
            files.append(write_whole(path.with_suffix(".md"), markdown(grid)))
            files.append(write_whole(path.with_suffix(".csv"), comma_separated(grid)))
        numbers += macros(part.summary, name)
        provenances.append(part.provenance)
    if numbers:
        files.append(write_whole(directory / FOLDER / "numbers.tex", tex_macros(numbers)))
    if files and any(provenances):
        files.append(write_whole(directory / FOLDER / "references.bib", references(provenances)))
    return files


def tex(text: str) -> str:
    """Text as LaTeX shows it: special characters escaped, leading blanks as indentation."""
    blanks = len(text) - len(text.lstrip(" "))
    return (r"\quad " if blanks else "") + latex(text.strip())


def markdown(grid: Grid) -> str:
    """A table of GitHub's Markdown, its title in bold above."""
    lines = [
        _line([name for name, _ in grid.columns]),
        _line(["---:" if right else "---" for _, right in grid.columns]),
        *(_line(row) for row in grid.rows),
    ]
    return f"**{grid.title}**\n\n" + "\n".join(lines) + "\n"


def comma_separated(grid: Grid) -> str:
    """A table as CSV, its cells as they are shown: for spreadsheets; numbers for programs are in ``summary.json``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for name, _ in grid.columns])
    writer.writerows([cell.strip() for cell in row] for row in grid.rows)
    return text.getvalue()


def _line(cells: list[str] | tuple[str, ...]) -> str:
    inner = (cell.replace("|", "\\|") for cell in cells)
    return "| " + " | ".join(("&emsp;" if cell.startswith("  ") else "") + cell.strip() for cell in inner) + " |"

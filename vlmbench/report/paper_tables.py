"""The tables of a run or a study as files for papers and notes: LaTeX (booktabs) and Markdown.

Why a template and not pandas' ``Styler.to_latex(hrules=True)``: it writes the same but for the indentation, and needs
four lines more here than the template of 13 lines that it would replace.

Beside them: the headline numbers as LaTeX macros, ``vbTTotalWorkloadMedian`` with ``Low``, ``High`` (ends of its 95 %
interval) and ``N``, so that a paper that inputs ``numbers.tex`` follows the data; and the papers of models and data.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vlmbench.figures.theme import dataset_name
from vlmbench.records.files import write_whole
from vlmbench.report.page.parts import parts_of
from vlmbench.report.table_cells import Grid, grids
from vlmbench.report.templating import environment
from vlmbench.text import digits, latex

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


OF_MODELS: Mapping[str, str] = {
    "llava_1_5": "liu2023llava15",
    "llava_onevision": "li2024llavaonevision",
    "qwen2_vl": "wang2024qwen2vl",
    "qwen2_5_vl": "bai2025qwen25vl",
    "internvl3": "zhu2025internvl3",
    "gemma3": "gemma2025gemma3",
    "molmo_": "deitke2024molmo",
    "molmoe_": "deitke2024molmo",
    "paligemma2": "steiner2024paligemma2",
    "idefics3": "laurencon2024idefics3",
    "smolvlm_": "marafioti2025smolvlm",
    "smolvlm2_": "marafioti2025smolvlm",
    "llama_3_2": "grattafiori2024llama3",
}
"""How the name of a shipped model begins, to its entry."""

OF_DATASETS: Mapping[str, str] = {"vqa_v2": "goyal2017vqav2"}


def entries() -> dict[str, str]:
    """Key to entry, of all that are known."""
    text = resources.files("vlmbench.report").joinpath("references.bib").read_text(encoding="utf-8")
    found = [entry.strip() for entry in re.split(r"\n(?=@)", text) if entry.strip()]
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in found}  # type: ignore[index]


def references(provenances: Sequence[Mapping[str, Any]]) -> str:
    """``references.bib`` of the models and data sets of some runs; what has no known paper is named in a comment."""
    wanted: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for provenance in provenances:
        model = str((provenance.get("model") or {}).get("name") or "")
        for name, known in ((model, OF_MODELS), (dataset_name(provenance), OF_DATASETS)):
            key = next((key for begin, key in known.items() if name.startswith(begin)), None)
            if key is not None:
                wanted[key] = None
            elif name:
                unknown[name] = None
    known_entries = entries()
    comments = [f"% no paper is known here for {name}: cite what its authors ask for" for name in unknown]
    return "\n\n".join([*comments, *(known_entries[key] for key in wanted)]) + "\n"


Summary = Mapping[str, Any]
Macro = tuple[str, str]
"""(name without its backslash, what it stands for)."""

PREFIX = "vb"
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_QUANTILES = {"p50": "Median", "p90": "PNinety", "p95": "PNinetyFive", "p99": "PNinetyNine"}


def safe(text: str) -> str:
    """A name that TeX takes: letters alone, a capital after what was cut out, digits as words."""
    words = re.split(r"[^A-Za-z0-9]+", text)
    joined = "".join(word[:1].upper() + word[1:] for word in words)
    return re.sub(r"\d", lambda digit: _DIGITS[int(digit.group())], joined)


def number(value: float) -> str:
    """Three significant digits, thousands with a comma that TeX sets without a blank behind it."""
    return digits(value).replace(",", "{,}")


def macros(summary: Summary, part: str = "") -> list[Macro]:
    """All macros of a summary; empty where it has no numbers.

    Args:
        summary: content of a ``summary.json``.
        part: which part of a study it is, for the names; empty for a run of its own.
    """
    found = [*_latencies(summary), *_shares(summary), *_slopes(summary), *_costs(summary)]
    return [(f"{PREFIX}{safe(part)}{name}", value) for name, value in found]


def tex_macros(found: Sequence[Macro]) -> str:
    """``numbers.tex``.

    Raises:
        ValueError: a name comes twice.
    """
    names = [name for name, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"macros of one name: {', '.join(sorted(twice))}")
    head = "% times in ms, shares in percent; Low and High: ends of the 95 % interval; N: runs\n"
    return head + "".join(f"\\newcommand{{\\{name}}}{{{value}}}\n" for name, value in found)


def _with_interval(name: str, value: float | None, low: float | None, high: float | None) -> Iterator[Macro]:
    """A value and its ends; nothing where there is no value, no ends where there is no interval."""
    if value is None:
        return
    yield name, number(value)
    if low is not None and high is not None:
        yield f"{name}Low", number(low)
        yield f"{name}High", number(high)


def _latencies(summary: Summary) -> Iterator[Macro]:
    for metric, groups in (summary.get("distribution") or {}).items():
        for group, entry in groups.items():
            name = f"{safe(metric)}{safe(group)}"
            yield f"{name}N", f"{entry['n']:,}".replace(",", "{,}")
            for key, word in _QUANTILES.items():
                found = entry.get(key) or {}
                yield from _with_interval(f"{name}{word}", found.get("value"), found.get("low"), found.get("high"))


def _shares(summary: Summary) -> Iterator[Macro]:
    for row in summary.get("components") or []:
        if row.get("share") is None or row["component"] == "T_residual":
            continue
        ends = [None if end is None else 100 * end for end in (row.get("share_low"), row.get("share_high"))]
        yield from _with_interval(f"Share{safe(row['component'])}", 100 * row["share"], *ends)


def _slopes(summary: Summary) -> Iterator[Macro]:
    headline = summary.get("headline")
    if not isinstance(headline, Mapping):
        return
    for kind, row in headline.items():
        if not isinstance(row, Mapping) or "slope_ms" not in row:
            continue
        yield from _with_interval(
            f"MsPer{safe(kind)}Token", row["slope_ms"], row.get("slope_low"), row.get("slope_high")
        )
        without = [row.get(f"slope_unflagged_{end}") for end in ("ms", "low", "high")]
        yield from _with_interval(f"MsPer{safe(kind)}TokenWithoutFirstTimes", *without)


def _costs(summary: Summary) -> Iterator[Macro]:
    rows = summary.get("comparisons") or []
    for place, row in enumerate(rows):
        which = safe(f"model {place + 1}") if len(rows) > 1 else ""
        for kind, cost in row["token_costs"].items():
            yield from _with_interval(f"{which}CostOf{safe(kind)}Token", cost["cost_ms"], cost["low"], cost["high"])
        for name, ratio in row["ratios"].items():
            yield from _with_interval(
                f"{which}Ratio{safe(name)}", ratio.get("value"), ratio.get("low"), ratio.get("high")
            )

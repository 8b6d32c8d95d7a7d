"""A budget as text, JSON, Markdown, a LaTeX table and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmbench.analysis.budget import AMOUNTS, Budget, Fit, Promise, Setting
from vlmbench.figures.budget import budget_figure
from vlmbench.figures.theme import save
from vlmbench.records.files import strict, write_json, write_whole
from vlmbench.report.paper_tables import markdown, tex
from vlmbench.report.table_cells import Grid
from vlmbench.report.templating import environment
from vlmbench.report.terminal_tables import Fitted, as_text
from vlmbench.text import DASH, count, digits, ms, plain, shown, span

STEM = "budget"
_MOST = 40  # settings in a table for people; budget.json has all


def text(found: Budget) -> str:
    """Everything for a terminal, in its width."""
    return "\n".join([as_text(Fitted(grid(found), elsewhere=f"{STEM}.md has them.")), "", *sentences(found)])


def grid(found: Budget) -> Grid:
    """The settings, those that fit first, the quickest first among them."""
    order = {Fit.FITS: 0, Fit.UNTOLD: 1, Fit.OVER: 2}
    settings = sorted(found.settings, key=lambda one: order[one.fit])[:_MOST]
    again = {check.setting.key: check for check in found.checks}
    amounts = [name for name in found.differs if name in AMOUNTS]
    names = [name for name in found.differs if name not in AMOUNTS]
    what = [
        (
            *(getattr(one, name) for name in names),
            *(plain(one.amounts[name]) if name in one.amounts else DASH for name in amounts),
        )
        for one in settings
    ]
    named = len(set(what)) < len(what)  # otherwise the amounts say which setting it is
    rows = []
    for one, cells in zip(settings, what, strict=True):
        check = again.get(one.key)
        rows.append(
            (
                *((one.point,) if named else ()),
                *cells,
                _cell(one.latency.value, one.latency.low, one.latency.high) or DASH,
                one.note or f"{one.fit}{', chosen' if one.chosen else ''}" + _why(one),
                DASH if check is None else _cell(check.measured.value, check.measured.low, check.measured.high),
                DASH if check is None else str(check.promise),
            )
        )
    columns = [("setting", False)] if named else []
    columns += [*((name, False) for name in names), *((name, True) for name in amounts)]
    columns += [(f"{found.name}, ms", True), ("budget", False), ("measured again, ms", True), ("promise", False)]
    if not found.checks:
        columns, rows = columns[:-2], [row[:-2] for row in rows]
    kind = "predicted, nothing was measured" if any(one.predicted for one in found.settings) else "95 % intervals"
    title = f"What fits into {ms(found.limit_ms)} ({kind})"
    return Grid(name=STEM, title=title, columns=tuple(columns), rows=tuple(rows))


def _why(one: Setting) -> str:
    """Why it cannot be told, in the column that has room for words."""
    return f" ({one.latency.note})" if one.latency.note else ""


def _cell(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    inside = span(low, high).removesuffix(" ms")
    return f"{digits(value)} [{inside}]" if inside and "s" not in inside else digits(value)


def sentences(found: Budget) -> list[str]:
    """What fits, what was promised and became of it, and what a reader must know."""
    return [headline(found), *_chosen(found), *found.notes]


def headline(found: Budget) -> str:
    """The answer in a sentence."""
    total = len(found.settings)
    numbers = {fit: sum(one.fit is fit for one in found.settings) for fit in Fit}
    told = f"{numbers[Fit.FITS]} of {count(total, 'setting')} fit into {ms(found.limit_ms)} ({found.name})"
    if numbers[Fit.UNTOLD]:
        told += f", {numbers[Fit.UNTOLD]} cannot be told"
    if any(one.predicted for one in found.settings):
        told += "; predicted of generate() alone, a typical time and no percentile"
    ends = {promise: sum(check.promise is promise for check in found.checks) for promise in Promise}
    said = ", ".join(f"{number} {promise}" for promise, number in ends.items() if number)
    return f"{told}; promises: {said}." if said else f"{told}."


def _chosen(found: Budget) -> Iterator[str]:
    checks = {check.setting.key: check for check in found.checks}
    for one in found.chosen:
        check = checks.get(one.key)
        said = check.words(found.limit_ms, found.name) if check else f"{found.name} {_cell_in_words(one)}"
        yield f"  {one.point}: {said}"


def _cell_in_words(one: Setting) -> str:
    inside = span(one.latency.low, one.latency.high)
    return f"{ms(one.latency.value)}" + (f" ({inside})" if inside else "")


def write(found: Budget, directory: Path, provenance: Mapping[str, Any]) -> list[Path]:
    """Write ``budget.json``, ``.md``, ``.tex`` and, where any setting can be told, ``figures/budget.*``.

    Raises:
        ConfigError: jinja2 is not installed.
        MeasurementError: a file cannot be written.
    """
    whole = grid(found)
    parts = [f"### {headline(found)}", markdown(whole), *(f"* {line.strip()}" for line in sentences(found)[1:])]
    template = environment().get_template("table.tex.j2")
    told = any(one.latency.value is not None for one in found.settings)
    return [
        write_json(directory / f"{STEM}.json", as_dict(found)),
        write_whole(directory / f"{STEM}.md", "\n\n".join(part.rstrip("\n") for part in parts) + "\n"),
        write_whole(directory / f"{STEM}.tex", template.render(grid=whole, tex=tex, stem=STEM)),
        *(save(budget_figure(found, provenance), directory / "figures", STEM) if told else ()),
    ]


def as_dict(found: Budget) -> dict[str, Any]:
    """For JSON."""
    checks = {check.setting.key: check for check in found.checks}
    rows = []
    for one in found.settings:
        check = checks.get(one.key)
        rows.append(
            {
                "run": shown(one.run),
                "point_id": one.point,
                "model": one.model,
                "runtime": one.runtime,
                "axes": {name: getattr(value, "item", lambda v=value: v)() for name, value in one.axes.items()},
                "amounts": dict(one.amounts),
                "latency": one.latency.as_dict(),
                "predicted": one.predicted,
                "fit": str(one.fit),
                "chosen": one.chosen,
                "front": one.front,
                "note": one.note,
                "measured_again": None if check is None else check.measured.as_dict(),
                "promise": None if check is None else str(check.promise),
            }
        )
    plain_dict: dict[str, Any] = strict(
        {
            "schema_version": 1,
            "latency_ms": found.limit_ms,
            "percentile": found.percentile,
            "metric": found.metric,
            "verdict": headline(found),
            "notes": list(found.notes),
            "settings": rows,
        }
    )
    return plain_dict

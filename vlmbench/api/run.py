"""A measured run in Python: its rows, tables, figures and files."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmbench.errors import InputError, MeasurementError
from vlmbench.records.reading import RECORDS_NAME, records_in

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from vlmbench.analysis.compare import Comparison
    from vlmbench.report.phase_file import Answer
    from vlmbench.report.table_cells import Grid

Which = Literal["measured", "all"]
WHICH: tuple[Which, ...] = ("measured", "all")
_FIGURE = "components_bars"
_NOT_SAVED = shutil.ignore_patterns("*.part", ".run.lock")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run:
    """One run directory, as :func:`vlmbench.measure` made it or :func:`vlmbench.read` found it.

    Args:
        directory: where its rows lie.
        which: rows that :attr:`frame` holds: ``measured`` (latencies of the workload) or ``all``.
    """

    directory: Path
    which: Which = "measured"

    def __post_init__(self) -> None:
        place_of(self.directory, "directory")
        if self.which not in WHICH:
            raise InputError(f"'which' must be one of {', '.join(WHICH)} (got {self.which!r})")

    @cached_property
    def rows(self) -> pd.DataFrame:
        """All rows, one a run: also cold, warm-up, bare, reference and traced ones. ``T_*``, ``TTFT*`` in ms.

        Raises:
            InputError: the directory holds no rows, or rows of another schema version.
        """
        from vlmbench.analysis.frames import load_runs

        return load_runs(self.directory)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows that count: measured runs of the workload, unless the run was read with ``rows="all"``.

        Of a comparison of methods that is the baseline; :attr:`rows` has the arms (column ``intervention``).
        """
        if self.which == "all":
            return self.rows
        from vlmbench.analysis.frames import workload

        return workload(self.rows)

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Where the numbers come from: the content of ``provenance.json``."""
        from vlmbench.report.phase1_summary import provenance_of

        return provenance_of(self.directory)

    @cached_property
    def kind(self) -> str:
        """The report that fits: ``phase1``, ``phase2``, ``phase3`` or ``interventions``."""
        from vlmbench.report.from_rows import kind_of

        return kind_of(self.directory)

    @cached_property
    def _answer(self) -> Answer:
        from vlmbench.report import answer

        return answer(self.kind, self.directory)

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the run found, as plain data: the content of ``summary.json``, derived from the rows."""
        return self._answer.summary

    @cached_property
    def latency(self) -> pd.DataFrame:
        """Quantiles with intervals of every latency, one row a metric and group (``workload``, ``reference``), ms."""
        from vlmbench.analysis.distribution import latency_table

        return latency_table(self.rows)

    @cached_property
    def components(self) -> pd.DataFrame:
        """Time and share of every stage with intervals, one row a component."""
        from vlmbench.analysis.breakdown import component_table

        return component_table(self.rows)

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that the run has data for; see :meth:`figure`."""
        return tuple(self._drawn)

    @cached_property
    def _drawn(self) -> dict[str, Figure]:
        return dict(self._answer.draw())

    def figure(self, name: str) -> Figure:
        """Draw a figure of the run.

        Args:
            name: one of :attr:`figures`, or its beginning where only one begins so (``"components_b"``).

        Raises:
            InputError: no such figure, or several begin so; the message lists those that there are.
        """
        if not isinstance(name, str):
            raise InputError(f"'name' must be one of {', '.join(self._drawn)} (got {name!r})")
        fitting = [known for known in self._drawn if known == name] or [
            known for known in self._drawn if known.startswith(name)
        ]
        if len(fitting) != 1:
            raise InputError(f"'name' must be one of {', '.join(fitting or self._drawn)} (got {name!r})")
        return self._drawn[fitting[0]]

    def save(self, directory: Path | str) -> Run:
        """Write what the command line would: rows, provenance, summary, phase file, figures, page and tables.

        Args:
            directory: is made; must not hold rows yet.

        Returns:
            The run in its new place.

        Raises:
            InputError: the directory holds rows already, or is none.
            MeasurementError: a file cannot be written.
        """
        from vlmbench.report import write_report

        place = place_of(directory, "directory")
        if place.exists() and (not place.is_dir() or records_in(place) is not None):
            what = "holds rows already" if place.is_dir() else "is a file"
            raise InputError(f"'{directory}' {what}; save into another directory")
        try:
            shutil.copytree(self.directory, place, dirs_exist_ok=True, ignore=_NOT_SAVED)
        except OSError as error:  # also shutil.Error, whose list of files would be all that it says
            why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
            raise MeasurementError(f"the run cannot be saved in '{directory}': {why}") from error
        write_report(self.kind, place)
        return Run(directory=place, which=self.which)

    def __repr__(self) -> str:
        """Show stages, shares and intervals as plain text."""
        return self._answer.words(100)

    def _repr_html_(self) -> str:
        """Show the same in a notebook: tables as the report has them, and the figure of the stages."""
        from vlmbench.report.table_cells import grids

        parts = [_table(grid) for grid in grids(self.summary) if grid.rows][:2]
        names = self.figures
        if names:
            parts.append(_picture(self, _FIGURE if _FIGURE in names else names[0]))
        return "\n".join(parts)


def read(path: Path | str, rows: Which = "measured") -> Run:
    """Read a run directory that the command line or :meth:`Run.save` wrote.

    Args:
        path: the run directory (``records.jsonl`` in it, or that packed: ``.xz``, ``.gz``).
        rows: ``measured``: ``frame`` holds the measured runs of the workload only, the rows that are latencies;
            ``all``: also cold, warm-up, bare, reference, traced and failed ones.

    Raises:
        InputError: no such directory, or no rows in it; of a study, the message names its parts.

    Examples:
        >>> import vlmbench
        >>> run = vlmbench.read("docs/results/h200_llava_eager/phase1")
        >>> bool(run.frame["status"].eq("ok").all())
        True
    """
    if rows not in WHICH:
        raise InputError(f"'rows' must be one of {', '.join(WHICH)} (got {rows!r})")
    place = place_of(path, "path")
    if not place.exists():
        raise InputError(f"'{path}' is not there; give a run directory (the one that output_dir=DIR named)")
    if place.is_dir() and records_in(place) is None:
        parts = sorted(p.name for p in place.iterdir() if p.is_dir() and records_in(p) is not None)
        there = f"its parts have them: {', '.join(parts)}" if parts else "nothing was measured there"
        raise InputError(f"'{path}' holds no rows ({RECORDS_NAME}); {there}")
    run = Run(directory=place if place.is_dir() else place.parent, which=rows)
    _ = run.rows  # now, so that a damaged file is refused where it is named
    return run


def place_of(given: Any, name: str, kinds: str = "a directory") -> Path:
    """The path that an argument is.

    Raises:
        InputError: it is none.
    """
    if not isinstance(given, str | PathLike) or not str(given).strip():
        said = repr(given) if isinstance(given, str) else type(given).__name__
        raise InputError(f"'{name}' must be {kinds} (got {said})")
    return Path(given)


def compare(baseline: Run | Path | str, candidate: Run | Path | str) -> Comparison:
    """Compare two runs of the same requests, time by time: faster, slower, no difference beyond x %, too noisy to tell.

    Args:
        baseline: a run, or the directory where its rows lie.
        candidate: the run to compare with it, likewise.

    Returns:
        ``changes`` by metric, ``table()``, ``words()``, ``as_dict()``.

    Raises:
        InputError: a directory holds no rows, or rows of another schema version.
    """
    from vlmbench.analysis.compare import compare as of_frames
    from vlmbench.analysis.frames import with_turns

    sides = [
        side if isinstance(side, Run) else read(place_of(side, name, "a run or its directory"))
        for name, side in (("baseline", baseline), ("candidate", candidate))
    ]
    first, second = (with_turns(side.rows, side.provenance) for side in sides)
    return of_frames(first, second)


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Summarise rows as ``summary.json`` does, from the rows given and nothing else.

    Args:
        frame: rows of :func:`read` or :func:`measure`; a part of them is summarised as that part. Measured rows alone
            have no bare runs (``instrument_overhead``) and no repeated request (the ``reference`` groups): those
            entries are then None or absent.

    Returns:
        For example ``["distribution"]["T_total"]["workload"]["p50"]["low"]``, in ms.

    Raises:
        InputError: the frame holds no rows of a run.
    """
    import pandas as pd

    from vlmbench.report.phase1_summary import summarise_frame

    if not isinstance(frame, pd.DataFrame):
        raise InputError(
            f"'frame' must hold rows of a run as vlmbench.read(DIR).frame does (it is a {type(frame).__name__})"
        )
    missing = sorted({"point_id", "status", "mode", "T_total"} - set(frame.columns))
    if missing or frame.empty:
        what = f"lacks {', '.join(missing)}" if missing else "holds no row"
        raise InputError(f"'frame' must hold rows of a run as vlmbench.read gives them (it {what})")
    return summarise_frame(frame)


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading, _ in grid.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in grid.rows)
    return f"<table><caption>{escape(grid.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _picture(run: Run, name: str) -> str:
    memory = io.BytesIO()
    run.figure(name).savefig(memory, format="png", dpi=100)
    data = base64.b64encode(memory.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'

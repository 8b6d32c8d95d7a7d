"""What the command line offers for grids: status, collect, cancel, and the last words of a multirun."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench.cluster.grid import FOLDER
from vlmbench.cluster.launch import conclude
from vlmbench.cluster.states import OVER, RunState, RunStatus, counts, overall, table, without_studies
from vlmbench.cluster.status import status
from vlmbench.errors import FAILED, OK, ConfigError
from vlmbench.text import say

if TYPE_CHECKING:
    from rich.console import Console

    from vlmbench.cluster.medians import Line

_SHOWN = 200
_WIDTH_ELSEWHERE = 200


def run(task: str, runs: str | None, output_dir: Path | None = None) -> int:
    """Run ``status``, ``collect`` or ``cancel`` on the runs at and below ``runs``; returns the exit status.

    Args:
        runs: a run or sweep directory, or one that holds some.
        output_dir: where ``collect`` writes; ``runs`` itself if None.

    Raises:
        ConfigError: ``runs`` was not given.
        InputError: it holds no runs; Slurm does not answer (cancel only).
    """
    if not runs:
        raise ConfigError(f"experiment={task} needs runs=DIR: a run or sweep directory, or one that holds some.")
    root = Path(runs)
    if task == "status":
        return _status(root)
    if task == "collect":
        return _collect(root, output_dir)
    if task == "cancel":
        return _cancel(root)
    raise ConfigError(f"'task' must be status, collect or cancel here (got {task!r})")


def _status(root: Path) -> int:
    found = status(root)
    print_table(found, root)
    return FAILED if any(one.state in (RunState.FAILED, RunState.LOST) for one in found) else OK


def _collect(root: Path, output_dir: Path | None) -> int:
    from vlmbench.cli.trials import show_trials
    from vlmbench.cluster.collect import collect, is_complete
    from vlmbench.cluster.medians import medians

    collected = collect(root, output_dir)
    show_trials(root, output_dir)
    print_medians(medians(collected.table_path))
    print_table([one for one in collected.runs if one.exit_status], root)
    number = len(without_studies(collected.runs))
    say(f"{collected.rows} rows of {number} runs are in {collected.table_path} and {collected.csv_path.name}")
    for figure in collected.figures:
        say(f"figure: {figure}")
    if collected.unlike:
        say("unlike, do not compare blindly: " + "; ".join(f"{k}: {', '.join(v)}" for k, v in collected.unlike.items()))
    if is_complete(collected.runs):
        return 0
    going = sum(one.state not in OVER for one in collected.runs)
    if going:
        say(f"{going} runs are not over yet: collect again later")
    return overall(collected.runs)


def _cancel(root: Path) -> int:
    from vlmbench.cluster.launch import cancel

    going = cancel(root)
    say(f"{len(going)} tasks were told to stop" if going else "nothing is queued or running")
    return 0


def after_multirun(sweep_dir: Path) -> int | None:
    """Say how a multirun stands; returns its exit status, None if it ran without a launcher of this project."""
    if not (sweep_dir / FOLDER).is_dir():
        return None
    found = [one for one in status(sweep_dir) if one.run.study is None]
    if all(one.state in OVER for one in found):
        return conclude(found, sweep_dir)
    say(_words(found))
    return overall(found)


def _words(found: Sequence[RunStatus]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(counts(found).items()))


def print_medians(lines: Sequence[Line]) -> None:
    """The medians of a collected grid as a table on standard output; points of a sweep each by itself."""
    from rich.table import Table
    from rich.text import Text

    from vlmbench.cluster.medians import TIMES, rows

    if not lines:
        return
    shown = Table(
        box=None, header_style="bold", pad_edge=False, title="Medians [95 % interval], ms", title_justify="left"
    )
    swept = any(line.point for line in lines)
    for name in ("run", *(["point"] if swept else []), "n", *TIMES):
        shown.add_column(name, overflow="fold", justify="right" if name == "n" else "left")
    for line, cells in zip(lines[:_SHOWN], rows(list(lines[:_SHOWN])), strict=True):
        if line.left_out:
            shown.add_row("", Text(f"… {line.left_out} more"))
        shown.add_row(*(Text(cell) for cell in (cells if swept else [cells[0], *cells[2:]])))
    _console().print(shown)
    if len(lines) > _SHOWN:
        _console().print(f"… and {len(lines) - _SHOWN} more lines")


def _console() -> Console:
    """As wide as the terminal; where there is none, as wide as no table needs to break."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH_ELSEWHERE)


def print_table(found: Sequence[RunStatus], root: Path) -> None:
    """The runs as a table on standard output, with a line of counts."""
    from rich.table import Table

    console = _console()
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "state", "job", "progress", "sign", "left", "reason"):
        shown.add_column({"sign": "last sign"}.get(name, name), overflow="fold")
    colours = {"done": "green", "failed": "red", "lost": "red", "running": "cyan", "suspended": "yellow"}
    for row in table(found, root)[:_SHOWN]:
        colour = colours.get(row["state"], "")
        values = [value.replace("[", r"\[") for value in row.values()]
        shown.add_row(values[0], f"[{colour}]{values[1]}[/]" if colour else values[1], *values[2:])
    if found:
        console.print(shown)
    if len(found) > _SHOWN:
        console.print(f"… and {len(found) - _SHOWN} more")
    if found:
        console.print(_words(found))

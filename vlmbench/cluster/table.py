"""The states of runs as rows of text, for the terminal and for ``collected.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmbench.cluster.states import RunState, RunStatus


def table(found: Sequence[RunStatus], root: Path) -> list[dict[str, str]]:
    """Rows for printing: run, state, job, progress, age of the last sign of life, time left, reason; all text."""
    rows = []
    for one in found:
        outcome = one.outcome
        try:
            name = str(one.run.directory.resolve().relative_to(Path(root).resolve()))
        except ValueError:
            name = str(one.run.directory)
        progress = ""
        if outcome is not None and one.state != RunState.QUEUED:
            points = f"{outcome.points_done}/{outcome.points_total} points, " if outcome.points_done else ""
            progress = f"{points}{outcome.rows} rows"
        rows.append(
            {
                "run": name,
                "state": str(one.state),
                "job": one.job_id or "",
                "progress": progress,
                "sign": "" if one.sign_s is None else f"{_duration(one.sign_s)} ago",
                "left": "" if one.left_s is None else _duration(one.left_s),
                "reason": (one.reason or "").replace("\n", " "),
            }
        )
    return rows


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

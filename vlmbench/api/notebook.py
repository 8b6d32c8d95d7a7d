"""How a run shows itself in a notebook: the components, the latencies, and the figure of the stages."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

from vlmbench.report import table_cells

if TYPE_CHECKING:
    from vlmbench.api.run import Run

_FIGURE = "components_bars"


def shown(run: Run) -> str:
    """Return the HTML of a run: its tables as the report has them, and one figure."""
    grids = [grid for grid in table_cells.grids(run.summary) if grid.rows]
    parts = [_table(grid) for grid in grids[:2]]
    names = run.figures
    if names:
        parts.append(_picture(run, _FIGURE if _FIGURE in names else names[0]))
    return "\n".join(parts)


def _table(grid: table_cells.Grid) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading, _ in grid.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in grid.rows)
    return f"<table><caption>{escape(grid.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _picture(run: Run, name: str) -> str:
    memory = io.BytesIO()
    run.figure(name).savefig(memory, format="png", dpi=100)
    data = base64.b64encode(memory.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'

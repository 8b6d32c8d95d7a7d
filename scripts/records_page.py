"""Write docs/records.md, every column of a row, from the table of columns.

python scripts/records_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever vlmbench is installed
from vlmbench.schema import COLUMNS, SCHEMA_VERSION, Column

PAGE = Path(__file__).resolve().parent.parent / "docs" / "records.md"
_HEAD = f"""\
# What a row holds

<!-- Made by scripts/records_page.py from vlmbench/schema/columns.py; a test compares the two. -->

One line of `records.jsonl` is one run of one request. It is flat JSON: identity, status, then one value a column. A
value that a run does not have is absent or null, never 0. The rows under `results` of a phase file are the same rows.
Packed as `records.jsonl.xz` (as published rows are) or `records.jsonl.gz`, the file is read all the same.

Rows hold raw values. What follows from them is computed when they are read: `vlmbench.analysis.derived` adds the shares
of the device's peaks (`mfu_*`, `mbu_*`), the arithmetic intensity and the distance to the floor to a frame of rows.

`<stage>` stands for one column a stage; which ones is said with each. Every row carries `schema_version`, now
{SCHEMA_VERSION}: it changes when a column's unit or meaning does, and readers refuse another one. Columns that are new,
or that leave because they follow from others, do not change it. A probe of another package may add columns of its own.
"""
_LEFT = """
## No longer written

Rows that hold these are still read.
"""


def records_page() -> str:
    """Write the page as Markdown."""
    parts = [_HEAD]
    written = [column for column in COLUMNS if column.until is None]
    order = {column.writer: None for column in written}  # writers in the order of their first column
    for writer in order:
        columns = [column for column in written if column.writer == writer]
        parts.append(f"\n## Written by the {writer}\n\n{_table(columns, last='since')}")
    left = [column for column in COLUMNS if column.until is not None]
    if left:
        parts.append(f"{_LEFT}\n{_table(left, last='until')}")
    return "".join(parts)


def _table(columns: list[Column], *, last: str) -> str:
    lines = [f"| column | unit | meaning | {last} |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{column.name}` | {column.unit} | {_cell(column)} | {column.until or column.since} |" for column in columns
    ]
    return "\n".join(lines) + "\n"


def _cell(column: Column) -> str:
    text = column.meaning.replace("|", "\\|")
    return f"{text} (stages: {', '.join(column.stages)})" if column.stages else text


if __name__ == "__main__":
    PAGE.write_text(records_page(), encoding="utf-8")

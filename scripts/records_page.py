"""Write docs/records.md from the table of columns.

python scripts/records_page.py
"""

from __future__ import annotations

from pathlib import Path

from vlmbench.schema.page import records_page

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    (ROOT / "docs" / "records.md").write_text(records_page(), encoding="utf-8")

"""The page on architectures: what cannot be built here keeps the line of an earlier run, and the page says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.coverage_models import lines_by_name, page

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def row(name: str, **fields: Any) -> dict[str, Any]:
    stages = {"vision_encoder": ["a.b"], "projector": [], "language_model": ["a.c"], "head": ["h"]}
    found = {"vision_encoder": "get_encoder(image)"}
    ran = {"status": "ran", "static": True, "watched": True, "alone": True, "violations": [], "inside": 0.9}
    return {"name": name, **ran, "stages": stages, "found": found, "notes": ["why"], **fields}


def test_lines_of_what_cannot_be_built_are_kept() -> None:
    absent = {"name": "timmy", "status": "not built", "reason": "requires the timm library"}
    first = page([row("llava"), row("timmy")], {})
    again = page([row("llava"), absent], lines_by_name(first))
    assert lines_by_name(again) == lines_by_name(first)
    assert "Rows of timmy are those of an earlier run" in again
    assert "| not run here | 1 |" in again
    assert "requires the timm library" in page([row("llava"), absent], {})


def test_the_page_names_what_is_absent_and_why() -> None:
    lines = lines_by_name(PAGE.read_text(encoding="utf-8"))
    assert len([name for name in lines if name != "architecture"]) >= 96
    for name, line in lines.items():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert "–" not in cells[1:5] or len(cells[-1]) > 20, name

"""Which rows of the other models are of an earlier set is said of the rows themselves."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
others = pytest.importorskip("findings_others", reason="a source distribution has no scripts")


class Results:
    """As much of the published results as the words ask for: the mark of each run."""

    def __init__(self, **marks: str) -> None:
        self.marks = marks

    def names(self, _: Any) -> list[str]:
        return list(self.marks)

    def run(self, name: str, _: str) -> Any:
        return SimpleNamespace(mark=self.marks[name])


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({"gemma3_eager": "", "qwen72_two_gpus": ""}, ""),
        (
            {"gemma3_eager": "", "qwen72_two_gpus": "†"},
            " The row of Qwen2.5-VL-72B, eager, two GPUs is of an earlier set†.",
        ),
        (
            {"gemma3_eager": "†", "gemma3_vllm": "", "qwen72_two_gpus": "†"},
            " The rows of Gemma 3 4B, eager; Qwen2.5-VL-72B, eager, two GPUs are of an earlier set†.",
        ),
    ],
)
def test_rows_of_an_earlier_set_are_named(marks: dict[str, str], words: str) -> None:
    assert others.others_earlier(Results(**marks)) == words


@pytest.mark.parametrize("page", sorted((SCRIPTS / "pages").glob("*.j2")), ids=lambda page: page.name)
def test_no_page_counts_rows_by_hand(page: Path) -> None:
    assert not re.search(r"\b(first|last|next|previous) rows?\b", page.read_text(encoding="utf-8"))

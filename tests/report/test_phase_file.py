"""Which rows of a run directory a phase file reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import row, write
from vlmbench.report.phase_file import run_rows
from vlmbench.schema import Mode, Status

BARE, OOM, ERROR, SKIPPED = Mode.BARE, Status.OOM, Status.ERROR, Status.SKIPPED


def reported(directory: Path, rows: list[dict[str, Any]]) -> list[tuple[str, str, str, str | None]]:
    """(point, mode, status, reason) of what the phase file holds."""
    found = [json.loads(line) for line in run_rows(write(directory, rows))]
    return [(r["point_id"], r["mode"], r["status"], r["reason"]) for r in found]


def test_a_failure_of_the_bare_run_that_came_first_is_reported(tmp_path: Path) -> None:
    rows = [
        row("batch_size=8", mode=BARE), row("batch_size=8"), row("batch_size=8", mode=Mode.TRACE),
        row("batch_size=64", mode=BARE, status=OOM, reason="needs 9 GiB"),
        row("batch_size=128", "", status=SKIPPED, reason="no larger"),
    ]  # fmt: skip
    assert reported(tmp_path, rows) == [
        ("batch_size=8", "instrumented", "ok", None),
        ("batch_size=64", "bare", "oom", "needs 9 GiB"),
        ("batch_size=128", "instrumented", "skipped", "no larger"),
    ]


def test_a_failure_that_was_measured_later_is_not_reported(tmp_path: Path) -> None:
    rows = [
        row("a", mode=BARE, status=OOM, reason="first session"), row("a", mode=BARE), row("a"),
        row("b", status=ERROR, reason="no image"), row("b"),
        row("c", "", status=SKIPPED, reason="no larger"), row("c", "s7"),
        row("d"), row("d", mode=BARE, status=ERROR, reason="control failed"), row("d", mode=BARE),
    ]  # fmt: skip
    assert reported(tmp_path, rows) == [(point, "instrumented", "ok", None) for point in "abcd"]


def test_one_failure_a_request_the_last(tmp_path: Path) -> None:
    rows = [
        row("a", mode=BARE, status=OOM, reason="first"), row("a", mode=BARE), row("a", status=OOM, reason="second"),
        row("a", repeat=1, status=ERROR, reason="other repeat"), row("a", "s1", status=ERROR, reason="other sample"),
    ]  # fmt: skip
    assert reported(tmp_path, rows) == [
        ("a", "instrumented", "oom", "second"),
        ("a", "instrumented", "error", "other repeat"),
        ("a", "instrumented", "error", "other sample"),
    ]


@pytest.mark.parametrize("mode", [BARE, Mode.TRACE])
def test_a_run_in_another_mode_does_not_make_a_failure_good(tmp_path: Path, mode: Mode) -> None:
    rows = [row("a", status=ERROR, reason="no image"), row("a", mode=mode)]
    assert reported(tmp_path, rows) == [("a", "instrumented", "error", "no image")]


def test_a_failed_trace_is_no_failure_of_its_request(tmp_path: Path) -> None:
    rows = [row("a"), row("a", mode=Mode.TRACE, status=OOM, reason="events")]
    assert reported(tmp_path, rows) == [("a", "instrumented", "ok", None)]

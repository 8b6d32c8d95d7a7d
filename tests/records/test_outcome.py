"""What became of a run can be read at any moment."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vlmbench.errors import InputError
from vlmbench.records.outcome import OUTCOME_NAME, OutcomeFile, State, read_outcome


def test_a_run_from_begin_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert read_outcome(tmp_path) is None
    file = OutcomeFile(tmp_path, every_s=0)
    file.begin(points_total=4)
    file.progress(points_done=2, rows=50)
    seen = read_outcome(tmp_path)
    assert (seen.state, seen.points_done, seen.points_total, seen.rows) == (State.RUNNING, 2, 4, 50)
    assert seen.job_id == "12_3"
    file.end(State.DONE, exit_status=0)
    seen = read_outcome(tmp_path)
    assert (seen.state, seen.exit_status, seen.points_done, seen.attempt) == (State.DONE, 0, 2, 0)
    again = OutcomeFile(tmp_path)
    again.begin()
    assert read_outcome(tmp_path).attempt == 1


@pytest.mark.parametrize("step_s", [-7200, 30 * 86400])
def test_setting_the_wall_clock_makes_a_run_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    file = OutcomeFile(tmp_path, every_s=0)
    file.begin(points_total=4)
    now = time.time
    with monkeypatch.context() as stepped:
        stepped.setattr(time, "time", lambda: now() + step_s)
        file.progress(points_done=2)
        seen = read_outcome(tmp_path)
        assert 0 <= seen.updated_unix_s - seen.started_unix_s < 3600
        file.begin()  # the next run looks at it anew
        assert abs(read_outcome(tmp_path).started_unix_s - now() - step_s) < 3600
    file.begin()


def test_progress_is_written_now_and_then_only(tmp_path: Path) -> None:
    file = OutcomeFile(tmp_path, every_s=3600)
    file.begin(points_total=4)
    file.progress(points_done=2)
    assert read_outcome(tmp_path).points_done == 0
    file.end(State.INTERRUPTED, exit_status=130, reason="SIGTERM")
    assert read_outcome(tmp_path).points_done == 2


def test_a_failure_keeps_its_traceback_without_home_folders(tmp_path: Path) -> None:
    file = OutcomeFile(tmp_path)
    file.begin()
    try:
        raise RuntimeError("cannot open /home/alice/data with hf_ABCDEFGHIJKLMNOPQRST")
    except RuntimeError as error:
        file.end(State.FAILED, exit_status=1, error=error)
    seen = read_outcome(tmp_path)
    assert "RuntimeError" in seen.traceback
    assert "test_a_failure_keeps" in seen.traceback
    assert seen.reason.startswith("cannot open …/data#")
    assert not {"alice", "hf_A"} & set((tmp_path / OUTCOME_NAME).read_text().split("/"))
    assert "hf_A" not in (tmp_path / OUTCOME_NAME).read_text()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": "odd"}'])
def test_something_else_in_its_place(tmp_path: Path, content: str) -> None:
    (tmp_path / OUTCOME_NAME).write_text(content)
    with pytest.raises(InputError, match="no outcome"):
        read_outcome(tmp_path)
    OutcomeFile(tmp_path).begin()
    assert read_outcome(tmp_path).state == State.RUNNING


def test_fields_of_a_newer_version_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / OUTCOME_NAME).write_text(json.dumps({"state": "done", "exit_status": 0, "mood": "good"}))
    assert read_outcome(tmp_path).exit_status == 0

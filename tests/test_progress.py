"""How far a run is, and how long it will take: as a line where there is no terminal, as words at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmbench.records.outcome import OutcomeFile, State, unfinished
from vlmbench.session import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_where_there_is_no_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.ProgressBar(show=False) as bar:
        bar.expect(200)
        for _ in range(40):
            clock[0] += 4
            bar.advance("dataset")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "vlmbench: 3/200 runs, about 13 minutes left (now dataset)"
    assert said[1] == "vlmbench: 19/200 runs, about 12 minutes left (now dataset)"
    assert len(said) == 3, "then a line a minute"
    assert bar.words() == "40 of 200 runs, about 11 minutes left"


def test_runs_of_earlier_sessions_say_nothing_of_the_time_left(clock: list[float]) -> None:
    told: list[tuple[int, int, int]] = []
    with progress.ProgressBar(show=False, told=lambda *far: told.append(far), about=True) as bar:
        bar.expect(100)
        for _ in range(80):
            bar.advance("p", earlier=True)
        assert bar.left_s() is None
        for _ in range(10):
            clock[0] += 2
            bar.advance("p")
        bar.end("p")
    assert bar.left_s() == pytest.approx(20)
    assert bar.words() == "90 of about 100 runs, about 20 seconds left"
    assert told[-1] == (1, 90, 100)


def test_who_measures_all_of_it_does_not_call_it_unfinished(tmp_path: Path) -> None:
    outcome = OutcomeFile(tmp_path, every_s=0)
    outcome.begin(points_total=2)
    outcome.progress(points_done=1, runs=(69, 200))
    assert unfinished(tmp_path) is None, "this process writes its report before it says that it is done"
    outcome.end(State.INTERRUPTED, exit_status=130)
    assert unfinished(tmp_path) == "interrupted after 69 of 200 runs"
    assert unfinished(tmp_path, about=True) == "interrupted after 69 of about 200 runs"


def test_what_is_done_when_all_runs_are_over_is_said(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """It said ``1,022/1,022 runs`` and worked on."""
    with progress.ProgressBar(show=False, after="now the report") as bar:
        bar.expect(1022)
        clock[0] += 20
        bar.advance("p", 1022)
        for number in range(1, 4):
            clock[0] += 40
            bar.does(f"trace {number} of 3, of p")
    assert capsys.readouterr().err.splitlines() == [
        "vlmbench: 1,022/1,022 runs (now p)",
        "vlmbench: 1,022 runs made, now trace 2 of 3, of p",
        "vlmbench: 1,022 runs made; now the report",
    ]


def test_a_quick_run_says_nothing_of_what_comes(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.ProgressBar(show=False, after="now the report") as bar:
        bar.expect(1)
        bar.advance("p")
        bar.does("trace 1 of 1, of p")
    assert capsys.readouterr().err == ""


def test_more_runs_than_foreseen_are_no_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int, int]] = []
    with progress.ProgressBar(show=False, told=lambda *far: told.append(far), about=True) as bar:
        bar.expect(100)
        for _ in range(150):
            clock[0] += 1
            bar.advance("p")
        assert bar.words() == "150 runs, about 100 were foreseen"
    assert capsys.readouterr().err.splitlines() == [
        "vlmbench: 11/about 100 runs, about 89 seconds left (now p)",
        "vlmbench: 72/about 100 runs, about 28 seconds left (now p)",
        "vlmbench: 133 runs, about 100 were foreseen (now p)",
    ]
    assert told[-1] == (0, 150, 100)

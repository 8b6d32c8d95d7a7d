"""The report made again from rows: of runs, studies, interrupted runs, packed rows, several directories."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, row, write
from tests.page import published
from vlmbench.errors import ConfigError, InputError
from vlmbench.records.files import write_json
from vlmbench.report.from_rows import directories, kind_of, report
from vlmbench.report.phase1_summary import summarise
from vlmbench.text import shown

CliRun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have tests of their own, and the command line below draws them; here they would take most of the time."""
    for place in ("phase1.figures", "scaling.figures", "token_comparison._figures"):
        monkeypatch.setattr(f"vlmbench.report.{place}", lambda *_, **__: ())


def made(directory: Path, n: int = 40, prefill: float = 20.0) -> Path:
    rows = [row(sample=f"s{i}", prefill=prefill + i % 7, started=float(i)) for i in range(n)]
    write(directory, rows)
    write_json(directory / "provenance.json", PROVENANCE)
    return directory


def listing(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_it_says_what_the_rows_say_and_leaves_them_alone(tmp_path: Path) -> None:
    source = made(tmp_path / "run")
    before = listing(source)
    found = report([source], tmp_path / "to")
    assert listing(source) == before
    assert found.page == tmp_path / "to" / "report.html"
    assert json.loads((tmp_path / "to" / "summary.json").read_text()) == summarise(source)
    rows = json.loads((tmp_path / "to" / "phase1_dataset_profiling.json").read_text())["results"]
    assert len(rows) == 40
    assert (tmp_path / "to" / "tables" / "latency.tex").is_file()
    assert "How long does a request take?" in found.text
    assert not (tmp_path / "to" / "records.jsonl").exists()


def test_beside_the_rows_where_nothing_else_is_said(tmp_path: Path) -> None:
    source = made(tmp_path / "run")
    assert report([source]).page == source / "report.html"
    first = listing(source)
    report([source])
    assert listing(source) == first, "again gives the same"


def test_what_a_killed_report_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    source = made(tmp_path / "run")
    (source / "figures").mkdir()
    old, new = (source / "figures" / f".{name}.png.x.part" for name in ("old", "new"))
    old.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    new.write_bytes(b"half")
    report([source])
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_rows_and_a_damaged_summary(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    source = made(tmp_path / "run")
    expected = summarise(source)
    (source / f"records.jsonl{suffix}").write_bytes(pack((source / "records.jsonl").read_bytes()))
    (source / "records.jsonl").unlink()
    (source / "summary.json").write_text("{")
    page = report([source]).page
    assert json.loads((source / "summary.json").read_text()) == expected
    assert f"records.jsonl{suffix}" in page.read_text(), "the page names the file of its rows"


def test_a_study_with_its_comparison(tmp_path: Path) -> None:
    study = published.study(tmp_path / "study")
    report([study])  # what is stored may be of earlier statistics
    before = json.loads((study / "summary.json").read_text())["headline"]
    assert before
    (study / "summary.json").unlink()
    found = report([study], tmp_path / "to")
    assert found.runs == 3
    again = json.loads((tmp_path / "to" / "summary.json").read_text())["headline"]
    assert again == before
    assert (tmp_path / "to" / "exp5_token_comparison.json").is_file()
    assert (tmp_path / "to" / "phase2" / "phase2_scaling.json").is_file()
    assert "915 vision tokens" in found.text
    assert "as much as" in found.page.read_text()
    assert not (study / "summary.json").exists()


def test_several_directories_are_one_page_and_need_a_place(tmp_path: Path) -> None:
    runs = [made(tmp_path / side / "run", prefill=prefill) for side, prefill in (("a", 20.0), ("b", 40.0))]
    with pytest.raises(ConfigError, match=r"output_dir=DIR"):
        report(runs)
    found = report(runs, tmp_path / "to")
    assert found.runs == 2
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["report.html", "run", "run_2", "tables"]
    medians = [json.loads((tmp_path / "to" / n / "summary.json").read_text())["headline"]["median_ms"] for n in ("run", "run_2")]  # fmt: skip
    assert medians[1] - medians[0] == pytest.approx(20.0)


def test_a_directory_without_rows_is_named_and_damaged_rows_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, empty = made(tmp_path / "run"), tmp_path / "empty"
    empty.mkdir()
    rows = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join([*rows[:2], rows[2][:40] + "\n", *rows[3:]]))
    found = report([run, empty], tmp_path / "to")
    assert found.runs == 1
    assert found.left_out == (f"{shown(empty)}: no rows (records.jsonl) at or below it",)
    assert "Left out: " in found.text
    assert [r.getMessage() for r in caplog.records if "damaged line" in r.getMessage()] == [
        f"{run / 'records.jsonl'}: 1 damaged line(s) before line 4 are left out"
    ]


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"state": "interrupted", "runs_done": 69, "runs_total": 200}, "Interrupted after 69 of 200 runs."),
        ({"state": "interrupted", "cause": "time_limit", "runs_done": 69, "runs_total": 200},
         "Cut short by its time limit after 69 of 200 runs."),
        ({"state": "running", "runs_done": 69, "runs_total": 200}, "Ended without a word after 69 of 200 runs."),
        ({"state": "interrupted", "points_done": 3, "points_total": 8}, "Interrupted after 3 of 8 points."),
        ({"state": "failed", "runs_done": 69, "runs_total": 200}, "Failed after 69 of 200 runs."),
        ({"state": "done", "runs_done": 200, "runs_total": 200}, None),
    ],
)  # fmt: skip
def test_an_unfinished_run_is_marked_on_the_first_screen(tmp_path: Path, outcome: dict[str, Any], words: str | None) -> None:  # fmt: skip
    source = made(tmp_path)
    write_json(source / "outcome.json", outcome)
    page = report([source]).page.read_text()
    assert (f"<p>{words} Numbers are of what was measured so far.</p>" in page) == (words is not None)
    assert ('id="unfinished"' in page) == (words is not None)


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    made(tmp_path / "grid" / "0_good")
    old = made(tmp_path / "grid" / "1_old")
    (old / "records.jsonl").write_text((old / "records.jsonl").read_text().replace('"schema_version": 1', '"schema_version": 0'))  # fmt: skip
    (tmp_path / "grid" / "2_empty").mkdir()
    (tmp_path / "grid" / "2_empty" / "records.jsonl").touch()
    found = report([tmp_path / "grid"])
    assert found.runs == 1
    assert len(found.left_out) == 2
    assert "schema_version 0" in found.left_out[0]
    assert "nothing was measured there yet" in found.left_out[1]
    with pytest.raises(InputError, match="schema_version 0"):
        report([old])
    with pytest.raises(InputError, match="no rows"):
        report([tmp_path / "grid" / "0_good" / "tables"])
    with pytest.raises(InputError, match="holds rows of a run of its own"):
        report([old], tmp_path / "grid" / "0_good")


def test_what_rows_are_of(tmp_path: Path) -> None:
    study = published.study(tmp_path / "study")
    for part, kind in (("phase1", "phase1"), ("phase2", "phase2"), ("phase3", "phase3")):
        assert kind_of(study / part) == kind
        (study / part / "summary.json").unlink()
        assert kind_of(study / part) == kind, "by the rows"


@pytest.mark.parametrize(
    ("given", "error"),
    [(None, "needs runs=DIR"), ("/nowhere", "'/nowhere' is not there"), ("a,/nowhere", "'/nowhere' is not there")],
)
def test_directories_that_are_not_there(tmp_path: Path, given: str | None, error: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "with,comma").mkdir()
    assert directories("with,comma") == [Path("with,comma")]
    assert directories("a,a") == [Path("a")]
    with pytest.raises((ConfigError, InputError), match=error):
        directories(given)


def test_the_command_line_writes_where_it_was_told_and_loads_no_torch(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made(tmp_path / name)
    code = (
        "import sys\nsys.argv[1:] = ['experiment=report', 'runs=a,b', 'output_dir=to']\n"
        "from vlmbench.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: print('rc', end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("rc 0 False\n"), done.stderr
    assert "2 runs in to/report.html" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "to"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["provenance.json", "records.jsonl"]
    assert list((tmp_path / "to" / "a" / "figures").glob("*.pdf"))


def test_questions_leave_nothing_behind(vlmbench_forked: CliRun, tmp_path: Path) -> None:
    for task in ("report", "status", "collect", "cancel"):
        done = vlmbench_forked(f"experiment={task}", "runs=nowhere")
        assert done.returncode == 2, done.stderr
        assert "nowhere" in done.stderr
    assert list(tmp_path.iterdir()) == []

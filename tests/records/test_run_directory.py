"""One run directory: its lock, its rows in their place, runs that were begun, files of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmbench.errors import DirectoryConflictError, InputError, RowsLostError
from vlmbench.machine.host import OomKills, _count_of_kills, oom_kills
from vlmbench.records.attempts import BEGUN_NAME, Attempts
from vlmbench.records.files import remove_stray_parts
from vlmbench.records.lock import LOCK_NAME, RunLock
from vlmbench.records.reading import RECORDS_NAME, iter_rows, parse_row
from vlmbench.records.run_directory import FOLDERS, RunDirectory
from vlmbench.records.store import TORN_NAME, RecordStore
from vlmbench.schema import Mode, Record, Status

CONFIG = {"seed": 0, "model": {"name": "tiny"}}


def record(repeat: int = 0, **changes: Any) -> Record:
    fields: dict[str, Any] = {"point_id": "p", "sample_id": "s", "repeat": repeat, "mode": Mode.BARE}
    return Record(**{**fields, "status": Status.OK, "values": {"T_total": 1.5}, **changes})


def row(**changes: Any) -> dict[str, Any]:
    return {**record().to_row(), **changes}


def line(**changes: Any) -> bytes:
    return json.dumps(row(**changes)).encode() + b"\n"


# ------------------------------------------------------------------------------------------ rows that lost their place


def removed(folder: Path) -> None:
    (folder / RECORDS_NAME).unlink()


def renamed(folder: Path) -> None:
    (folder / RECORDS_NAME).rename(folder / "other.jsonl")


def replaced(folder: Path) -> None:
    (folder / "new").write_bytes(b"")
    (folder / "new").replace(folder / RECORDS_NAME)


def directory_moved(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def directory_removed(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("fate", [removed, renamed, replaced, directory_moved, directory_removed])
def test_rows_are_not_written_into_nowhere(tmp_path: Path, fate: Any, at_the_end: bool) -> None:
    folder = tmp_path / "run"
    store = RecordStore(folder).__enter__()
    store.append(record(0))
    fate(folder)
    with pytest.raises(RowsLostError, match="while rows were written to it") as raised:
        store.close() if at_the_end else store.append(record(1))
    assert len(str(raised.value).splitlines()) <= 2
    assert raised.value.exit_status == 1
    if not at_the_end:
        with pytest.raises(RowsLostError):
            store.close()
    saved = {path for path in tmp_path.rglob("*.jsonl") if b'"repeat": 0' in path.read_bytes()}
    if fate is directory_removed:
        assert raised.value.moved_to is None
        assert not saved
        return
    assert len(saved) == 1, "what was measured is in one file, and nothing was doubled"
    place = saved.pop()
    assert str(place) in str(raised.value)
    if fate is removed:
        assert place.name == RECORDS_NAME, "the run can be continued"
    assert raised.value.moved_to == (tmp_path / "moved" if fate is directory_moved else folder)


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("content", [b"", b"half"])
def test_rows_that_somebody_cuts_off_are_missed(tmp_path: Path, content: bytes, at_the_end: bool) -> None:
    store = RecordStore(tmp_path).__enter__()
    store.append(record(0))
    (tmp_path / RECORDS_NAME).write_bytes(content)  # the same file, other bytes
    with pytest.raises(RowsLostError, match="cut while rows were written to it") as raised:
        store.close() if at_the_end else store.append(record(1))
    assert len(str(raised.value).splitlines()) <= 2
    assert raised.value.moved_to == tmp_path
    assert (tmp_path / RECORDS_NAME).read_bytes() == content, "nothing was added to what is not ours"


def test_a_half_line_of_somebody_else_costs_no_row(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        store.append(record(0))
        with (tmp_path / RECORDS_NAME).open("ab") as other:
            other.write(b'{"half": ')
        store.append(record(1))
    assert [row["repeat"] for row in iter_rows(tmp_path)] == [0, 1]
    with RecordStore(tmp_path) as store:
        assert len(store) == 2
        assert store.repair is not None
        assert store.repair.damaged_lines == (2,)


def test_a_file_that_stays_is_written_to(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        for repeat in range(3):
            store.append(record(repeat))
    assert len(list(iter_rows(tmp_path))) == 3


# --------------------------------------------------------------------------------------------- links are not followed


def write(folder: Path) -> None:
    with RunLock(folder), RecordStore(folder):
        Attempts(folder).open()


@pytest.mark.parametrize("name", [LOCK_NAME, RECORDS_NAME, TORN_NAME, BEGUN_NAME])
def test_no_link_is_followed_on_write(tmp_path: Path, name: str) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim.txt"
    folder.mkdir()
    victim.write_text("somebody's")
    if name == TORN_NAME:
        (folder / RECORDS_NAME).write_bytes(line() + b'{"half": ')
    (folder / name).symlink_to(victim)
    with pytest.raises(InputError, match="link") if name != TORN_NAME else pytest.raises(InputError):
        write(folder)
    assert victim.read_text() == "somebody's"


@pytest.mark.parametrize("name", FOLDERS)
def test_no_linked_folder_is_written_into(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"), RunDirectory(tmp_path / "run", CONFIG):
        pass
    (tmp_path / "way").symlink_to(tmp_path / "elsewhere")
    with RunDirectory(tmp_path / "way", CONFIG):  # which directory a run writes to is for the user to say
        pass


# ------------------------------------------------------------------------------------------------ runs that were begun


def died_in(folder: Path, point: str, sample: str = "s", phase: str = "bare") -> None:
    attempts = Attempts(folder)
    attempts.open()
    attempts.begin(point, sample, phase)
    os.close(attempts._descriptor)  # as a kill does


def test_two_deaths_in_a_row_are_counted_and_an_end_clears_them(tmp_path: Path) -> None:
    died_in(tmp_path, "large")
    attempts = Attempts(tmp_path)
    attempts.open()
    assert (attempts.deaths("large"), attempts.deaths("large", "s"), attempts.deaths("large", "t")) == (1, 1, 0)
    assert attempts.deaths("small") == 0
    attempts.close()
    died_in(tmp_path, "large")
    attempts = Attempts(tmp_path)
    attempts.open()
    assert attempts.deaths("large") == 2
    attempts.begin("large", "s", "warmup")
    attempts.end()
    assert attempts.deaths("large") == 2, "another phase of the run ended, not the one that killed"
    attempts.begin("large", "s", "bare")
    attempts.end()
    assert attempts.deaths("large") == 0
    attempts.close()
    assert not (tmp_path / BEGUN_NAME).exists()


def test_deaths_in_one_request_add_up_whatever_it_was_at(tmp_path: Path) -> None:
    for phase in ("foresight", "prepare"):
        died_in(tmp_path, "large", phase=phase)
    died_in(tmp_path, "large", "another")
    attempts = Attempts(tmp_path)
    attempts.open()
    assert (attempts.deaths("large", "s"), attempts.deaths("large", "another"), attempts.deaths("large")) == (2, 1, 2)
    attempts.close()


def test_a_death_is_held_against_a_run_only_where_nothing_speaks_for_it(tmp_path: Path) -> None:
    """A kill from outside leaves the same trace as the kernel's for memory."""
    kills = OomKills(group="one", count=3)

    def dies(now: OomKills | None, *, stored: bool, then: OomKills | None) -> int:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        attempts = Attempts(folder, memory_kills=lambda: now)
        attempts.open()
        attempts.begin("p", "s", "bare")
        os.close(attempts._descriptor)  # as a kill does
        attempts = Attempts(folder, memory_kills=lambda: then)
        attempts.open(lambda point, sample: stored and (point, sample) == ("p", "s"))
        return attempts.deaths("p", "s")

    assert dies(None, stored=False, then=None) == 1
    assert dies(None, stored=True, then=None) == 0
    assert dies(kills, stored=True, then=kills) == 0
    assert dies(kills, stored=True, then=replace(kills, count=4)) == 1
    assert dies(kills, stored=True, then=OomKills(group="another", count=9)) == 0
    assert dies(kills, stored=False, then=kills) == 1


def test_the_kernels_count_of_kills_is_read(tmp_path: Path) -> None:
    assert _count_of_kills("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n") == 2
    with pytest.raises(ValueError, match="oom_kill"):
        _count_of_kills("oom 3\n")
    found = oom_kills()
    assert found is None or found.count >= 0


def test_a_clean_end_blames_nothing(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.open()
    for number in range(5):
        attempts.begin("p" * number, "s", "bare")
        attempts.end()
    attempts.close()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- foreign rows

FOREIGN = [
    line(point_id=["a"]), line(point_id=None), line(sample_id=3), line(repeat="0"), line(repeat=-1), line(repeat=1.5),
    line(repeat=True), line(mode=["bare"]), line(mode="else"), line(status={}), line(status="fine"), line(session=None),
    line(schema_version="1"), line(T_total=float("inf")), line(T_total=float("nan")), line(T_total=1e300),
    line(T_total="12"), line(T_total=[1]), line(T_total=True), line(TTFT={}), line(num_input_tokens="7"),
    line(num_input_tokens=10**400), line(flops_total=-1e99), line(flags="gc"), line(flags=[[]]), line(reason=[]), line(ITL="x"),
    line(ITL=[float("nan")]), line(ITL=[[1]]), line(ITL=[1e99]), line(ITL=[10**30]), line(ITL=["1"]),
    line().replace(b'"T_total": 1.5', b'"T_total": 1e999'), line().replace(b"1.5", b"-Infinity"), b"[1, 2]\n", b"7\n",
    b"null\n", b'"row"\n', b"{}\n", b"\x00" * 50 + b"\n", b"\xff\xfe{}\n", b"[" * 50_000 + b"\n", b"9" * 100_000 + b"\n",
]  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN, ids=range(len(FOREIGN)))
def test_a_line_that_no_vlmbench_wrote_is_damaged(foreign: bytes) -> None:
    assert parse_row(foreign) is None


def test_what_vlmbench_writes_is_a_row() -> None:
    for good in (
        row(), row(T_total=None, TTFT=0), row(ITL=[]), row(ITL=[1.5, None, 2e-05, 3, 1e16]), row(flops_total=2.3e17),
        row(peak=2**40, name="1e300", ok=True, top_kernels={"a": [["k", 1, 2.0]]}), row(status="oom", reason="no"),
    ):  # fmt: skip
        assert parse_row(json.dumps(good).encode()) is not None, good


def test_damaged_lines_are_said_and_the_others_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [part for foreign in FOREIGN for part in (foreign, b"")]
    for repeat in range(len(FOREIGN)):
        lines[2 * repeat + 1] = line(repeat=repeat)
    (tmp_path / RECORDS_NAME).write_bytes(b"".join(lines))
    assert [one["repeat"] for one in iter_rows(tmp_path)] == list(range(len(FOREIGN)))
    assert "damaged" in caplog.text
    with RecordStore(tmp_path) as store:
        assert len(store) == len(FOREIGN)
        assert f"{len(FOREIGN)} damaged line(s)" in str(store.repair)


def test_a_row_that_stands_there_twice_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / RECORDS_NAME).write_bytes(line() + line(T_total=9.0) + line(repeat=1) + line(status="error"))
    rows = list(iter_rows(tmp_path))
    assert [(one["repeat"], one["T_total"]) for one in rows if one["status"] == "ok"] == [(0, 1.5), (1, 1.5)]
    assert "1 row(s) stand in it twice" in caplog.text
    with RecordStore(tmp_path) as store:
        assert len(store) == 2
        assert store.counts["p", "bare", "ok"] == 2
        assert "1 row(s) stand there twice" in str(store.repair)


@pytest.mark.parametrize("version", [0, 2])
def test_rows_of_another_schema_are_refused_before_a_model_is_loaded(tmp_path: Path, version: int) -> None:
    begun(tmp_path)
    (tmp_path / RECORDS_NAME).write_bytes(line(schema_version=version))
    with pytest.raises(InputError, match=f"schema_version {version}"), RunDirectory(tmp_path, CONFIG):
        pass
    with RunLock(tmp_path):
        """A refusal leaves no lock."""


# --------------------------------------------------------------------------------------------------- the whole object


def begun(folder: Path) -> None:
    with RunDirectory(folder, CONFIG) as run, run.rows():
        run.begin(session(), points_total=1)
        run.end([], device="cpu")


def session() -> dict[str, Any]:
    from vlmbench.records import provenance

    return provenance.collect(CONFIG, model_facts={"name": "tiny", "dtype": "float32"}, device="cpu", seed=0)


def test_open_begin_note_end(tmp_path: Path) -> None:
    composed: list[str] = []
    with RunDirectory(tmp_path, CONFIG, write_composed=lambda: composed.append("x")) as run:
        assert not run.known
        assert not composed, "nothing is written before it begins"
        with run.rows() as store:
            assert run.begin(session(), points_total=2) == []
            store.append(record())
            run.note(points_done=1, rows=1)
        run.end([{"point_id": "p"}], device="cpu", extra={"closing": 1})
    assert composed == ["x"]
    assert json.loads((tmp_path / "points.json").read_text()) == {"points": [{"point_id": "p"}]}
    told = json.loads((tmp_path / "provenance.json").read_text())["sessions"][0]
    assert told["ended_unix_s"] is not None
    assert told["closing"] == 1
    with RunDirectory(tmp_path, CONFIG) as run:
        assert run.known
        with pytest.raises(DirectoryConflictError, match="in use"), RunDirectory(tmp_path, CONFIG):
            pass
    with pytest.raises(DirectoryConflictError, match="seed: 0 → 1"), RunDirectory(tmp_path, {**CONFIG, "seed": 1}):
        pass


def test_what_killed_writers_left_is_removed_under_the_lock(tmp_path: Path) -> None:
    begun(tmp_path)
    for place in (tmp_path, tmp_path / "figures", tmp_path / "part"):
        place.mkdir(exist_ok=True)
        (place / ".summary.json.ab12cd34.part").write_text("half")
    (tmp_path / "part" / LOCK_NAME).touch()
    (tmp_path / "mine.part").write_text("not ours")
    with RunDirectory(tmp_path, CONFIG):
        pass
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.part"))
    assert left == ["mine.part", "part/.summary.json.ab12cd34.part"], "a part of a study is its holder's"
    assert remove_stray_parts(tmp_path) == []


def test_what_this_user_may_not_read_is_left_alone_or_named(tmp_path: Path) -> None:
    """A folder of somebody else's kept a run from continuing; a file was called no JSON."""
    (tmp_path / "figures").mkdir()
    (tmp_path / ".rows.part").touch()
    (tmp_path / "outcome.json").write_text("{}")
    for path, mode in ((tmp_path / "figures", 0), (tmp_path / "outcome.json", 0), (tmp_path, 0o777)):
        path.chmod(mode)
    code = f"""
import os
from pathlib import Path
from vlmbench.errors import InputError
from vlmbench.records.files import remove_stray_parts
from vlmbench.records.outcome import read_outcome
os.chdir({str(tmp_path)!r})
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
print(*remove_stray_parts(Path(".")))
try:
    read_outcome(Path("."))
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (tmp_path / "figures").chmod(0o755)
    assert done.stdout.splitlines() == [".rows.part", "cannot read 'outcome.json': Permission denied"], done.stderr

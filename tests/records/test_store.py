"""Rows survive kills, torn lines, full disks and a second writer."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmbench.errors import DirectoryConflictError, InputError, MeasurementError
from vlmbench.records import store as store_module
from vlmbench.records.reading import RECORDS_NAME, KeySet, iter_rows
from vlmbench.records.store import TORN_NAME, RecordStore
from vlmbench.schema import Mode, Record, Status


def record(repeat: int, *, point: str = "a=1", status: Status = Status.OK, **values: object) -> Record:
    return Record(
        point_id=point, sample_id="s/é", repeat=repeat, mode=Mode.BARE, status=status, values={"T_total": 1.5, **values}
    )


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_rows_come_back_as_they_were_stored(tmp_path: Path) -> None:
    with RecordStore(tmp_path / "run") as store:
        store.append(record(0, ITL=[1.0, 2.0]))
        store.append(record(1, status=Status.ERROR))
        assert [row["repeat"] for row in store.rows()] == [0, 1]
        assert store.counts == {("a=1", "bare", "ok"): 1, ("a=1", "bare", "error"): 1}
    rows = list(iter_rows(tmp_path / "run"))
    assert rows[0] == record(0, ITL=[1.0, 2.0]).to_row()
    assert rows == list(iter_rows(tmp_path / "run" / RECORDS_NAME))


def test_a_resumed_store_knows_what_was_measured_and_counts_sessions(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        assert store.session == 0
        store.append(record(0))
        store.append(record(1, status=Status.OOM))
    with RecordStore(tmp_path) as store:
        assert store.session == 1
        assert record(0).key in store
        assert record(1).key not in store, "a failed row is to be measured again"
        assert len(store) == 1
        store.append(record(1))
        with pytest.raises(MeasurementError, match="measured before"):
            store.append(record(0))
        store.append(record(0, status=Status.WARMUP))
    assert sum(1 for _ in iter_rows(tmp_path)) == 4


def test_what_an_earlier_session_skipped_is_not_said_again_for_the_same_reason(tmp_path: Path) -> None:
    def skipped(reason: str, **changes: Any) -> Record:
        return replace(record(0, status=Status.SKIPPED), reason=reason, **changes)

    for _ in range(3):
        with RecordStore(tmp_path) as store:
            store.append(skipped("no such image in /home/someone/data"))
            store.append(skipped("no such image in /home/someone/data", repeat=1))
            store.append(skipped("no such image in /home/someone/data", sample_id="other"))
    with RecordStore(tmp_path) as store:
        store.append(skipped("too long"))
    found = [(row["sample_id"], row["repeat"]) for row in iter_rows(tmp_path)]
    assert found == [("s/é", 0), ("s/é", 1), ("other", 0), ("s/é", 0)]


def test_not_finite_values_become_null_with_a_flag(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        store.append(record(0, T_residual=math.nan, ITL=[1.0, math.inf], flops=np.float32(2.0), n=np.int64(3)))
    text = (tmp_path / RECORDS_NAME).read_text()
    row = json.loads(text, parse_constant=pytest.fail)
    assert (row["T_residual"], row["ITL"], row["flops"], row["n"]) == (None, [1.0, None], 2.0, 3)
    assert row["flags"] == ["not_finite:T_residual", "not_finite:ITL"]


def test_a_metric_cannot_pose_as_the_rows_own_field(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store, pytest.raises(ValueError, match="status"):
        store.append(
            Record(point_id="p", sample_id="s", repeat=0, mode=Mode.BARE, status=Status.OK, values={"status": "error"})
        )


THREE_ROWS = b"".join(store_module._to_line(record(i, ITL=[0.1] * i).to_row()) for i in range(3))


@pytest.fixture
def nobody_else_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of repairs need not each wait for a second writer."""
    monkeypatch.setattr(store_module, "_GROWS_WITHIN_S", 0.0)


@pytest.mark.usefixtures("nobody_else_writes")
@given(cut=st.integers(0, len(THREE_ROWS)), junk=st.binary(max_size=30))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tail_is_repaired(tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes) -> None:
    check_repair(tmp_path_factory.mktemp("run"), THREE_ROWS[:cut] + junk)


@pytest.mark.usefixtures("nobody_else_writes")
def test_every_byte_offset_is_repaired(tmp_path: Path) -> None:
    for cut in range(len(THREE_ROWS) + 1):
        check_repair(tmp_path / str(cut), THREE_ROWS[:cut])


def check_repair(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / RECORDS_NAME).write_bytes(content)
    whole = [line for line in content.splitlines(keepends=True) if line.rstrip(b"\n") in THREE_ROWS.splitlines()]
    assert [json.dumps(r) for r in iter_rows(folder)] == [json.dumps(json.loads(line)) for line in whole]
    assert (folder / RECORDS_NAME).read_bytes() == content, "reading changes nothing"
    with RecordStore(folder) as store:
        tail = content.removeprefix(b"".join(whole))
        assert (store.repair.cut_bytes if store.repair else 0) == len(tail)
        store.append(record(7))
    ended = b"".join(line.rstrip(b"\n") + b"\n" for line in whole)
    assert (folder / RECORDS_NAME).read_bytes() == ended + store_module._to_line(record(7).to_row())
    if tail:
        kept = json.loads((folder / TORN_NAME).read_text())
        assert (kept["offset"], kept["length"]) == (len(content) - len(tail), len(tail))
        assert kept["text"] == tail.decode("utf-8", "backslashreplace")
    with RecordStore(folder) as again:
        assert again.repair is None


def test_damage_in_the_middle_is_named_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = THREE_ROWS.splitlines(keepends=True)
    content = lines[0] + b"\0" * 10 + b"\n" + lines[1] + b'{"half'
    (tmp_path / RECORDS_NAME).write_bytes(content)
    with RecordStore(tmp_path) as store:
        assert store.repair is not None
        assert store.repair.damaged_lines == (2,)
        assert store.repair.cut_bytes == 6
        assert "damaged line(s) are ignored (2)" in str(store.repair)
        assert len(list(store.rows())) == 2
    assert "1 damaged line(s) before line 3" in caplog.text


def test_rows_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    row = {**record(0).to_row(), "schema_version": 99}
    (tmp_path / RECORDS_NAME).write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="schema_version 99"):
        list(iter_rows(tmp_path))


def test_no_records_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no records at"):
        list(iter_rows(tmp_path / "nothing"))


def test_a_full_disk_keeps_whole_rows_only(tmp_path: Path) -> None:
    """The file size limit stands in for a full disk: a write() takes what fits, the next one fails."""
    code = """
        import resource, signal, sys
        from pathlib import Path
        from vlmbench.errors import MeasurementError
        from vlmbench.schema import Mode, Record, Status
        from vlmbench.records.store import RecordStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        def row(i): return Record(point_id="p", sample_id="s", repeat=i, mode=Mode.BARE, status=Status.OK)
        stored = 0
        with RecordStore(Path(sys.argv[1])) as store:
            try:
                while True:
                    store.append(row(stored)); stored += 1
            except MeasurementError as error:
                print(error)
            assert row(stored).key not in store
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
            store.append(row(stored))  # space was made: the same store goes on
        print("stored", stored + 1)
    """
    for limit in range(1000, 1200, 37):
        folder = tmp_path / str(limit)
        done = python(code, folder, limit)
        assert "File too large; the rows stored before are intact" in done.stdout
        rows = list(iter_rows(folder))
        assert f"stored {len(rows)}\n" in done.stdout
        assert [row["repeat"] for row in rows] == list(range(len(rows)))
        assert (folder / RECORDS_NAME).read_bytes().endswith(b"\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_a_read_only_directory_is_an_error_in_words_for_root_in_disguise(tmp_path: Path) -> None:
    check_read_only(tmp_path, drop="os.setgid(65534); os.setuid(65534)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_directory_is_an_error_in_words(tmp_path: Path) -> None:
    check_read_only(tmp_path, drop="")


def check_read_only(folder: Path, drop: str) -> None:
    with RecordStore(folder / "run") as store:
        store.append(record(0))
    for path in (folder / "run", folder / "run" / RECORDS_NAME):
        path.chmod(0o555)
    code = f"""
        import os, sys
        from pathlib import Path
        from vlmbench.errors import InputError
        from vlmbench.records.store import RecordStore
        from vlmbench.records.lock import RunLock
        os.chdir(sys.argv[1])
        {drop}
        for kind in (RecordStore, RunLock):
            try:
                with kind(Path("run")): print("opened")
            except InputError as error: print(error)
    """
    done = python(code, folder)
    for path in (folder / "run", folder / "run" / RECORDS_NAME):
        path.chmod(0o755)
    assert "opened" not in done.stdout
    assert "cannot write records to 'run': Permission denied" in done.stdout
    assert "cannot lock the run directory 'run': Permission denied" in done.stdout
    assert len(list(iter_rows(folder / "run"))) == 1


KILL_LOOP = """
    import os, random, signal, struct, sys, time
    from pathlib import Path
    from vlmbench.records.lock import RunLock
    from vlmbench.schema import Mode, Record, Status
    from vlmbench.records.reading import iter_rows
    from vlmbench.records.store import RecordStore
    folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(7)
    def child(pipe):
        with RunLock(folder), RecordStore(folder, fsync_every_s=None) as store:
            os.write(pipe, struct.pack("q", -1))
            repeat = len(store)
            while True:
                row = Record(point_id="p", sample_id="s", repeat=repeat, mode=Mode.BARE, status=Status.OK,
                             session=store.session, values={"ITL": [0.125] * random.choice((1, 1, 1, 3000))})
                assert row.key not in store
                store.append(row)
                os.write(pipe, struct.pack("q", repeat))
                repeat += 1
                time.sleep(0.0003)  # or the file grows faster than it is read again
    acknowledged = set()
    for _ in range(kills):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try: child(writer)
            finally: os._exit(9)
        os.close(writer)
        time.sleep(rng.choice((0, 0.001, 0.004, 0.01)) * rng.random() * 2)
        if rng.random() < 0.8:  # once a row of it was acknowledged, however busy the host is
            for _ in range(2): acknowledged.update(struct.unpack("q", os.read(reader, 8)))
        time.sleep(0.004 * rng.random())
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the writer failed by itself"
        while data := os.read(reader, 8): acknowledged.update(struct.unpack("q", data))
        os.close(reader)
    acknowledged.discard(-1)
    with RunLock(folder), RecordStore(folder) as store: pass
    rows = [row["repeat"] for row in iter_rows(folder)]
    assert len(rows) == len(set(rows)), "measured twice"
    assert acknowledged <= set(rows), "an acknowledged row is lost"
    print(len(rows), len(acknowledged), (folder / "records.torn.jsonl").exists())
"""


def test_two_hundred_and_fifty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    done = python(KILL_LOOP, tmp_path / "run", 250)
    rows, acknowledged, _ = done.stdout.split()
    assert 0 <= int(rows) - int(acknowledged) <= 250, "at most one row a kill was stored but not yet acknowledged"
    assert int(acknowledged) > 150


def test_writers_without_a_lock_still_write_whole_lines(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from vlmbench.schema import Mode, Record, Status
        from vlmbench.records.store import RecordStore
        with RecordStore(Path(sys.argv[1])) as store:
            print("opened", flush=True)
            sys.stdin.readline()
            for i in range(300):
                store.append(Record(point_id=sys.argv[2], sample_id="s" * 3000, repeat=i, mode=Mode.BARE, status=Status.OK))
    """
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), tmp_path, str(i)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for i in range(3)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout.readline() == b"opened\n"
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    rows = list(iter_rows(tmp_path))
    assert sorted((r["point_id"], r["repeat"]) for r in rows) == [(str(p), i) for p in range(3) for i in range(300)]


def test_a_line_that_another_process_is_writing_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lock that holds (a network disk), opening must not take rows from a living writer."""
    path = tmp_path / RECORDS_NAME
    path.write_bytes(THREE_ROWS[:-9])

    def the_writer_goes_on(_: float) -> None:
        with path.open("ab") as file:
            file.write(THREE_ROWS[-9:])

    monkeypatch.setattr(store_module.time, "sleep", the_writer_goes_on)
    with pytest.raises(DirectoryConflictError, match="another process is writing"), RecordStore(tmp_path):
        pass
    assert path.read_bytes() == THREE_ROWS
    assert not (tmp_path / TORN_NAME).exists()
    with RecordStore(tmp_path) as store:
        assert len(store) == 3


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(store_module.time, "time", lambda: float(next(times)))
    for i in range(3):
        with (tmp_path / RECORDS_NAME).open("ab") as file:
            file.write(b'{"torn')
        with RecordStore(tmp_path, fsync_every_s=0.0) as store:
            assert store.session == i
            store.append(Record(point_id="p", sample_id="s", repeat=i, mode=Mode.BARE, status=Status.OK, session=i,
                                started_unix_s=store_module.time.time()))  # fmt: skip
    assert [row["repeat"] for row in iter_rows(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("count", [79_000, 100_000])  # a set doubles at 78,644: at 79,000 a key costs the most
def test_memory_of_the_store_is_at_most_100_bytes_a_row(count: int) -> None:
    keys = KeySet()
    tracemalloc.start()
    try:
        for i in range(count):
            keys.add(("vision_tokens=64", str(i), i % 5, "bare"))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(keys) == count
    assert held <= 100 * count
    assert ("vision_tokens=64", str(count - 1), (count - 1) % 5, "bare") in keys
    assert ("vision_tokens=64", "0", 0, "bare") in keys
    assert ("vision_tokens=64", "0", 1, "bare") not in keys


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 3)), max_size=40))
def test_a_key_set_is_a_set(keys: list[tuple[str, int]]) -> None:
    ours = KeySet()
    for number, key in enumerate(keys):
        ours.add(key)
        assert len(ours) == len(set(keys[: number + 1]))
    for key in [*keys, ("zzzz", 9)]:
        assert (key in ours) == (key in set(keys))

"""Processes that take turns: real ones, on a planted model and on the command line."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from PIL import Image

from tests.command_line import command_line
from tests.test_runner import FAST, Silent, dataset, measure
from vlmbench.errors import ConfigError, InputError, MeasurementError
from vlmbench.machine.turns import StartedTogether, Turns, hold_place
from vlmbench.records.store import RecordStore
from vlmbench.runner.loop import Runner
from vlmbench.runner.warmup import Warmup
from vlmbench.session.signals import stop_on_signal
from vlmbench.testing.planted import PlantedModel

RUNS = 3
FORK = multiprocessing.get_context("fork")
MANY = 100_000


class Counting(PlantedModel):
    """Counts its answers."""

    answers = 0

    def generate(self, *arguments: Any, **named: Any) -> Any:
        self.answers += 1
        return super().generate(*arguments, **named)


def member(folder: Path, requests: int, options: dict[str, Any]) -> None:
    """One process: measures into ``folder``, and leaves a file that tells how it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background hand on an ignored one
    told = {"error": "", "answers": 0}
    model = Counting(FAST)
    try:
        with (
            stop_on_signal() as stop,
            Turns(directory=folder.parent / "turns", of=folder, runs=RUNS, **options) as turns,
        ):
            measure(folder, model, dataset(requests, reference=None), turns=turns, stop_requested=lambda: bool(stop))
    except MeasurementError as error:
        told["error"] = str(error)
    (folder / "told.json").write_text(json.dumps(told | {"answers": model.answers}))


def start(folder: Path, requests: int = 40, **options: Any) -> Any:
    process = FORK.Process(target=member, args=(folder, requests, {"members": 2, "wait_s": 120} | options))
    process.start()
    return process


def start_in_place(folder: Path, requests: int = 40, **options: Any) -> Any:
    place = hold_place(folder.parent / "turns", folder)
    try:
        return start(folder, requests, **options)
    finally:
        os.close(place)


def rows_of(folder: Path, status: str = "ok") -> list[dict[str, Any]]:
    file = folder / "records.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if row["status"] == status]


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "told.json").read_text()))


def wait_for(true: Callable[[], bool], *processes: Any) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, "it never came true"
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def turns_in_order(*folders: Path) -> list[tuple[str, int]]:
    """Member and number of every turn in order of time, after a look at every row."""
    rows = sorted(
        ((row["started_unix_s"], folder.name, row) for folder in folders for row in rows_of(folder)),
        key=lambda one: one[:2],
    )
    for (_, one, row), (begin, other, _) in pairwise(rows):
        if one != other:
            assert row["started_unix_s"] + row["T_total"] / 1e3 <= begin + 1e-3, "two members ran at once"
    found = [(name, turn) for (name, turn), _ in groupby((name, row["turn"]) for _, name, row in rows)]
    assert [turn for _, turn in found] == sorted({turn for _, turn in found}), "turns are counted over all members"
    counts = Counter((name, row["turn"]) for _, name, row in rows if row["mode"] == "instrumented")
    assert max(counts.values()) <= RUNS
    return found


@pytest.mark.parametrize("members", [2, 3])
def test_members_alternate_there_and_back(tmp_path: Path, members: int) -> None:
    folders = [tmp_path / name for name in "abc"[:members]]
    processes = [start(folder, 30, members=members) for folder in folders]
    for process in processes:
        process.join()
    found = [name for name, _ in turns_in_order(*folders)]
    there = found[:members]
    assert sorted(there) == sorted(folder.name for folder in folders)
    assert found == (there + there[::-1]) * 5, "10 turns each"
    for folder in folders:
        numbers = [turn for turn, _ in groupby(row["turn"] for row in rows_of(folder))]
        unstored = sum(after != before + 1 for before, after in pairwise(numbers))
        stored = sum(len(rows_of(folder, status)) for status in ("ok", "cold", "warmup"))
        assert told(folder)["answers"] == stored + unstored, "one more run where another member ran in between"


def test_one_that_is_killed_in_its_turn_frees_the_others_and_is_continued_alone(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    first = start(a, MANY)
    second = start(b, 30)
    wait_for(lambda: len(rows_of(a)) > 2 * RUNS and len(rows_of(b)) > 2 * RUNS, first)
    first.kill()
    first.join()
    second.join()
    assert second.exitcode == 0
    assert len({row["sample_id"] for row in rows_of(b)}) == 30
    kept = len(rows_of(a))
    turns_in_order(a, b)
    again = start(a, kept // 2 + 10)  # a request and its bare run
    again.join()
    assert (again.exitcode, len(rows_of(a)) > kept) == (0, True), "known to the others, it waits for nobody"
    turns_in_order(a, b)


def test_one_that_ends_early_leaves_the_machine_to_the_others(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for process in [start(a, 5), start(b, 30)]:
        process.join()
    found = turns_in_order(a, b)
    assert [name for name, _ in found].count("a") == 2
    last = [turn for name, turn in found if name == "b"][-5:]
    assert last == list(range(last[0], last[0] + 5))


def test_a_late_member_takes_part(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    processes = [start(folder, MANY) for folder in folders[:2]]
    wait_for(lambda: len(rows_of(folders[0])) > RUNS, *processes)
    late = start(folders[2], 12)
    late.join()
    for process in processes:
        os.kill(process.pid, signal.SIGINT)
        process.join()
    found = [name for name, _ in turns_in_order(*folders)]
    between = "".join(found[found.index("c") : len(found) - found[::-1].index("c")])
    assert between in {"cc" + two + two[::-1] + "cc" for two in ("ab", "ba")}, between


def _is_locked(file: Path) -> bool:
    """Whether somebody holds it for longer than others do between two runs."""
    with file.open("a") as lock:
        for _ in range(20):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            else:
                return False
    return True


def test_who_waits_can_be_told_to_stop_and_waits_no_longer_than_allowed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    processes = [
        start(folder, MANY, members=3, wait_s=wait_s) for folder, wait_s in zip(folders, (120, 120, 2), strict=True)
    ]
    wait_for(lambda: all(len(rows_of(folder)) > RUNS for folder in folders), *processes)
    while True:  # until a stands still in its own turn, and not with the list of turns in its hands
        os.kill(processes[0].pid, signal.SIGSTOP)
        mine = json.loads((tmp_path / "turns" / "turns.json").read_text())["holder"].startswith("a_")
        if mine and not _is_locked(tmp_path / "turns" / "turns.lock"):
            break
        os.kill(processes[0].pid, signal.SIGCONT)
        time.sleep(0.003)
    os.kill(processes[1].pid, signal.SIGINT)
    for process in processes[1:]:
        process.join()
    assert told(folders[1])["error"] == ""
    assert "waited 2 s for a turn" in told(folders[2])["error"]
    assert "a_" in told(folders[2])["error"]
    assert len(told(folders[2])["error"].splitlines()) == 2
    os.kill(processes[0].pid, signal.SIGCONT)
    os.kill(processes[0].pid, signal.SIGINT)
    processes[0].join()
    assert processes[0].exitcode == 0
    turns_in_order(*folders)


def test_nobody_waits_for_one_that_never_came(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    process = start(folder, 5)
    file = tmp_path / "turns" / "turns.json"
    wait_for(lambda: file.exists() and "a_" in file.read_text() and json.loads(file.read_text())["turn"] == 0, process)
    with Turns(directory=tmp_path / "turns", of=tmp_path / "b") as failed:
        assert failed.others() == 1
    process.join()
    assert len(rows_of(folder)) == 10


def test_who_never_comes_is_known_at_once_where_its_place_was_held(tmp_path: Path) -> None:
    """Killed before it took part, with whoever started it, or never started; a folder that was used before."""
    a, b, c = (tmp_path / name for name in "abc")
    os.close(hold_place(tmp_path / "turns", tmp_path / "of an earlier use"))
    (tmp_path / "turns" / "of_an_earlier_use.gone").touch()
    places = {folder: hold_place(tmp_path / "turns", folder) for folder in (b, c)}
    starter = subprocess.Popen(["sleep", "600"], pass_fds=list(places.values()))
    never = subprocess.Popen(["sleep", "600"], pass_fds=[places[b]])
    for place in places.values():
        os.close(place)
    first = start_in_place(a, 5, members=3)
    file = tmp_path / "turns" / "turns.json"
    wait_for(lambda: file.exists() and '"joined": true' in file.read_text(), first)
    for process in (never, starter):
        time.sleep(0.6)
        assert rows_of(a) == [], "two that live have not come yet"
        process.kill()
        process.wait()
    began = time.monotonic()
    first.join()
    assert (first.exitcode, len(rows_of(a))) == (0, 10)
    assert time.monotonic() - began < 20


def test_nobody_is_gone_for_what_an_earlier_use_of_the_folder_left(tmp_path: Path) -> None:
    (tmp_path / "turns").mkdir()
    (tmp_path / "turns" / "b.gone").touch()
    with (
        Turns(directory=tmp_path / "turns", of=tmp_path / "a", wait_s=0.5) as turns,
        pytest.raises(MeasurementError, match="1 of 2 members is ready"),
    ):
        turns.take(lambda: False)


def test_who_is_started_again_waits_for_those_that_were_started_with_it(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for process in [start(a, 5), start(b, 5)]:
        process.join()
    first = start_in_place(a, 20)
    place = hold_place(tmp_path / "turns", b)
    time.sleep(1)
    assert len(rows_of(a)) == 10, "the other is on its way"
    second = start(b, 20)
    os.close(place)
    for process in (first, second):
        process.join()
    found = [name for name, _ in turns_in_order(a, b)][4:]
    assert found[:4] in (["a", "b", "b", "a"], ["b", "a", "a", "b"])


def test_a_task_of_a_grid_that_fails_before_it_takes_part_lets_nobody_wait(tmp_path: Path) -> None:
    done = command_line(
        "-m", *SMALL, "phase2_results=null,not_there", "hydra/launcher=local", "hydra.launcher.parallel=2",
        f"measurement.turns.directory={tmp_path / 'turns'}", f"output_dir={tmp_path / 'grid'}",
        "measurement.turns.wait_s=60",
    )  # fmt: skip
    assert done.status == 1, done.said
    assert "1 of 2 tasks done" in done.said
    assert "no results at 'not_there'" in done.said


def test_nobody_waits_for_a_command_that_is_refused(tmp_path: Path) -> None:
    first = start(tmp_path / "a", 5)
    file = tmp_path / "turns" / "turns.json"
    wait_for(lambda: file.exists() and "a_" in file.read_text(), first)
    done = command_line(
        *SMALL, "phase2_results=not_there", f"measurement.turns.directory={tmp_path / 'turns'}",
        f"output_dir={tmp_path / 'b'}",
    )  # fmt: skip
    assert (done.status, "no results at 'not_there'" in done.said) == (2, True), done.said
    first.join()
    assert len(rows_of(tmp_path / "a")) == 10


def test_nobody_waits_for_those_that_ended_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a scheduler knows of those that left nothing in the folder, as a held place tells on one machine."""
    monkeypatch.setattr("vlmbench.machine.turns._ASK_S", 0.2)
    ended = (
        ("task 1_b failed: no environment", "its log: .vlmbench/1/logs/b.out"),
        ("task 3_d cancelled", "it left no log"),
    )
    coming = ["2_c"]
    options: dict[str, Any] = {
        "of": tmp_path / "a", "wait_s": 2.0,
        "started_with": lambda: StartedTogether(coming=tuple(coming), ended=ended),
    }  # fmt: skip
    with Turns(directory=tmp_path / "t", **options) as turns, pytest.raises(MeasurementError, match="waited 2 s"):
        turns.take(lambda: False)  # the third may still come
    with (
        Turns(directory=tmp_path / "t", members=4, **options) as turns,
        pytest.raises(MeasurementError, match="1 of 2 members is ready"),
    ):
        turns.take(lambda: False)  # nobody waits for the two that ended
    coming.clear()
    capsys.readouterr()
    began = time.monotonic()
    with Turns(directory=tmp_path / "t", members=3, **options) as turns:
        assert turns.take(lambda: False)
    assert time.monotonic() - began < 1.5
    assert capsys.readouterr().err == (
        "vlmbench: warning: goes on with 1 of 3 members; task 1_b failed: no environment (and 1 more) "
        "(its log: .vlmbench/1/logs/b.out)\n"
    )
    with (
        Turns(directory=tmp_path / "other", of=tmp_path / "by hand"),  # one of another command counts, too
        Turns(directory=tmp_path / "other", members=3, **options) as turns,
        pytest.raises(MeasurementError, match=r"1 of 2 members is ready; by hand_.* loads"),
    ):
        turns.take(lambda: False)


def test_who_goes_on_without_a_member_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether that ended before its first turn or in one, and however it was started."""
    a, b = (Turns(directory=tmp_path / "turns", of=tmp_path / name) for name in "ab")
    places = [hold_place(tmp_path / "turns", tmp_path / name) for name in "ab"]
    with a:
        with b:
            pass
        os.close(places[1])
        assert a.take(lambda: False)
        words = f"goes on with 1 of 2 members; {b.name} ended before its first turn"
        assert capsys.readouterr().err == f"vlmbench: warning: {words}\n"
        os.close(places[0])
        killed = start(tmp_path / "c", MANY)
        while not rows_of(tmp_path / "c"):
            a._left = 0
            assert a.take(lambda: False)
            time.sleep(0.01)
        killed.kill()
        killed.join()
        for _ in range(3):
            a._left = 0
            assert a.take(lambda: False)
        (said,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch("vlmbench: warning: c_.{6} ended without leaving its turns: the others go on", said)


def test_a_membership_ends_with_its_block_and_alone_there_is_no_turn(tmp_path: Path) -> None:
    one, other = (Turns(directory=tmp_path, of=tmp_path / name, members=1) for name in "ab")
    with one:
        with other:
            assert (one.others(), other.others()) == (1, 1)
            assert one.take(lambda: False)
            assert not other.take(lambda: True), "the turn is the other's"
        assert one.others() == 0
        assert (one.facts() or {})["member"].startswith("a_")
    alone = Turns()
    with alone:
        assert alone.take(lambda: True)
        assert (alone.columns(), alone.facts(), alone.others()) == ({}, None, 0)


SMALL = (
    "experiment=smoke", "output.tokens=1", "measurement.image_size=[56,56]", "runtime.threads=1", "device_peaks=none",
    "dataset.num_samples=8", "measurement.warmup.max_runs=1", "progress=false", "probe=[timeline]", "report=none",
)  # fmt: skip


def test_two_jobs_of_a_grid_alternate(tmp_path: Path) -> None:
    done = command_line(
        "-m", *SMALL, "seed=1,2", "hydra/launcher=local", "hydra.launcher.parallel=2", "measurement.turns.runs=3",
        f"measurement.turns.directory={tmp_path / 'turns'}", f"output_dir={tmp_path / 'grid'}",
    )  # fmt: skip
    assert done.status == 0, done.said
    folders = sorted(path.parent for path in (tmp_path / "grid").glob("*/records.jsonl"))
    found = turns_in_order(*folders)
    assert {name for name, _ in found} == {folder.name for folder in folders}
    assert len(found) >= 6
    stored = [json.loads((folder / "provenance.json").read_text()) for folder in folders]
    assert stored[0]["turns"]["id"] == stored[1]["turns"]["id"]
    assert all(one["turns"] == one["sessions"][0]["turns"] for one in stored)
    assert stored[0]["turns"]["member"] != stored[1]["turns"]["member"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("experiment=first_steps",), ("runtime=endpoint", "runtime.base_url=http://localhost:9/v1", "runtime.model=m"),
        ("measurement.turns.members=0",), ("measurement.turns.runs=0",), ("measurement.turns.member=2",),
        ("measurement.turns.directory=FILE",), ("experiment=anatomy",),
        ("-m", "seed=1,2", "hydra/launcher=local", "hydra.launcher.parallel=1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    given = [one.replace("FILE", str(tmp_path / "file")) for one in arguments]
    done = command_line(f"measurement.turns.directory={tmp_path / 't'}", *given, f"output_dir={tmp_path / 'run'}")
    assert (done.status, "Traceback" in done.said) == (2, False), done.said
    assert len(done.own) <= 2
    assert not (tmp_path / "t").exists()


def test_the_python_api_takes_turns_until_its_call_ends(tmp_path: Path) -> None:
    import vlmbench

    model, processor = vlmbench.load("tiny", device="cpu", threads=1)
    image = Image.new("RGB", (56, 56), "grey")
    few: dict[str, Any] = {
        "output_tokens": 2,
        "stopping": {"min_samples": 5, "max_samples": 5},
        "costs": False,
        "probes": ["timeline"],
    }
    turns = {"directory": tmp_path / "turns", "members": 1, "runs": 2}
    run = vlmbench.measure(model, processor, [(image, "What?")], turns=turns, directory=tmp_path / "a", **few)
    assert sorted(set(run.frame["turn"])) == [1, 2, 3]
    assert json.loads((tmp_path / "a" / "provenance.json").read_text())["turns"]["runs"] == 2
    with Turns(directory=tmp_path / "turns", of=tmp_path / "b") as other:
        assert other.others() == 0
    for wrong, words in (
        ({"dir": 1}, "may hold directory"),
        ({"members": 0}, "1 or more"),
        ({"members": 2}, "needs the directory"),
    ):
        with pytest.raises(ConfigError, match=words):
            vlmbench.measure(model, processor, [(image, "What?")], turns=wrong, **few)


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", '{"turn": "1", "step": 1, "members": {}, "holder": null}', "\xff"]
)
def test_a_folder_that_holds_something_else_is_refused_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "turns.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="Remove that folder"), Turns(directory=tmp_path, of=tmp_path / "a"):
        pass


def test_a_folder_that_goes_ends_its_runs_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "turns"
    with Turns(directory=folder, of=tmp_path / "a", members=1, runs=1) as turns:
        assert turns.take(lambda: False)
        rmtree(folder)
        with pytest.raises(MeasurementError, match="What was measured is kept"):
            turns.take(lambda: False)


def test_a_member_that_is_stopped_with_the_lock_holds_up_nobody_who_is_told_to_stop(tmp_path: Path) -> None:
    with Turns(directory=tmp_path, of=tmp_path / "a", members=1, runs=1, wait_s=1.5) as turns:
        assert turns.take(lambda: False)
        with (tmp_path / "turns.lock").open("a") as stopped:
            fcntl.flock(stopped, fcntl.LOCK_EX)
            assert not turns.take(lambda: True)
            with pytest.raises(MeasurementError, match=r"waited 1.5 s for a turn .*turns.lock'\n.*See what became of"):
                turns.take(lambda: False)
            late = Turns(directory=tmp_path, of=tmp_path / "b", wait_s=0.2)
            with pytest.raises(MeasurementError, match=r"turns.lock'\nSee what became of"), late:
                pass
            began = time.monotonic()
            turns.__exit__(None, None, None)
            assert time.monotonic() - began < 10
    with late:
        assert late.others() == 0


def test_waiting_for_a_turn_does_not_count_for_the_time_limit(tmp_path: Path) -> None:
    one, other = (Turns(directory=tmp_path, of=tmp_path / name, members=1) for name in "ab")
    with RecordStore(tmp_path / "rows") as store, one, other:
        runner = Runner(
            model=PlantedModel(FAST), probes=[], store=store, warmup=Warmup(), seed=0, progress=Silent(), turns=other,
            deadline_s=time.monotonic(),
        )  # fmt: skip
        assert runner._must_stop()
        assert one.take(lambda: False)
        assert not other.take(lambda: other.waited_s > 0.5)
        assert other.waited_s > 0.5
        runner.deadline_s = time.monotonic() - other.waited_s + 600
        other.waited_s += 3600
        assert not runner._must_stop()


def test_who_comes_while_others_measure_waits_for_nobody_though_they_end_before_it_is_loaded(tmp_path: Path) -> None:
    a, b = (Turns(directory=tmp_path / "turns", of=tmp_path / name) for name in "ab")
    with a:
        with b:
            assert not a.take(lambda: True)
        assert a.take(lambda: False), "b died while it loaded"
        late = Turns(directory=tmp_path / "turns", of=tmp_path / "late")
    with late:  # after their end
        assert late.take(lambda: False)


def test_who_waits_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmbench.machine.turns._LACK_SAID_S", 0.3)
    told: list[str] = []
    with Turns(directory=tmp_path, of=tmp_path / "a", wait_s=1) as turns:
        turns.waits = told.append
        with pytest.raises(MeasurementError, match=r"1 of 2 members is ready\n.*parallel=2.*members=1"):
            turns.take(lambda: False)
        assert told == ["waits for its turn: 1 of 2 members is ready"]


def test_a_member_that_died_for_others_is_nobody_to_count(tmp_path: Path) -> None:
    with Turns(directory=tmp_path, of=tmp_path / "earlier"):
        pass
    with Turns(directory=tmp_path, of=tmp_path / "a") as turns:
        assert not turns.take(lambda: True)


def test_members_on_other_gpus_are_told_apart(tmp_path: Path) -> None:
    one, other = (Turns(directory=tmp_path, of=tmp_path / name) for name in "ab")
    with one, other:
        assert one.others("GPU-1") == 1, "it has not said yet"
        other.uses(["GPU-2"])
        assert (one.others("GPU-1"), one.others("GPU-2"), one.others()) == (0, 1, 1)


def test_who_is_restarted_alone_is_told_within_seconds_who_was_there(tmp_path: Path) -> None:
    """``a`` is killed before its first turn, ``b`` measures all and ends; nobody is left for ``a`` to wait for."""
    a, b = tmp_path / "a", tmp_path / "b"
    first = start(a, MANY)
    file = tmp_path / "turns" / "turns.json"
    wait_for(lambda: file.exists() and "a_" in file.read_text() and json.loads(file.read_text())["turn"] == 0, first)
    first.kill()
    first.join()
    second = start(b, 3, members=1)
    second.join()
    said: list[tuple[float, str]] = []
    began = time.monotonic()
    with Turns(directory=tmp_path / "turns", of=a, wait_s=60) as again:
        again.waits = lambda words: said.append((time.monotonic() - began, words))
        assert not again.take(lambda: bool(said))
        name = next(name for name in json.loads(file.read_text())["members"] if name.startswith("b_"))
        ((after_s, words),) = said
        assert words == f"waits for its turn: 1 of 2 members is ready; {name} ended after 1 turn"
        assert after_s < 10
        died = Turns(directory=tmp_path / "turns", of=tmp_path / "c", members=3)
        loads = Turns(directory=tmp_path / "turns", of=tmp_path / "d", members=3)
        other = Turns(directory=tmp_path / "turns", of=tmp_path / "e", members=4)
        with died:
            pass
        with loads, other, other._state() as state:
            assert other._unready(state["members"]) == [
                f"{name} ended after 1 turn", f"{died.name} ended before its first turn", f"{loads.name} loads",
            ]  # fmt: skip
            assert other._lacks, "three live of four"


def test_who_waits_for_one_that_loads_is_not_told_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmbench.machine.turns._LACK_SAID_S", 0.1)
    one, other = (Turns(directory=tmp_path, of=tmp_path / name, wait_s=0.6) for name in "ab")
    words = f"1 of 2 members is ready; {other.name} loads"
    with one, other, pytest.raises(MeasurementError, match=f"{words}\n.*See what became of"):
        one.take(lambda: False)
    assert capsys.readouterr().err == f"vlmbench: waits for its turn: {words}\n"


@pytest.mark.parametrize("jobs", [1, 3])
def test_in_an_uneven_grid_nobody_waits_for_members_that_do_not_come(tmp_path: Path, jobs: int) -> None:
    done = command_line(
        "-m", *SMALL, f"seed={','.join(map(str, range(jobs)))}", "hydra/launcher=local", "hydra.launcher.parallel=2",
        f"measurement.turns.directory={tmp_path / 'turns'}", f"output_dir={tmp_path / 'grid'}",
        "measurement.turns.wait_s=90", f"measurement.turns.runs={RUNS}",
    )  # fmt: skip
    assert done.status == 0, done.said
    count = "1 task takes" if jobs == 1 else "3 tasks take"
    assert f"warning: {count} turns by 2: one measures its last runs with fewer or none beside" in done.said
    folders = sorted(path.parent for path in (tmp_path / "grid").glob("*/records.jsonl"))
    assert len(folders) == jobs
    turns_in_order(*folders)

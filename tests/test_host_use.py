"""What the host gave a run, and how busy it is: the kernel's counters around planted work."""

from __future__ import annotations

import mmap
import time
from typing import Any

import pytest

from tests.test_runner import dataset, measure
from vlmbench.machine import host_use, processors
from vlmbench.machine.host_use import HostUse, busy_flags
from vlmbench.machine.load import Load, choose_threads, look
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.testing.planted import PlantedModel, Times, request

QUICK = Times(*[0.0] * 9)
NAMES = {
    "thread_cpu_ms", "thread_waited_ms", "switches_voluntary", "switches_involuntary", "page_faults_minor",
    "page_faults_major", "steal_ms", "processor",
}  # fmt: skip


def used(work: Any) -> dict[str, Any]:
    use = HostUse.begin()
    use.enter()
    work()
    use.leave()
    return use.columns()


def test_a_thread_that_sleeps_leaves_its_processor() -> None:
    found = used(lambda: [time.sleep(0.002) for _ in range(5)])
    assert found.keys() == NAMES
    assert found["switches_voluntary"] >= 5
    assert found["page_faults_major"] >= 0


def test_first_touches_of_memory_are_page_faults() -> None:
    pages = 500

    def touch() -> None:
        with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            for page in range(pages):
                memory[page * mmap.PAGESIZE] = 1

    assert used(touch)["page_faults_minor"] >= pages


def test_where_the_kernel_tells_nothing_values_are_absent_and_not_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(host_use, "_STAT", tmp_path / "none")
    monkeypatch.setattr(host_use, "_SCHEDSTAT", tmp_path / "none")
    monkeypatch.setattr(processors, "_STAT", tmp_path / "none")
    monkeypatch.setattr(host_use, "resource", None)
    found = used(lambda: None)
    assert found.pop("thread_cpu_ms") >= 0
    assert set(found.values()) == {None}
    assert busy_flags(found, 1.0) == []


def test_a_run_that_waited_for_a_processor_is_flagged() -> None:
    assert busy_flags({"thread_waited_ms": 5.0}, 100.0) == []
    assert busy_flags({"thread_waited_ms": 5.1}, 100.0) == ["busy_host"]


def test_steal_is_read_in_ms(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1 2 3 4 5 6 7 250 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    monkeypatch.setattr(host_use, "_STAT", stat)
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    assert host_use._steal_ms() == 2500


def test_every_row_carries_it_and_the_clock_starts_with_the_first_mark(tmp_path: Any) -> None:
    _, rows = measure(tmp_path, PlantedModel(QUICK), dataset(3))
    assert all(row.keys() >= NAMES for row in rows)
    assert all(row["T_residual"] >= 0 for row in rows if row["status"] == "ok" and row["mode"] == "instrumented")


def test_a_run_says_when_it_began_not_when_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100, 200))
    monkeypatch.setattr("vlmbench.runner.execution.unix_s", lambda: float(next(now)))
    model = PlantedModel(QUICK)
    outcome = complete(model, prepare(model, in_memory(request(2))), [TimelineProbe()], [])
    assert outcome.started_unix_s == 100


class TestLoad:
    def test_others_use_processors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 3})
        monkeypatch.setattr("os.getloadavg", lambda: (1.2, 0.0, 0.0))
        load = look(lambda _: [100.0, 50.0, 100.0, 100.0])
        assert load == Load(cores=2, busy=1.5, average_1m=1.2)
        assert load.crowded
        assert "others use 1.5 of 2 processors" in str(load.warning())

    def test_a_quiet_host_says_nothing(self) -> None:
        assert Load(cores=8, busy=0.4, average_1m=0.5).warning() is None
        assert Load(cores=8, busy=0.4, average_1m=9.0).warning() is not None

    @pytest.mark.parametrize(
        ("wanted", "busy", "earlier", "threads", "says"),
        [
            (None, 0.1, None, 4, ""),
            (4, 4.0, None, 4, ""),
            (None, 2.0, None, 2, "2 threads instead of 4"),
            (None, 4.0, None, 1, "1 thread instead of 4"),
            (None, 4.0, 4, 4, ""),
            (None, 0.0, 2, 2, "as in the sessions before"),
        ],
    )
    def test_threads_are_no_more_than_free_processors(
        self, wanted: int | None, busy: float, earlier: int | None, threads: int, says: str
    ) -> None:
        load = Load(cores=4, busy=busy, average_1m=None)
        chosen, why = choose_threads(wanted, default=4, load=load, earlier=earlier)
        assert chosen == threads
        assert (says in why) if says else not why

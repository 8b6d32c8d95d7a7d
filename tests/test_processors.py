"""Another processor before each request: drawn by request, free afterwards, refused where it cannot be."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig
from PIL import Image

from tests.command_line import command_line
from tests.test_runner import FAST, dataset, measure
from vlmbench.cli import tasks, validate
from vlmbench.errors import DeviceError
from vlmbench.machine.processors import Processors, _warn_of_the_others, processor
from vlmbench.testing.planted import PlantedModel

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads are moved on Linux")
several = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one processor"
)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Where threads are put, while they are."""
    found: list[set[int]] = []
    real = os.sched_setaffinity

    def put(pid: int, mask: set[int]) -> None:
        found.append(set(mask))
        real(pid, mask)

    monkeypatch.setattr(os, "sched_setaffinity", put)
    return found


@several
def test_each_request_has_its_processor_in_every_process(moved: list[set[int]]) -> None:
    allowed = os.sched_getaffinity(0)
    drawn = []
    for seed in (0, 0, 1):
        processors = Processors(on=True, seed=seed)
        moved.clear()
        for request in range(40):
            processors.take(f"s{request}", 0)
        assert moved[1::2] == [allowed] * 40, "set free at once"
        drawn.append(moved[::2])
    first, again, other = drawn
    assert first == again, "drawn by seed and request, not by who asks"
    assert first != other
    assert set(map(len, first)) == {1}
    assert set().union(*first) == allowed, "all have their part"


class Kernel:
    """What Linux does with the processors of a thread: those that it was told, of those that its cpuset has."""

    def __init__(self, cpuset: set[int]) -> None:
        self.cpuset, self.told = cpuset, set(range(64))

    def getaffinity(self, _: int) -> set[int]:
        return self.told & self.cpuset or set(self.cpuset)

    def setaffinity(self, _: int, mask: set[int]) -> None:
        if not mask & self.cpuset:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.told = set(mask)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel({0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_getaffinity", found.getaffinity, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", found.setaffinity, raising=False)
    return found


@pytest.mark.parametrize("less", [{0}, {1, 2}, {4, 5}])
def test_a_cpuset_that_is_narrowed_for_a_while_leaves_nothing_behind(kernel: Kernel, less: set[int]) -> None:
    """As other jobs come and go; once the thread is told less, the kernel gives it no more."""
    processors = Processors(on=True)
    processors.take("s0", 0)
    for _ in range(2):
        kernel.cpuset = less
        for request in range(3):
            processors.take(f"s{request}", 0)
            assert kernel.getaffinity(0) == less
        kernel.cpuset = {0, 1, 2, 3, 4, 5}
        assert kernel.getaffinity(0) >= {0, 1, 2, 3}
        kernel.cpuset = {0, 1, 2, 3}
        processors.take("s0", 0)
        assert kernel.getaffinity(0) == {0, 1, 2, 3}


def test_a_thread_that_is_told_others_meanwhile_keeps_those(kernel: Kernel) -> None:
    kernel.setaffinity(0, {1, 2})
    processors = Processors(on=True)
    for told in ({1, 2}, {2}, {0, 3}, {1}, {0, 1, 2, 3}):
        kernel.setaffinity(0, told)
        for request in range(3):
            processors.take(f"s{request}", 0)
            assert kernel.told == told


@several
def test_threads_that_are_started_may_run_everywhere() -> None:
    allowed, seen = os.sched_getaffinity(0), []
    Processors(on=True).take("s0", 0)
    thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    assert seen == [allowed]
    assert processor() in allowed


@several
def test_a_move_takes_place(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, real = os.sched_getaffinity(0), os.sched_setaffinity
    chosen, had = [], []

    def put(pid: int, mask: set[int]) -> None:
        real(pid, mask)
        if len(mask) == 1:
            chosen.extend(mask)
            had.append(processor())

    monkeypatch.setattr(os, "sched_setaffinity", put)
    for request in range(20):
        Processors(on=True).take(f"s{request}", 0)
    assert had == chosen
    assert len(Counter(chosen)) > 1
    assert os.sched_getaffinity(0) == allowed


@several
def test_bare_and_timed_run_share_it_and_rows_say_which(tmp_path: Path, moved: list[set[int]]) -> None:
    processors = Processors(on=True)
    moved.clear()
    _, rows = measure(tmp_path, PlantedModel(FAST), dataset(4), processors=processors)
    timed = [row for row in rows if row["status"] == "ok"]
    assert {row["mode"] for row in timed} >= {"bare", "instrumented"}
    assert len(moved) == 2 * len({(row["point_id"], row["sample_id"], row["repeat"]) for row in timed})
    assert all(row["processor"] in os.sched_getaffinity(0) for row in timed)


def test_it_is_off_unless_asked_for(tmp_path: Path, moved: list[set[int]]) -> None:
    measure(tmp_path, PlantedModel(FAST), dataset(2))
    assert moved == []


@linux
def test_one_processor_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(DeviceError, match="two processors to choose from"):
        Processors(on=True)


@several
def test_a_system_that_forbids_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seccomp profile, for instance."""

    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with pytest.raises(DeviceError, match=r"forbids it \(Operation not permitted\)\nleave it out"):
        Processors(on=True)


@linux
def test_the_python_api_refuses_it_before_a_directory_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmbench

    model, processor_ = vlmbench.load("tiny", device="cpu", threads=1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    image = Image.new("RGB", (56, 56), "grey")
    with pytest.raises(DeviceError, match="two processors"):
        vlmbench.measure(model, processor_, [(image, "?")], change_processor=True, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@linux
def test_a_prediction_needs_no_processors_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    done = command_line(
        "experiment=phase2", "sweep.axes.vision_tokens=[64]", "measurement.change_processor=true", "dry_run=true",
        f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.status == 0, done.said


def test_a_system_that_moves_no_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(DeviceError, match="Linux"):
        Processors(on=True)


@several
@pytest.mark.parametrize(
    ("instead", "arguments"),
    [
        ("measure phase1, phase2", ("experiment=first_steps",)),
        ("measure phase1, phase2", ("experiment=anatomy",)),
        ("sometimes", ("measurement.change_processor=sometimes",)),
        (
            "leave measurement.change_processor out, or leave runtime=endpoint out",
            ("experiment=phase1", "runtime=endpoint", "runtime.base_url=http://localhost:9/v1", "runtime.model=m"),
        ),
        (
            "leave measurement.change_processor out, or leave load=closed and runtime=endpoint out",
            (
                "experiment=phase1",
                "runtime=endpoint",
                "runtime.base_url=http://localhost:9/v1",
                "runtime.model=m",
                "load=closed",
            ),
        ),
    ],
)
def test_where_no_loop_measures_it_is_refused(tmp_path: Path, instead: str, arguments: tuple[str, ...]) -> None:
    done = command_line("measurement.change_processor=true", *arguments, f"output_dir={tmp_path / 'run'}")
    assert (done.status, "Traceback" in done.said) == (2, False), done.said
    assert len(done.own) <= 2
    assert instead in done.said
    assert not (tmp_path / "run" / "records.jsonl").exists()


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts it; nothing was said yet."""
    _warn_of_the_others.cache_clear()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")


@several
def test_one_of_several_processes_says_once_which_are_moved(one_of_two: None, caplog: pytest.LogCaptureFixture) -> None:
    Processors(on=False)
    assert caplog.messages == []
    Processors(on=True)
    Processors(on=True)
    (said,) = caplog.messages
    assert "of several processes of torchrun measurement.change_processor moves those that measure" in said


@several
def test_one_process_alone_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_the_others.cache_clear()
    monkeypatch.delenv("RANK", raising=False)
    Processors(on=True)
    assert caplog.messages == []


@several
@pytest.mark.parametrize(("more", "said"), [((), 1), (("dry_run=true",), 0)])
def test_the_command_says_so_before_a_model_is_loaded(
    compose: Callable[..., DictConfig],
    one_of_two: None,
    caplog: pytest.LogCaptureFixture,
    more: tuple[str, ...],
    said: int,
) -> None:
    config = compose("experiment=phase1", "measurement.change_processor=true", *more)
    tasks._check_engine(SimpleNamespace(settings=validate.validate(config)))  # type: ignore[arg-type]
    assert len(caplog.messages) == said


@several
def test_the_python_api_changes_it_and_says_what_of_several_processes(
    moved: list[set[int]], one_of_two: None, caplog: pytest.LogCaptureFixture
) -> None:
    import vlmbench

    model, processor_ = vlmbench.load("tiny", device="cpu", threads=1)
    image = Image.new("RGB", (56, 56), "grey")
    few: dict[str, Any] = {"output_tokens": 2, "stopping": {"min_samples": 3, "max_samples": 3}, "reference": False}
    run = vlmbench.measure(model, processor_, [(image, "What?")], change_processor=True, **few)
    assert len([mask for mask in moved if len(mask) == 1]) >= 3
    assert set(run.frame["processor"]) <= os.sched_getaffinity(0)
    assert [said.startswith("of several processes") for said in caplog.messages] == [True]

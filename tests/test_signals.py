"""A signal that asks to stop ends a command with 130 and a directory that can be continued, wherever it comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import forks
from vlmbench.records.lock import holder_of
from vlmbench.session.signals import heed, interrupt_on_signals, interrupted_in_words_of_others, stop_on_signal

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "experiment=smoke", "output.tokens=1", "measurement.image_size=[56,56]", "runtime.threads=1", "device_peaks=none",
    "dataset.num_samples=2", "measurement.warmup.max_runs=1", "progress=false", "probe=[timeline]",
)  # fmt: skip
# The command line, with a signal to itself at a place: before a function does its work, or after it.
DRIVER = """
import importlib, os, signal, sys
place, number, when, *sys.argv[1:] = sys.argv[1:]
signal.signal(int(number), signal.SIG_DFL)  # a test that runs under nohup ignores SIGHUP, and a child inherits that
module, _, name = place.rpartition(".")
module = importlib.import_module(module)
original = getattr(module, name)
def wrapped(*arguments, **named):
    if when == "before": os.kill(os.getpid(), int(number))
    found = original(*arguments, **named)
    if when == "after": os.kill(os.getpid(), int(number))
    return found
setattr(module, name, wrapped)
from vlmbench.cli.main import main
main()
"""


def ended(place: str, number: signal.Signals, when: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forks.run(place, str(int(number)), when, *arguments, cwd=ROOT, code=DRIVER)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("vlmbench.session.profile.load_model", signal.SIGTERM),
        ("vlmbench.session.profile.make_series", signal.SIGHUP),
        ("vlmbench.report.write_report", signal.SIGTERM),
        ("vlmbench.report.write_report", signal.SIGUSR1),
    ],
)
def test_a_command_that_is_told_to_stop_can_be_continued(tmp_path: Path, place: str, number: signal.Signals) -> None:
    done = ended(place, number, "before", *SMALL, f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 130, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "run the same command again to continue" in done.stderr
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert (outcome["state"], outcome["exit_status"], outcome["cause"]) == ("interrupted", 130, "stopped")


def test_a_command_that_is_told_to_stop_as_it_begins_says_so() -> None:
    """Killed at random: between the first handler and the first job."""
    done = ended("vlmbench.cli.main.conf_dir", signal.SIGHUP, "before", *SMALL)
    assert (done.returncode, done.stderr) == (130, "vlmbench: interrupted before anything was measured\n")


# ``python -m vlmbench`` with a signal to itself as it begins to import a module.
IMPORTING = """
import os, runpy, signal, sys
name, number, *sys.argv[1:] = sys.argv[1:]
class Stop:
    def find_spec(self, found, *_):
        if found == name:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(number))
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Stop())
runpy.run_module("vlmbench", run_name="__main__", alter_sys=True)
"""


def in_import(
    of: str, number: signal.Signals, *arguments: str, within: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTING, of, str(int(number)), *arguments],
        capture_output=True, text=True, check=False, cwd=within,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("of", ["vlmbench.cli.main", "hydra", "omegaconf"])
def test_the_import_of_the_command_line_may_be_interrupted(of: str, number: signal.Signals) -> None:
    done = in_import(of, number)
    assert (done.returncode, done.stderr) == (130, "vlmbench: interrupted before anything was measured\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("of", ["numpy.dtypes", "torch._C", "torch._dynamo", "transformers.generation"])
def test_any_import_of_a_job_may_be_interrupted(tmp_path: Path, of: str, number: signal.Signals) -> None:
    """Raised there, an interruption was swallowed, ended in a traceback of numpy, or in C++ the process (SIGABRT)."""
    done = in_import(of, number, *SMALL, "output_dir=run", within=tmp_path)
    own = [line for line in done.stderr.splitlines() if "warning: the host is busy" not in line]
    assert (done.returncode, own) == (130, ["vlmbench: interrupted; run the same command again to continue"])
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert (outcome["state"], outcome["exit_status"], outcome["cause"]) == ("interrupted", 130, "stopped")
    assert holder_of(tmp_path / "run") is None, "without kernel locks another host would be refused"


def test_an_import_of_a_multirun_may_be_interrupted(tmp_path: Path) -> None:
    done = in_import("torch._C", signal.SIGTERM, "-m", *SMALL, "seed=1,2", "output_dir=m", within=tmp_path)
    own = [line for line in done.stderr.splitlines() if "warning: the host is busy" not in line]
    assert (done.returncode, len(own)) == (130, 3)
    assert own[0] == "vlmbench: interrupted; run the same command again to continue"
    assert own[1].startswith("vlmbench: the sweep ends here, 0 of 2 jobs ok, not begun: #1 experiment=smoke ")
    assert own[2] == "run the same command again to continue"


def test_an_import_while_a_run_is_under_way_is_waited_for(tmp_path: Path) -> None:
    """A figure, a report: what was begun is ended as anywhere else."""
    done = in_import("matplotlib.figure", signal.SIGTERM, *SMALL, "output_dir=run", within=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["state"] == "interrupted"


@pytest.mark.parametrize("ends", ["end_process(130)", "sys.exit(130)"])
def test_the_exit_status_is_the_one_asked_for(tmp_path: Path, ends: str) -> None:
    """Python ends ``python -m`` by SIGINT where a text that it executed was interrupted; if it does so no more, the
    second case fails, and ``end_process`` can go.
    """
    (tmp_path / "marked.py").write_text(
        "import sys\nfrom vlmbench.session.signals import end_process\n"
        f"try: exec('raise KeyboardInterrupt')\nexcept KeyboardInterrupt: {ends}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "marked"], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130 if ends.startswith("end_process") else -signal.SIGINT, "")


def test_an_interruption_that_is_swallowed_comes_again_and_one_that_is_cleaned_up_after_does_not() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    cleaned: list[bool] = []

    def sleeps() -> None:
        try:
            time.sleep(60)
        finally:
            time.sleep(0.3)
            cleaned.append(True)

    timer = signal.getitimer(signal.ITIMER_REAL)
    try:
        interrupt_on_signals()
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            sleeps()
        heed()
        time.sleep(0.2)
        assert signal.getsignal(signal.SIGALRM) is before[signal.SIGALRM]
        assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (timer[0] > 0), "the caller's alarm"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert cleaned == [True]


def test_a_multirun_that_is_told_to_stop_between_two_jobs_ends(tmp_path: Path) -> None:
    place = "vlmbench.session.profile.profile"
    done = ended(
        place, signal.SIGTERM, "after", "-m", *SMALL, "report=none", "seed=1,2", f"output_dir={tmp_path / 'm'}"
    )
    assert done.returncode == 130, done.stderr[-3000:]
    assert "to continue" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "m").glob("*/records.jsonl"))) == 1, "the second job was not begun"


def test_what_the_caller_ignores_stays_ignored() -> None:
    """``nohup``: the hang-up of a terminal is no reason to stop."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interrupt_on_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop == ["SIGTERM"], "while it measures, a run finishes what it is at"
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        heed()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_error_that_hides_an_interruption_is_one_and_another_is_not() -> None:
    """As OmegaConf's clean-up does when a signal comes in the middle of it."""

    def clean_up(error: BaseException) -> None:
        with interrupted_in_words_of_others():
            try:
                raise error
            finally:
                raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")

    with pytest.raises(KeyboardInterrupt):
        clean_up(KeyboardInterrupt())
    with pytest.raises(AttributeError):
        clean_up(ValueError())


def test_an_interruption_in_a_finalizer_comes_again_and_shows_no_traceback() -> None:
    code = """
import os, signal, time
from vlmbench.records.lock import holder_of
from vlmbench.session.signals import heed, interrupt_on_signals
class Left:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
class Fails:
    def __del__(self):
        raise ValueError("of another")
interrupt_on_signals()
try:
    Left()
    Fails()
    time.sleep(60)
except KeyboardInterrupt:
    heed()
    print("heeded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "heeded\n")
    assert "KeyboardInterrupt" not in done.stderr
    assert "ValueError: of another" in done.stderr, "other errors are shown as before"

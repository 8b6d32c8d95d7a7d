"""Whole runs against the replay server by the command line: rows, summary, words, continuing, refusals; no torch."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vlmbench.testing.replay import ReplayServer

_KEY = "planted-key-that-must-not-be-stored"


@pytest.fixture(scope="module")
def server() -> Iterator[ReplayServer]:
    with ReplayServer(dialect="vllm", api_key=_KEY, slots=4) as running:
        yield running


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``torch`` cannot be imported."""
    folder = tmp_path_factory.mktemp("no_torch")
    (folder / "torch.py").write_text("raise ImportError('an endpoint run must not import torch')\n")
    return folder


def _command(server: ReplayServer, model: str, directory: Path, *more: str) -> list[str]:
    settings = [
        "experiment=phase1",
        "runtime=endpoint",
        f"runtime.base_url={server.base_url}",
        f"runtime.model={model}",
        "runtime.api_key_env=PLANTED_KEY",
        "runtime.proxy=none",
        "figures.formats=[png]",
        "figures.dpi=72",
        f"output_dir={directory}",
        *more,
    ]
    return [sys.executable, "-m", "vlmbench", *settings]


def _environment(without_torch: Path) -> dict[str, str]:
    paths = [str(without_torch), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PLANTED_KEY": _KEY}


def _run(command: list[str], without_torch: Path) -> subprocess.CompletedProcess[str]:
    environment = _environment(without_torch)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]


def _measured(directory: Path, point: str = "dataset") -> list[dict[str, Any]]:
    rows = _rows(directory)
    return [row for row in rows if row["status"] == "ok" and row["point_id"].partition(",")[0] == point]


def test_a_closed_loop_without_torch(server: ReplayServer, without_torch: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = _command(
        server, "counted", directory, "load=closed", "load.concurrency=2", "dataset.num_samples=6",
        "measurement.reference=false", "runtime.pairs=1", "load.ttft_limit_ms=100000",
    )  # fmt: skip
    done = _run(command, without_torch)
    assert done.returncode == 0, done.stderr
    rows = _measured(directory)
    assert len({row["sample_id"] for row in rows}) == len(rows) == 6
    for row in rows:
        assert "T_total" not in row, "what a server does not show is absent"
        assert "T_vision_encoder" not in row
        assert row["num_output_tokens"] == 16
        assert row["num_vision_tokens"] == 100
        assert len(row["ITL"]) == 15
        assert row["server_time_to_first_token_ms"] == pytest.approx(40)
    assert {row["status"] for row in _rows(directory)} == {"ok", "warmup"}
    summary = json.loads((directory / "summary.json").read_text())
    (point,) = summary["serving"]["points"]
    assert (point["requests"], point["errors"], point["good_share"]) == (6, 0, 1.0)
    assert [pair["contrast"] for pair in summary["serving"]["pairs"]] == [
        "image_text", "same_image", "answer_length", "image_size",
    ]  # fmt: skip
    assert summary["components"] == []
    assert "absent here, not zero" in done.stdout
    loads = json.loads((directory / "loads.json").read_text())
    assert loads["loads"][0]["server"]["requests"] == sum(loads["loads"][0]["sent"].values())
    assert (directory / "phase1_dataset_profiling.json").is_file()
    for path in directory.rglob("*"):
        if path.is_file():
            assert _KEY.encode() not in path.read_bytes(), f"the key stands in {path.name}"

    again = _run(command, without_torch)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stderr
    assert len(_measured(directory)) == 6
    other = _run([*command, "load.concurrency=3"], without_torch)
    assert other.returncode == 2
    assert "load.concurrency: 2 → 3" in other.stderr


def test_an_open_loop_with_rates_as_an_axis(server: ReplayServer, without_torch: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = _command(
        server, "steady,tokens=4", directory, "load=open", "sweep.axes.load.rate_per_s=[20,40.5]",
        "load.arrivals=constant", "dataset.num_samples=8",
    )  # fmt: skip
    # a comma in the name is a choice of Hydra's; quoted it is one name
    command = [f"runtime.model='{word[14:]}'" if word.startswith("runtime.model=") else word for word in command]
    done = _run(command, without_torch)
    assert done.returncode == 2, "the server lists no such model"
    assert "has no model 'steady,tokens=4'" in done.stderr
    command = [word if not word.startswith("runtime.model=") else "runtime.model=steady" for word in command]
    done = _run(command, without_torch)
    assert done.returncode == 0, done.stderr
    rates = {row["axis_load.rate_per_s"] for row in _measured(directory)}
    assert rates == {20, 40.5}
    for rate in rates:
        due = sorted(row["due_s"] for row in _measured(directory) if row["axis_load.rate_per_s"] == rate)
        assert [b - a for a, b in itertools.pairwise(due)] == pytest.approx([1 / rate] * 7, abs=1e-6)
    assert (directory / "figures" / "ttft_throughput.png").is_file()
    assert len(_measured(directory, "reference")) == 16


def test_a_run_that_is_stopped_goes_on(server: ReplayServer, without_torch: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = _command(
        server, "counted", directory, "dataset.num_samples=12", "measurement.reference=false", "load.warmup_requests=0"
    )
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background hand on an ignored one
    with subprocess.Popen(
        command, env=_environment(without_torch), stderr=subprocess.PIPE, text=True,
        preexec_fn=heed,  # noqa: PLW1509
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 300
        records = directory / "records.jsonl"
        while time.monotonic() < deadline and not (records.is_file() and records.read_text().count("\n") >= 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "to continue" in said or "again to continue" in said
    kept = len(_measured(directory))
    assert 3 <= kept < 12
    assert _run(command, without_torch).returncode == 0
    assert len(_measured(directory)) == 12
    assert {row["session"] for row in _measured(directory)} == {0, 1}


def test_failures_are_rows_and_the_exit_says_so(without_torch: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with ReplayServer(api_key=_KEY, fail_from=4) as failing:
        command = _command(
            failing, "steady", directory, "dataset.num_samples=6", "measurement.reference=false",
            "load.warmup_requests=0",
        )  # fmt: skip
        done = _run(command, without_torch)
    assert done.returncode == 1
    failed = [row for row in _rows(directory) if row["status"] == "error"]
    assert len(_measured(directory)) + len(failed) == 6
    assert {row["error_class"] for row in failed} == {"http"}
    assert {row["http_status"] for row in failed} == {503}
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["serving"]["points"][0]["errors_by_class"] == {"http": len(failed)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["runtime.base_url=http://127.0.0.1:1/v1"], "cannot connect to 127.0.0.1:1"),
        (["runtime.api_key_env=ABSENT_KEY"], "'ABSENT_KEY' (runtime.api_key_env) is not set"),
        (["runtime.base_url=null"], "'runtime.base_url' must be given"),
        (["load=open", "load.rate_per_s=0"], "'load.rate_per_s' must be above 0"),
        (["load=closed", "load.rate_per_s=4"], "'load.rate_per_s' goes with load=open (got load=closed)"),
        (["load=open", "load.concurrency=4"], "'load.concurrency' goes with load=closed (got load=open)"),
        (["load=open", "load.trace_file=x"], "'load.trace_file' goes with load.arrivals=trace (got poisson)"),
        (["sweep.axes.load.concurrency=[1,2]"], "axis 'load.concurrency' is one of load=closed"),
        (["sweep=batch_size"], "axis 'batch_size' needs the model in this process"),
        (["dry_run=true"], "'dry_run' must be false with runtime=endpoint"),
    ],
)
def test_refusals(
    server: ReplayServer,
    vlmbench_here: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("PLANTED_KEY", _KEY)
    done = vlmbench_here(*_command(server, "counted", tmp_path / "run", *more)[3:])
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert not (tmp_path / "run" / "records.jsonl").exists()


def test_a_load_needs_a_server(without_torch: Path, tmp_path: Path) -> None:
    done = _run([sys.executable, "-m", "vlmbench", "load=closed", f"output_dir={tmp_path / 'run'}"], without_torch)
    assert done.returncode == 2
    assert "load=closed needs a server" in done.stderr

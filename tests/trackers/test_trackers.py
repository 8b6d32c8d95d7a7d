"""Trackers: real runs of the tiny model into real stores; what fails costs no measurement."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests.page import published
from vlmbench.cli import validate
from vlmbench.errors import ConfigError
from vlmbench.records.outcome import Cause, OutcomeFile
from vlmbench.session.job import Job
from vlmbench.session.tracking import tracked
from vlmbench.trackers.library import library
from vlmbench.trackers.mlflow import MlflowTracker
from vlmbench.trackers.result import TRACKED_NAME, earlier, headline_numbers, keep, read_result
from vlmbench.trackers.tensorboard import TensorboardTracker
from vlmbench.trackers.wandb import WandbTracker

RESULTS = Path(__file__).parents[2] / "docs" / "results"
Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    "experiment=smoke",
    "report=phase1",
    "output.tokens=2",
    "device_peaks=none",
    "progress=false",
    "figures.formats=[png]",
    "figures.dpi=72",
    "output_dir=out",
)


def installed(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_numbers_are_those_with_an_interval_and_their_n() -> None:
    summary = {
        "headline": {"vision": {"slope_ms": 2.0, "slope_low": 1.0, "slope_high": 3.0, "r2": 0.9, "rows": 7}},
        "distribution": {
            "T_total": {"workload": {"n": 20, "p50": {"value": 5.0, "low": 4.0, "high": 6.0}, "max": 9.0,
                                     "p99": {"value": None, "low": None, "high": None, "note": "n too small"}}}
        },
        "components": [{"component": "T_setup", "share": 0.5, "share_low": 0.4, "share_high": 0.6, "mean": 1.0}],
        "roofline": [{"value": 1.0, "low": 1.0, "high": 1.0}],
    }  # fmt: skip
    assert headline_numbers(summary) == {
        "vision/slope_ms": 2.0, "vision/slope_ms_low": 1.0, "vision/slope_ms_high": 3.0, "vision/rows": 7.0,
        "T_total/workload/p50": 5.0, "T_total/workload/p50_low": 4.0, "T_total/workload/p50_high": 6.0,
        "T_total/workload/n": 20.0,
        "components/T_setup/share": 0.5, "components/T_setup/share_low": 0.4, "components/T_setup/share_high": 0.6,
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("summary.json.gz")), ids=lambda p: p.parent.name)
def test_every_published_summary_has_numbers_with_both_ends(path: Path) -> None:
    summary = json.loads(gzip.decompress(path.read_bytes()))
    numbers = headline_numbers(summary)
    if "experiment_name" not in summary:
        pytest.skip("not the summary of an experiment")
    lows = [name.removesuffix("_low") for name in numbers if name.endswith("_low")]
    assert lows
    assert all(numbers[f"{name}_low"] <= numbers[name] <= numbers[f"{name}_high"] for name in lows if name in numbers)


def test_a_result_has_facts_files_and_no_path_of_this_machine(tmp_path: Path) -> None:
    run = published.unpack("h200_llava_eager/phase1", tmp_path / "phase1")
    shutil.copytree(RESULTS / "h200_llava_eager" / "phase1" / "figures", run / "figures")
    result = read_result(run)
    assert result.name == "phase1_dataset_profiling llava_1_5_7b phase1"
    assert result.facts["device.name"] == "NVIDIA H200"
    assert result.pictures
    assert {"summary.json", "provenance.json"} <= {path.name for path in result.files}
    assert str(tmp_path) not in json.dumps([dict(result.facts), dict(result.tags)])


def test_the_name_of_a_run_is_kept_for_each_tracker(tmp_path: Path) -> None:
    assert earlier(tmp_path, "mlflow") is None
    keep(tmp_path, "mlflow", "abc")
    keep(tmp_path, "wandb", "def")
    assert (earlier(tmp_path, "mlflow"), earlier(tmp_path, "wandb")) == ("abc", "def")


def test_a_library_that_is_absent_is_named_with_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"tracker=x needs a package .*\npip install y, or leave tracker=x out"):
        library("no_such_module_here", tracker="x", package="y")


def test_wandb_takes_two_modes() -> None:
    with pytest.raises(ValueError, match=r"'mode' must be one of offline, online \(got 'on'\)"):
        WandbTracker(mode="on")


@installed("mlflow", "sqlalchemy", "alembic")
def test_a_store_that_fails_costs_nothing_and_the_same_command_gives_it_the_run_later(
    vlmbench_forked: Run, tmp_path: Path
) -> None:
    """First a server that is not there, then a local file, twice: one run of MLflow, and what was measured is kept."""
    absent = "tracker.uri=http://name:hidden-word@127.0.0.1:9"
    failed = vlmbench_forked(*SMALL, "tracker=mlflow", absent, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert failed.returncode == 0, failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if "is not in mlflow" in line]
    assert "what was measured is kept" in line
    assert "hidden-word" not in failed.stderr
    assert "hidden-word" not in (tmp_path / "out" / "provenance.json").read_text()
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out" / TRACKED_NAME).exists()
    rows = (tmp_path / "out" / "records.jsonl").read_bytes()

    for _ in range(2):  # which tracker there is does not change what is measured: the run is continued, and done
        done = vlmbench_forked(*SMALL, "tracker=mlflow")
        assert done.returncode == 0, done.stderr
        assert "out is in mlflow: sqlite:///mlflow.db, experiment vlmbench, run " in done.stderr
        assert "alembic" not in done.stderr
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == rows

    code = (
        "import json\nfrom mlflow.tracking import MlflowClient\nc = MlflowClient('sqlite:///mlflow.db')\n"
        "found = c.search_runs([c.get_experiment_by_name('vlmbench').experiment_id])\n"
        "r = found[0]\nprint(json.dumps([len(found), r.data.metrics, r.data.params, r.data.tags, r.info.status,"
        " [f.path for folder in ('', 'figures', 'tables') for f in c.list_artifacts(r.info.run_id, folder)]]))"
    )
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    count, metrics, params, tags, status, artifacts = json.loads(asked.stdout.splitlines()[-1])
    assert (count, status) == (1, "FINISHED")
    assert metrics == pytest.approx(headline_numbers(json.loads((tmp_path / "out" / "summary.json").read_text())))
    assert params["model.name"] == "tiny"
    assert tags["vlmbench.exit_status"] == "0"
    assert {"report.html", "figures/components_bars.png"} <= set(artifacts)
    assert any(name.startswith("tables/") for name in artifacts)
    assert "hidden-word" not in asked.stdout


@installed("tensorboard")
def test_a_run_is_an_event_file_of_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = read_result(published.unpack("archive/h200_llava_eager/phase2", tmp_path / "phase2"))
    done = TensorboardTracker(folder=str(tmp_path)).track(result, None)
    events = EventAccumulator(done.where)
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(result.numbers)
    slope = events.Scalars("vision/slope_ms")[-1].value
    assert slope == pytest.approx(result.numbers["vision/slope_ms"])
    assert len(events.Tags()["images"]) == len(result.pictures)
    assert "provenance/text_summary" in events.Tags()["tensors"]


@installed("tensorboard")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_study_is_tracked_part_by_part_unless_it_was_stopped(
    compose: Callable[..., DictConfig], tmp_path: Path, stopped: bool
) -> None:
    """A study whose parts lie there already; with the exit status that it ended with."""
    study = tmp_path / "study"
    for name in ("phase2", "phase3"):
        published.unpack(f"archive/h200_llava_eager/{name}", study / name)
    outcome = OutcomeFile(study)
    job = Job(
        settings=validate.validate(compose("experiment=all")), config={}, overrides=[], directory=study, outcome=outcome,
        build=lambda key: TensorboardTracker(folder=str(tmp_path / "events")), part=lambda *_: pytest.fail("no part is made"),
        write_composed=lambda: None,
    )  # fmt: skip

    def measure(job: Job) -> int:
        outcome.now = replace(outcome.now, cause=Cause.STOPPED if stopped else None)
        return 130 if stopped else 1

    assert tracked(job, measure) == (130 if stopped else 1)
    events = {path.parent.name for path in tmp_path.rglob("events.out.*")}
    phases = {"phase2_scaling_llava_1_5_7b_phase2", "exp4b_language_tokens_llava_1_5_7b_phase3"}
    assert events == (set() if stopped else phases | {"run_study"})
    assert (earlier(study / "phase2", "tensorboard") is None) == stopped


@installed("wandb")
def test_a_run_is_written_offline_by_wandb(tmp_path: Path) -> None:
    run = published.unpack("archive/h200_gemma3_eager/phase1", tmp_path / "run")
    code = (
        "from pathlib import Path\nfrom vlmbench.trackers.result import read_result\n"
        "from vlmbench.trackers.wandb import WandbTracker\nfrom dataclasses import replace\n"
        f"result = replace(read_result(Path({str(run)!r})), directory=Path('.'))\n"
        "print(WandbTracker().track(result, None).where)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    (stored,) = tmp_path.rglob("run-*.wandb")
    assert b"j\x08vlmbench" in stored.read_bytes(), "the field of the host's name"
    assert not list(tmp_path.rglob("requirements.txt"))


def test_a_tracker_without_its_library_is_refused_before_anything_is_measured(vlmbench: Run, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"  # a package of that name which cannot be imported, first on the path
    for name in ("mlflow", "tensorboard", "wandb"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "__init__.py").write_text("raise ImportError('hidden')")
    path = os.pathsep.join([str(hidden), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in ("mlflow", "tensorboard", "wandb"):
        refused = vlmbench(*SMALL, f"tracker={name}", PYTHONPATH=path)
        assert refused.returncode == 2, refused.stderr
        assert f"tracker={name} needs a package that is not installed here (hidden)" in refused.stderr
        assert not (tmp_path / "out" / "records.jsonl").exists()


def test_mlflow_takes_its_own_variable_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert MlflowTracker()._uri == "http://127.0.0.1:1"
    assert MlflowTracker(uri="file:x")._uri == "file:x"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MlflowTracker()._uri == "sqlite:///mlflow.db"

"""Searches: what a job is worth to a sweeper, which trial is best, and real searches of Optuna through each launcher."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.command_line import command_line
from vlmbench.cli.run_names import run_name
from vlmbench.cli.trials import show_trials
from vlmbench.cluster.trials import begin, trials
from vlmbench.errors import MeasurementError
from vlmbench.records.objective import ENTRIES, Objective, check_names, keep, kept, objectives
from vlmbench.records.outcome import OutcomeFile, State

SUMMARY: dict[str, Any] = {
    "distribution": {"T_request": {"workload": {"n": 100, "effective_n": 40.5, "p95": {"value": 12.5, "low": 11.0, "high": 14.0}}}},
    "tokens": {"num_vision_tokens": {"median": 576.0, "n": 100}},
    "headline": {"vision": {"slope_ms": 0.02}},
    "energy": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("T_request.p95", (12.5, 11.0, 14.0, 100, 40.5)),
        ("distribution.T_request.workload.p95", (12.5, 11.0, 14.0, 100, 40.5)),
        ("num_vision_tokens", (576.0, None, None, 100, None)),
        ("headline.vision.slope_ms", (0.02, None, None, None, None)),
    ],
)
def test_an_objective_is_a_value_of_the_summary_with_its_interval(
    tmp_path: Path, path: str, found: tuple[Any, ...]
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (one,) = objectives(tmp_path, [path])
    assert (one.value, one.low, one.high, one.n, one.effective_n) == found
    keep(tmp_path, [one])
    assert kept(tmp_path) == [one]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("T_request.p96", "is not in summary.json: there is no 'p96'\nThere is p95"),
        ("distribution.T_request.workload.p59", "there is no 'p59'\nThere is p95"),
        ("energy", "has no value: None is no number"),
    ],
)
def test_what_is_no_value_fails_the_trial(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    with pytest.raises(MeasurementError) as error:
        objectives(tmp_path, [path])
    assert message in str(error.value)


def test_a_percentile_of_too_few_requests_says_how_many_it_needs(tmp_path: Path) -> None:
    entry = {"value": None, "note": "n too small: 8 of 72"}
    summary = {"distribution": {"T_request": {"workload": {"n": 8, "p95": entry}}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(MeasurementError, match="no value: n too small: 8 of 72"):
        objectives(tmp_path, ["T_request.p95"])


def test_the_same_settings_are_the_same_directory_of_a_search_whatever_their_number() -> None:
    search = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    first = run_name(0, "phase1", search, "output.tokens=8,seed=1,output_dir=a")
    assert first == run_name(7, "phase1", search, "seed=1,output_dir=b,output.tokens=8")
    assert first != run_name(0, "phase1", search, "output.tokens=9,seed=1")
    assert run_name(3, "phase1", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "seed=1") == "3_phase1"


def _made(sweep_dir: Path, name: str, set_to: list[str], *values: tuple[float, float, float]) -> None:
    directory = sweep_dir / name
    outcome = OutcomeFile(directory)
    outcome.begin(points_total=1)
    (directory / ".hydra").mkdir()
    (directory / ".hydra" / "overrides.yaml").write_text("\n".join(f"- {one}" for one in set_to))
    if values:
        keep(directory, [Objective(name=str(i), value=v, low=a, high=b) for i, (v, a, b) in enumerate(values)])
        outcome.end(State.DONE, exit_status=0)
    else:
        outcome.end(State.FAILED, exit_status=1, reason="out of memory\nuse less")


def test_the_best_trial_and_those_that_cannot_be_told_from_it(tmp_path: Path) -> None:
    begin(tmp_path, ["T_request.p95"], ["minimize"])
    _made(tmp_path, "a", ["seed=1", "x=1"], (5.0, 4.0, 6.0))
    _made(tmp_path, "b", ["seed=1", "x=2"], (5.5, 5.0, 6.2))
    _made(tmp_path, "c", ["seed=1", "x=3"], (9.0, 8.0, 9.5))
    _made(tmp_path, "d", ["seed=1", "x=4"])
    found = trials(tmp_path)
    assert found is not None
    assert [(one.parameters, one.standing, one.reason) for one in found[0]] == [
        ({"x": "1"}, "best", ""),
        ({"x": "2"}, "not told from the best", ""),
        ({"x": "3"}, "", ""),
        ({"x": "4"}, "", "out of memory"),
    ]


def test_the_front_of_two_objectives(tmp_path: Path) -> None:
    begin(tmp_path, ["T_request.p95", "num_vision_tokens"], ["minimize", "maximize"])
    for name, ms, tokens in (("a", 5, 100), ("b", 9, 200), ("c", 9, 150)):
        _made(tmp_path, name, [f"x={name}"], (ms, ms, ms), (tokens, tokens, tokens))
    found = trials(tmp_path)
    assert found is not None
    assert [one.standing for one in found[0]] == ["front", "front", ""]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_of_trials_shows_all_that_was_set_however_long(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cut what was set at the width of the terminal, down to nothing at 80 columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    begin(tmp_path, ["T_request.p95"], ["minimize"])
    set_to = [
        [f"runtime.cache_implementation=static{n}", f"measurement.image_size=[{300 + n},{300 + n}]", f"seed={n}",
         f"intervention.keep=0.{n}", f"output.tokens={n}", "experiment=phase1", f"model={'a_name' * 8}{n}"]
        for n in range(3)
    ]  # fmt: skip
    for n, given in enumerate(set_to[:2]):
        _made(tmp_path, str(n), given, (5000.0 + n, 4000.0, 6000.0))
    _made(tmp_path, "2", set_to[2])
    assert show_trials(tmp_path)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "Trials [95 % interval]; settings that all share are left out"
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)
    start, end = (next(line for line in lines if "minimize" in line).index(word) for word in ("set", "(minimize)"))
    shown = "".join(line[start:end].split("   ")[0].replace(" ", "") for line in lines)
    for given in set_to:
        assert all(one in shown for one in given if not one.startswith("experiment="))
    assert "4,000–6,000" in "".join(lines)
    assert all(word in " ".join(lines) for word in ("failed:", "out of", "memory"))


needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="Optuna's sweeper is not installed (the extra 'search')"
)


@pytest.mark.skipif(importlib.util.find_spec("optuna") is not None, reason="it is installed")
def test_what_is_not_installed_is_said_in_two_lines() -> None:
    done = command_line("-m", "hydra/sweeper=optuna", "objective=T_request.p50", "seed=1,2")
    assert done.status == 2
    assert done.own == [
        "vlmbench: hydra/sweeper=optuna is not installed",
        "Install it with pip install 'vlmbench-latency[search]'.",
    ]


@needs_optuna
def test_a_search_without_an_objective_is_refused(tmp_path: Path) -> None:
    done = _searched(tmp_path / "s", "objective=null")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2].endswith("a search needs to be told what to look for: objective is null")
    assert not (tmp_path / "s").exists()


def test_too_few_requests_for_the_percentile_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    done = command_line("dataset.num_samples=8", "objective=T_request.p95", f"output_dir={tmp_path / 'a'}")
    assert done.status == 2
    assert done.own[0] == "vlmbench: the objective 'T_request.p95' needs 72 requests, and dataset.num_samples is 8"
    assert len(done.own) == 2


@pytest.mark.parametrize(
    ("experiment", "path", "there"),
    [
        ("phase1", "nope", "T_request.p50"),
        ("phase1", "T_request.p999", "p99, p95, p90"),
        ("phase1", "T_request", "p50"),
        ("phase1", "num_vision_tokens.p50", "median"),
        ("phase2", "headlines", "headline"),
        ("interventions", "distribution.T_total.workload.p50", "interventions"),
    ],
)
def test_what_no_summary_has_is_refused(experiment: str, path: str, there: str) -> None:
    with pytest.raises(ValueError, match=f"'{path}' is not in the summary of {experiment}: .*{there}"):
        check_names(path, experiment)
    check_names(path, "none")


def test_it_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    done = command_line("experiment=phase1", "objective=[T_request.p50,nope]", f"output_dir={tmp_path / 'a'}")
    assert (done.status, len(done.own)) == (2, 1)
    assert "'nope' is not in the summary of phase1: no 'nope' (there is T_request.p50, " in done.own[0]
    assert not (tmp_path / "a" / "provenance.json").exists()


def test_the_entries_that_are_known_before_a_run_are_those_of_summaries() -> None:
    """No published summary has another."""
    for file in (Path(__file__).parents[2] / "docs" / "results").rglob("summary.json.gz"):
        summary = json.loads(gzip.decompress(file.read_bytes()))
        report = (
            file.parent.name if file.parent.name in ENTRIES else "interventions" if "interventions" in summary else ""
        )
        if not report:  # a group of runs, or a folder named otherwise
            continue
        known = ENTRIES[report]
        assert set(summary) - {"schema_version", "experiment_name"} <= set(known)
        for time, groups in (summary.get("distribution") or {}).items():
            for group, entry in groups.items():
                assert set(entry) == set(known["distribution"][time][group])
        if "tokens" in summary:
            assert set(summary["tokens"]) == set(known["tokens"])


@needs_optuna
@pytest.mark.slow
def test_a_search_finds_the_best_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """In this process, one trial after the other; the same command measures nothing that is done."""
    first = _searched(tmp_path / "s", "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    runs = {path.parent.name: path.read_bytes() for path in (tmp_path / "s").glob("*/records.jsonl")}
    again = _searched(tmp_path / "s", "hydra.sweeper.n_trials=3")
    assert again.returncode == 0, again.stderr
    after = {path.parent.name: path.read_bytes() for path in (tmp_path / "s").glob("*/records.jsonl")}
    assert runs.items() <= after.items()
    assert again.stderr.count("measured already: ") >= len(runs)
    found = json.loads((tmp_path / "s" / "trials.json").read_text())
    best = [one for one in found["trials"] if one["standing"] == "best"]
    assert len(best) == 1
    assert best[0]["objectives"][0]["value"] == min(one["objectives"][0]["value"] for one in found["trials"])
    assert "| 0 | output.tokens=" in (tmp_path / "s" / "trials.md").read_text()
    assert "Trials [95 % interval]" in again.stdout


@needs_optuna
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "submitit_local"])
def test_a_search_of_two_objectives_through_processes(tmp_path: Path, launcher: str) -> None:
    """Two trials at once, of the same settings perhaps: measured once."""
    done = _searched(
        tmp_path / "s",
        f"hydra/launcher={launcher}",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.direction=[minimize,maximize]",
        "objective=[T_request.p50,num_output_tokens]",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s" / "trials.json").read_text())
    assert {one["state"] for one in found["trials"]} == {"done"}
    assert all(len(one["objectives"]) == 2 for one in found["trials"])
    assert "Number of Pareto solutions" in done.stdout


@needs_optuna
@pytest.mark.slow
def test_a_failed_job_is_a_failed_trial_and_never_a_value(tmp_path: Path) -> None:
    done = _searched(tmp_path / "s", "hydra.sweeper.n_trials=1", "hydra.sweeper.max_failure_rate=1", "objective=energy")
    assert done.returncode == 1
    assert "Failed experiment: failed trial in" in done.stdout
    assert "no trial of this search ended well" in done.stderr
    (one,) = json.loads((tmp_path / "s" / "trials.json").read_text())["trials"]
    assert one["state"] == "failed"
    assert one["objectives"] == []


def _searched(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.n_startup_trials=1", "experiment=phase1", "probe=[timeline]", "measurement.costs=false",
        "measurement.reference=false", "measurement.bare_every=0", "dataset.num_samples=2", "runtime.threads=1",
        "objective=T_request.p50", "output.tokens=choice(2,3,4)", f"output_dir={directory}", "progress=false",
        "figures.formats=[png]", "figures.dpi=50", *arguments,
    ]  # fmt: skip
    given = {argument.partition("=")[0] for argument in arguments}
    kept_ones = [word for word in command[: -len(arguments)] if word.partition("=")[0] not in given]
    return forks.run(*kept_ones, *arguments, cwd=Path.cwd())

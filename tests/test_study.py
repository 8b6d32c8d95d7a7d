"""Studies: whose sweep is whose, what is refused beforehand, and what is left when the comparison cannot be made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from tests.analysis.swept import OUTPUT, VISION, sweep, write_run
from vlmbench.errors import ConfigError, InputError
from vlmbench.records.outcome import OutcomeFile
from vlmbench.report import write_quick_report
from vlmbench.runner.plan import no_slope
from vlmbench.session.study import _conclude, _page_so_far, part_choices
from vlmbench.sweep import Sweep

Vlmbench = Callable[..., CompletedProcess[str]]
PARTS = {
    "phase1": ["experiment=phase1", "sweep=none"],
    "phase2": ["experiment=phase2", "sweep=vision_tokens"],
    "prompt_tokens": ["experiment=phase2", "sweep=prompt_tokens"],
    "phase3": ["experiment=phase3", "sweep=language_tokens"],
}
QUICK = (
    "experiment=token_comparison", "output_dir=out", "probe=[timeline]", "runtime.device=cpu",
    "measurement.costs=false", "measurement.bare_every=0", "measurement.warmup.max_runs=2",
    "measurement.stopping.min_samples=2", "measurement.stopping.max_samples=2", "measurement.stopping.min_time_s=0",
)  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def job_of(*overrides: str, axes: dict[str, Any] | None = None, parts: dict[str, list[str]] = PARTS) -> Any:
    built = Sweep(name="given", axes=axes or {})
    return SimpleNamespace(
        settings=SimpleNamespace(parts=parts), overrides=list(overrides), build=lambda key: {"sweep": built}[key]
    )


def test_without_a_sweep_every_part_has_its_own() -> None:
    assert part_choices(job_of("model=tiny", "seed=3")) == PARTS


@pytest.mark.parametrize(
    ("name", "axes", "part"),
    [
        ("resolution", {"resolution": [112, 224, 336]}, "phase2"),
        ("vision_tokens", {"vision_tokens": "auto"}, "phase2"),
        ("both", {"image_width": [28, 56], "image_height": [28, 56]}, "phase2"),
        ("prompt_tokens", {"prompt_tokens": [16, 32, 64]}, "prompt_tokens"),
        ("language_tokens", {"output_tokens": [8, 16, 32]}, "phase3"),
    ],
)
def test_a_given_sweep_replaces_that_of_the_part_it_fits(name: str, axes: dict[str, Any], part: str) -> None:
    found = part_choices(job_of("experiment=all", f"sweep={name}", axes=axes))
    assert found == {**PARTS, part: [PARTS[part][0], f"sweep={name}"]}


@pytest.mark.parametrize(
    ("overrides", "axes"),
    [
        (["sweep=vision_x_language"], {"vision_tokens": "auto(3)", "output_tokens": [8, 32, 128]}),
        (["sweep=batch_size"], {"batch_size": [1, 2]}),
        (["sweep=none"], {}),
        (["sweep=vision_tokens", "sweep.axes.vision_tokens=[64,256,576]"], {"vision_tokens": [64, 256, 576]}),
    ],
)
def test_a_sweep_that_fits_no_part_alone_is_refused(overrides: list[str], axes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is no sweep of one part of this study"):
        part_choices(job_of(*overrides, axes=axes))


@pytest.mark.parametrize("override", ["parts.phase2=[sweep=resolution]", "~parts.phase3", "parts={}"])
def test_parts_are_not_changed_by_an_override(override: str) -> None:
    with pytest.raises(ConfigError, match="would change the parts of this study") as refused:
        part_choices(job_of("experiment=all", override))
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parts.phase2=['experiment=phase2','sweep=resolution']", "would change the parts of this study"),
        ("++parts.phase2=['experiment=nope']", "part 'phase2' cannot be composed: 'nope' must be one of"),
    ],
)
def test_a_part_that_cannot_be_is_bad_input(vlmbench_here: Vlmbench, tmp_path: Path, override: str, words: str) -> None:
    done = vlmbench_here("experiment=all", override, "output_dir=out", "runtime.device=cpu")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert words in lines[0]


def test_a_sweep_of_a_part_that_is_not_there_is_refused() -> None:
    parts = {name: PARTS[name] for name in ("phase2", "phase3")}
    with pytest.raises(ConfigError, match=r"\(phase2, phase3\)"):
        part_choices(job_of("sweep=prompt_tokens", axes={"prompt_tokens": [16, 32, 64]}, parts=parts))


def planted(tmp_path: Path, found: dict[str, list[dict[str, Any]]]) -> tuple[Any, list[Any]]:
    parts = []
    for name, rows in found.items():
        outcome = OutcomeFile(tmp_path / name)
        outcome.progress(rows=len(rows))
        parts.append(SimpleNamespace(directory=write_run(tmp_path / name, rows), outcome=outcome))
    outcome = OutcomeFile(tmp_path)
    outcome.begin(points_total=len(parts) + 1)
    return SimpleNamespace(directory=tmp_path, outcome=outcome, settings=SimpleNamespace(allow_unlike=False)), parts


def test_a_comparison_that_fails_after_all_keeps_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, parts = planted(
        tmp_path, {"phase2": sweep("vision_tokens", VISION[:2]), "phase3": sweep("output_tokens", OUTPUT, seed=1)}
    )
    assert _conclude(job, parts, {"phase2": None, "phase3": None}, [0, 0]) == 1
    outcome = read(tmp_path / "outcome.json")
    assert (outcome["state"], outcome["exit_status"]) == ("failed", 1)
    assert "no comparison:" in outcome["reason"]
    assert "2 different count(s) of vision tokens" in outcome["reason"]
    assert set(read(tmp_path / "study.json")["parts"]) == {"phase2", "phase3"}
    assert "no comparison:" in capsys.readouterr().err


def test_an_interrupted_study_has_a_page_of_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, parts = planted(tmp_path, {"phase2": sweep("vision_tokens", VISION), "phase3": []})
    write_quick_report("phase2", tmp_path / "phase2")
    (tmp_path / "phase2" / "outcome.json").write_text('{"state": "interrupted", "runs_done": 69, "runs_total": 200}')
    _page_so_far(job, parts[:1])
    assert "what there is:" in capsys.readouterr().err
    assert "Interrupted after 69 of" in (tmp_path / "report.html").read_text()


def test_results_that_were_given_and_cannot_be_compared_are_bad_input(tmp_path: Path) -> None:
    job, _ = planted(tmp_path, {})
    phase2 = str(write_run(tmp_path / "p2", sweep("vision_tokens", VISION[:2])))
    phase3 = str(write_run(tmp_path / "p3", sweep("output_tokens", OUTPUT, seed=1)))
    with pytest.raises(InputError, match="2 different count"):
        _conclude(job, [], {"phase2": phase2, "phase3": phase3}, [])


def test_a_study_that_cannot_be_compared_is_refused_before_it_measures(vlmbench_here: Vlmbench, tmp_path: Path) -> None:
    given = write_run(tmp_path / "p2", sweep("vision_tokens", VISION[:2]))
    done = vlmbench_here(*QUICK, f"phase2_results={given}")
    assert done.returncode == 2, done.stderr
    assert "the comparison needs 3 counts of vision and of output tokens" in done.stderr
    assert not list((tmp_path / "out").rglob("records.jsonl"))


@pytest.mark.slow
def test_a_study_counts_all_its_points_and_rows(vlmbench_forked: Vlmbench, tmp_path: Path) -> None:
    own = tmp_path / "own" / "sweep" / "short.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: vlmbench.sweep.Sweep\nname: short\naxes:\n  output_tokens: [4, 8, 16]\n")
    study = ("--config-dir", "own", *QUICK, "sweep=short")
    done = vlmbench_forked(*study)
    assert done.returncode == 0, done.stderr
    outcome = read(tmp_path / "out/outcome.json")
    rows = sum(path.read_text().count('"status": "ok"') for path in (tmp_path / "out").rglob("records.jsonl"))
    assert (outcome["points_done"], outcome["points_total"]) == (3, 3)
    assert outcome["rows"] == rows > 0
    assert done.stderr.rstrip().endswith("results are in out")
    points = [p["point_id"] for p in read(tmp_path / "out/phase2/points.json")["points"]]
    assert points == [f"vision_tokens={count}" for count in (16, 32, 66, 136, 280, 576)]
    again = vlmbench_forked(*study)
    assert again.returncode == 0, again.stderr
    assert [p["point_id"] for p in read(tmp_path / "out/phase2/points.json")["points"]] == points
    assert read(tmp_path / "out/outcome.json")["rows"] == rows


def test_foresight_looks_no_further_than_three_counts() -> None:
    looked: list[int] = []

    def prepare(request: Any) -> Any:
        looked.append(request.vision_tokens)
        return SimpleNamespace(counts=SimpleNamespace(num_vision_tokens=request.vision_tokens))

    from vlmbench.request import Output
    from vlmbench.runner.plan import Knobs, sweep_series
    from vlmbench.stopping import Stopping
    from vlmbench.testing.planted import request

    knobs, stopping = Knobs(output=Output(max_new_tokens=2, forced=True)), Stopping()
    series = sweep_series(
        [request().sample],
        0,
        knobs,
        Sweep(name="s", axes={"vision_tokens": [4, 8, 16, 32]}),
        stopping=stopping,
        bare_every=1,
    )
    model: Any = SimpleNamespace(prepare=prepare)
    assert no_slope(model, series) is None
    assert looked == [4, 8, 16]

"""The real command line, in a process of its own: exit status, messages, directories, resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
SMOKE = ("experiment=smoke", "dataset.num_samples=2", "output.tokens=2", "measurement.warmup.max_runs=2")


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The lines of the error output that are vlmbench's own words."""
    return done.stderr[done.stderr.index("vlmbench: ") :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=nope"], "'nope' must be one of the choices of experiment:"),
        (["modle=tiny"], "'modle' is not a key of the configuration; did you mean 'model'?"),
        (["measurement.repeatss=2"], "did you mean 'measurement.repeats'?"),
        (["device=cpu"], "'device' is not a key of the configuration; did you mean 'runtime.device'?"),
        (["num_samples=5"], "did you mean 'dataset.num_samples'?"),
        (["+surprise=1"], "'surprise' is not a key of the configuration"),
        (["measurement.repeats=many"], "'measurement.repeats' must be a whole number (got 'many')"),
        (["measurement.repeats=0", "output.policy=x"], "'output.policy' must be one of auto, forced, natural (got 'x')\n"
         "'measurement.repeats' must be 1 or more (got 0)"),
        (["dataset.num_samples=-3"], "dataset: 'num_samples' must be 1 to 10,000,000 (got -3)"),
        (["sweep=vision_tokens", "sweep.axes.vision_tokens=[]"], "axis 'vision_tokens' has no values"),
        (["+sweep.axes.nope=[1]"], "axis 'nope' must be one of vision_tokens"),
        (["runtime.device=cuda:7x"], "(got 'cuda:7x')"),
        (["runtime.device=gpu"], "'runtime.device' must be one of auto, cpu, cuda, mps or cuda:N (got 'gpu')"),
        (["model.weights=half"], "model: 'weights' must be one of random, pretrained (got 'half')"),
        (["dataset=vqa_v2", "dataset.root=not/there"], "not/there"),
        (["dataset=image_folder", "dataset.root=."], "no image in"),
        (["model"], "'model' is no setting"),
        (["probe=[timeline,foo]"], "'foo' must be one of the choices of probe: clocks, energy, kernels"),
        (["dataset.root=/tmp"], "'dataset.root' is not a key of the dataset that is chosen"),
        (["dataset.root=/tmp"], "it is one of dataset=image_folder, vqa_v2"),
        (["experiment=phase2", "sweep.axes.resolution=[56]"], "add an axis with '+sweep.axes.resolution=…'"),
        (["experiment=phase2", "sweep.axes.nope=[56]"], "axis 'nope' must be one of vision_tokens, resolution"),
        (["experiment=phase2", "sweep.axes={}"], "a sweep without points"),
        (["output.tokens=${nope}"], "Interpolation key 'nope' not found"),
        (["-m", "hydra.launcher._target_=os.system"], "Invalid plugin 'os.system'"),
        (["experiment=smoke", "+model.anatomy.projector=[model.visual]"],
         "'projector' names 'model.visual', which is the vision_encoder"),
        (["experiment=smoke", "+model.anatomy.projector=[lm_head]"], "'projector' names 'lm_head', which is the head"),
    ],
)  # fmt: skip
def test_bad_input_is_two_lines_and_status_2(
    vlmbench_here: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = vlmbench_here(*arguments, "output_dir=out")
    assert done.returncode == 2, done.stderr
    assert message in said(done)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_a_log_that_cannot_be_is_two_lines_and_status_2(vlmbench: Run) -> None:
    done = vlmbench("hydra.job_logging.root.level=LOUD", "output_dir=out")  # Hydra leaves the file of its log open
    assert done.returncode == 2, done.stderr
    assert "Unable to configure root logger; it came from outside a run" in said(done)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.weights=pretrained", "model.path=."], "no config.json"),
        (["runtime.device=cuda:9"], "use runtime.device=cpu"),
        (["model=qwen2_5_vl_72b", "runtime.device=cpu", "runtime.dtype=float32"], "GiB"),
        (["workload=controlled", "measurement.base_sample=500"], "'measurement.base_sample' must be below"),
    ],
)
def test_what_shows_only_when_loading_is_status_2_too(vlmbench_here: Run, arguments: list[str], message: str) -> None:
    done = vlmbench_here("experiment=smoke", *arguments, "output_dir=out")
    assert done.returncode == 2, done.stderr
    assert message in said(done)
    assert "Traceback" not in done.stderr


def test_weights_that_nobody_has_are_status_2_in_a_process_of_its_own(vlmbench: Run) -> None:
    done = vlmbench("experiment=smoke", "model.weights=pretrained", "model.hub_id=nobody/nothing", "output_dir=out")
    assert done.returncode == 2, done.stderr
    assert "model.path=DIR" in said(done)
    assert "Traceback" not in done.stderr


def test_help_and_cfg_load_no_torch(vlmbench: Run) -> None:
    done = vlmbench("--help")
    assert done.returncode == 0
    for word in ("experiment:", "phase1", "model:", "tiny", "Examples:", "output_dir=DIR"):
        assert word in done.stdout
    assert vlmbench("--cfg", "job").returncode == 0
    code = "import sys; from vlmbench.cli.main import main\ntry:\n main()\nfinally:\n print('torch' in sys.modules, file=sys.stderr)"
    shown = subprocess.run([sys.executable, "-c", code, "--cfg", "job"], capture_output=True, text=True, check=False)
    assert shown.stderr.strip().endswith("False")
    resolved = vlmbench("experiment=smoke", "--cfg", "job", "--resolve", "seed=3")  # options stand where they like
    assert resolved.returncode == 0, resolved.stderr
    assert "seed: 3" in resolved.stdout
    assert "trace_dir: traces" in resolved.stdout
    refused = vlmbench("-m", "--cfg", "job")
    assert refused.returncode == 2
    assert "Only one of --run, --multirun" in said(refused)


@pytest.mark.parametrize("how", [(), ("-m",), ("-m", "hydra/launcher=local")])
@pytest.mark.parametrize(
    ("place", "message"),
    [("/proc/foo", "cannot write '/proc/foo"), ("file", "a file"), ("file/x", "a file"), ("taken", "cannot write")],
)
def test_a_place_that_cannot_be_written_is_told(
    vlmbench_here: Run, tmp_path: Path, how: tuple[str, ...], place: str, message: str
) -> None:
    (tmp_path / "file").touch()
    for name in ("vlmbench.log", "multirun.yaml"):  # neither the log nor Hydra's account of a sweep can be made
        (tmp_path / "taken" / name).mkdir(parents=True)
    done = vlmbench_here(*how, *SMOKE, f"output_dir={place}")
    assert done.returncode == 2, done.stderr
    assert message in said(done)
    assert "output_dir" in said(done)
    assert "Traceback" not in done.stderr


def test_a_run_leaves_what_it_promises_and_continues(vlmbench: Run, tmp_path: Path) -> None:
    first = vlmbench(*SMOKE, "output_dir=out")
    assert first.returncode == 0, first.stderr
    out = tmp_path / "out"
    for name in (
        ".hydra/config.yaml", ".hydra/overrides.yaml", "records.jsonl", "provenance.json", "summary.json",
        "phase1_dataset_profiling.json", "points.json", "outcome.json",
    ):  # fmt: skip
        assert (out / name).is_file(), name
    figures = {p.stem for p in (out / "figures").glob("*.png")}
    assert figures
    assert figures == {p.stem for p in (out / "figures").glob("*.pdf")}
    phase = json.loads((out / "phase1_dataset_profiling.json").read_text())
    assert list(phase) == ["schema_version", "experiment_name", "provenance", "summary", "results"]
    assert {row["status"] for row in phase["results"]} == {"ok"}
    rows = (out / "records.jsonl").read_text().splitlines()
    assert "How long does a request take?" in first.stdout

    again = vlmbench(*SMOKE, "output_dir=out")
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stderr
    assert (out / "records.jsonl").read_text().splitlines() == rows  # nothing is measured twice

    other = vlmbench(*SMOKE, "output.tokens=3", "output_dir=out")
    assert other.returncode == 2
    assert "output.tokens: 2 → 3" in said(other)
    assert (out / "records.jsonl").read_text().splitlines() == rows
    assert json.loads((out / "outcome.json").read_text())["state"] == "done"  # the earlier run's, untouched


def test_an_interrupted_run_is_130_and_resumes(vlmbench_forked: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlmbench", *SMOKE, "dataset.num_samples=40", "output_dir=out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=environment)
        records = tmp_path / "out" / "records.jsonl"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not (records.exists() and '"ok"' in records.read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 130
    outcome = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert outcome["state"] == "interrupted"
    assert outcome["runs_total"] == 80, "40 samples, and one request repeated as often"
    far = f"{outcome['runs_done']} of 80 runs"
    assert f"interrupted after {far}" in (tmp_path / "log").read_text()
    assert f"Interrupted after {far}" in (tmp_path / "out" / "report.html").read_text()
    assert "what there is: out/report.html" in (tmp_path / "log").read_text()
    assert not (tmp_path / "out" / "figures").exists(), "who stops a run may give it little time"
    done = vlmbench_forked(*SMOKE, "dataset.num_samples=40", "output_dir=out")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    keys = [(r["point_id"], r["sample_id"], r["repeat"], r["mode"]) for r in rows if r["status"] == "ok"]
    assert len(keys) == len(set(keys))
    assert sum(k[0] == "dataset" and k[3] == "instrumented" for k in keys) == 40
    assert 'id="unfinished"' not in (tmp_path / "out" / "report.html").read_text()


def stopped(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and errors of a command that gets Ctrl-C once a row was measured."""
    command = [sys.executable, "-m", "vlmbench", *arguments]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Tests that were put into the background hand on an ignored SIGINT, which is heeded as such.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if any('"ok"' in records.read_text() for records in tmp_path.rglob("records.jsonl")):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        status = process.wait(300)
    return status, (tmp_path / "log").read_text()


def test_ctrl_c_ends_a_sweep_and_the_same_directory_continues_it(vlmbench_forked: Run, tmp_path: Path) -> None:
    sweep = (*SMOKE, "dataset.num_samples=25", "report=none", "seed=1,2,3")
    status, errors = stopped(tmp_path, *sweep[:1], "-m", *sweep[1:])  # -m may stand anywhere
    assert status == 130, errors
    (directory,) = (tmp_path / "multirun").glob("*/*")
    assert [p.name for p in directory.glob("[!.]*/")] == ["0_smoke_seed-1"]
    looked = vlmbench_forked("experiment=status", f"runs={directory}")
    assert "1 interrupted, 2 not begun" in looked.stdout
    assert [line.split("  ")[0] for line in looked.stdout.splitlines()[2:4]] == ["1_smoke_seed-2", "2_smoke_seed-3"]
    told = errors[errors.index("the sweep ends here") :]
    assert "0 of 3 jobs ok, not begun: #1 " in told
    assert "seed=2; #2 " in told
    assert f"run the same command with output_dir={directory.relative_to(tmp_path)} to continue" in told
    assert "Traceback" not in errors
    done = vlmbench_forked("-m", *sweep, f"output_dir={directory}")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 jobs ok" in done.stderr


def test_a_look_writes_nothing(vlmbench_forked: Run, tmp_path: Path) -> None:
    """Answered or refused: no directory of its own, no log, nothing changed in what is looked at."""
    shutil.copytree(Path(__file__).parent / "contract" / "old_runs", tmp_path / "runs")

    def seen() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in tmp_path.rglob("*") if tmp_path / "table" not in [p, *p.parents]}

    before = seen()
    for status, arguments in (
        (0, ("experiment=status", "runs=runs")),
        (2, ("experiment=status", "runs=nothing")),
        (0, ("experiment=cancel", "runs=runs")),
        (130, ("experiment=collect", "runs=runs", "output_dir=table")),
        (2, ("experiment=collect", "runs=nothing")),
    ):
        done = vlmbench_forked(*arguments)
        assert done.returncode == status, done.stderr
        assert seen() == before, arguments
    assert {p.name for p in (tmp_path / "table").iterdir()} == {
        "collected.parquet", "collected.csv", "collected.json", "figures",
    }  # fmt: skip


def test_a_job_that_met_its_time_limit_ends_no_sweep(vlmbench_forked: Run, tmp_path: Path) -> None:
    done = vlmbench_forked(
        "-m",
        *SMOKE,
        "dataset.num_samples=400",
        "seed=1,2",
        "measurement.time_limit_s=0.5",
        "report=none",
        "output_dir=grid",
    )
    assert done.returncode == 130, done.stderr
    for name in ("0_smoke_seed-1", "1_smoke_seed-2"):
        assert json.loads((tmp_path / "grid" / name / "outcome.json").read_text())["state"] == "interrupted"


def test_a_refusal_on_unlike_hardware_reaches_the_outcome(vlmbench_forked: Run, tmp_path: Path) -> None:
    run = (*SMOKE, "dataset.num_samples=400", "report=none", "output_dir=out")
    status, errors = stopped(tmp_path, *run)
    assert status == 130, errors
    file = tmp_path / "out" / "provenance.json"
    provenance = json.loads(file.read_text())
    for session in provenance["sessions"]:
        session["device"]["name"] = "another processor"
    file.write_text(json.dumps(provenance))
    before = json.loads((tmp_path / "out" / "outcome.json").read_text())
    for _ in range(2):
        refused = vlmbench_forked(*run)
        assert refused.returncode == 2, refused.stderr
        after = json.loads((tmp_path / "out" / "outcome.json").read_text())
        assert after["reason"].startswith("not continued: ")
        assert "was measured otherwise" in after["reason"]
        assert after["reason"].count("not continued") == 1
        for kept in ("state", "exit_status", "rows", "points_done", "points_total", "attempt", "started_unix_s"):
            assert after[kept] == before[kept], kept
    other = vlmbench_forked(*run, "output.tokens=3")
    assert other.returncode == 2
    assert json.loads((tmp_path / "out" / "outcome.json").read_text()) == after  # another run's words stay out


def test_a_corrupt_image_is_a_row_and_status_1(vlmbench_forked: Run, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (64, 48), (index * 50, 100, 100)).save(folder / f"{index}.jpg")
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:200])
    done = vlmbench_forked(
        *SMOKE[:1],
        *SMOKE[2:],
        "report=none",
        "dataset=image_folder",
        "dataset.root=images",
        "dataset.num_samples=3",
        "output_dir=out",
    )
    assert done.returncode == 1, done.stderr
    assert "1.jpg" in said(done)
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [r["sample_id"] for r in rows if r["status"] == "error"] == ["1.jpg"]


def test_multirun_keeps_each_job_apart_and_names_the_failed(vlmbench_forked: Run, tmp_path: Path) -> None:
    done = vlmbench_forked("-m", *SMOKE, "report=none", "seed=1,2", "output_dir=grid")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "grid").glob("[!.]*/")) == ["0_smoke_seed-1", "1_smoke_seed-2"]
    assert "2 of 2 jobs ok" in done.stderr
    bad = vlmbench_forked(
        "-m", *SMOKE, "measurement.base_sample=0,900", "workload=controlled", "report=none", "output_dir=bad"
    )
    assert bad.returncode == 1
    assert "1_smoke_base_sample-900: failed: 'measurement.base_sample'" in bad.stderr
    assert "1 of 2 jobs ok" in bad.stderr


@pytest.mark.slow
def test_multirun_with_submitit_local(vlmbench: Run, tmp_path: Path) -> None:
    done = vlmbench("-m", *SMOKE, "seed=1,2", "output_dir=grid", "hydra/launcher=submitit_local")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs ok" in done.stderr
    for name in ("0_smoke", "1_smoke"):
        assert (tmp_path / "grid" / name / "summary.json").is_file()


def test_anatomy_is_a_table_and_a_file(vlmbench_forked: Run, tmp_path: Path) -> None:
    done = vlmbench_forked("experiment=anatomy", "output_dir=out")
    assert done.returncode == 0, done.stderr
    assert "written to out/anatomy.json" in done.stderr
    found = json.loads((tmp_path / "out" / "anatomy.json").read_text())
    assert [row["stage"] for row in found["modules"]] == ["vision_encoder", "projector", "language_model", "head"]
    assert found["verified"] == {"agrees": True, "new_tokens": 2, "differences": [], "notes": []}
    assert all(row["rule"].endswith(", seen running") for row in found["modules"])
    assert "one run of an image and two new tokens confirms these stages" in done.stdout
    lines = done.stdout.splitlines()
    for row in found["modules"]:  # piped: nothing is broken or cut
        assert any(all(row[key] in line for key in ("stage", "path", "module_class", "rule")) for line in lines)


def test_anatomy_on_a_narrow_terminal_breaks_no_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmbench.cli import tasks
    from vlmbench.models.anatomy.find import AnatomyRow

    monkeypatch.setenv("FORCE_COLOR", "1")
    path = "model.language_model.a_module_with_a_rather_long_name_in_it"
    rows = [AnatomyRow(stage="language_model", path=path, module_class="ALongNameOfAClassForSuchAModule", parameters=7,
                       share=1.0, rule="get_decoder(), its body, its body")]  # fmt: skip
    for columns in (80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        tasks._print_anatomy("x", rows, ["a note"])
        shown = capsys.readouterr().out
        for word in (path, "ALongNameOfAClassForSuchAModule", "get_decoder(), its body, its body", "Note: a note"):
            assert word in shown

"""scripts/publish_results.py and scripts/findings.py: runs published, and everything on the pages made of their rows."""

from __future__ import annotations

import gzip
import importlib.util
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, usual, write
from tests.analysis.swept import OUTPUT, VISION, sweep
from vlmbench.analysis.claims import Told, Verdict
from vlmbench.errors import InputError
from vlmbench.figures.style import FigureStyle, drawn_as
from vlmbench.report.from_rows import report

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
RESULTS = SCRIPTS.parent / "docs" / "results"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="a source distribution has no scripts")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # what is published does not depend on it


@pytest.fixture(scope="module")
def findings() -> ModuleType:
    return _script("findings")


@pytest.fixture(scope="module")
def script(findings: ModuleType) -> ModuleType:
    return _script("publish_results")


def measured(folder: Path, rows: Any, runtime: str, **config: Any) -> Path:
    """A finished run directory of a part."""
    session = {
        "session": 0,
        "started_unix_s": 1.8e9,
        "command": ["__main__.py", "experiment=phase1", "output_dir=…/p"],
        "code": {"vlmbench": {"source_sha256": "abcdef0123"}},
    }
    about = {"config": config, "runtime": {"name": runtime}, "sessions": [session]}
    write(folder, rows, {**PROVENANCE, **about, "device": {"type": "cuda", "name": "NVIDIA H200", "uuid": "GPU-1"}})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    study = root / "llava_eager"
    measured(study / "phase1", usual(40, 10), "eager", report="phase1")
    measured(study / "phase2", sweep("vision_tokens", VISION), "eager", report="none", name="phase2")
    measured(study / "phase3", sweep("output_tokens", OUTPUT), "eager", name="phase3")
    measured(root / "llava_cudagraph", usual(40, 10), "cudagraph", report="phase1")
    measured(root / "molmo_cudagraph", usual(30, 10), "cudagraph", report="phase1")
    (root / "truth.jsonl").write_text('{"part": "busy"}\n')
    (root / "turns" / "0a.h3x").mkdir(parents=True)
    (root / "turns" / "0a.h3x" / "turns.json").write_text("{}")
    (root / "parts.tsv").write_text("llava_eager\t0\t9\n")
    return root


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_runs_become_folders_with_all_that_is_made_of_their_rows(
    script: ModuleType, findings: ModuleType, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert script.main(["--from", str(runs), "--results", str(results)]) == 0
    made = content(results)
    for name in (
        "h200_llava_eager/phase1/records.jsonl.xz",
        "h200_llava_eager/phase1/figures/components_bars.png",
        "h200_llava_eager/phase2/summary.json.gz",
        "h200_llava_eager/phase3/words.txt",
        "h200_llava_eager/phase2/figures/vision_tokens_latency.png",
        "h200_llava_eager/tables/token_costs.md",
        "h200_llava/figures/runtimes.png",
        "h200_llava/compare_eager_cudagraph.md",
        "h200_molmo_cudagraph/phase1/summary.json.gz",
        "h200_truth/truth.jsonl",
    ):
        assert name in made, name
    assert not [name for name in made if name.endswith((".pdf", ".html", "parts.tsv")) or "turns" in name]
    before = (runs / "llava_eager" / "phase1" / "records.jsonl").read_bytes()
    assert lzma.decompress(made["h200_llava_eager/phase1/records.jsonl.xz"]) == before
    for name, text in made.items():
        assert str(tmp_path).encode() not in text, name
    assert (
        json.loads(gzip.decompress(made["h200_llava_eager/summary.json.gz"]))["experiment_name"]
        == "exp5_token_comparison"
    )
    capsys.readouterr()

    stale = results / "h200_llava_eager" / "phase1"
    (stale / "summary.json.gz").write_text("stale")
    (stale / "figures" / "old.png").write_text("stale")
    assert script.main(["--results", str(results), "h200_llava_eager"]) == 0
    said = capsys.readouterr().out
    assert "changed phase1/summary.json.gz" in said
    assert "removed phase1/figures/old.png" in said
    assert content(results) == made, "the same rows give the same bytes"

    found = findings.Published(results)
    page = " ".join(findings.fill("findings.md.j2", found).split())
    assert "an NVIDIA H200" in page
    assert re.search(r"\| LLaVA-1.5-7B \| vLLM \| not measured \| not measured \| not measured \|", page)
    middle = found.run("llava_eager", "phase1").summary["distribution"]["T_request"]["workload"]["p50"]
    assert findings.value(middle) in page
    assert "../" not in page
    assert "not measured on this card" in findings.fill("study_dropping_tokens.md.j2", found).lower()

    script.main(["--results", str(results), "--archive", "h200_llava_cudagraph"])
    assert not (results / "h200_llava_cudagraph").exists()
    kept = results / "archive" / "h200_llava_cudagraph"
    assert {path.name for path in (kept / "phase1").iterdir()} == {
        "records.jsonl.xz",
        "provenance.json",
        "summary.json.gz",
    }
    earlier = findings.Published(results).run("llava_cudagraph", "phase1")
    assert earlier.mark == findings.EARLIER, "an earlier run stands in, and is marked"


def test_a_phase_1_of_its_own_takes_the_place_of_the_studys(script: ModuleType, runs: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    measured(runs / "llava_eager_phase1", usual(50, 10), "eager", report="phase1")
    script.take(runs, results)
    assert {path.name for path in (results / "h200_llava_eager").iterdir()} >= {"phase1", "phase2", "phase3"}
    longer = (runs / "llava_eager_phase1" / "records.jsonl").read_bytes()
    assert lzma.decompress((results / "h200_llava_eager" / "phase1" / "records.jsonl.xz").read_bytes()) == longer
    assert not (results / "h200_llava_eager_phase1").exists()
    assert script.main(["--from", str(runs), "--results", str(results)]) == 0, "all that was taken is made"
    assert (results / "h200_llava_eager" / "phase1" / "words.txt").is_file()


def test_rows_that_were_published_as_gzip_are_packed_anew(script: ModuleType, runs: Path, tmp_path: Path) -> None:
    """In every folder and in the archive; what is made of them stays, and a run that is given may be packed, too."""
    results, earlier = tmp_path / "results", tmp_path / "earlier"
    script.take(runs, results)
    script.archive(results, ["h200_molmo_cudagraph"])
    expected = content(results)
    rows = _as_gzip(results)
    shutil.copytree(results / "h200_llava_cudagraph" / "phase1", earlier / "llava_cudagraph")
    both = rows[0].with_suffix(".gz")
    rows[0].write_bytes(expected[str(rows[0].relative_to(results))])
    both.write_bytes(b"of an earlier day")  # beside what was packed since
    assert list(script.pack_again(results)) == [f"packed anew {path.relative_to(results)}" for path in rows]
    assert content(results) == expected
    assert list(script.pack_again(results)) == []

    assert script.take(earlier, tmp_path / "again") == [Path("h200_llava_cudagraph")]
    name = "h200_llava_cudagraph/phase1/records.jsonl.xz"
    assert (tmp_path / "again" / name).read_bytes() == expected[name], "the same rows give the same bytes"
    assert not list((tmp_path / "again").rglob("*.gz"))


def _as_gzip(results: Path) -> list[Path]:
    """Pack published rows as earlier sets were; returns the files that they were before."""
    rows = sorted(results.rglob("records.jsonl.xz"))
    for path in rows:
        path.with_suffix(".gz").write_bytes(gzip.compress(lzma.decompress(path.read_bytes())))
        path.unlink()
    return rows


def test_published_rows_that_cannot_be_read_stay(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(RESULTS / "h200_llava_compiled" / "phase1", tmp_path / "h200_llava_compiled" / "phase1")
    (rows,) = tmp_path.rglob("records.jsonl.xz")
    rows = rows.rename(rows.with_suffix(".gz"))
    rows.write_bytes(b"half")
    before = content(tmp_path)
    with pytest.raises(SystemExit) as refused:
        script.main(["--results", str(tmp_path)])
    assert refused.value.code == 2
    assert "cannot read records" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_what_is_no_result_is_refused_in_two_lines(script: ModuleType, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words in (["--from", str(tmp_path / "empty")], ["nowhere"], ["--archive", "nowhere"]):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / "publish_results.py"), *words, "--results", str(tmp_path / "none")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


def test_a_part_without_a_measured_row_is_not_published(
    script: ModuleType, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = runs / "molmo_cudagraph" / "records.jsonl"
    rows.write_text(rows.read_text().replace('"status": "ok"', '"status": "error"'))
    found = script.take(runs, tmp_path / "results")
    assert Path("h200_molmo_cudagraph") not in found
    assert "nothing was measured: molmo_cudagraph" in capsys.readouterr().out


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    """Parts of other kinds, of published rows: a server that ran on a card, a load in this process, a grid of methods."""
    root = tmp_path / "runs"
    for loop in ("closed", "open"):
        shutil.copytree(RESULTS / "cpu_llama_server" / loop, root / "llava_endpoint" / loop)
    (root / "llava_endpoint" / "server.json").write_text('{"device": "NVIDIA H200", "vllm": "0.26.0"}')
    shutil.copytree(RESULTS / "cpu_llama_server" / "closed", root / "llava_vllm_closed")
    about = json.loads((root / "llava_vllm_closed" / "provenance.json").read_text())
    about["device"] = {"type": "cuda", "name": "NVIDIA H200"}
    (root / "llava_vllm_closed" / "provenance.json").write_text(json.dumps(about))
    for number, method in enumerate(("fastv", "visionzip")):
        shutil.copytree(RESULTS / f"h200_llava_{method}_cudagraph", root / "llava_grid" / f"{number}_{method}")
    (root / "logs").mkdir()
    (root / "logs" / "qwen_compiled.log").write_text("begins\nit broke\n\n")
    lines = (
        "llava_endpoint 0 200 aaaa t",
        "qwen_compiled 1 9 bbbb t",
        "llava_grid 124 600 aaaa t",
        "llava_grid 0 30 aaaa t",
    )
    (root / "parts.tsv").write_text("".join(f"{line}\n".replace(" ", "\t") for line in lines))
    return root


def test_all_parts_are_of_the_code_that_the_first_call_found(tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [SCRIPTS / "results.sh", tmp_path, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = call("nothing")
    assert done.returncode == 2
    assert "no part is called 'nothing'; parts: llava_eager_phase1 " in done.stderr
    copied = tmp_path / "tree" / "vlmbench" / "stopping.py"
    assert copied.read_bytes() == (SCRIPTS.parent / "vlmbench" / "stopping.py").read_bytes()
    assert "not the same any more" not in done.stderr
    copied.write_text("# of another day\n")
    done = call("--wait", "0")
    assert "the checkout is not the same any more: 1 files" in done.stderr
    assert done.stdout == "nothing is running\n"
    assert copied.read_text() == "# of another day\n"


def test_what_is_no_run_is_named_and_left_where_it_is(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = RESULTS / "h200_llava_compiled" / "phase1"
    for name in ("cut", "foreign", "silent"):
        shutil.copytree(good, tmp_path / "runs" / name)
    rows = tmp_path / "runs" / "cut" / "records.jsonl.xz"
    rows.write_bytes(rows.read_bytes()[:3000])
    (tmp_path / "runs" / "foreign" / "provenance.json").write_text("[]")
    (tmp_path / "runs" / "silent" / "provenance.json").unlink()
    with pytest.raises(InputError, match="holds no runs"):
        script.take(tmp_path / "runs", tmp_path / "results")
    assert capsys.readouterr().out.splitlines() == [
        "not published, its rows cannot be read: cut",
        "not published, it does not say how it was made: foreign",
        "not published, it does not say how it was made: silent",
    ]
    script.begin_set(tmp_path / "runs", tmp_path / "results", why_same=None)
    with pytest.raises(InputError, match="is no directory"):
        script.take(tmp_path / "nowhere", tmp_path / "results")


def test_what_results_sh_cannot_do_is_said_before_anything_begins(tmp_path: Path) -> None:
    """Parts that there are not, beside those that there are; and two calls that would measure at once."""
    folder, python = tmp_path / "with blanks", tmp_path / "python"
    folder.mkdir()
    enough = tmp_path / "enough"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\n'
        f'touch "{tmp_path}/started"\nuntil [ -e "{enough}" ]; do sleep 0.1; done\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "CUDA_VISIBLE_DEVICES": ""}

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [SCRIPTS / "results.sh", folder, *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def refused(*words: str) -> str:
        done = begin(*words)
        said = done.communicate()[1].strip()
        assert done.returncode == 2, (words, said)
        return said

    assert "no part is called 'nope'" in refused("llava_eager", "nope")
    assert "no part is called 'nope'" in refused("--lanes", "nope")
    assert refused("--wait", "soon") == "--wait needs whole seconds (got 'soon')"
    assert refused("--pack") == "--pack needs a FILE"
    assert refused("--pack", str(tmp_path / "packed")) == f"nothing was measured in {folder}"
    assert sorted(path.name for path in folder.iterdir()) == ["tree"]
    measuring = begin("llava_eager")
    while not (tmp_path / "started").exists():
        assert measuring.poll() is None
    for words in ("llava_eager", "--lanes"):
        said = refused(words)
        assert said.startswith(f"another call measures in {folder}, or parts of one that was killed: ")
        assert said.endswith("end them with --stop")
    begin("--pack", str(tmp_path / "packed")).communicate()
    assert (tmp_path / "packed.0").is_file(), "what is there, before any part is over"
    enough.touch()
    assert "=== llava_eager: exit 0 " in measuring.communicate()[0]


def test_loads_and_grids_are_of_the_card_and_what_failed_is_named(
    script: ModuleType, findings: ModuleType, loaded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert set(map(str, script.take(loaded, results))) == {
        "h200_llava_endpoint", "h200_llava_vllm_closed", "h200_llava_grid"
    }  # fmt: skip
    script.say_of_parts(loaded)
    said = capsys.readouterr().out
    assert "qwen_compiled: no row (exit 1 after 9 s); last words: begins / it broke" in said
    assert "not begun: llava_eager_phase1, llava_compiled_phase1, " in said
    assert "2 states of the code, do not compare: aaaa: llava_endpoint, llava_grid; bbbb: qwen_compiled" in said

    found = findings.Published(results)
    assert "not measured" in findings.findings_loads.load_words(found), "rows without a summary are none of a page"
    assert findings.findings_loads.load_table(found) == ""
    for place in ("llava_endpoint/closed", "llava_endpoint/open", "llava_grid/0_fastv", "llava_grid/1_visionzip"):
        shutil.copy(loaded / place / "summary.json.gz", results / f"h200_{place}")
    shutil.copy(loaded / "llava_vllm_closed/summary.json.gz", results / "h200_llava_vllm_closed/phase1")
    lines = findings.findings_loads.load_table(found).splitlines()
    assert [line.split(" | ")[1:5] for line in lines[2:]] == [
        ["in this process", "4 users", "16", "400"],
        ["as a server", "4 users", "16", "400"],
        ["as a server", "10 a second", "16", "400"],
    ]
    assert "vLLM as a server, 10 a second: 9.95 (9.27–10.6) answers a second" in findings.findings_loads.load_words(
        found
    )
    grid = findings.findings_methods.grid_words(found)
    assert "2 methods × 4 shares × 1 runtime took 630 s, in 2 goes, loading" in grid
    assert re.search(r"Saved of `generate\(\)` of \d+ output tokens(, no control beside it)?, ms:", grid)
    row = next(line for line in grid.splitlines() if line.startswith("| VisionZip"))
    saved = found.run("llava_grid", "1_visionzip").summary["arms"][1]["savings"]["T_total"]["saved_ms"]
    assert row.split(" | ")[2] == findings.value(saved)
    assert findings.card_name(found) == "NVIDIA H200"
    assert "one request at a time" in findings.findings_loads.alone_words(found)


def test_a_part_s_folder() -> None:
    assert _script("published").folder_of("llava_vllm", "h200") == "h200_llava_vllm"
    assert _script("published").folder_of("qwen_compiled_phase1", "h100") == "h100_qwen_compiled/phase1"
    assert _script("published").folder_of("llava_fastv_eager", "h200") == "h200_llava_fastv_eager"


def test_a_number_is_printed_with_its_interval_or_says_that_it_has_none(findings: ModuleType) -> None:
    assert findings.value({"value": 1.2345, "low": 1.1, "high": 1.4}) == "1.23 (1.10–1.40)"
    assert findings.value({"value": 3.0, "low": None, "high": None}) == "3.00 (no interval)"
    assert findings.value(None) == "–"
    assert findings.findings_methods.ratio_of(
        {"baseline_ms": 20.0, "saved_ms": {"value": 10.0, "low": 5.0, "high": 12.0}}
    ) == ("2.00 × (1.33–2.50)")
    told = Told(verdict=Verdict.HOLDS, value=0.9, low=0.89, high=0.91)
    assert findings.findings_claims.verdict_words(told, findings.percent, "", None) == "not measured"


def test_every_folder_is_of_a_part_and_the_whole_is_small(findings: ModuleType, script: ModuleType) -> None:
    parts = {script.folder_of(part, findings.CARD).split("/")[0] for part in script.manifest()}
    parts |= {f"{findings.CARD}_{part}" for part in (*findings.COMMANDS, *findings.MODELS, findings.ACROSS)}
    folders = {path.name for path in RESULTS.iterdir() if path.is_dir()}
    assert {name for name in folders if name.startswith(findings.CARD)} - parts == set()
    page = (RESULTS / "README.md").read_text()
    assert [name for name in folders if name not in page] == []
    archive = (RESULTS / "archive" / "README.md").read_text()
    assert [
        path.name for path in (RESULTS / "archive").iterdir() if path.is_dir() and f"`{path.name}`" not in archive
    ] == []
    size = sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file())
    assert size < script.MOST_BYTES, f"{size / 1e6:.1f} MB"


PUBLISHED = sorted(
    path.relative_to(RESULTS).as_posix()
    for path in RESULTS.glob("*")
    if path.is_dir() and path.name != "archive" and any(path.rglob("records.jsonl.xz"))
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_report_can_be_made_of_each_folder(tmp_path: Path, name: str) -> None:
    """Each figure is written once and small: other tests see to the files of one."""
    with drawn_as(FigureStyle(formats=("png",), dpi=72)):
        made = report([RESULTS / name], tmp_path / "out")
    assert made.runs
    assert made.left_out == ()
    assert made.page.is_file() or (tmp_path / "out" / "first_steps.json").is_file()


def test_a_copy_of_first_steps_is_written_as_one(script: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "h200_llava_first_steps", tmp_path / "h200_llava_first_steps")
    (tmp_path / "h200_llava_first_steps" / "figures" / "first_steps.png").write_text("stale")
    before = content(tmp_path)
    assert _as_gzip(tmp_path)
    assert script.main(["--results", str(tmp_path)]) == 0
    after = content(tmp_path)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"h200_llava_first_steps/figures/first_steps.png"}, "the numbers are the published ones"


def _with_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    with lzma.open(folder / "records.jsonl.xz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def test_whether_the_same_requests_are_slow_twice_is_told_by_rows_that_count(
    findings: ModuleType, tmp_path: Path
) -> None:
    results = findings.Published(tmp_path)
    runs = []
    for name, times in (("a", (1.0, 2.0, 3.0, 4.0)), ("b", (40.0, 30.0, 20.0, 10.0))):
        one = {"status": "ok", "mode": "instrumented", "point_id": "dataset"}
        rows = [{**one, "sample_id": str(i), "T_preprocess": time} for i, time in enumerate(times)]
        rows += [{**rows[0], "T_preprocess": 1e6} | other for other in ({"status": "warmup"}, {"mode": "bare"})]
        rows += [{**one, "sample_id": str(i), "status": "error", "T_preprocess": None} for i in (0, 9)]
        _with_rows(tmp_path / name, rows)
        runs.append(findings.Run(folder=Path(name), summary={}, provenance={}))
    assert findings._rank(results, runs) == pytest.approx(-1.0)
    assert findings._rank(results, [runs[0], runs[0]]) == pytest.approx(1.0)
    assert findings._failed_and_again(tmp_path / "a") == 1, "request 0 ran later, request 9 never did"


def test_the_stage_that_waits_most_is_named(findings: ModuleType) -> None:
    stages = [("LLM_decode", 60.0, 50.0), ("vision_encoder", 40.0, 10.0), ("total", 100.0, 60.0)]
    rows = [{"stage": stage, "elapsed_ms": elapsed, "busy_ms": busy} for stage, elapsed, busy in stages]
    said = findings._waited({"launch_bound": 0.4, "stages": rows})
    assert said == "the device waits for 40.0 % of `generate()`, 75 % of that in Vision encoder"
    rows[0] |= {"elapsed_ms": 49.0, "busy_ms": 58.0}  # traced and untraced runs differ by more than there is to split
    assert "in which stage cannot be told" in findings._waited({"launch_bound": 0.4, "stages": rows})


def test_the_sample_s_p99_is_the_interpolated_one(findings: ModuleType) -> None:
    assert findings.findings_loads._p99([float(value) for value in range(1, 1001)]) == pytest.approx(990.01)


def _of_code(folder: Path, code: str) -> None:
    for path in folder.rglob("provenance.json"):
        about = json.loads(path.read_text())
        about["sessions"][0]["code"]["vlmbench"]["source_sha256"] = code
        path.write_text(json.dumps(about))


def test_a_part_of_one_phase_leaves_no_word_of_the_part_that_had_all_of_its_folder(
    script: ModuleType, runs: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    script.take(runs, results)
    for name in ("h200_molmo_cudagraph", "h200_llava_eager"):  # the first has phase 1 alone
        (results / name / "part.json").write_text("{}")
    shutil.copytree(runs / "llava_eager" / "phase1", tmp_path / "later" / "llava_eager_phase1")
    shutil.copytree(runs / "molmo_cudagraph", tmp_path / "later" / "molmo_cudagraph_phase1")
    script.take(tmp_path / "later", results)
    assert not (results / "h200_molmo_cudagraph" / "part.json").exists()
    assert (results / "h200_llava_eager" / "part.json").exists(), "its sweeps are there still"


def test_another_code_begins_a_set_and_what_was_cut_off_replaces_nothing_longer(
    script: ModuleType, findings: ModuleType, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"

    def publish() -> str:
        script.take(runs, results)
        script.begin_set(runs, results, why_same=None)
        return capsys.readouterr().out

    publish()
    assert findings.Published(results).codes.keys() == {"abcdef01"}
    (results / "h200_llava_cudagraph" / "part.json").write_text("{}")
    for folder in ("llava_eager/phase1", "llava_eager", "molmo_cudagraph/phase1"):
        (results / f"h200_{folder}" / "summary.json").write_text("{}")

    _of_code(runs, "12345678ab")
    shutil.rmtree(runs / "llava_eager" / "phase3")
    rows = (runs / "molmo_cudagraph" / "records.jsonl").read_text().splitlines(keepends=True)
    (runs / "molmo_cudagraph" / "records.jsonl").write_text("".join(rows[:-5]))
    (runs / "molmo_cudagraph" / "points.json").unlink(missing_ok=True)
    said = publish()
    assert "not published, one sweep of another code than the pair that is there: llava_eager/phase2" in said
    assert re.search(r"not published, cut off after \d+ runs, of which 'phase1' has \d+ already: molmo_cudagraph", said)
    assert "the present set is of code 12345678 from now on" in said
    assert not (results / "h200_llava_cudagraph" / "part.json").exists(), "none stays that is of an earlier run"
    found = findings.Published(results)
    assert found.run("llava_eager", "phase1").mark == ""
    assert found.run("llava_eager").mark == found.run("molmo_cudagraph", "phase1").mark == findings.EARLIER
    page = findings.folder_table(found)
    assert "12345678, abcdef01†" in page

    script.begin_set(runs, results, why_same="with less")
    assert findings.Published(results).codes.keys() == {"12345678"}, "the same code again changes nothing"
    _of_code(runs, "99999999")
    script.begin_set(runs, results, why_same="with more")
    script.name_commits(results)
    assert findings.Published(results).codes.keys() == {"12345678", "99999999"}
    assert json.loads((results / "set.json").read_text())["reasons"] == {"99999999": "with more"}


def test_earlier_runs_that_were_measured_again_go(script: ModuleType, runs: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("h200_molmo_cudagraph", "h200_gemma3_eager", "h200_qwen_eager"):
        shutil.copytree(runs / "molmo_cudagraph", results / "archive" / name / "phase1")
        packed = results / "archive" / name / "phase1" / "records.jsonl.xz"
        packed.write_bytes(lzma.compress((runs / "molmo_cudagraph" / "records.jsonl").read_bytes()))
    page = results / "archive" / "README.md"
    page.write_text("| `h200_molmo_cudagraph` | a |\n| `h200_qwen_eager`, `h200_molmo_cudagraph`, `h200_x` | b |\n")
    (runs / "molmo_cudagraph" / "points.json").write_text('{"points": [{"ended_by": "all_measured"}]}')
    script.take(runs, results)
    (results / "h200_molmo_cudagraph" / "phase1" / "summary.json").write_text("{}")
    assert list(script.drop_measured_since(results)) == ["h200_molmo_cudagraph"]
    assert {path.name for path in (results / "archive").glob("h200_*")} == {"h200_gemma3_eager", "h200_qwen_eager"}
    assert page.read_text() == "| `h200_qwen_eager`, `h200_x` | b |\n"


def test_the_commit_that_has_a_code_is_found(script: ModuleType) -> None:
    commit = subprocess.run(
        ["git", "rev-list", "--max-count=1", "HEAD", "--", "vlmbench"],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if not commit:
        pytest.skip("no history of the checkout here")
    changed = subprocess.run(
        ["git", "status", "--porcelain", "vlmbench"], cwd=SCRIPTS.parent, capture_output=True, check=True
    )
    if changed.stdout:
        pytest.skip("the checkout has changes")
    assert script.commit_of(script.source_sha256(script.ROOT / "vlmbench")[:8]) == commit[:7]


def test_what_was_cut_off_or_has_no_costs_is_named(findings: ModuleType, tmp_path: Path) -> None:
    name, published = "h200_llava_cudagraph", findings.Published(tmp_path)
    shutil.copytree(RESULTS / name, tmp_path / name)
    assert "cut off" not in findings.tokens_table(published) + findings.folder_table(published)
    assert findings.costs_words(published) == ""
    assert findings.sweep_drift_words(published) == ""
    sweep = tmp_path / name / "phase2" / "summary.json.gz"
    told = json.loads(gzip.decompress(sweep.read_bytes()))
    sweep.write_bytes(gzip.compress(json.dumps(told | {"aa_check": told["aa_check"] | {"verdict": "drift"}}).encode()))
    assert "LLaVA-1.5-7B, captured graphs, phase 2: " in findings.sweep_drift_words(published)
    (tmp_path / name / "phase3" / "points.json").unlink()
    rows = tmp_path / name / "phase1" / "records.jsonl.xz"
    lines = [json.loads(line) for line in lzma.decompress(rows.read_bytes()).splitlines()]
    rows.write_bytes(lzma.compress("".join(json.dumps(r | {"flags": ["no_costs"]}) + "\n" for r in lines).encode()))
    findings.rows_of.cache_clear()
    assert re.search(r"phase 3 cut off after \d+ runs, [\d–]+ a point \|", findings.tokens_table(published))
    assert re.search(r"phase3: \d+ runs, cut off", findings.folder_table(published))
    assert "no floor: LLaVA-1.5-7B, captured graphs." in findings.costs_words(published)


def test_runs_that_went_on_in_another_machine_say_so_and_other_data_says_of_which_card_it_is(
    findings: ModuleType, tmp_path: Path
) -> None:
    for name in ("h200_smolvlm_eager", "h200_qwen_eager", "h200_qwen_long_tail"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    published = findings.Published(tmp_path)
    made = findings.findings_others.others_made(published)
    assert made.startswith(
        "Phase 1 of 72 requests of 8 output tokens, 8 runs in turns, with transformers 5.17.0. Runs of"
    )
    assert "on another card of the kind, in a machine of 16 processors instead of 32: what differs" in made
    assert "The two of Qwen2.5-VL-7B: 2 cards of one kind; measured 8.8 hours apart." in findings.data_table(published)
    about = tmp_path / "h200_smolvlm_eager" / "phase1" / "provenance.json"
    about.write_text(about.read_text().replace('"cores_logical":32', '"cores_logical":16'))
    assert "another card of the kind: what" in findings.findings_others.others_made(findings.Published(tmp_path))


def test_runs_of_which_no_summary_is_made_are_on_their_card_and_begin_with_the_first(
    findings: ModuleType, tmp_path: Path
) -> None:
    for name in ("h200_llava_first_steps", "h200_llava_endpoint"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    published = findings.Published(tmp_path)
    cards = findings.findings_facts.cards_table(published)
    assert "23:53–23:54 llava first steps" in cards
    assert cards.splitlines()[-1].endswith(" | 32 |"), "processors of the machine"
    assert "23:51–23:53 llava endpoint" in findings.findings_facts.apart_words(published)
    assert "measured on 2026-11-30 at 23:53 UTC" in findings.first_steps_words(published)


def test_figures_are_named_where_there_are_some(findings: ModuleType, tmp_path: Path) -> None:
    for name in ("h200_molmo", "h200_molmoe"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    figures, none = findings.folder_table(findings.Published(tmp_path)).splitlines()[2:]
    assert "figures, times compared" in figures
    assert "side by side: times compared" in none


def test_phase_1_that_the_power_limit_held_back_is_named(findings: ModuleType, tmp_path: Path) -> None:
    for name in ("h200_molmo_cudagraph", "h200_molmo_eager"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    said = findings.power_words(findings.Published(tmp_path))
    assert said.endswith("phase 1 of Molmo-7B-D, captured graphs, 333 of 404 (down to 1,890 MHz).")


def test_ratios_of_runs_that_took_turns_say_so(script: ModuleType, findings: ModuleType, tmp_path: Path) -> None:
    for side, name in enumerate(("h200_llava_cudagraph", "h200_llava_vllm")):
        shutil.copytree(RESULTS / name / "phase1", tmp_path / name / "phase1")
        rows = tmp_path / name / "phase1" / "records.jsonl.xz"
        lines = [json.loads(line) for line in lzma.decompress(rows.read_bytes()).splitlines()]
        counts = (line for line in lines if line["status"] == "ok" and line["mode"] == "instrumented")
        for number, line in enumerate(counts):
            line["turn"] = 2 * (number // 8) + (number // 8 + side) % 2
        rows.write_bytes(lzma.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
        about = json.loads((rows.parent / "provenance.json").read_text())
        about["sessions"][0]["turns"] = {"id": "one"}
        (rows.parent / "provenance.json").write_text(json.dumps(about))
    assert [str(name) for name, _ in script.side_by_side(tmp_path)] == ["h200_llava"]
    told = json.loads((tmp_path / "h200_llava" / "compare_cudagraph_vllm.json").read_text())
    pairs = findings.pairs_of(told)
    assert pairs >= 200
    found = findings.Published(tmp_path)
    row = next(line for line in findings.runtimes_table(found).splitlines() if "vLLM over captured graphs" in line)
    assert f"measured in turns, {pairs} pairs" in row
    assert findings.MACHINE not in row
    facts = findings.findings_facts
    assert f"in turns, {pairs} pairs" in facts.short_words(found)
    assert "1 of the 1 comparison" in facts.yardstick_words(found)
    together = [(0.0, 2.0, "a"), (1.0, 3.0, "b")]
    assert facts._one_by_one(together, {"a": {"t"}, "b": {"t"}}) == "yes, or in turns"
    assert facts._one_by_one(together, {"a": {"t"}, "b": {"u"}}) == "no"
    assert re.search(
        r"took turns on a card lie further apart .* \d+ requests over \d+ to \d+ s \(", facts.why_open_words(found)
    )
    assert re.search(r" are [01]\.\d\d times as wide .* \(1 comparison\)", facts.turns_words(found))


def test_models_without_sweeps_stand_in_a_table_of_their_own(findings: ModuleType, tmp_path: Path) -> None:
    for name in ("h200_gemma3_eager", "h200_gemma3_cudagraph", "h200_gemma3", "h200_molmo_cudagraph"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    found, others = findings.Published(tmp_path), findings.findings_others
    claims = findings.findings_claims.claims_table(found)
    assert "Gemma" not in claims + findings.tail_table(found) + findings.runtimes_table(found)
    assert others.others_table(found).count("| Gemma 3 4B |") == 2
    assert "Molmo" not in others.others_table(found)
    words = others.others_words(found)
    assert "In eager mode, the largest part of a request of 8 output tokens is LLM decode in 1." in words
    changes = json.loads((tmp_path / "h200_gemma3" / "compare_eager_cudagraph.json").read_text())["pairs"][0]["changes"]
    ratio = next(row["ratio"] for row in changes if row["metric"] == "T_request")
    assert f"{findings.value(ratio, findings.times)} times (Gemma 3 4B) as long as in eager mode" in words
    shutil.rmtree(tmp_path / "h200_gemma3_eager")
    shutil.rmtree(tmp_path / "h200_gemma3_cudagraph")
    assert others.others_words(found) == ""
    assert others.others_table(found) == "Not measured."


@pytest.mark.parametrize(
    ("low", "said"), [(0.6, "`generate()`, 70.0 %"), (0.4, "cannot be told: `generate()`, 70.0 %")]
)
def test_most_of_a_variance_is_said_where_its_interval_leaves_out_the_half(
    findings: ModuleType, low: float, said: str
) -> None:
    parts = [{"part": "T_total", "share": 0.7, "low": low, "high": 0.9}, {"part": "T_preprocess", "share": 0.3}]
    assert findings._largest_part({"request": {"variance_parts": parts}}).startswith(said)


def test_requests_of_more_than_two_numbers_are_a_range(findings: ModuleType) -> None:
    facts = findings.findings_facts
    assert facts._one_of([404, 900, 404]) == "404 or 900"
    assert facts._one_of([168, 900, 640, 404]) == "168 to 900"
    assert facts._one_of([404, 404]) == "404"


def test_summaries_of_the_archive_are_of_the_statistics_that_pages_are_of(script: ModuleType, tmp_path: Path) -> None:
    """What is kept of an earlier run stays; its summary, which pages quote, is made anew, and none where there was none."""
    run = tmp_path / "archive" / "h200_gemma3_eager" / "phase1"
    shutil.copytree(RESULTS / "archive" / "h200_gemma3_eager" / "phase1", run)
    summary, kept = run / "summary.json.gz", sorted(path.name for path in run.iterdir())
    expected = summary.read_bytes()
    assert list(script.summarise_archive(tmp_path)) == [], "the published one is of the present code"
    summary.write_bytes(gzip.compress(b'{"headline": "of an earlier method"}'))
    assert list(script.summarise_archive(tmp_path)) == ["changed h200_gemma3_eager/phase1/summary.json.gz"]
    assert summary.read_bytes() == expected
    assert sorted(path.name for path in run.iterdir()) == kept
    summary.unlink()
    assert list(script.summarise_archive(tmp_path)) == []


def test_a_published_budget_is_of_its_rows(script: ModuleType, tmp_path: Path) -> None:
    """What a command wrote when it measured is of the code of that day; its figure and table are of one."""
    folder = tmp_path / "h200_llava_budget"
    shutil.copytree(RESULTS / "h200_llava_budget", folder)
    said = json.loads((folder / "budget.json").read_text(encoding="utf-8"))
    for row in said["settings"]:
        row["latency"] |= {"low": 1.0, "high": 2.0}
        row["fit"] = "fits"
    (folder / "budget.json").write_text(json.dumps(said), encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    list(script.publish(script.write_again(folder, work), folder))
    found = json.loads((folder / "budget.json").read_text(encoding="utf-8"))
    published = json.loads((RESULTS / "h200_llava_budget" / "budget.json").read_text(encoding="utf-8"))
    assert [row["latency"] for row in found["settings"]] == [row["latency"] for row in published["settings"]]
    assert [row["promise"] for row in found["settings"]] == [row["promise"] for row in published["settings"]]
    assert found["verdict"] == published["verdict"]

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, row, usual, write
from vlmbench.errors import InputError
from vlmbench.report import terminal_tables
from vlmbench.report.narrative.latency import HOW_BAD, HOW_LONG, HOW_SURE, WHICH_PART, answers
from vlmbench.report.phase1 import EXPERIMENT, PHASE_FILE, figures, write_phase1
from vlmbench.report.phase1_summary import read_run, summarise
from vlmbench.report.phase_file import run_rows, write_phase_file
from vlmbench.schema import Mode, Status
from vlmbench.text import ms, percent


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not strict JSON")


def strict_json(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=refuse)


def phase_file(directory: Path, provenance: dict[str, Any], summary: dict[str, Any]) -> Path:
    path, rows = directory / PHASE_FILE, run_rows(directory)
    return write_phase_file(path, experiment=EXPERIMENT, provenance=provenance, summary=summary, results=rows)


def text_of(summary: dict[str, Any], provenance: dict[str, Any]) -> str:
    return "\n".join(sentence for _, said in answers(summary, provenance) for sentence in said)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write(tmp_path_factory.mktemp("run"), usual(400, 400))
    stopping = [{"point_id": "dataset", "ended_by": "all_measured", "unmet": []}]
    (directory / "points.json").write_text(json.dumps({"points": stopping}))
    return directory


@pytest.fixture(scope="module")
def summary(run: Path) -> dict[str, Any]:
    return summarise(run)


def test_summary_holds_the_planted_numbers(summary: dict[str, Any]) -> None:
    assert summary["schema_version"] == 1
    total = summary["distribution"]["T_total"]
    assert total["workload"]["n"] == 400
    # 30 ms + 10 ms for each of 1 … 32 gaps
    assert total["workload"]["p50"]["value"] == pytest.approx(195, abs=6)
    assert total["reference"]["p50"]["value"] == pytest.approx(180, abs=0.2)
    assert summary["distribution"]["ITL"]["workload"]["p50"]["value"] == pytest.approx(10, abs=0.02)
    assert summary["headline"]["largest_component"] == "T_LLM_decode"
    shares = {c["component"]: c["share"] for c in summary["components"]}
    assert shares["T_LLM_decode"] == pytest.approx(165 / (195 + 5), abs=0.03)
    assert summary["instrument_overhead"]["value"] == pytest.approx(0, abs=0.01)
    assert summary["residual"]["runs_with_negative"] == 0
    assert summary["itl_count"] == {"gaps": 6472, "expected": 6472, "runs": 400, "runs_in_quantiles": 400}
    assert summary["tail"]["causes"]["gc_pause"] == 4
    assert summary["flags"] == {"gc_pause": 4}
    assert summary["aa_check"]["verdict"] == "clean"
    assert summary["memory"]["peak_rss_bytes"]["max"] == 2 * 2**30
    assert summary["tokens"]["num_output_tokens"] == {"min": 2, "median": 17, "max": 33, "n": 400}
    assert summary["stopping"] == [{"point_id": "dataset", "ended_by": "all_measured", "unmet": []}]


def test_status_counts_and_failures(summary: dict[str, Any]) -> None:
    assert summary["runs"]["status"] == {"ok": 1201, "cold": 1, "warmup": 1, "error": 1}
    assert summary["runs"]["ok_by_mode"] == {"instrumented": 800, "bare": 400, "trace": 1}
    assert summary["runs"]["failures"] == [{"status": "error", "reason": "cannot identify image file", "rows": 1}]


def test_words_answer_the_three_questions_with_intervals(summary: dict[str, Any]) -> None:
    said = dict(answers(summary, PROVENANCE))
    assert list(said) == [HOW_LONG, HOW_BAD, WHICH_PART, HOW_SURE]
    long, bad, part, sure = (" ".join(sentences) for sentences in said.values())
    assert "at the median of 400 runs" in long
    assert "1 in 100 takes more than" in long
    assert "one identical request, repeated 400 times, has a tail too: its P99 is " in bad
    assert "gc_pause 4" in bad
    assert part.startswith("LLM decode: 8")
    share = next(c for c in summary["components"] if c["component"] == "T_LLM_decode")
    # sums over all runs, not medians: the pauses of 500 ms are in it
    decode, whole = (summary["distribution"][m]["workload"] for m in ("T_LLM_decode", "T_total"))
    assert share["share"] == pytest.approx(decode["mean"] / whole["mean"])
    assert f"LLM decode: {percent(share['share'])} of all time spent in generate()" in part
    assert f"its median is {ms(share['median'])} a run" in part
    assert "Then, of all time spent there: " in part
    assert "the language model holds 95.4 % of the parameters" in part
    assert "no stage came out negative" in sure
    assert "Weights are random" in sure
    assert "1 row error: cannot identify image file." in sure
    assert "None" not in text_of(summary, PROVENANCE)
    assert "nan" not in text_of(summary, PROVENANCE).lower()


def test_tables_as_plain_text(summary: dict[str, Any]) -> None:
    text = terminal_tables.as_text(terminal_tables.phase1(summary, PROVENANCE))
    assert "\x1b" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    for part in ("planted-vlm (random weights)", "How long", "LLM decode", "ITL", "Language model", "6.50 B"):
        assert part in text
    narrow = terminal_tables.as_text(terminal_tables.phase1(summary, PROVENANCE), width=70)
    assert all(len(line) <= 70 for line in narrow.splitlines())


def test_brackets_are_no_markup(tmp_path: Path) -> None:
    rows = [row(), row(sample="x", status=Status.ERROR, reason="[red]no :smile: image[/red]")]
    text = terminal_tables.as_text(terminal_tables.phase1(summarise(write(tmp_path, rows)), PROVENANCE))
    assert "[red]no :smile: image[/red]" in text
    assert "probe=[timeline,memory,clocks,kernels]" in text


def test_write_phase1_writes_all_files_whole(run: Path) -> None:
    report = write_phase1(run)
    names = {file.name for file in report.files}
    assert {"summary.json", PHASE_FILE} <= names
    for figure in (
        "latency_distribution",
        "components_pie",
        "components_bars",
        "stage_distributions",
        "ttft_itl",
        "latency_vs_tokens",
    ):
        assert {f"{figure}.png", f"{figure}.pdf"} <= names
    assert all(file.stat().st_size > 0 for file in report.files)
    assert not list(run.rglob("*.part"))
    assert strict_json(run / "summary.json") == report.summary
    assert HOW_LONG in report.text


def test_phase_file_has_one_row_a_watched_run_as_recorded(run: Path, summary: dict[str, Any]) -> None:
    content = strict_json(phase_file(run, PROVENANCE, summary))
    assert list(content) == ["schema_version", "experiment_name", "provenance", "summary", "results"]
    assert content["experiment_name"] == "phase1_dataset_profiling"
    assert content["provenance"] == PROVENANCE
    results = content["results"]
    recorded = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    wanted = [r for r in recorded if r["mode"] == "instrumented" and r["status"] in ("ok", "error", "oom", "skipped")]
    assert results == wanted
    assert len(results) == 801
    for r in results:
        if r["status"] == "ok":
            stages = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "T_residual")
            assert sum(r[s] for s in stages) == pytest.approx(r["T_total"])
            assert len(r["ITL"]) == r["num_output_tokens"] - 1


def test_failed_write_leaves_the_old_file(run: Path, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = phase_file(run, PROVENANCE, summary).read_bytes()

    def torn(*args: Any, **kwargs: Any) -> Any:  # while the rows are being written
        yield b"{}"
        raise InputError("the records vanished")

    monkeypatch.setattr("vlmbench.analysis.row_file.RowFile.lines", torn)
    with pytest.raises(InputError, match="vanished"):
        phase_file(run, PROVENANCE, summary)
    assert (run / PHASE_FILE).read_bytes() == before
    assert not list(run.glob(".*part"))


DEGENERATE: dict[str, list[dict[str, Any]]] = {
    "one row": [row()],
    "all errors": [row(sample=f"s{i}", status=Status.ERROR, reason="no image") for i in range(3)],
    "one token": [row(sample=f"s{i}", gaps=[]) for i in range(3)],
    "no vision": [row(sample=f"s{i}", vision=None, projector=None, tokens=(0, 5 + i)) for i in range(30)],
    "no reference": [row(sample=f"s{i}", gaps=[1.0] * (i % 5)) for i in range(50)],
    "only a reference": [row("reference", "r", repeat=i) for i in range(5)],
    "only bare": [row(sample=f"s{i}", mode=Mode.BARE) for i in range(5)],
    "broken stages": [row(sample=f"s{i}", setup=-1.0) | {"T_total": 1.0} for i in range(8)],
    "sweep": [row(f"dataset,resolution={r}", f"s{i}", started=float(i)) for r in (1, 2) for i in range(8)],
    "oom and skipped": [row(), row("b", status=Status.OOM, reason="needs 9 GiB"), row("c", status=Status.SKIPPED)],
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_runs_have_a_true_summary(tmp_path: Path, case: str) -> None:
    directory = write(tmp_path / "run", DEGENERATE[case], provenance={})
    run = read_run(directory)
    summary = summarise(directory)
    text = terminal_tables.as_text(terminal_tables.phase1(summary, run.provenance))
    assert "nan" not in text.lower()
    assert "None" not in text
    json.dumps(summary, allow_nan=False)
    list(figures(run))
    assert len(strict_json(phase_file(directory, {}, summary))["results"]) == sum(
        r["mode"] == "instrumented" for r in DEGENERATE[case]
    )


def test_words_of_degenerate_runs(tmp_path: Path) -> None:
    def text(case: str) -> str:
        return text_of(summarise(write(tmp_path / case, DEGENERATE[case])), {})

    assert "Nothing could be measured." in text("all errors")
    assert "3 rows error: no image." in text("all errors")
    assert "no interval: needs 6 requests, and there is 1" in text("one row")
    assert "Too few runs for P90 (1 of 36)" in text("one row")
    assert "no single request was repeated" in text("no reference")
    assert "no bare runs" in text("no reference")
    assert "8 runs had a negative stage" in text("broken stages")
    assert "In 8 runs the stages do not add up to T_total" in text("broken stages")
    assert "2 sweep points are pooled" in text("sweep")
    assert "1 row oom: needs 9 GiB." in text("oom and skipped")


def test_provenance_that_is_no_object_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [row()])
    (tmp_path / "provenance.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        summarise(tmp_path)


def test_a_run_without_provenance_is_summarised(tmp_path: Path) -> None:
    write(tmp_path, [row()])
    (tmp_path / "provenance.json").unlink()
    assert summarise(tmp_path)["runs"]["workload_runs"] == 1


def test_how_long_the_requests_took_stands_in_the_summary(tmp_path: Path) -> None:
    times = [{"session": at // 3, "started_unix_s": 1e4 * (at // 3) + 2.0 * at} for at in range(6)]
    write(tmp_path, [row(repeat=at) | time for at, time in enumerate(times)])
    assert summarise(tmp_path)["runs"]["workload_lasted_s"] == 8.0, "time between sessions is none"


def test_anatomy_table_names_modules_and_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rows = [
        SimpleNamespace(stage="vision_encoder", path="model.vision_tower", module_class="CLIPVisionModel", parameters=303_000_000, share=0.043, rule="owns patch embedding"),
        SimpleNamespace(stage="head", path="lm_head", module_class="Linear", parameters=131_000_000, share=0.019, rule="output embedding"),
    ]  # fmt: skip
    text = terminal_tables.as_text(terminal_tables.anatomy("LLaVA", rows, ["the head is tied"]))
    for part in (
        "Anatomy of LLaVA",
        "model.vision_tower",
        "CLIPVisionModel",
        "303 M",
        "4.30 %",
        "owns patch embedding",
        "Note: the head is tied",
    ):
        assert part in text


def test_quantities_never_round_to_nothing(summary: dict[str, Any]) -> None:
    for groups in summary["distribution"].values():
        for entry in groups.values():
            for name in ("p50", "p90", "p95", "p99"):
                value = entry[name]["value"]
                assert value is None or (math.isfinite(value) and entry[name]["low"] <= value <= entry[name]["high"])


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_tables_fit_the_terminal_and_say_what_they_leave_out(summary: dict[str, Any], width: int) -> None:
    text = terminal_tables.as_text(terminal_tables.phase1(summary, PROVENANCE), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text, "no cell is cut"
    assert ("Left out, for the width: lag-1" in text) == (width < 140)
    assert "P50" in text

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.swept import OUTPUT, PROVENANCE, VISION, sweep, write_phase, write_run
from vlmbench.analysis.results import merge_like, pair, read_phase_file, read_results, rows_of_both
from vlmbench.analysis.token_costs import compare
from vlmbench.errors import InputError
from vlmbench.records.comparable import differences, remarks

ROWS = sweep("vision_tokens", VISION, repeats=2)


def older(**changes: Any) -> dict[str, Any]:
    return {"T_total": 100.0, "num_vision_tokens": 144, "max_new_tokens": 8} | changes


def test_a_run_directory_its_records_and_its_phase_file_say_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ROWS)
    phase = write_phase(tmp_path / "phase2_scaling.json", ROWS)
    for path in (run, run / "records.jsonl", phase):
        (found,) = read_results(path)
        assert found.provenance == PROVENANCE
        assert len(found.frame) == len(ROWS)
        assert sorted(found.frame["T_total"]) == pytest.approx(sorted(r["T_total"] for r in ROWS), rel=1e-6)
        assert "ITL" not in found.frame


def test_flags_of_a_phase_file_are_those_of_its_records(tmp_path: Path) -> None:
    flagged = [row | {"flags": ["first_seen_length", "gc_pause"] if i == 0 else []} for i, row in enumerate(ROWS)]
    (records,) = read_results(write_run(tmp_path / "run", flagged))
    (phase,) = read_results(write_phase(tmp_path / "phase2_scaling.json", flagged))
    assert phase.frame["flags"].tolist() == records.frame["flags"].tolist()
    assert phase.frame["flags"][0] == "first_seen_length gc_pause"


def test_records_come_before_phase_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, ROWS)
    write_phase(run / "phase2_scaling.json", ROWS[:3])
    (found,) = read_results(run)
    assert len(found.frame) == len(ROWS)


def test_a_directory_with_only_a_phase_file(tmp_path: Path) -> None:
    write_phase(tmp_path / "phase2_scaling.json", ROWS)
    (tmp_path / "summary.json").write_text("{}")
    (found,) = read_results(tmp_path)
    assert len(found.frame) == len(ROWS)


def test_a_multirun_is_read_job_by_job_in_natural_order(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        write_run(tmp_path / f"{number}_phase2", sweep("vision_tokens", VISION, repeats=number + 1))
    found = read_results(tmp_path)
    assert [one.path.name for one in found] == ["0_phase2", "1_phase2", "2_phase2", "10_phase2"]
    (merged,) = merge_like(found)
    assert len(merged.frame) == len(VISION) * (1 + 2 + 3 + 11)


def test_a_broken_job_of_a_multirun_is_named_not_fatal(tmp_path: Path) -> None:
    write_run(tmp_path / "0", ROWS)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "records.jsonl").write_text("")
    (found,) = read_results(tmp_path)
    assert found.notes == ()
    assert "records.jsonl" in found.left_out[0]
    assert read_results(tmp_path / "0")[0].left_out == ()
    phase3 = write_run(tmp_path / "phase3", sweep("output_tokens", OUTPUT, repeats=4))
    said = compare(merge_like([found])[0], read_results(phase3)[0]).notes
    assert any(note.startswith("left out: ") and "records.jsonl" in note for note in said)


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    (found,) = read_results(write_run(tmp_path, ROWS, torn=True))
    assert len(found.frame) == len(ROWS)
    assert any("cut off" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ('{"schema_version": 1, "results": [{"T_tot', "torn or not JSON"),
        ("[1, 2]", "no list 'results'"),
        ('{"schema_version": 1}', "no list 'results'"),
        ('{"schema_version": 1, "results": []}', "holds no results"),
        ('{"schema_version": 1, "results": [3]}', "not rows"),
        ('{"schema_version": 99, "results": [{"T_total": 1}]}', "schema_version 99"),
        ('{"results": [{"latency": 1}]}', "lack"),
        ('{"results": [{"T_total": 1}]}', "num_vision_tokens or"),
        ('{"results": [{"T_total": null, "num_vision_tokens": 1}]}', "no row with a number in T_total"),
    ],
)
def test_bad_phase_files_are_refused_and_kept(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "phase2_scaling.json"
    file.write_text(text)
    for path in (file, tmp_path):
        with pytest.raises(InputError, match=says) as caught:
            read_results(path)
        assert "phase2_scaling.json" in str(caught.value)
    assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("make", ["missing", "empty"])
def test_nothing_there(tmp_path: Path, make: str) -> None:
    path = tmp_path / "run"
    if make == "empty":
        path.mkdir()
    with pytest.raises(InputError, match="no results"):
        read_results(path)


def test_binary_file(tmp_path: Path) -> None:
    file = tmp_path / "phase2.json"
    file.write_bytes(b"\xff\xfe\x00results")
    with pytest.raises(InputError, match="cannot read"):
        read_results(file)


def test_older_files_are_read_with_their_doubts(tmp_path: Path) -> None:
    rows = [older(num_vision_tokens=v, T_total=50 + 0.1 * v, T_LLM_decode=0.0, stages={"a": 1}) for v in (1, 2, 3)]
    rows.append({"num_vision_tokens": 4, "max_new_tokens": 8, "error": "out of memory"})
    found = read_phase_file(
        write_phase(tmp_path / "old.json", rows, schema_version=None, provenance=None, config={"model_name": "molmo"})
    )
    assert list(found.frame["num_output_tokens"]) == [8, 8, 8]
    assert found.provenance == {"model": {"name": "molmo"}}
    text = " ".join(found.notes)
    for said in ("older file", "1 rows without T_total", "'max_new_tokens'", "clamped", "patches"):
        assert said in text


def test_older_files_without_model_or_status(tmp_path: Path) -> None:
    file = tmp_path / "exp2.json"
    file.write_text(json.dumps({"results": [{"T_total": "12.5", "num_vision_tokens": 3}]}))
    found = read_phase_file(file)
    assert found.frame["T_total"].tolist() == [12.5]
    assert found.provenance == {}


def test_columns_with_gaps_stay_numbers(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[0]["num_crops"] = None
    rows[1]["num_crops"] = 5
    (found,) = read_results(write_phase(tmp_path / "phase2.json", rows))
    assert found.frame["num_crops"].dtype.kind == "f"


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    return {**PROVENANCE, **{name: {**PROVENANCE[name], **part} for name, part in parts.items()}}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (changed(device={"name": "Another GPU"}), "device.name: Made GPU against Another GPU"),
        (changed(model={"name": "made-72b"}), "model.name"),
        (changed(model={"weights": "pretrained"}), "model.weights"),
        (changed(runtime={"dtype": "float32"}), "runtime.dtype: bfloat16 against float32"),
        (changed(runtime={"attention": "eager"}), "runtime.attention"),
        (changed(runtime={"compile": True}), "runtime.compile"),
    ],
)
def test_unlike_runs_are_told_apart(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    left = read_results(write_run(tmp_path / "a", ROWS))
    right = read_results(write_run(tmp_path / "b", ROWS, other))
    with pytest.raises(InputError, match="not measured alike") as caught:
        pair(left, right)
    assert says in str(caught.value)
    assert "allow_unlike" in str(caught.value)
    assert len(pair(left, right, allow_unlike=True)) == 1


def test_what_makes_no_difference() -> None:
    other = changed(device={"uuid": "GPU-1"}, runtime={"device": "cuda:1", "name": "eager"}, model={"seed": 3})
    other["software"] = {"packages": {"numpy": "2.4"}}
    mine = {**PROVENANCE, "software": {"packages": {"numpy": "2.3"}}}
    assert differences(mine, other) == []
    assert "device.uuid differs" in " ".join(remarks(mine, other))


def test_another_torch_makes_runs_unlike() -> None:
    other = {**PROVENANCE, "software": {"packages": {"torch": "2.13"}}}
    mine = {**PROVENANCE, "software": {"packages": {"torch": "2.11"}}}
    assert differences(mine, other) == ["software.torch: 2.11 against 2.13"]


def test_the_number_of_devices_that_share_the_model_counts() -> None:
    one, two = changed(runtime={"devices": 1}), changed(runtime={"devices": 2})
    assert differences(one, two) == ["runtime.devices: 1 against 2"]


def test_what_is_not_known_is_said() -> None:
    assert differences({}, PROVENANCE) == []
    assert "not checked" in remarks({}, PROVENANCE)[0]


def test_each_model_finds_its_counterpart(tmp_path: Path) -> None:
    names = ("one", "two")
    for name in names:
        write_run(tmp_path / "p2" / name, ROWS, changed(model={"name": name}))
        write_run(tmp_path / "p3" / name, sweep("output_tokens", OUTPUT), changed(model={"name": name}))
    write_run(tmp_path / "p3" / "three", ROWS, changed(model={"name": "three"}))
    pairs = pair(merge_like(read_results(tmp_path / "p2")), merge_like(read_results(tmp_path / "p3")))
    assert [(a.provenance["model"]["name"], b.provenance["model"]["name"]) for a, b in pairs] == [
        ("one", "one"),
        ("two", "two"),
    ]


def test_runs_given_twice_are_read_and_counted_once(tmp_path: Path) -> None:
    for name, axis, values in (("phase2", "vision_tokens", VISION), ("phase3", "output_tokens", OUTPUT)):
        write_run(tmp_path / name, sweep(axis, values, repeats=2))
    every = read_results([tmp_path / "phase2", tmp_path, tmp_path / "phase3"])
    assert sorted(one.path.name for one in every) == ["phase2", "phase3"]
    (whole,), (part,) = merge_like(every), read_results(tmp_path / "phase3")
    rows = 2 * (len(VISION) + len(OUTPUT))
    assert [run.path.name for run in whole.runs] == [one.path.name for one in every]
    assert len(whole.frame) == len(rows_of_both(whole, part)) == len(rows_of_both(part, whole)) == rows
    assert len(rows_of_both(part, part)) == 2 * len(OUTPUT)


def test_a_mixture_of_unlike_sessions_is_named_and_compared_only_when_told_to(tmp_path: Path) -> None:
    """Also in a directory whose top names the first session only, as older ones do."""
    sessions = [
        {"device": {"type": "cuda", "name": "Made GPU"}, "model": {"dtype": "bfloat16"}},
        {"device": {"type": "cuda", "name": "Other GPU"}, "model": {"dtype": "bfloat16"}},
    ]
    mixed = read_results(write_run(tmp_path / "mixed", ROWS, {**PROVENANCE, "sessions": sessions}))
    pure = read_results(write_run(tmp_path / "pure", ROWS))
    assert mixed[0].provenance["device"]["name"] == "Made GPU + Other GPU"
    assert mixed[0].notes == ("a mixture of unlike sessions: device.name: Made GPU, then Other GPU",)
    assert differences(mixed[0].provenance, pure[0].provenance) == [
        "device.name: Made GPU + Other GPU against Made GPU"
    ]
    for left, right in ((mixed, pure), (mixed, mixed)):
        with pytest.raises(InputError, match=r"holds rows of unlike sessions: device\.name"):
            pair(left, right)
        assert len(pair(left, right, allow_unlike=True)) == 1
    assert len(merge_like([*mixed, *pure])) == 2


@pytest.mark.parametrize("device", [{"power_limit_w": 500.0}, {"threads": 4}])
def test_power_limit_and_threads_are_hardware(device: dict[str, Any]) -> None:
    mine = changed(device={"power_limit_w": 700.0, "threads": 8})
    (said,) = differences(mine, changed(device=device))
    assert next(iter(device)) in said
    assert differences(mine, PROVENANCE) == []  # an older file does not say


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("cache_implementation", "static", "runtime.cache_implementation: dynamic against static"),
        ("experts_implementation", "eager", "runtime.experts_implementation: null against eager"),
        ("device_map", "auto", "runtime.device_map: null against auto"),
        ("tp_plan", "auto", "runtime.tp_plan: null against auto"),
    ],
)
def test_a_setting_left_at_its_default_is_known(tmp_path: Path, name: str, value: str, says: str) -> None:
    null, chosen = changed(runtime={name: None}), changed(runtime={name: value})
    assert differences(null, chosen) == [says]
    assert differences(null, null) == differences(PROVENANCE, chosen) == []  # absent is not known
    left, right = (read_results(write_run(tmp_path / str(i), ROWS, found)) for i, found in enumerate((null, chosen)))
    with pytest.raises(InputError, match=says):
        pair(left, right)


def test_what_came_of_a_setting_counts_not_what_was_asked_for() -> None:
    asked = [{"attn_implementation": None, "attention": "sdpa"}, {"attn_implementation": "sdpa", "attention": "sdpa"}]
    assert differences(*(changed(runtime=one) for one in asked)) == []
    threads = [
        changed(runtime={"threads": number}, device={"type": "cpu", "name": "c", "threads": 4}) for number in (None, 4)
    ]
    assert differences(*threads) == []
    caches = [{"cache_implementation": None, "compile": True}, {"cache_implementation": "static", "compile": True}]
    assert differences(*(changed(runtime=one) for one in caches)) == []

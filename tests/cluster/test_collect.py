"""All finished runs as one table, whatever the others do."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmbench.cli import grids
from vlmbench.cluster.collect import collect, is_complete, read_table
from vlmbench.cluster.medians import medians
from vlmbench.errors import InputError
from vlmbench.figures.grid_overview import _by_other_axes, _groups
from vlmbench.records.comparable import apart, unlike_runs
from vlmbench.records.outcome import OutcomeFile, State
from vlmbench.records.provenance import begin_session
from vlmbench.records.provenance import collect as provenance
from vlmbench.records.reading import RECORDS_NAME
from vlmbench.records.store import RecordStore
from vlmbench.schema import Mode, Record, Status

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


def run(
    folder: Path, model: str, state: State, *, rows: int = 4, dtype: str = "float32", **runtime: str | bool | None
) -> None:
    config = {"model": {"name": model}, "runtime": {"name": "eager", **runtime}}
    with RecordStore(folder) as store:
        begin_session(
            folder, provenance(config, model_facts={"dtype": dtype, "weights": "random"}, device="cpu", seed=0)
        )
        for status, mode in (
            (Status.COLD, Mode.INSTRUMENTED),
            (Status.OK, Mode.TRACE),
            (Status.ERROR, Mode.INSTRUMENTED),
        ):
            store.append(Record(point_id="p", sample_id="s", repeat=0, mode=mode, status=status, reason="why"))
        for i in range(rows):
            store.append(
                Record(
                    point_id=f"vision_tokens={i % 2}", sample_id="s", repeat=i, mode=Mode.INSTRUMENTED, status=Status.OK,
                    axes={"vision_tokens": i % 2}, values={"T_total": 1.5 + i, "ITL": [0.5]}, flags=("a", "b")[: i % 3],
                )
            )  # fmt: skip
    outcome = OutcomeFile(folder)
    outcome.begin()
    if state != State.RUNNING:
        outcome.end(state, exit_status=0 if state == State.DONE else 1, reason="because")


def test_one_table_of_what_is_over(tmp_path: Path) -> None:
    run(tmp_path / "0_run", "a", State.DONE)
    run(tmp_path / "1_run", "b", State.FAILED, rows=2, dtype="bfloat16")
    with RecordStore(tmp_path / "2_run"):
        pass
    OutcomeFile(tmp_path / "2_run").begin()
    done = collect(tmp_path)
    frame = pandas.read_parquet(done.table_path)
    assert done.rows == len(frame) == 8
    assert frame.groupby("run", observed=True)["status"].value_counts().to_dict() == {
        ("0_run", "ok"): 4, ("0_run", "error"): 1, ("1_run", "ok"): 2, ("1_run", "error"): 1,
    }  # fmt: skip
    assert set(frame["model"]) == {"a", "b"}
    assert frame["T_total"].dropna().tolist() == [1.5, 2.5, 3.5, 4.5, 1.5, 2.5]
    assert frame["flags"].tolist()[1:4] == ["", "a", "a b"]
    assert "ITL" not in frame
    assert done.unlike == {"dtype": ["bfloat16", "float32"]}
    assert not is_complete(done.runs)
    summary = json.loads(done.summary_path.read_text())
    assert summary["states"] == {"done": 1, "failed": 1, "lost": 1}
    assert [row["reason"] for row in summary["runs"]][1] == "because"
    assert {path.suffix for path in done.figures} == {".png", ".pdf"}
    as_text = pandas.read_csv(done.csv_path)
    assert list(as_text.columns) == list(frame.columns)
    assert as_text["T_total"].tolist() == pytest.approx(frame["T_total"].tolist(), nan_ok=True)
    assert as_text["model"].tolist() == frame["model"].tolist()


def test_nothing_finished_is_said(tmp_path: Path) -> None:
    OutcomeFile(tmp_path / "0_run").begin()
    with pytest.raises(InputError, match="has finished rows yet"):
        collect(tmp_path)


def test_torn_and_damaged_files_are_read(tmp_path: Path) -> None:
    run(tmp_path, "a", State.DONE)
    file = tmp_path / RECORDS_NAME
    whole = read_table(file)
    with file.open("ab") as stream:
        stream.write(b'{"half')
    assert read_table(file).equals(whole)
    file.write_bytes(b"\0\0\n" + file.read_bytes())
    again = read_table(file)
    assert again.num_rows == whole.num_rows
    assert again["T_total"].to_pylist() == whole["T_total"].to_pylist()


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_rows_that_were_packed_since_are_collected(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    run(tmp_path / "0_run", "a", State.DONE)
    plain = tmp_path / "0_run" / RECORDS_NAME
    expected = pandas.read_parquet(collect(tmp_path).table_path)
    packed = plain.with_name(plain.name + suffix)
    packed.write_bytes(pack(plain.read_bytes()))
    plain.unlink()
    pandas.testing.assert_frame_equal(pandas.read_parquet(collect(tmp_path).table_path), expected)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot read records"):
        collect(tmp_path)


def test_unlike_runtimes_are_named_and_not_one_line(tmp_path: Path) -> None:
    """Of one name (``eager``), they differ in a setting: one line of medians would be of nothing."""
    for number, cache in enumerate((None, "static", None)):
        run(tmp_path / f"{number}_run", "a", State.DONE, cache_implementation=cache, compile=False)
    done = collect(tmp_path)
    assert done.unlike == {"runtime.cache_implementation": ["dynamic", "static"]}
    frame = pandas.read_parquet(done.table_path)
    assert frame.groupby("run", observed=True)["settings"].first().tolist() == [
        "cache implementation dynamic", "cache implementation static", "cache implementation dynamic",
    ]  # fmt: skip
    assert sorted(set(_groups(frame))) == [
        "a, cache implementation dynamic, 0_run", "a, cache implementation dynamic, 2_run",
        "a, cache implementation static",
    ]  # fmt: skip


def test_models_differ_by_nature() -> None:
    runs = [
        {"model.name": name, "model.parameters": number, "runtime.dtype": "float32", "device.threads": 2}
        for name, number in (("a", 1), ("b", 2))
    ]
    assert unlike_runs(runs) == {}
    again = {**runs[0], "model.parameters": 3, "device.threads": 4}
    assert unlike_runs([*runs, again]) == {"device.threads": ["2", "4"], "model.parameters": ["1", "3"]}
    names = [("a",), ("b",), ("a",)]
    assert apart(names, [*runs, again]) == [
        "model parameters 1, device threads 2", "", "model parameters 3, device threads 4",
    ]  # fmt: skip


def test_the_rows_of_a_studys_parts_are_collected(tmp_path: Path) -> None:
    for part in ("phase1", "phase2"):
        run(tmp_path / "study" / part, "a", State.DONE)
    OutcomeFile(tmp_path / "study").begin()
    for root, prefix in ((tmp_path / "study", ""), (tmp_path, "study/")):
        frame = pandas.read_parquet(collect(root, figures=False).table_path)
        assert frame["run"].value_counts().to_dict() == {f"{prefix}phase1": 5, f"{prefix}phase2": 5}


def test_points_of_unlike_work_have_no_median_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run holds points 0 (1.5, 3.5 … ms) and 1 (2.5, 4.5 … ms) of an axis."""
    run(tmp_path / "0_run", "a", State.DONE, rows=40)
    lines = medians(collect(tmp_path, figures=False).table_path)
    assert [(line.run, line.point) for line in lines] == [("0_run", "vision_tokens 0"), ("0_run", "vision_tokens 1")]
    assert [line.medians[0].value for line in lines] == [20.5, 21.5]
    assert [line.medians[0].n for line in lines] == [20, 20]
    assert grids.run("collect", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert "Medians [95 % interval], ms" in said.out
    assert "vision_tokens 1" in said.out
    assert "collected.parquet and collected.csv" in said.err
    assert "21.0" not in said.out, "the median of both points"


def test_of_many_points_the_ends_and_the_middle_are_shown(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        begin_session(tmp_path, provenance({"model": {"name": "a"}}, model_facts={}, device="cpu", seed=0))
        for size in (1600, 16, 400, 100, 64):
            for i in range(8):
                store.append(
                    Record(
                        point_id=f"vision_tokens={size}", sample_id="s", repeat=i, mode=Mode.INSTRUMENTED,
                        status=Status.OK, axes={"vision_tokens": size}, values={"T_total": size + 0.001 * i},
                    )
                )  # fmt: skip
    outcome = OutcomeFile(tmp_path)
    outcome.begin()
    outcome.end(State.DONE, exit_status=0)
    lines = medians(collect(tmp_path, figures=False).table_path)
    assert [(line.point, line.left_out) for line in lines] == [
        ("vision_tokens 16", 0), ("vision_tokens 100", 1), ("vision_tokens 1,600", 1),
    ]  # fmt: skip


def test_a_line_along_an_axis_is_of_one_place_on_the_others() -> None:
    """Latency is 10 a + b: a line over all b would be of nothing."""
    rows = [
        {"group": "g", "axis_a": a, "axis_b": b, "sample_id": "s", "T_total": 10.0 * a + b, "run": "r"}
        for a in (1, 2) for b in (1, 2, 3) for _ in range(6)
    ]  # fmt: skip
    rows += [{**row, "group": "h", "axis_b": None} for row in rows[:6]]
    frame = pandas.DataFrame(rows)
    part = _by_other_axes(frame, "axis_a", ["axis_a", "axis_b"])
    assert sorted(part["group"].unique()) == ["g, b 1", "g, b 2", "g, b 3", "h"]
    medians = part[part["group"] == "g, b 2"].groupby("axis_a")["T_total"].median()
    assert medians.to_dict() == {1: 12.0, 2: 22.0}
    assert _by_other_axes(frame, "axis_a", ["axis_a"])["group"].tolist() == frame["group"].tolist()

"""Rows in other shapes are the same rows."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from vlmbench.errors import InputError
from vlmbench.records.export import measured, read_phase, records_to_parquet, write_phase
from vlmbench.records.record import Mode, Record, Status
from vlmbench.records.store import RecordStore, read_rows


def fill(folder: Path, records: list[Record]) -> None:
    with RecordStore(folder) as store:
        for record in records:
            store.append(record)


def record(repeat: int, status: Status = Status.OK, mode: Mode = Mode.BARE, **values: object) -> Record:
    return Record(
        point_id="p", sample_id="s", repeat=repeat, mode=mode, status=status, axes={"vision_tokens": 64}, values=values
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_phase_file_holds_each_row(tmp_path: Path, count: int) -> None:
    rows = [record(i, T_total=float(i)).to_row() for i in range(count)]
    path = write_phase(
        tmp_path / "phase2_scaling.json", experiment_name="phase2", provenance={"seed": 1},
        summary={"p50": float("nan"), "x": {}}, rows=iter(rows),
    )  # fmt: skip
    assert read_phase(path) == {
        "schema_version": 1, "experiment_name": "phase2", "provenance": {"seed": 1},
        "summary": {"p50": None, "x": {}}, "results": rows,
    }  # fmt: skip


def test_a_phase_file_is_streamed(tmp_path: Path) -> None:
    row = record(0, ITL=[0.5] * 100).to_row()
    tracemalloc.start()
    try:
        path = write_phase(
            tmp_path / "f.json", experiment_name="x", provenance={}, summary={}, rows=(row for _ in range(3000))
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 1_500_000
    assert peak < 500_000


def test_warm_ups_and_traces_stay_out(tmp_path: Path) -> None:
    fill(tmp_path, [record(0, Status.COLD), record(1, Status.WARMUP), record(2), record(3, mode=Mode.TRACE),
                    record(4, Status.OOM)])  # fmt: skip
    assert [row["repeat"] for row in measured(read_rows(tmp_path))] == [2, 4]


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot read"), ("{", "cannot read"), ("[]", "no phase file"), ("{}", "it lacks")]
)
def test_no_phase_file(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "f.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=says):
        read_phase(path)


def test_parquet_holds_the_same_values(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    fill(
        tmp_path,
        [
            record(0, Status.COLD, T_total=2, num_crops=None, odd=1),
            record(1, T_total=2.5, num_crops=3, ITL=[1.0, 2.0], odd="x", kernel={"a": 1}),
            record(2, T_total=None, num_crops=4, ITL=[], odd=True),
        ],
    )
    frame = pandas.read_parquet(records_to_parquet(tmp_path))
    rows = list(read_rows(tmp_path))
    assert set(frame.columns) == {name for row in rows for name in row}
    assert frame["T_total"].tolist()[:2] == [2.0, 2.5]
    assert frame["num_crops"].tolist()[1:] == [3, 4]
    assert [None if v is None else list(v) for v in frame["ITL"]] == [None, [1.0, 2.0], []]
    assert frame["odd"].tolist() == ["1", "x", "true"]
    assert json.loads(frame["kernel"][1]) == {"a": 1}
    assert frame["point_id"].tolist() == ["p"] * 3


def test_parquet_of_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    fill(tmp_path, [])
    with pytest.raises(InputError, match="no rows"):
        records_to_parquet(tmp_path)

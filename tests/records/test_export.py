"""Rows in other shapes are the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmbench.errors import InputError
from vlmbench.records.export import records_to_parquet
from vlmbench.records.reading import iter_rows
from vlmbench.records.store import RecordStore
from vlmbench.schema import Mode, Record, Status


def fill(folder: Path, records: list[Record]) -> None:
    with RecordStore(folder) as store:
        for record in records:
            store.append(record)


def record(repeat: int, status: Status = Status.OK, mode: Mode = Mode.BARE, **values: object) -> Record:
    return Record(
        point_id="p", sample_id="s", repeat=repeat, mode=mode, status=status, axes={"vision_tokens": 64}, values=values
    )


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
    rows = list(iter_rows(tmp_path))
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

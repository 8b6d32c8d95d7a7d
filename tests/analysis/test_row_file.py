"""Rows that are read in blocks are those that are read one by one, whatever stands in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analysis.made import row, write
from vlmbench.analysis.frames import load_runs, load_token_gaps, measured
from vlmbench.analysis.row_file import read_once, row_file
from vlmbench.errors import InputError
from vlmbench.records import blocks
from vlmbench.records.reading import parse_row

GOOD = json.dumps(row(sample="odd", gaps=[1.5, 2.5]))


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(GOOD), **values})


ODD = {
    "as it is": GOOD,
    "blank": "  ",
    "torn": GOOD[:-20],
    "two rows": GOOD + GOOD,
    "a text with braces": changed(reason="} {"),
    "no row": "[1, 2]",
    "a key twice": GOOD[:-1] + ', "T_total": 5.0}',
    "not finite": changed(T_total=float("nan")),
    "too large": changed(T_total=1e31),
    "a number too long": GOOD[:-1] + ', "flops_total": 1' + "0" * 25 + "}",
    "true for a time": changed(T_total=True),
    "a text for a time": changed(T_total="5"),
    "a date": changed(gc="2020-01-01"),
    "a date as sample": changed(sample_id="2020-01-01"),
    "a fraction of a repeat": changed(repeat=0.0),
    "a repeat below zero": changed(repeat=-1),
    "an unknown mode": changed(mode="none"),
    "no session": json.dumps({k: v for k, v in json.loads(GOOD).items() if k != "session"}),
    "no flag": changed(flags=[None]),
    "no list of flags": changed(flags=None),
    "flags": changed(flags=["gc_pause", "busy_host"]),
    "nested": changed(chunks=[[1], [2, 3]], part={"a": 1}),
    "nested gaps": changed(part={"ITL": [1]}),
    "other letters": json.dumps({**json.loads(GOOD), "sample_id": "图"}, ensure_ascii=False),
    "null gaps": changed(ITL=[1.0, None, 0.0]),
    "no gaps": changed(ITL=[]),
    "gaps null": changed(ITL=None),
    "gaps of another kind": changed(ITL="x"),
    "gaps too large": changed(ITL=[1e300]),
    "a gap that no clock gives": GOOD.replace("1.5", "0e99"),
    "a text where numbers stand": changed(num_crops_done="x"),
    "a row again": json.dumps(row(sample="s3")),
}


@pytest.mark.parametrize("line", ODD.values(), ids=ODD)
def test_blocks_hold_what_lines_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    lines = [json.dumps(row(sample=f"s{i}", gaps=[0.5 * i, 2.0])) for i in range(6)]
    text = "\n".join([*lines[:4], line, *lines[4:]]) + "\n"
    (tmp_path / "records.jsonl").write_bytes(text.encode())
    in_blocks = load_runs(tmp_path), load_token_gaps(tmp_path), list(row_file(tmp_path).lines(range(6)))
    monkeypatch.setattr(blocks, "read_block", lambda lines: None)
    one_by_one = load_runs(tmp_path), load_token_gaps(tmp_path), list(row_file(tmp_path).lines(range(6)))
    pd.testing.assert_frame_equal(in_blocks[0], one_by_one[0], check_exact=True)
    assert in_blocks[0].attrs == one_by_one[0].attrs
    assert np.array_equal(in_blocks[1].values, one_by_one[1].values)
    assert np.array_equal(in_blocks[1].clusters, one_by_one[1].clusters)
    assert in_blocks[2] == one_by_one[2]


@pytest.mark.parametrize("line", [*ODD.values(), GOOD.replace("odd", "\\ud800")], ids=[*ODD, "half a letter"])
def test_what_a_block_takes_is_a_row(line: str) -> None:
    if blocks.read_block([line.encode("utf-8")]) is not None:
        assert parse_row(line.encode()) is not None


def test_whole_blocks_are_read_as_tables() -> None:
    lines = [json.dumps(row(sample=f"s{i}", gaps=[1.0] * i)).encode() + b"\n" for i in range(5)]
    table = blocks.read_block(lines)
    assert table is not None
    assert blocks.gap_counts(table).tolist() == [0, 1, 2, 3, 4]


def test_a_column_of_numbers_and_texts_matters_where_it_is_asked_for(tmp_path: Path) -> None:
    write(
        tmp_path,
        [row(sample="first") | {"kernel": 1}, *(row(sample=f"s{i}") | {"kernel": "flash"} for i in range(1500))],
    )
    assert len(load_runs(tmp_path, ["T_total"])) == 1501
    with pytest.raises(InputError, match="'kernel' holds numbers in some rows and texts in others"):
        load_runs(tmp_path)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    write(tmp_path, [row(), row(sample="s1")])
    with read_once():
        first = row_file(tmp_path)
        assert row_file(tmp_path) is first
        frame = load_runs(tmp_path, ["T_total", "T_never"])
        pd.testing.assert_frame_equal(measured(frame), measured(frame))
        assert frame["T_never"].isna().all()
        with (tmp_path / "records.jsonl").open("a") as file:
            file.write(json.dumps(row(sample="s2")) + "\n")
        assert len(load_runs(tmp_path)) == 3
    assert row_file(tmp_path) is not row_file(tmp_path)

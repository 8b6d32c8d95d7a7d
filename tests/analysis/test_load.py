from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.made import row, usual, write
from vlmbench.analysis.frames import left_out_words, load_runs, load_token_gaps
from vlmbench.errors import InputError
from vlmbench.records.reading import iter_rows
from vlmbench.records.store import RecordStore
from vlmbench.report.phase_file import run_rows
from vlmbench.schema import Mode, Status


def test_frame_holds_what_the_rows_hold(tmp_path: Path) -> None:
    rows = list(usual(30, 5))
    frame = load_runs(write(tmp_path, rows))
    assert len(frame) == len(rows)
    assert list(frame["sample_id"]) == [r["sample_id"] for r in rows]
    want = np.array([r.get("T_total") for r in rows], dtype=float)
    np.testing.assert_allclose(frame["T_total"].to_numpy(), want, rtol=1e-6)
    assert frame["T_total"].dtype == np.float32
    assert frame["peak_rss_bytes"].dtype == np.float64
    assert "ITL" not in frame
    assert set(frame["flags"]) == {"", "gc_pause"} or set(frame["flags"]) == {""}
    assert frame["reason"].dropna().tolist() == ["cannot identify image file"]
    assert frame.attrs["lines_left_out"] == 0


def test_only_wanted_columns_and_absent_ones_are_nan(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, usual(3, 2)), ["T_total", "T_never"])
    assert list(frame.columns) == ["point_id", "sample_id", "repeat", "mode", "status", "flags", "T_total", "T_never"]
    assert frame["T_never"].isna().all()


def test_a_column_that_comes_late_is_nan_before(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}") for i in range(2500)]
    rows[2400] |= {"energy_j": 3.5, "kernel": "flash", "nested": {"a": 1}}
    frame = load_runs(write(tmp_path, rows))
    assert frame["energy_j"].count() == 1
    assert frame["energy_j"][2400] == 3.5
    assert frame["kernel"][2400] == "flash"
    assert frame["kernel"].isna().sum() == 2499
    assert frame["nested"].isna().all()


def test_frames_can_be_written_to(tmp_path: Path) -> None:
    frame = load_runs(write(tmp_path, [row(), row(sample="s1")]))
    frame.loc[0, "T_total"] = 1.0
    assert frame["T_total"][0] == 1.0


def test_torn_last_line_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path, [row(), row(sample="s1")])
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    frame = load_runs(tmp_path)
    assert list(frame["sample_id"]) == ["s0"]
    assert frame.attrs["lines_left_out"] == 1
    assert load_token_gaps(tmp_path).requests == 1
    assert len(list(run_rows(tmp_path))) == 1


def test_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    write(tmp_path, [row(), row(sample="s1")])
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes().rstrip())
    frame = load_runs(file)
    assert len(frame) == 2
    assert frame.attrs["lines_left_out"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"{oops",
        b"\0" * 900,
        b"[1, 2]",
        b'{"schema_version": 1}',
        b'{"point_id": "p", "ITL": [1.0, 2.\0\0], "status": "ok"}',
        b'{"point_id": "dataset", "sam{"point_id": "dataset", "sample_id": "s0"}',
    ],
)
def test_a_damaged_line_is_left_out_and_told_by_every_reader(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, [row(gaps=[1.0]), row(sample="s1", gaps=[2.0])])
    file = tmp_path / "records.jsonl"
    first, second = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([damage, first, b"", damage, second, damage]) + b"\n")
    frame = load_runs(tmp_path)
    assert list(frame["sample_id"]) == ["s0", "s1"]
    assert frame.attrs["lines_left_out"] == 3
    assert left_out_words(3) == "3 lines of the records are no rows (cut off or damaged) and are left out"
    assert "1 damaged line(s) before line 2" in caplog.text
    assert load_token_gaps(tmp_path).values.tolist() == [1.0, 2.0]
    assert list(run_rows(tmp_path)) == [first, second]
    assert [r["ITL"] for r in iter_rows(tmp_path)] == [[1.0], [2.0]]
    with RecordStore(tmp_path) as store:
        assert len(store) == 2
    assert load_runs(tmp_path).attrs["lines_left_out"] == 2, "opening to go on cuts the tail off"


def test_a_file_of_something_else_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(InputError, match="holds no rows; none of its 2 lines is a row"):
        load_runs(tmp_path)


@pytest.mark.parametrize("version", [0, 2])
def test_other_schema_is_refused(tmp_path: Path, version: int) -> None:
    write(tmp_path, [row(), row() | {"schema_version": version}])
    with pytest.raises(InputError, match=f"line 2 has schema_version {version}, this vlmbench reads 1"):
        load_runs(tmp_path)


def test_missing_and_empty_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a run directory"):
        load_runs(tmp_path)
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(InputError, match="holds no rows"):
        load_runs(tmp_path)


def test_mixed_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [row() | {"x": 1.0}, row(sample="another") | {"x": "one"}])
    with pytest.raises(InputError, match="'x' holds numbers in some rows and texts in others"):
        load_runs(tmp_path)


def test_texts_that_look_like_fields_do_not_confuse(tmp_path: Path) -> None:
    nasty = 'say "ITL": [1, 2] and "status": "ok", "mode": "bare" \\"'
    write(tmp_path, [row(sample=nasty, gaps=[1.0, 2.0]), row(sample=nasty, status=Status.ERROR, reason=nasty)])
    frame = load_runs(tmp_path)
    assert list(frame["sample_id"]) == [nasty, nasty]
    assert frame["reason"][1] == nasty
    gaps = load_token_gaps(tmp_path)
    assert gaps.values.tolist() == [1.0, 2.0]
    assert gaps.requests_total == 1


def test_iter_rows_with_and_without_gaps(tmp_path: Path) -> None:
    write(tmp_path, [row(gaps=[1.0, 2.0])])
    assert next(iter_rows(tmp_path, itl=False))["ITL"] is None
    assert next(iter_rows(tmp_path))["ITL"] == [1.0, 2.0]


def test_gaps_of_measured_runs_of_the_points_only(tmp_path: Path) -> None:
    rows = [
        row(sample="a", gaps=[1.0, 2.0]),
        row(sample="b", gaps=[3.0]),
        row(sample="a", repeat=1, gaps=[4.0]),
        row(sample="c", gaps=[]),
        row("reference", "a", gaps=[50.0]),
        row(sample="w", status=Status.WARMUP, gaps=[60.0]),
        row(sample="x", mode=Mode.TRACE, gaps=[70.0]),
    ]
    write(tmp_path, rows)
    gaps = load_token_gaps(tmp_path, point_ids=["dataset"])
    assert gaps.values.tolist() == [1, 2, 3, 4]
    assert (gaps.clusters == gaps.clusters[0]).tolist() == [True, True, False, True]
    assert (gaps.requests, gaps.requests_total, gaps.gaps_total) == (4, 4, 4)
    by_run = load_token_gaps(tmp_path, point_ids=["dataset"], cluster="run")
    assert len(np.unique(by_run.clusters)) == 3


def test_too_many_gaps_are_sampled_by_request_without_bias(tmp_path: Path) -> None:
    write(tmp_path, [row(sample=f"s{i}", gaps=[float(i)] * (1 + i % 3)) for i in range(3000)])
    gaps = load_token_gaps(tmp_path, max_gaps=1500)
    assert gaps.requests_total == 3000
    assert gaps.gaps_total == 6000
    assert 500 < len(gaps.values) <= 1500
    assert gaps.requests == len(np.unique(gaps.clusters))
    sizes = {int(v): int(c) for v, c in zip(*np.unique(gaps.values, return_counts=True), strict=True)}
    assert all(size == 1 + value % 3 for value, size in sizes.items()), "requests are kept whole"
    assert np.median(gaps.values) == pytest.approx(1500, rel=0.15)
    again = load_token_gaps(tmp_path, max_gaps=1500)
    np.testing.assert_array_equal(again.values, gaps.values)


_MEASURE = """
import resource, sys
from vlmbench.report.phase1_summary import read_run
read_run(sys.argv[1]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_run(sys.argv[2]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_memory_grows_little_with_rows(tmp_path: Path) -> None:
    small, large = write(tmp_path / "small", usual(80, 20)), tmp_path / "large"
    write(large, [])
    line = json.dumps(row(gaps=[10.123456] * 15))
    with (large / "records.jsonl").open("w") as file:
        file.writelines(line.replace('"s0"', f'"sample-{i:08d}"') + "\n" for i in range(40_000))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(small), str(large)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 32 * 1024
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0

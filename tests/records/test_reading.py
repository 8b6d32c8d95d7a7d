"""Where the rows of a directory are, plain or packed, and what is said of a file that cannot be read."""

from __future__ import annotations

import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import usual, write
from vlmbench import read
from vlmbench.analysis.frames import load_runs
from vlmbench.errors import InputError
from vlmbench.records.reading import PACKED, RECORDS_NAME, RECORDS_NAMES, iter_rows, records_in, records_path

Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {".gz": gzip.compress, ".xz": lzma.compress}
packs = pytest.mark.parametrize("suffix", PACKED)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run", usual(20, 5))


def packed(run: Path, suffix: str) -> Path:
    """The rows of a run, packed; the plain file goes."""
    plain = run / RECORDS_NAME
    file = run / f"{RECORDS_NAME}{suffix}"
    file.write_bytes(PACKS[suffix](plain.read_bytes()))
    plain.unlink()
    return file


def refusal(read: Callable[[Path], Any], file: Path) -> list[str]:
    """The lines in which a file is refused."""
    with pytest.raises(InputError) as refused:
        read(file)
    return str(refused.value).splitlines()


def rows_of(place: Path) -> list[dict[str, Any]]:
    return list(iter_rows(place))


def test_every_way_to_pack_is_tested() -> None:
    assert set(PACKED) == PACKS.keys()
    assert (RECORDS_NAME, f"{RECORDS_NAME}.xz", f"{RECORDS_NAME}.gz") == RECORDS_NAMES


@packs
def test_packed_rows_are_read_as_plain_ones(run: Path, suffix: str) -> None:
    plain, frame = rows_of(run), read(run).frame
    file = packed(run, suffix)
    assert rows_of(run) == rows_of(file) == plain
    assert rows_of(run / RECORDS_NAME) == plain, "what is packed in its place"
    for place in (run, file):
        assert read(place).frame.equals(frame)
        assert len(load_runs(place)) == len(plain)
    assert read(run.parent / "run").frame.equals(frame)


def test_of_several_the_plain_file_is_read_then_the_smaller_one(run: Path) -> None:
    """Rows that were measured here come before those that were published."""
    written = (run / RECORDS_NAME).read_bytes().splitlines(keepends=True)
    for number, name in enumerate(RECORDS_NAMES, start=1):
        content = b"".join(written[:number])
        (run / name).write_bytes(PACKS[Path(name).suffix](content) if Path(name).suffix in PACKS else content)
    for number, name in enumerate(RECORDS_NAMES, start=1):
        assert records_in(run) == records_path(run) == run / name
        assert len(rows_of(run)) == number
        (run / name).unlink()
    assert records_in(run) is None
    assert records_in(run / "nowhere") is None
    with pytest.raises(InputError, match="no records at"):
        records_path(run)


@packs
def test_a_packed_file_that_is_cut_off_is_refused_in_two_lines(run: Path, suffix: str) -> None:
    file = packed(run, suffix)
    whole = file.read_bytes()
    for kept in [*range(1, len(whole) - 1, len(whole) // 20), len(whole) - 1]:
        file.write_bytes(whole[:kept])
        for reader in (rows_of, read, load_runs):
            first, second = refusal(reader, file)
            assert first.startswith(f"cannot read records '{file}': ")
            assert second == f"Name a run directory that holds a {RECORDS_NAME}, or such a file."


@packs
@pytest.mark.parametrize("content", [b"no archive at all", b"\0" * 4096], ids=["text", "zeros"])
def test_a_file_that_is_not_packed_is_refused_in_two_lines(run: Path, suffix: str, content: bytes) -> None:
    file = packed(run, suffix)
    file.write_bytes(content)
    for reader in (rows_of, read, load_runs):
        assert len(refusal(reader, file)) == 2


def test_a_damaged_byte_of_xz_is_noticed_wherever_it_is(run: Path) -> None:
    rows = rows_of(run)
    file = packed(run, ".xz")
    whole = file.read_bytes()
    for at in range(0, len(whole), max(len(whole) // 50, 1)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert len(refusal(rows_of, file)) == 2, at
    file.write_bytes(lzma.compress(json.dumps(rows[0]).encode(), format=lzma.FORMAT_ALONE))
    assert len(refusal(rows_of, file)) == 2, "of a kind that has no sums to check"


def test_a_python_without_lzma_reads_all_but_xz(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)
    rows = rows_of(run)
    plain = (run / RECORDS_NAME).read_bytes()
    packed(run, ".gz")
    assert rows_of(run) == rows
    (run / RECORDS_NAME).write_bytes(plain)
    file = packed(run, ".xz")
    for reader in (rows_of, read, load_runs):
        assert refusal(reader, file) == [
            f"cannot read records '{file}': this Python was built without the module lzma.",
            "Unpack the file (xz --decompress --keep), or use another Python.",
        ]

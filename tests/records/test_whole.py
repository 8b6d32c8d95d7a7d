"""Whole files are replaced at once or not at all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.errors import InputError, MeasurementError
from vlmbench.records.files import strict, whole_folder, write_json, write_whole


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("content", "stored"),
    [("grüße", "grüße".encode()), (b"\x00\xff", b"\x00\xff"), (lambda f: f.write(b"by call"), b"by call")],
)
def test_three_kinds_of_content(tmp_path: Path, content: object, stored: bytes) -> None:
    path = write_whole(tmp_path / "new" / "file", content)
    assert path.read_bytes() == stored
    assert names(path.parent) == ["file"]


def test_a_failing_writer_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "file", "old")

    def broken(file: object) -> None:
        file.write(b"half")
        raise RuntimeError("figure cannot be drawn")

    with pytest.raises(RuntimeError, match="figure"):
        write_whole(path, broken)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_permissions_follow_the_umask_or_the_argument(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = write_whole(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(write_whole(tmp_path / "b", "x", mode=0o600).stat().st_mode) == 0o600


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from vlmbench.records.files import write_whole\n"
        "from vlmbench.errors import MeasurementError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "p = Path(sys.argv[1]); write_whole(p, 'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: write_whole(p, 'x' * 1000)\n"
        "except MeasurementError as e: print(e); raise SystemExit(p.read_text() != 'old')\n"
        "raise SystemExit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "File too large" in done.stdout
    assert names(tmp_path) == ["f"]


def test_a_folder_that_is_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MeasurementError, match="cannot write"):
        write_whole(tmp_path / "file" / "below", "x")


def test_strict_json_of_odd_values(tmp_path: Path) -> None:
    value = {
        "nan": float("nan"), "inf": -np.inf, "np": np.float32(1.5), "arr": np.arange(3), "path": Path("a/b"),
        "set": {2, 1}, 3: (True, None), "odd": "\udcff",
    }  # fmt: skip
    stored = json.loads(write_json(tmp_path / "f.json", value).read_text())
    assert stored == {
        "nan": None, "inf": None, "np": 1.5, "arr": [0, 1, 2], "path": "a/b", "set": [1, 2], "3": [True, None],
        "odd": "\\udcff",
    }  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_strict_is_always_storable_and_idempotent(value: object) -> None:
    plain = strict(value)
    text = json.dumps(plain, allow_nan=False)
    assert strict(json.loads(text)) == plain


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    """What a writer that was killed left is removed by the next, unless that writer lives."""
    (tmp_path / ".served.gone.part").mkdir()
    (tmp_path / ".served.gone.part" / "config.json").touch()
    with pytest.raises(MeasurementError), whole_folder(tmp_path / "served") as made:
        made.rmdir()
    assert not list(tmp_path.iterdir())
    for place in (tmp_path / "served", tmp_path / "mount"):
        (tmp_path / "mount").mkdir(exist_ok=True)
        with whole_folder(place) as made, whole_folder(tmp_path / f"{place.name}.2") as other:
            for folder in (made, other):
                (folder / "config.json").touch()
            if place.name == "served":
                assert not place.exists()
        assert [path.name for path in place.iterdir()] == ["config.json"]
        with pytest.raises(InputError, match="is not empty"), whole_folder(place):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"served", "served.2", "mount", "mount.2"}
    assert stat.S_IMODE((tmp_path / "served").stat().st_mode) == stat.S_IMODE((tmp_path / "mount").stat().st_mode)

"""Where words go: a reader that is gone, a full disk, a closed descriptor or an old encoding end no command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmbench.cli import secrets
from vlmbench.cli.secrets import _Hiding, flushed

HELP = [sys.executable, "-m", "vlmbench", "--help"]


def text_to(descriptor: int, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(os.fdopen(descriptor, "wb", buffering=0), encoding=encoding, write_through=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_character_that_the_encoding_has_not_is_a_question_mark(encoding: str) -> None:
    read, write = os.pipe()
    stream = _Hiding(text_to(write, encoding))
    stream.write("20 ms ████ \udcff")
    stream.stream.close()
    with os.fdopen(read, "rb") as file:
        shown = file.read().decode(encoding)
    assert shown == ("20 ms ████ ?" if encoding == "utf-8" else "20 ms ???? ?")


def test_words_to_a_reader_that_is_gone_are_lost_without_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", _Hiding(text_to(write)))
    for _ in range(2):
        sys.stdout.write("a line\n")
    assert flushed()
    sys.stdout.close()
    assert not capfd.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_words_to_a_full_disk_are_lost_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", _Hiding(text_to(os.open("/dev/full", os.O_WRONLY))))
    sys.stdout.write("a line\n")
    sys.stdout.write("another\n")
    assert not flushed()
    sys.stdout.close()
    assert capfd.readouterr().err == "vlmbench: the rest of the output is lost: No space left on device\n"


def test_nobody_listens() -> None:
    stream = _Hiding(None)
    stream.write("a line\n")
    stream.flush()
    assert not stream.isatty()
    stream.close()


@pytest.mark.parametrize(
    ("redirected", "status"),
    [("| true", 0), (">&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 1), ("| grep -c KEY=VALUE", 0)],
)
def test_of_a_command(redirected: str, status: int) -> None:
    words = " ".join(HELP)
    done = subprocess.run(
        ["bash", "-c", f"{words} {redirected}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Error" not in done.stderr


def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path: Path) -> None:
    code = (
        f"import os; from {secrets.__name__} import open_standard_streams; open_standard_streams()\n"
        f"file = open({str(tmp_path / 'rows')!r}, 'wb', buffering=0); os.write(2, b'a warning of a library')"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$CODE" <&- >&- 2>&-'], env={**os.environ, "CODE": code}, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "rows").read_bytes() == b""

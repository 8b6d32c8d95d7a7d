"""Hashes of a checkpoint's files, where something says what they should be. Standard library only.

Three sources are known: a file ``SHA256SUMS`` (as ``sha256sum`` writes it) in the folder, ``hf download --local-dir``'s
records under ``.cache/huggingface/download``, and the hub's own cache, whose files are links to blobs named by hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from vlmbench.errors import ModelError

SUMS = "SHA256SUMS"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")


def listed_hashes(folder: Path) -> dict[str, str]:
    """File name to SHA-256, from ``SHA256SUMS``; empty where there is none.

    Raises:
        ModelError: a line that is not ``<hash>  <name>``, or a name outside the folder.
    """
    file = folder / SUMS
    if not file.is_file():
        return {}
    hashes = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None or Path(found[2]).is_absolute() or ".." in Path(found[2]).parts:
            raise ModelError(f"line {number} of '{file}' must be a SHA-256, two spaces and a file of the folder")
        hashes[found[2].removeprefix("./")] = found[1].lower()
    return hashes


def downloaded_hashes(folder: Path) -> dict[str, str]:
    """File name to SHA-256, as the hub gave it when the files were downloaded; large files only (LFS)."""
    hashes = {}
    for record in folder.glob(".cache/huggingface/download/*.metadata"):
        lines = record.read_text(encoding="utf-8", errors="replace").splitlines()  # commit, etag, time
        if len(lines) > 1 and _SHA256.fullmatch(lines[1]):
            hashes[record.name.removesuffix(".metadata")] = lines[1]
    for file in folder.iterdir():
        blob = file.resolve()
        if file.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            hashes[file.name] = blob.name
    return {name: value for name, value in hashes.items() if (folder / name).is_file()}


def check_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Hash the files and compare; a gigabyte takes about a second.

    Raises:
        ModelError: names every file that is missing or has another hash.
    """
    missing = sorted(name for name in hashes if not (folder / name).is_file())
    if missing:
        raise ModelError(f"'{folder}' lacks files that {SUMS} lists: {', '.join(missing)}")
    wrong = [f"{name} ({found[:12]}…, not {hashes[name][:12]}…)" for name, found in _wrong(folder, hashes)]
    if wrong:
        raise ModelError(f"files in '{folder}' have wrong SHA-256 hashes: {', '.join(wrong)}; get them again")


def _wrong(folder: Path, hashes: Mapping[str, str]) -> list[tuple[str, str]]:
    """(file, its hash) where it is not the expected one."""
    found = []
    for name, expected in sorted(hashes.items()):
        with (folder / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != expected:
            found.append((name, digest))
    return found

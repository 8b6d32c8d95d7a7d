"""Image bytes from files and from zip archives, of which nothing is ever extracted. Standard library only."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from vlmbench.errors import InputError, SampleError

#: An encoded photo is some 100 kB, a large one 20 MB. More than this in one file is not a photo but a mistake or a
#: decompression bomb, and is refused before it is read.
MAX_IMAGE_BYTES = 256 * 2**20
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_./-]*")


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        SampleError: it is missing, unreadable or larger than :data:`MAX_IMAGE_BYTES`.
    """
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise SampleError(f"image {path} has {size} bytes; at most {MAX_IMAGE_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise SampleError(f"image {path} cannot be read: {error.strerror or error}") from error


def is_unsafe(name: str) -> bool:
    """True for a name that leads outside its folder, on any system: absolute, with a drive, or with ``..``."""
    if _PLAIN.fullmatch(name) and ".." not in name:
        return False  # official archives have 40,000 such names: no path object for each
    windows = PureWindowsPath(name)
    return (
        not name
        or "\0" in name
        or PurePosixPath(name).is_absolute()
        or bool(windows.drive or windows.root)
        or ".." in windows.parts  # a Windows path splits at / and at \
    )


class ZipArchive:
    """A zip whose members are read in place.

    The file is opened once per process and its names are checked then; a forked or unpickled copy opens its own
    handle, because processes that share one would move each other's file position.

    Args:
        path: the zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._pid = -1
        self._by_basename: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_zip": None, "_pid": -1, "_by_basename": {}}

    def __repr__(self) -> str:
        return f"ZipArchive({str(self.path)!r})"

    def _handle(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            try:
                handle = zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
                raise InputError(f"zip {self.path} cannot be read ({error}); download it again") from error
            try:
                self._by_basename = self._checked_names(handle)
            except InputError:
                handle.close()
                raise
            self._zip, self._pid = handle, os.getpid()
        return self._zip

    def _checked_names(self, handle: zipfile.ZipFile) -> dict[str, str]:
        names: dict[str, str] = {}
        for info in handle.infolist():
            # orig_filename: zipfile cuts ``filename`` at a NUL and turns the separators of the system into '/'.
            if is_unsafe(info.orig_filename) or is_unsafe(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
                raise InputError(
                    f"zip {self.path} is refused: its member {info.orig_filename!r} is a link or leads outside the "
                    "archive's folder. Official archives have no such member; download it again"
                )
            if not info.is_dir():
                names.setdefault(info.filename.rpartition("/")[2], info.filename)
        return names

    def close(self) -> None:
        """Close the handle; the next read opens it again."""
        if self._zip is not None and self._pid == os.getpid():
            self._zip.close()
        self._zip = None

    def find(self, basename: str) -> str | None:
        """The member of that file name, in whatever folder of the archive; None where it has none.

        Raises:
            InputError: the file is not a readable zip, or one of its names is refused.
        """
        self._handle()
        return self._by_basename.get(basename)

    def basenames(self) -> Iterator[str]:
        """File names of all members, folders left out."""
        self._handle()
        yield from self._by_basename

    def read_image(self, basename: str) -> bytes:
        """The bytes of the image of that file name.

        Raises:
            SampleError: there is no such member, it is damaged, encrypted or too large.
        """
        member = self.find(basename)
        if member is None:
            raise SampleError(f"image {basename} is not in {self.path}")
        handle = self._handle()
        size = handle.getinfo(member).file_size  # zipfile never yields more than this declared size
        if size > MAX_IMAGE_BYTES:
            raise SampleError(f"image {self.path}!{member} unpacks to {size} bytes; at most {MAX_IMAGE_BYTES} are read")
        try:
            return handle.read(member)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise SampleError(f"image {self.path}!{member} cannot be read: {error}") from error

    @contextmanager
    def stream(self, basename: str) -> Iterator[IO[bytes]]:
        """The member of that file name as a binary stream.

        Raises:
            InputError: there is no such member, or it is encrypted.
        """
        member = self.find(basename)
        if member is None:
            raise InputError(f"{basename} is not in {self.path} (it holds {', '.join(list(self.basenames())[:5])})")
        try:
            stream = self._handle().open(member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise InputError(f"{self.path}!{member} cannot be read: {error}") from error
        with stream:
            yield stream

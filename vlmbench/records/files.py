"""Whole files: written beside their place, then renamed onto it, so that a reader sees the old file or the new one."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vlmbench.errors import InputError, MeasurementError
from vlmbench.hiding import without_secret_texts
from vlmbench.text import parse_json

NO_LINK = (
    "is a link, and vlmbench follows none when it writes: what it points to may be another's.\n"
    "Remove the link, or choose another directory with output_dir=DIR."
)

BUFFER = 2**17  # bytes read or written at once, of files that may hold a million rows


def is_link_error(error: OSError) -> bool:
    """Whether a file was not opened because its name is a symbolic link (``O_NOFOLLOW``)."""
    return error.errno == errno.ELOOP


Content = str | bytes | Callable[[BinaryIO], object]


def write_whole(path: Path, content: Content, *, mode: int | None = None) -> Path:
    """Replace ``path`` by ``content`` atomically and durably: write, fsync, rename, fsync of the folder.

    Args:
        path: where the file goes; missing parent folders are made.
        content: text (stored as UTF-8), bytes, or a callable that writes to the open binary file it is given
            (``lambda f: figure.savefig(f, format="png")``).
        mode: permission bits; None for what the umask gives.

    Returns:
        ``path``.

    Raises:
        MeasurementError: the disk is full or the folder may not be written; what stood at ``path`` is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.", suffix=_PART)
    except OSError as error:
        raise MeasurementError(_cannot(path, error)) from error
    try:
        with os.fdopen(handle, "wb", BUFFER) as file:
            if isinstance(content, str):
                file.write(content.encode("utf-8"))
            elif isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fchmod(file.fileno(), _umask_mode() if mode is None else mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _remove(name)
        raise MeasurementError(_cannot(path, error)) from error
    except BaseException:
        _remove(name)
        raise
    return path


def write_json(path: Path, value: Any, *, mode: int | None = None) -> Path:
    """Like :func:`write_whole` with ``value`` as indented strict JSON (see :func:`strict`), secrets in texts hidden."""
    plain = without_secret_texts(strict(value))
    return write_whole(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n", mode=mode)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is no such file.

    Raises:
        InputError: the file is there and holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON ({error}); restore it or measure again") from None
    if not isinstance(content, dict):
        raise InputError(f"'{path}' must hold a JSON object (got {type(content).__name__})")
    return content


def strict(value: Any) -> Any:
    """``value`` in the types of strict JSON: NaN and infinity become None, tuples and sets lists, NumPy scalars plain.

    Anything else (paths, enums, versions) becomes its text.
    """
    plain: Any
    if value is None or isinstance(value, bool):
        plain = value
    elif isinstance(value, int):
        plain = int(value)
    elif isinstance(value, float):
        plain = float(value) if math.isfinite(value) else None
    elif isinstance(value, str):
        # a lone surrogate (a file name that is not UTF-8, say) cannot be stored
        plain = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    elif isinstance(value, Mapping):
        plain = {strict(str(key)): strict(item) for key, item in value.items()}
    elif isinstance(value, set | frozenset):
        plain = [strict(item) for item in sorted(value, key=str)]
    elif isinstance(value, list | tuple):
        plain = [strict(item) for item in value]
    elif hasattr(value, "tolist"):  # NumPy and torch scalars and arrays, without importing either
        plain = strict(value.tolist())
    else:
        plain = strict(str(value))
    return plain


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Make a folder as a whole: yield an empty one, whose content is at its place once the block ends without an error.

    Until then it lies beside that place, or within it where the folder is there already (it may be a mount, or where
    the user stands). What writers that were killed left half-made is removed first.

    Args:
        folder: that is not there, or is empty.

    Raises:
        InputError: it is not empty.
        MeasurementError: the disk is full or may not be written there.
    """
    folder = folder.absolute()
    here = folder if folder.is_dir() else folder.parent
    prefix = f".{folder.name[:64]}."
    try:
        here.mkdir(parents=True, exist_ok=True)
        for stray in here.glob(f"{glob.escape(prefix)}*{_PART}"):
            with suppress(BlockingIOError, NotADirectoryError), _locked(stray):
                shutil.rmtree(stray)
        if folder.is_file() or (here == folder and any(folder.iterdir())):
            raise InputError(f"'{folder}' is not empty, and this would be mixed with what is there\ngive a new folder")
        made = Path(tempfile.mkdtemp(dir=here, prefix=prefix, suffix=_PART))
    except OSError as error:
        raise MeasurementError(_cannot(folder, error)) from error
    try:
        with _locked(made):
            yield made
            made.chmod(_umask_mode() | _umask_mode() >> 2 & 0o111)  # who may read it may enter it
            if here != folder:
                made.rename(folder)
            else:
                for path in made.iterdir():
                    path.rename(folder / path.name)
                made.rmdir()
        sync_folder(here)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise MeasurementError(_cannot(folder, error)) from error
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which falls with its holder.

    Raises:
        BlockingIOError: a living process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in ``folder`` survive a power cut; file systems that cannot are left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_PART = ".part"
_STRAY_DEPTH = 2


def remove_stray_parts(directory: Path, *, older_than_s: float = 0.0) -> list[Path]:
    """Remove what writers that were killed left half-written; call it while holding the lock of ``directory``.

    Folders below that have a lock of their own (the parts of a study) are left to their holders.

    Args:
        directory: with its folders below.
        older_than_s: leave what was written to since; for who holds no lock.

    Returns:
        The files that were removed.
    """
    removed = []
    for folder in _folders(Path(directory), _STRAY_DEPTH):
        for path in folder.glob(f".*{_PART}"):
            if path.is_file() and not path.is_symlink():
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime < older_than_s:
                        continue
                    path.unlink()
                    removed.append(path)
    return removed


def _folders(directory: Path, depth: int) -> Iterator[Path]:
    yield directory
    if depth:
        for below in directory.iterdir():
            enters = below.is_dir() and not below.is_symlink() and os.access(below, os.R_OK | os.X_OK)
            if enters and not (below / ".run.lock").exists():
                yield from _folders(below, depth - 1)


def _umask_mode() -> int:
    # mkstemp makes 0600; a result file should be as readable as one made by open(). The umask can only be read by
    # setting it, which other threads would notice, hence /proc first.
    with suppress(OSError, StopIteration, ValueError):
        with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
            line = next(line for line in status if line.startswith("Umask:"))
        return 0o666 & ~int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def _remove(name: str) -> None:
    with suppress(OSError):
        Path(name).unlink()


def _cannot(path: Path, error: OSError) -> str:
    return (
        f"cannot write '{path}': {error.strerror or error}; what stood there before is intact.\n"
        "Free space or allow writing there, then run the same command again: it continues."
    )

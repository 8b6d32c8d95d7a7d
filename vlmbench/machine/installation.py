"""Which code ran: git state of the caller's checkout and of vlmbench's, and a hash of vlmbench's sources."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import vlmbench

_TIMEOUT_S = 20


def code_state() -> dict[str, Any]:
    """``{"vlmbench": {version, source_sha256, git}, "caller": git}``; a git state is None outside a checkout.

    ``caller`` is the checkout that the working directory lies in. Looked at once in a process: what runs is what was
    read then.
    """
    return copy.deepcopy(_code_state(Path.cwd()))


@cache
def _code_state(folder: Path) -> dict[str, Any]:
    package = package_dir()
    ours = git_state(package)
    caller = ours if ours is not None and _top(folder) == _top(package) else git_state(folder)
    return {
        "vlmbench": {"version": vlmbench.__version__, "source_sha256": source_sha256(package), "git": ours},
        "caller": caller,
    }


def package_dir() -> Path:
    """Where the sources of vlmbench lie that run here."""
    return Path(vlmbench.__file__).resolve().parent


def git_state(folder: Path) -> dict[str, Any] | None:
    """``{commit, dirty, diff_sha256}`` of the checkout around ``folder``; None without git, checkout or commit.

    None, too, for a folder of code that the checkout does not hold: an export or an installation inside it.


    ``diff_sha256`` covers the changes of tracked files, None when there are none. Untracked files do not count: results
    are written among them.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    if (folder / "__init__.py").exists() and _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    status = _git(folder, "status", "--porcelain", "--no-renames", "--untracked-files=no")
    diff = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--binary")
    if status is None or diff is None:
        return {"commit": commit.decode().strip(), "dirty": None, "diff_sha256": None}
    dirty = bool(status.strip())
    digest = sha256(status + b"\0" + diff).hexdigest() if dirty else None
    return {"commit": commit.decode().strip(), "dirty": dirty, "diff_sha256": digest}


def source_sha256(package: Path) -> str:
    """Hash of the names and contents of all Python files below ``package``: the same code has the same hash wherever
    and however it is installed.
    """
    digest = sha256()
    for path in sorted(package.rglob("*.py"), key=lambda p: p.relative_to(package).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _top(folder: Path) -> bytes | None:
    return _git(folder, "rev-parse", "--show-toplevel")


def _git(folder: Path, *arguments: str) -> bytes | None:
    """Standard output of a git command that changes nothing and runs no program of the checkout; None if it fails."""
    program = shutil.which("git")
    if program is None:
        return None
    safe = ["-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", *_without_filters(program, folder)]
    command = [program, "--no-optional-locks", *safe, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(  # noqa: S603  # a fixed program, arguments from this module
            command, capture_output=True, check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def _without_filters(program: str, folder: Path) -> tuple[str, ...]:
    """Options that switch off the filters (``clean``, ``smudge``, ``process``) that a checkout's configuration names:
    git would run them, on files that their attributes choose, to find out what changed.
    """
    command = [program, "-C", str(folder), "config", "--null", "--name-only", "--get-regexp", r"^filter\..*$"]
    try:
        done = subprocess.run(  # noqa: S603  # a fixed program; asking for names runs no filter
            command, capture_output=True, check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    names = [name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\0") if name]
    values = {name: "false" if name.lower().endswith(".required") else "" for name in names}
    return tuple(option for name, value in values.items() for option in ("-c", f"{name}={value}"))


def conf_dir() -> Path:
    """Where the YAML lies: beside the package in a checkout or editable install, inside it in a wheel.

    Raises:
        FileNotFoundError: neither is there; the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"conf/config.yaml was looked for in {package} and {package.parent}; reinstall vlmbench")

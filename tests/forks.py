"""The command line in a process of its own without the seconds of its imports: a fork of a process that made them.

Where the imports are the point (which there are, a signal in one of them, variables that libraries read then), and once
for each kind of command, a process begins from nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_HANDED_ON = ("HYDRA_", "VLMBENCH_", "MOLMO_", "SLURM_")
_begun: list[_Origin] = []


def run(*arguments: str, cwd: Path, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` of ``python -m vlmbench``, its output captured as text.

    Args:
        arguments: of the command line.
        cwd: where it runs.
        code: what runs in place of ``-m vlmbench``, as ``-c`` does.
        environment: variables that no import reads.
    """
    if not _begun:
        _begun.append(_Origin())
    (origin,) = _begun
    begin = ["-c", code] if code else ["-m", "vlmbench"]
    try:
        return origin.fork([*begin, *arguments], cwd, clean_environment(**environment))
    except BaseException:  # the time of the test is over, say: what it started ends with it
        _begun.clear()
        origin.end()
        raise


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of this process less what would steer the command, and more."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_HANDED_ON)}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


class _Origin:
    """The process that has everything imported, and the line to it; it ends when this process does."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())], env=clean_environment(), pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.answers = self.line.makefile()

    def fork(self, words: list[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
            asked = json.dumps([words, str(cwd), dict(environment)]).encode()
            socket.send_fds(self.line, [len(asked).to_bytes(4, "big")], [out.fileno(), said.fileno()])
            self.line.sendall(asked)
            status = int(self.answers.readline())
            for file in (out, said):
                file.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), said.read())

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.answers.close()
        self.line.close()


def _serve(line: socket.socket) -> list[Any]:
    """Answer one request after another; returns in the fork that is to do it."""
    while True:
        length, files, _, _ = socket.recv_fds(line, 4, 2)
        if not length:
            sys.exit()
        asked = b""
        while missing := int.from_bytes(length, "big") - len(asked):
            asked += line.recv(missing)
        process = os.fork()
        if not process:
            line.close()
            for place, file in enumerate(files, 1):
                os.dup2(file, place)
            for file in files:
                os.close(file)
            request: list[Any] = json.loads(asked)
            return request
        for file in files:
            os.close(file)
        _, ended = os.waitpid(process, 0)
        line.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended))


def _import_everything() -> None:
    import vlmbench

    for found in pkgutil.walk_packages(vlmbench.__path__, "vlmbench."):
        if not found.name.startswith("vlmbench.engines.vllm") and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in (
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", "matplotlib.backends.backend_pdf",
        "matplotlib.backends.backend_agg", "fontTools.subset", "pyarrow.json", "pyarrow.pandas_compat",
    ):  # fmt: skip
        importlib.import_module(name)


def _do(words: list[str], cwd: str, environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd if words[0] == "-m" else "")
    if words[0] == "-m":
        sys.argv[1:] = words[2:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    _import_everything()
    gc.freeze()  # no collection looks at what all forks share, nor copies its pages
    _do(*_serve(channel))

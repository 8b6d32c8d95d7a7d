"""llama.cpp's own HTTP server from the ``xllamacpp`` wheel, with the tiny random model of :mod:`tests.endpoint.tiny_gguf`.

``python -m tests.endpoint.llama_server [FOLDER [SLOTS]]`` writes the model into the folder (a temporary one by default)
and serves it as ``tiny`` until it is told to end; it prints its address. One thread: spinning barriers of two make a
token 40 times slower on a crowded machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.endpoint.tiny_gguf import write_language_model, write_vision_model

MODEL, PROJECTOR = "tiny.gguf", "mmproj.gguf"
TILES, SLOTS = 4, 4


def serve(folder: Path, slots: int) -> None:
    """Serve the model in a folder; without images where it has no projector."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / MODEL)
    parameters.model_alias = {"tiny"}
    if (folder / PROJECTOR).is_file():
        parameters.mmproj.path = str(folder / PROJECTOR)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = slots
    parameters.n_ctx = 1024 * slots
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.endpoint_metrics = True
    parameters.use_jinja = True
    parameters.cache_ram_mib = 0
    parameters.ui = False
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"address {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)


@contextmanager
def running(folder: Path, *, projector: bool = True, tiles: int = 1) -> Iterator[str]:
    """The server in a process of its own; yields its base URL.

    Args:
        folder: the model is written there.
        projector: it takes images.
        tiles: most tiles along a side that it cuts an image into.
    """
    write_language_model(folder / MODEL)
    if projector:
        write_vision_model(folder / PROJECTOR, tiles=tiles)
    command = [sys.executable, "-m", __name__, str(folder), str(SLOTS)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=Path(__file__).parents[2]
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("address "), (folder / "log").read_text()[-2000:]
            yield line.split()[1] + "/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    if not (place / MODEL).is_file():
        write_language_model(place / MODEL)
        write_vision_model(place / PROJECTOR, tiles=TILES)
    serve(place, int(sys.argv[2]) if len(sys.argv) > 2 else SLOTS)

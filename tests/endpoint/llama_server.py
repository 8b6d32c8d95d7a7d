"""llama.cpp's own HTTP server from the ``xllamacpp`` wheel: ``python llama_server.py MODEL.gguf MMPROJ.gguf|- SLOTS``.

Prints its address, serves until it is told to end. One thread: spinning barriers of two make a token 40 times slower on
a crowded machine.
"""

from __future__ import annotations

import os
import signal
import sys


def main(model: str, projector: str, slots: int) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {"tiny"}
    if projector != "-":
        parameters.mmproj.path = projector
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


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

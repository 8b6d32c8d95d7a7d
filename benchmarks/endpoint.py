"""The endpoint client against a server whose truth is known: errors of TTFT and of single gaps, processor time a token.

    python benchmarks/endpoint.py                       # 1, 32 and 200 streams at a time
    python benchmarks/endpoint.py --streams 1 8 --requests 64
    python benchmarks/endpoint.py --together            # all streams' tokens at the same moments: the worst case

The replay server runs in a process of its own and writes down when each chunk was planned and when it left; all
processes of a machine share the clock, so the client's error and the server's own lateness stand apart:

* ``TTFT - plan``, ``ITL - plan``: what a user of the figures sees, server's lateness and network included.
* ``read - written``: from the server's note (taken right after its write) to the client's stamp: the client alone.
* ``server late``: written minus planned.
* ``CPU a token``: processor time of the client's process over the tokens that it received.

All in ms (processor time in us): median, then 50th, 95th, 99th percentile and largest by size. Streams begin up to one
token gap apart, so that a server of one thread can keep to its plan at all. ``a bare socket`` is what one blocking
``recv`` costs here: the share of the system, which grows with the time between tokens. A crowded machine shows in all.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vlmbench.engines.endpoint.address import Address
from vlmbench.engines.endpoint.client import Client
from vlmbench.engines.endpoint.dialects import dialect
from vlmbench.engines.endpoint.driver import Driver, LoadFacts, Role
from vlmbench.engines.endpoint.exchange import Exchanger, Order, Result
from vlmbench.engines.endpoint.loop import Turns, run
from vlmbench.engines.endpoint.server import get
from vlmbench.engines.endpoint.settings import Endpoint, Load
from vlmbench.engines.endpoint.wire import request_bytes
from vlmbench.runner.execution import collector_at_rest

TTFT_MS, ITL_MS, TOKENS = 200.0, 20.0, 32
AIM_MS = 0.5
MODEL = f"counted,itl_ms={ITL_MS},tokens={TOKENS}"
APART = 0.618034  # of a gap between the first tokens of requests that follow one another: spread evenly, however many


@contextmanager
def replay() -> Iterator[str]:
    """A replay server in a process of its own; yields its base URL."""
    command = [sys.executable, "-m", "vlmbench.testing.replay"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(20)


def orders(count: int, *, together: bool) -> list[Order]:
    """Requests of one line of text, each with a name of its own."""
    made = []
    for number in range(count):
        first_ms = TTFT_MS if together else TTFT_MS + ITL_MS * (APART * number % 1)
        body = {
            "model": f"{MODEL},ttft_ms={first_ms:.3f}",
            "messages": [{"role": "user", "content": "what is this"}],
            "max_tokens": TOKENS,
            "stream": True,
            "user": str(number),
        }
        made.append(
            Order(
                sample_id=str(number),
                repeat=0,
                body=json.dumps(body).encode(),
                asked_tokens=TOKENS,
                forced=False,
            )
        )
    return made


def bare_socket_us(url: str, requests: int = 5) -> float:
    """Processor time of one blocking ``recv``, a request at a time, us."""
    address, reads, before = Address.parse(url), 0, time.process_time()
    for order in orders(requests, together=True):
        payload = request_bytes("POST", address.target("chat/completions"), address.authority, {}, order.body)
        with socket.create_connection((address.host, address.port)) as connection:
            connection.sendall(payload)
            while b"[DONE]" not in connection.recv(65536):
                reads += 1
    return 1e6 * (time.process_time() - before) / reads


def measure(url: str, streams: int, requests: int, *, together: bool) -> tuple[list[Result], LoadFacts, dict[str, Any]]:
    """Results, cost, and the server's log by request, of a closed loop with so many streams."""
    endpoint = Endpoint(base_url=url, model=MODEL, proxy="none")
    client, turns = Client(address=endpoint.address), Turns()
    exchanger = Exchanger(
        client=client,
        target=endpoint.address.target("chat/completions"),
        headers=endpoint.headers(),
        kind=dialect("openai"),
        reuse=False,
        timeout_s=60,
        silence_s=30,
        turns=turns,
    )
    results: list[Result] = []

    def took(result: Result, role: Role) -> None:
        if role is Role.MEASURED:
            results.append(result)

    driver = Driver(
        exchanger=exchanger,
        load=Load(kind="closed", concurrency=streams, warmup_requests=0),
        measured=orders(requests, together=together),
        spare=[],
        arrivals=iter(()),
        took=took,
    )
    with collector_at_rest():
        facts = run(driver.run(), turns)
    log = run(get(client, "/v1/replay/log", endpoint.headers())).json
    return results, facts, {entry["user"]: entry for entry in log[-requests:]}


def errors(results: Sequence[Result], log: dict[str, Any]) -> dict[str, list[float]]:
    """All single errors, ms."""
    found: dict[str, list[float]] = {"TTFT - plan": [], "ITL - plan": [], "read - written": [], "server late": []}
    for result in results:
        if not result.ok:
            raise SystemExit(f"a request failed: {result.reason}")
        values, sent = result.values, log[result.order.sample_id]
        steps = [step for step in sent["steps"] if step[0] == "content"]
        due_ns = values["due_s"] * 1e9
        came = [due_ns + t * 1e6 for t in values["chunk_times"]]
        found["TTFT - plan"].append((came[0] - steps[0][1]) / 1e6)
        found["ITL - plan"] += [gap - ITL_MS for gap in values["ITL"]]
        found["read - written"] += [(c - step[2]) / 1e6 for c, step in zip(came, steps, strict=True)]
        found["server late"] += [(step[2] - step[1]) / 1e6 for step in steps]
    return found


def line(name: str, values: Sequence[float]) -> str:
    """Median, percentiles by size, largest, and the share within the aim."""
    by_size = sorted(abs(v) for v in values)
    shown = [by_size[min(len(by_size) - 1, int(q * len(by_size)))] for q in (0.5, 0.95, 0.99, 1.0)]
    within = sum(v <= AIM_MS for v in by_size) / len(by_size)
    cells = "".join(f"{v:9.3f}" for v in shown)
    return f"  {name:<16}{statistics.median(values):+9.3f}{cells}{within:9.1%}   n = {len(values):,}"


def main() -> None:
    """Print errors and costs for each number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 200])
    parser.add_argument("--requests", type=int, default=None, help="of each load; default: 20, or four a stream")
    parser.add_argument("--together", action="store_true", help="all streams' tokens are due at the same moments")
    given = parser.parse_args()
    with replay() as url:
        print(f"a bare socket: {bare_socket_us(url):.0f} us of processor time a read")
        for streams in given.streams:
            requests = given.requests or max(20, 4 * streams)
            results, facts, log = measure(url, streams, requests, together=given.together)
            tokens = sum(result.values["num_chunks"] for result in results)
            print(
                f"{streams} streams, {requests} requests of {TOKENS} tokens, load {os.getloadavg()[0]:.1f}\n"
                f"  {'ms':<16}{'median':>9}{'|p50|':>9}{'|p95|':>9}{'|p99|':>9}{'largest':>9}{f'<= {AIM_MS}':>9}"
            )
            for name, values in errors(results, log).items():
                print(line(name, values))
            late = max(result.values["T_late"] for result in results)
            print(
                f"  CPU a token {1e6 * facts.cpu_s / tokens:.0f} us; client busy {facts.cpu_s / facts.wall_s:.1%}; "
                f"longest turn {facts.longest_turn_ms:.2f} ms; sent at most {late:.2f} ms late; "
                f"flagged client_slow {sum('client_slow' in r.flags for r in results)}, "
                f"busy_host {sum('busy_host' in r.flags for r in results)} of {requests}"
            )


if __name__ == "__main__":
    main()

"""The endpoint client against a server whose truth is known: errors of TTFT and of single gaps, processor time a token.

    python benchmarks/endpoint.py                       # 1, 32 and 200 streams at a time
    python benchmarks/endpoint.py --streams 1 8 --requests 64
    python benchmarks/endpoint.py --streams 1 --requests 4 --tokens 256
    python benchmarks/endpoint.py --together            # all streams' tokens at the same moments: the worst case

The replay server runs in a process of its own and writes down when each chunk was planned and when it left; all
processes of a machine share the clock, so the client's error and the server's own lateness stand apart:

* ``TTFT - plan``, ``ITL - plan``: what a user of the figures sees, server's lateness and network included.
* ``read - written``: from the server's note (taken right after its write) to the client's stamp: the client alone.
* ``server late``: written minus planned.
* ``CPU a token``: processor time of the client's process over the tokens that it received, opening connections and
  making rows included. ``user`` and ``system`` are the kernel's guess from where its ticks fell; their sum is exact.
* ``bare``: the same requests by a loop that only opens, sends, waits in ``epoll`` and calls ``recv``, and throws away
  what it reads: the share of the system, which grows with the time between tokens. ``recv``, at one stream: the same
  without ``epoll``, in blocking calls of ``recv``, which is how the client waits for a lone stream. The rest is the
  client's own.

* ``truth and flag``: a request is late when a token was read over 1 ms and over 5 % of TTFT after it was written, the
  limit of ``client_slow``; beside it what its row says. ``late, no flag`` is what a user would not notice.

All in ms (processor time in us): median, then 50th, 95th, 99th percentile and largest by size. Bare loop and client
take turns, ``--rounds`` of each; processor times are the median of the rounds and their range. Streams begin up to one
token gap apart, so that a server of one thread can keep to its plan at all. A crowded machine shows in all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from vlmbench.engines.endpoint.address import Address
from vlmbench.engines.endpoint.client import Client
from vlmbench.engines.endpoint.dialects import dialect
from vlmbench.engines.endpoint.driver import Driver, LoadFacts, Role
from vlmbench.engines.endpoint.exchange import Exchanger, Order, Result
from vlmbench.engines.endpoint.loop import LoopTurns, run
from vlmbench.engines.endpoint.server import get
from vlmbench.engines.endpoint.settings import Endpoint, Load
from vlmbench.engines.endpoint.wire import request_bytes
from vlmbench.runner.execution import collector_at_rest

TTFT_MS, ITL_MS = 200.0, 20.0
AIM_MS = 0.5
READ = "read - written"
SLOW_LEAST_MS, SLOW_SHARE = 1.0, 0.05  # a client later than both, the latter of TTFT, must flag the row
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


def orders(count: int, *, together: bool, tokens: int) -> list[Order]:
    """Requests of one line of text, each with a name of its own."""
    made = []
    for number in range(count):
        first_ms = TTFT_MS if together else TTFT_MS + ITL_MS * (APART * number % 1)
        body = {
            "model": f"counted,itl_ms={ITL_MS},tokens={tokens},ttft_ms={first_ms:.3f}",
            "messages": [{"role": "user", "content": "what is this"}],
            "max_tokens": tokens,
            "stream": True,
            "user": str(number),
        }
        made.append(
            Order(
                sample_id=str(number),
                repeat=0,
                body=json.dumps(body).encode(),
                asked_tokens=tokens,
                forced=False,
            )
        )
    return made


@dataclass(kw_only=True)
class Use:
    """Processor time of this process between entering and leaving, s."""

    total: float = 0.0
    user: float = 0.0
    system: float = 0.0

    def __enter__(self) -> Self:
        self._before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF)
        return self

    def __exit__(self, *_: object) -> None:
        total, before = self._before
        self.total, now = time.process_time() - total, resource.getrusage(resource.RUSAGE_SELF)
        self.user, self.system = now.ru_utime - before.ru_utime, now.ru_stime - before.ru_stime


def bare(
    url: str, streams: int, requests: int, *, together: bool, tokens: int, blocking: bool = False
) -> tuple[Use, dict[str, list[int]]]:
    """What the system takes for the same reads, and when each event of a request was read, ns."""
    address, epoll = Address.parse(url), select.epoll()
    left, under_way = iter(orders(requests, together=together, tokens=tokens)), dict[int, tuple[str, socket.socket]]()
    seen: dict[str, list[tuple[int, bytes]]] = {}

    def begin() -> None:
        if (order := next(left, None)) is None:
            return
        connection = socket.create_connection((address.host, address.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request_bytes("POST", address.target("chat/completions"), address.authority, {}, order.body))
        epoll.register(connection, select.EPOLLIN)
        under_way[connection.fileno()], seen[order.sample_id] = (order.sample_id, connection), []

    with collector_at_rest(), Use() as use:
        for _ in range(streams):
            begin()
        while under_way:
            for descriptor in list(under_way) if blocking else [found for found, _ in epoll.poll()]:
                name, connection = under_way[descriptor]
                data = connection.recv(65536)
                seen[name].append((time.monotonic_ns(), data))
                if data.endswith(b"0\r\n\r\n"):
                    del under_way[descriptor]
                    connection.close()
                    begin()
    return use, {name: [at for at, data in reads for _ in range(data.count(b"data: "))] for name, reads in seen.items()}


def log_of(url: str, requests: int) -> dict[str, Any]:
    """What the server wrote down of the last requests, by their names."""
    endpoint = Endpoint(base_url=url, model="counted", proxy="none")
    log = run(get(Client(address=endpoint.address), "/v1/replay/log", endpoint.headers())).json
    return {entry["user"]: entry for entry in log[-requests:]}


def measure(
    url: str, streams: int, requests: int, *, together: bool, tokens: int
) -> tuple[list[Result], LoadFacts, Use]:
    """Results, what the load was like, and its cost, of a closed loop with so many streams."""
    endpoint = Endpoint(base_url=url, model="counted", proxy="none")
    client, turns = Client(address=endpoint.address), LoopTurns()
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
        measured=orders(requests, together=together, tokens=tokens),
        spare=[],
        arrivals=iter(()),
        took=took,
    )
    with collector_at_rest(), Use() as use:
        facts = run(driver.run(), turns)
    return results, facts, use


def errors(results: Sequence[Result], log: dict[str, Any]) -> dict[str, list[float]]:
    """All single errors, ms."""
    found: dict[str, list[float]] = {"TTFT - plan": [], "ITL - plan": [], READ: [], "server late": []}
    for result in results:
        if not result.ok:
            raise SystemExit(f"a request failed: {result.reason}")
        values, sent = result.values, log[result.order.sample_id]
        steps = [step for step in sent["steps"] if step[0] == "content"]
        due_ns = values["due_s"] * 1e9
        came = [due_ns + t * 1e6 for t in values["chunk_times"]]
        found["TTFT - plan"].append((came[0] - steps[0][1]) / 1e6)
        found["ITL - plan"] += [gap - ITL_MS for gap in values["ITL"]]
        found[READ] += [(c - step[2]) / 1e6 for c, step in zip(came, steps, strict=True)]
        found["server late"] += [(step[2] - step[1]) / 1e6 for step in steps]
    return found


def flags(results: Sequence[Result], log: dict[str, Any]) -> Counter[str]:
    """Requests by whether the client really stamped a token late, and by what their rows say of it."""
    found: Counter[str] = Counter()
    for result in results:
        values, steps = result.values, [s for s in log[result.order.sample_id]["steps"] if s[0] == "content"]
        came = [values["due_s"] * 1e3 + t for t in values["chunk_times"]]
        late_ms = max(c - step[2] / 1e6 for c, step in zip(came, steps, strict=True))
        truth = "late" if late_ms > max(SLOW_LEAST_MS, SLOW_SHARE * values["TTFT"]) else "in time"
        told = next((flag for flag in ("client_slow", "busy_host") if flag in result.flags), "no flag")
        found[f"{truth}, {told}"] += 1
    return found


def line(name: str, values: Sequence[float]) -> str:
    """Median, percentiles by size, largest, and the share within the aim."""
    by_size = sorted(abs(v) for v in values)
    shown = [by_size[min(len(by_size) - 1, int(q * len(by_size)))] for q in (0.5, 0.95, 0.99, 1.0)]
    within = sum(v <= AIM_MS for v in by_size) / len(by_size)
    cells = "".join(f"{v:9.3f}" for v in shown)
    return f"  {name:<20}{statistics.median(values):+9.3f}{cells}{within:9.1%}   n = {len(values):,}"


def bare_late(seen: dict[str, list[int]], log: dict[str, Any]) -> list[float]:
    """``read - written`` of the bare loop, ms."""
    return [
        (at - step[2]) / 1e6
        for name, reads in seen.items()
        for at, step in zip(reads, log[name]["steps"], strict=True)
        if step[0] == "content"
    ]


def a_token(uses: Sequence[Use], tokens: int) -> str:
    """Processor time a token of each round, us."""
    each = [1e6 * use.total / tokens for use in uses]
    user, system = (
        1e6 * statistics.median(part) / tokens for part in zip(*((u.user, u.system) for u in uses), strict=True)
    )
    return (
        f"{statistics.median(each):6.0f} us ({min(each):.0f} to {max(each):.0f}; user {user:.0f}, system {system:.0f})"
    )


def compare(url: str, streams: int, requests: int, rounds: int, *, together: bool, tokens: int) -> None:
    """Measure one number of streams, by the bare loop and by the client in turn, and print it."""
    found: dict[str, list[float]] = {}
    uses: dict[str, list[Use]] = {"client": [], "bare": []}
    if streams == 1:
        uses["recv"] = []
    results: list[Result] = []
    facts: list[LoadFacts] = []
    told: Counter[str] = Counter()
    for _ in range(rounds):
        use, seen = bare(url, streams, requests, together=together, tokens=tokens)
        uses["bare"].append(use)
        found.setdefault(f"bare {READ}", []).extend(bare_late(seen, log_of(url, requests)))
        if streams == 1:
            uses["recv"].append(bare(url, streams, requests, together=together, tokens=tokens, blocking=True)[0])
        came, load, use = measure(url, streams, requests, together=together, tokens=tokens)
        uses["client"].append(use)
        results, facts = [*results, *came], [*facts, load]
        log = log_of(url, requests)
        told += flags(came, log)
        for name, values in errors(came, log).items():
            found.setdefault(name, []).extend(values)
    print(
        f"{streams} streams, {rounds} rounds of {requests} requests of {tokens} tokens, load {os.getloadavg()[0]:.1f}\n"
        f"  {'ms':<20}{'median':>9}{'|p50|':>9}{'|p95|':>9}{'|p99|':>9}{'largest':>9}{f'<= {AIM_MS}':>9}"
    )
    for name, values in found.items():
        print(line(name, values))
    for name, spent in uses.items():
        print(f"  CPU a token, {name:<7}{a_token(spent, requests * tokens)}")
    late = max(result.values["T_late"] for result in results)
    busy = max(load.cpu_s / load.wall_s for load in facts)
    print(
        f"  client busy at most {busy:.1%}; longest turn {max(load.longest_turn_ms for load in facts):.2f} ms; "
        f"sent at most {late:.2f} ms late; flagged client_slow {sum('client_slow' in r.flags for r in results)}, "
        f"busy_host {sum('busy_host' in r.flags for r in results)} of {len(results)}"
    )
    print("  requests by truth and flag: " + "; ".join(f"{name} {count}" for name, count in sorted(told.items())))


def main() -> None:
    """Print errors and costs for each number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 200])
    parser.add_argument("--requests", type=int, default=None, help="of each round; default: 20, or four a stream")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer: long ones tell a token from a request")
    parser.add_argument("--rounds", type=int, default=3, help="of the bare loop and of the client, in turn")
    parser.add_argument("--together", action="store_true", help="all streams' tokens are due at the same moments")
    given = parser.parse_args()
    with replay() as url:
        for streams in given.streams:
            requests = given.requests or max(20, 4 * streams)
            compare(url, streams, requests, given.rounds, together=given.together, tokens=given.tokens)


if __name__ == "__main__":
    main()

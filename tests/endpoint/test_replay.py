"""The client against planted streams. Server and client share a clock, so causes must come before effects; no time is
bounded from above (the exact errors are printed by ``benchmarks/endpoint.py``)."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.endpoint.serving import send, text_orders
from vlmbench.engines.endpoint.address import Address
from vlmbench.engines.endpoint.client import Client
from vlmbench.engines.endpoint.driver import Role
from vlmbench.engines.endpoint.exchange import Order
from vlmbench.engines.endpoint.loop import run
from vlmbench.engines.endpoint.settings import Endpoint, Load
from vlmbench.testing.replay import ReplayServer
from vlmbench.testing.scripts import SCRIPTS, Script, script_named


@pytest.fixture(scope="module")
def server() -> Iterator[ReplayServer]:
    with ReplayServer() as running:
        yield running


def _endpoint(server: ReplayServer, model: str = "steady", **more: object) -> Endpoint:
    return Endpoint(base_url=server.base_url, model=model, proxy="none", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        "steady",
        "counted",
        "late_role",
        "usage_on_finish",
        "no_usage",
        "late_usage",
        "progress",
        "reasoning",
        "natural_end",
        "slow_reader",
    ],
)
def test_every_token_is_stamped_after_it_left_and_before_the_end(server: ReplayServer, model: str) -> None:
    before = len(server.log)
    point = send(_endpoint(server, model), Load(), text_orders(model, 2))
    for result, sent in zip(point.measured, server.log[before:], strict=True):
        values = result.values
        left = [written for kind, _, written in sent.steps if kind in ("content", "reasoning")]
        came = [values["due_s"] * 1e9 + t * 1e6 for t in values["chunk_times"]]
        assert result.ok, result.reason
        assert len(came) == len(left) == 16
        # a stamp is taken after the server began to write; the server's own note follows the write
        planned = [plan for kind, plan, _ in sent.steps if kind in ("content", "reasoning")]
        assert all(c >= p for c, p in zip(came, planned, strict=True))
        script = SCRIPTS[model]
        assert values["TTFT"] >= script.ttft_ms + script.read_delay_ms
        assert values["T_end"] >= script.ttft_ms + 15 * script.itl_ms + script.tail_ms
        assert values["chunks_role"] + values["chunks_progress"] == 1 + script.progress
        assert values["chunks_reasoning"] == script.reasoning
        if script.usage != "none":
            assert values["num_output_tokens"] == 16 + script.eos
            assert len(values["ITL"]) == 15
            assert sum(values["ITL"]) == pytest.approx(values["T_request"] - values["TTFT"], abs=0.01)
            assert values["TPOT"] == pytest.approx(sum(values["ITL"]) / 15, abs=0.001)


@pytest.mark.parametrize(("model", "source"), [("pairs", "spread"), ("counted_pairs", "server")])
def test_two_tokens_a_chunk(server: ReplayServer, model: str, source: str) -> None:
    values = send(_endpoint(server, model), Load(), text_orders(model, 1)).measured[0].values
    assert values["tokens_source"] == source
    assert values["chunk_tokens"] == [2] * 8
    assert len(values["ITL"]) == 14
    assert values["TPOT"] == pytest.approx((values["T_request"] - values["TTFT"]) / 14)


@pytest.mark.parametrize(
    ("model", "error_class", "status", "chunks"),
    [
        ("cut", "disconnected", 200, 5),
        ("error_in_stream", "server_error", 200, 3),
        ("hung", "silence", 200, 5),
        ("hung_at_once", "silence", 200, 0),
        ("whole", "not_streaming", 200, 0),
        ("bad_field", "http", 422, 0),
        ("busy", "http", 429, 0),
        ("loading", "http", 503, 0),
        ("no_such_script", "http", 404, 0),
    ],
)
def test_every_failure_is_a_row_that_says_why(
    server: ReplayServer, model: str, error_class: str, status: int, chunks: int
) -> None:
    silence_s = 0.3 if error_class == "silence" else 60  # or a busy host's pause is taken for the server's
    point = send(_endpoint(server, model, silence_s=silence_s), Load(), text_orders(model, 2))
    assert len(point.measured) == 2
    for result in point.measured:
        assert not result.ok
        assert result.error_class == result.values["error_class"] == error_class
        assert result.http_status == result.values["http_status"] == status
        assert result.values["num_chunks"] == chunks
        assert ("TTFT" in result.values) == (chunks > 0)
        assert "ITL" not in result.values
        assert result.reason
        assert "\n" not in result.reason
    assert point.facts is not None
    assert point.facts.failed == {error_class: 2}


def test_a_request_that_takes_too_long_ends(server: ReplayServer) -> None:
    model = "steady,ttft_ms=5000"
    point = send(_endpoint(server, model, timeout_s=0.3), Load(), text_orders(model, 1))
    assert point.measured[0].error_class == "timeout"


def test_retries_are_rows(server: ReplayServer) -> None:
    point = send(_endpoint(server, "busy"), Load(retries=2), text_orders("busy", 1))
    assert [r.values["attempt"] for r in point.measured] == [0, 1, 2]
    assert [r.flags for r in point.measured] == [(), ("retry",), ("retry",)]


def test_connections_are_fresh_or_used_again(server: ReplayServer) -> None:
    fresh = send(_endpoint(server), Load(), text_orders("steady,tokens=2", 3)).measured
    assert all(r.values["T_connect"] > 0 and not r.values["connection_reused"] for r in fresh)
    used = send(_endpoint(server, connection="reuse"), Load(), text_orders("steady,tokens=2", 3)).measured
    assert [r.values["connection_reused"] for r in used] == [False, True, True]
    assert [r.values["T_connect"] is None for r in used] == [False, True, True]


def test_a_used_connection_that_the_server_drops_is_an_error_row() -> None:
    with ReplayServer(drop_every=2) as server:
        used = send(_endpoint(server, connection="reuse"), Load(), text_orders("steady,tokens=2", 4)).measured
    dropped = [r for r in used if not r.ok]
    assert [r.error_class for r in dropped] == ["disconnected"]
    assert dropped[0].values["connection_reused"]
    assert "before it answered" in str(dropped[0].reason)


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_framings(framing: str) -> None:
    with ReplayServer(framing=framing) as server:
        result = send(_endpoint(server), Load(), text_orders("steady,tokens=4", 1)).measured[0]
    assert result.ok, result.reason
    assert result.values["num_chunks"] == 4


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="x", proxy="none")
    result = send(endpoint, Load(), text_orders("x", 1)).measured[0]
    assert result.error_class == "connection"
    assert "cannot connect" in str(result.reason)


@pytest.mark.parametrize(("host", "threads"), [("127.0.0.1", 0), ("localhost", 1)])
def test_a_thread_looks_names_up_and_no_numeric_address(server: ReplayServer, host: str, threads: int) -> None:
    async def started() -> list[str]:
        before = set(threading.enumerate())
        connection = await Client(address=Address.parse(f"http://{host}:{server.port}/v1")).connect()
        connection.close()
        return [thread.name for thread in threading.enumerate() if thread not in before]

    assert len(run(started())) == threads


def test_what_is_no_http_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        endpoint = Endpoint(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="x", proxy="none")
        result = send(endpoint, Load(), text_orders("x", 1)).measured[0]
        thread.join()
    assert result.error_class == "not_http"


def _large(model: str) -> Order:
    """A request of 20 MB, more than a socket takes at once."""
    order = text_orders(model, 1)[0]
    body = {**json.loads(order.body), "messages": [{"role": "user", "content": "x" * 20_000_000}]}
    return replace(order, body=json.dumps(body).encode())


def test_a_body_that_the_system_takes_in_parts_arrives_whole(server: ReplayServer) -> None:
    result = send(_endpoint(server), Load(), [_large("steady")]).measured[0]
    assert result.ok, result.reason
    assert len(server.log[-1].body["messages"][0]["content"]) == 20_000_000


def test_a_server_that_closes_or_sleeps_while_it_should_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

        def close() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)

        thread = threading.Thread(target=close)
        thread.start()
        endpoint = Endpoint(base_url=url, model="x", proxy="none", timeout_s=0.5)
        closed = send(endpoint, Load(), [_large("x")]).measured[0]
        thread.join()
        asleep = send(endpoint, Load(), [_large("x")]).measured[0]
    assert closed.error_class == "disconnected"
    assert asleep.error_class == "timeout"


def test_closed_loop_keeps_its_users_busy_until_the_last_measured_answer(server: ReplayServer) -> None:
    model = "steady,tokens=4"
    load = Load(kind="closed", concurrency=4, warmup_requests=5)
    point = send(_endpoint(server, model), load, text_orders(model, 12), spare=text_orders(model, 13))
    roles = [role for role, _ in point.results]
    assert roles.count(Role.MEASURED) == 12
    assert roles.count(Role.WARMUP) == 5
    assert roles.count(Role.FILLER) >= 3, "the other users go on while the last one waits"
    assert all(r.values["in_flight_at_start"] <= 3 for _, r in point.results)
    assert point.facts is not None
    assert 0 < point.facts.window_s <= point.facts.wall_s


def test_open_loop_sends_when_requests_are_due(server: ReplayServer) -> None:
    model = "steady,tokens=4"
    load = Load(kind="open", rate_per_s=50, arrivals="constant", warmup_requests=0)
    measured = send(_endpoint(server, model), load, text_orders(model, 20)).measured
    due = sorted(1e3 * r.values["due_s"] for r in measured)
    assert [b - a for a, b in itertools.pairwise(due)] == pytest.approx([20] * 19, abs=1e-3)
    assert all(r.values["T_late"] >= 0 for r in measured)
    assert all(r.values["TTFT"] >= 40 + r.values["T_late"] for r in measured)


def test_what_an_open_loop_does_not_send_is_a_row(server: ReplayServer) -> None:
    model = "steady,ttft_ms=400,tokens=1"
    load = Load(kind="open", rate_per_s=100, arrivals="constant", warmup_requests=0, max_outstanding=3)
    measured = send(_endpoint(server, model), load, text_orders(model, 12)).measured
    assert len(measured) == 12
    refused = [r for r in measured if not r.ok]
    assert {r.error_class for r in refused} == {"not_sent"}
    assert len(refused) >= 6


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() -> None:
    """A server that makes one answer at a time stands still for 2 s while 10 requests a second arrive.

    20 requests are due meanwhile. Who waits for each answer before sending the next sees one slow request of all.
    """
    model = "steady,ttft_ms=15,itl_ms=1,tokens=4"
    slow_ms = 1000

    def slow(load: Load, requests: int) -> tuple[int, int]:
        with ReplayServer(slots=1, stall_after_s=0.5, stall_s=2.0) as server:
            measured = send(_endpoint(server, model), load, text_orders(model, requests)).measured
        assert all(r.ok for r in measured)
        return sum(r.values["TTFT"] > slow_ms for r in measured), len(measured)

    open_slow, requests = slow(Load(kind="open", rate_per_s=10, arrivals="constant", warmup_requests=0), 40)
    assert open_slow >= 8, "P99 (and P80) of the open loop show the stall"
    assert open_slow / requests > 0.01
    closed_slow, requests = slow(Load(kind="closed", concurrency=1, warmup_requests=0), 110)
    assert closed_slow <= 1
    assert closed_slow / requests < 0.01, "P99 of the closed loop does not"


def test_stopping_ends_at_once_and_drops_what_was_under_way(server: ReplayServer) -> None:
    model = "steady,ttft_ms=60000"
    began = time.monotonic()
    load = Load(kind="closed", concurrency=2)
    point = send(_endpoint(server, model), load, text_orders(model, 4), stop=lambda: time.monotonic() > began + 0.3)
    assert point.results == []
    load = Load(kind="open", rate_per_s=100, warmup_requests=0)
    began = time.monotonic()
    point = send(_endpoint(server, model), load, text_orders(model, 4), stop=lambda: time.monotonic() > began + 0.3)
    assert point.results == []


def test_a_proxy_is_honoured(server: ReplayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay server takes absolute targets as a proxy would; the server's own name leads nowhere."""
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    endpoint = Endpoint(base_url="http://server.invalid/v1", model="steady")
    result = send(endpoint, Load(), text_orders("steady,tokens=2", 1)).measured[0]
    assert result.ok, result.reason


def test_scripts_are_named_and_changed_by_the_model() -> None:
    assert script_named("steady,tokens=3,role_ms=none,stream=false") == Script(tokens=3, role_ms=None, stream=False)
    assert script_named("absent") is None
    with pytest.raises(ValueError, match="a script has no 'speed'"):
        script_named("steady,speed=3")
    with pytest.raises(ValueError, match="'tokens' must be 1 or more"):
        Script(tokens=0)
    assert [s.kind for s in Script(tokens=1, role_ms=None).steps()] == ["content", "finish", "usage", "done"]

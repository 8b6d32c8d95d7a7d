"""What is wrong with all requests of a run is said before anything is measured: two lines, what was given, what to do."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoint.serving import text_orders
from vlmbench.engines.endpoint.address import Address, find_proxy, tls_context
from vlmbench.engines.endpoint.client import Client
from vlmbench.engines.endpoint.exchange import Exchanger, Result
from vlmbench.engines.endpoint.loop import LoopTurns, run
from vlmbench.engines.endpoint.server import contact, rehearse
from vlmbench.engines.endpoint.settings import Endpoint
from vlmbench.errors import ConfigError, EndpointError, VlmbenchError
from vlmbench.testing.replay import ReplayServer


@pytest.fixture(scope="module")
def server() -> Iterator[ReplayServer]:
    with ReplayServer(dialect="vllm", api_key="right") as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", "right")
    monkeypatch.setenv("WRONG_KEY", "wrong")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def _first(endpoint: Endpoint, *, images: bool = True) -> Result:
    """Contact and rehearsal, as a session does them."""

    async def talk() -> Result:
        address = endpoint.address
        client = Client(
            address=address,
            tls=tls_context(address, endpoint.ca_file),
            proxy=find_proxy(address, endpoint.proxy),
            connect_timeout_s=2,
        )
        headers = endpoint.headers()
        found = await contact(endpoint, client, headers)
        exchanger = Exchanger(
            client=client,
            target=address.target("chat/completions"),
            headers=headers,
            kind=found.kind,
            reuse=False,
            timeout_s=endpoint.timeout_s,
            silence_s=endpoint.silence_s,
            turns=LoopTurns(),
        )
        return await rehearse(found, exchanger, text_orders(endpoint.model, 1)[0], images=images)

    return run(talk())


def _two_lines(error: VlmbenchError) -> tuple[str, str]:
    lines = str(error).splitlines()
    assert len(lines) == 2, str(error)
    assert error.exit_status == 2
    return lines[0], lines[1]


@pytest.mark.parametrize(
    ("model", "said", "todo"),
    [
        ("no_images", "takes no images on this server: HTTP 400: planted is not a multimodal model", "vision-language"),
        ("bad_field", "HTTP 422: Unexpected fields", "runtime.dialect=openai"),
        ("busy", "HTTP 429", "wait, then run the same command again"),
        ("loading", "HTTP 503", "wait, then run the same command again"),
        ("whole", "in one piece, not as a stream", "needs a stream"),
        ("hung", "nothing came for 0.3 s while waiting for the next chunk", "larger runtime.silence_s"),
        ("cut", "closed the connection in the middle of its answer", "log"),
        ("error_in_stream", "planted: the engine died", "look at the server's log"),
        ("steadyy", "the server has no model 'steadyy'", "steady"),
    ],
)
def test_what_a_server_will_not_do(server: ReplayServer, model: str, said: str, todo: str) -> None:
    endpoint = Endpoint(base_url=server.base_url, model=model, proxy="none", silence_s=0.3, api_key_env="PLANTED_KEY")
    with pytest.raises(EndpointError) as caught:
        _first(endpoint)
    first, second = _two_lines(caught.value)
    assert said in first
    assert todo in second


def test_a_good_server_answers(server: ReplayServer) -> None:
    endpoint = Endpoint(base_url=server.base_url, model="steady", proxy="none", api_key_env="PLANTED_KEY")
    assert _first(endpoint).ok


def test_keys(server: ReplayServer) -> None:
    def endpoint(name: str | None) -> Endpoint:
        return Endpoint(base_url=server.base_url, model="steady", proxy="none", api_key_env=name)

    with pytest.raises(EndpointError) as refused:
        _first(endpoint("WRONG_KEY"))
    assert "HTTP 401" in _two_lines(refused.value)[0]
    assert "'WRONG_KEY' is not accepted" in _two_lines(refused.value)[1]
    assert "wrong" not in str(refused.value).replace("WRONG_KEY", "")
    with pytest.raises(EndpointError) as none:
        _first(endpoint(None))
    assert "runtime.api_key_env=NAME" in _two_lines(none.value)[1]
    with pytest.raises(ConfigError) as absent:
        endpoint("ABSENT_KEY").headers({})
    assert "'ABSENT_KEY' (runtime.api_key_env) is not set" in _two_lines(absent.value)[0]
    with pytest.raises(ConfigError, match="cannot stand in a header"):
        endpoint("K").headers({"K": "two\nlines"})


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError) as caught:
        _first(Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model="x", proxy="none"))
    first, second = _two_lines(caught.value)
    assert f"cannot connect to 127.0.0.1:{port}" in first
    assert "runtime.base_url" in second


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and its key in one file, made for this test."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(command, check=True, capture_output=True)
    whole = folder / "both.pem"
    whole.write_text((folder / "key").read_text() + (folder / "cert").read_text())
    return whole


def test_tls(certificate: Path, server: ReplayServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ReplayServer(tls=context) as secure:
        url = secure.base_url
        assert url.startswith("https://")
        trusted = _first(Endpoint(base_url=url, model="steady", proxy="none", ca_file=str(certificate)))
        assert trusted.ok
        assert trusted.values["num_chunks"] == 16
        with pytest.raises(EndpointError) as unknown:
            _first(Endpoint(base_url=url, model="steady", proxy="none"))
        assert "is not trusted" in _two_lines(unknown.value)[0]
        assert "runtime.ca_file=FILE" in _two_lines(unknown.value)[1]
        with pytest.raises(EndpointError) as plain:
            _first(Endpoint(base_url=url.replace("https", "http"), model="steady", proxy="none"))
        assert "https://" in _two_lines(plain.value)[1]
    with pytest.raises(EndpointError) as silent:
        _first(Endpoint(base_url=server.base_url.replace("http", "https"), model="steady", proxy="none"))
    assert "does it speak TLS there" in _two_lines(silent.value)[1]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = listener.getsockname()[1]
        with pytest.raises(EndpointError) as not_tls:
            _first(Endpoint(base_url=f"https://127.0.0.1:{port}/v1", model="steady", proxy="none"))
        thread.join()
    assert "no common TLS" in _two_lines(not_tls.value)[0]
    assert "http://" in _two_lines(not_tls.value)[1]
    with pytest.raises(ConfigError, match="must be a file"):
        tls_context(Address.parse("https://h/v1"), "/absent")
    with pytest.raises(ConfigError, match="goes with https"):
        tls_context(Address.parse("http://h/v1"), str(certificate))


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address.parse("http://server.invalid/v1")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ConfigError) as caught:
        find_proxy(address, "environment")
    assert "socks5 proxy" in _two_lines(caught.value)[0]
    assert find_proxy(address, "none") is None
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    proxy = find_proxy(address, "environment")
    assert proxy is not None
    assert "secret" not in repr(proxy)
    monkeypatch.setenv("no_proxy", "server.invalid")
    assert find_proxy(address, "environment") is None
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(EndpointError) as absent:
        _first(Endpoint(base_url="http://server.invalid/v1", model="x"))
    assert "through the proxy 127.0.0.1:1" in _two_lines(absent.value)[0]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("server:80/v1", "must begin with http://"),
        ("ftp://server/v1", "must begin with http://"),
        ("http://me:secret@server/v1", "must not hold a user name or password"),
        ("http://server/v1?key=1", "without '?' or '#'"),
        ("http://server:port/v1", "must be a URL"),
        ("ftp://me:secret@server/v1", "must begin with http://"),
        ("me:secret@server:80/v1", "must begin with http://"),
        ("//me:secret@server/v1", "must begin with http://"),
        ("http://server/v1?key=secret", "without '?' or '#'"),
        ("http://server:port/v1?key=secret", "must be a URL"),
        ("http://server:0/v1", "a port of 1 or more"),
        ("http://server/v 1", "a path of ASCII, no blank"),
    ],
)
def test_addresses_that_are_none(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(url)
    assert said in _two_lines(caught.value)[0]
    assert "secret" not in str(caught.value)


def test_parts_of_an_address() -> None:
    address = Address.parse("https://[::1]:8443/base/v1/")
    assert (address.host, address.port, address.path, address.root) == ("::1", 8443, "/base/v1", "/base")
    assert address.authority == "[::1]:8443"
    assert address.target("models") == "/base/v1/models"
    assert Address.parse("http://h").authority == "h"

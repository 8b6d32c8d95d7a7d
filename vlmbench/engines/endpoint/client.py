"""The client: connections, one streamed request at a time on each, every read stamped before it is looked at.

Streams in the clear are read by a tap of the loop and stamped right after the read; TLS is read by asyncio. Parsing
follows when the reads of all other streams that are ready at the same moment are stamped, and only when a stream may be
complete or many reads wait: the first look at a read after the processor has slept costs five times the later ones.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from vlmbench.engines.endpoint.address import Address, Proxy
from vlmbench.engines.endpoint.loop import READ_TIMEOUT, MeasuringLoop, PlainTransport, Tap
from vlmbench.engines.endpoint.wire import Head, ResponseParser, WireError, request_bytes
from vlmbench.machine.host_use import MachineUse

Sink = Callable[[int, bytes], None]
_READS_AT_ONCE = 16  # parsed together: a tenth of a ms in which nothing is stamped


class ExchangeError(Exception):
    """A request that failed.

    Args:
        kind: ``connection``, ``tls``, ``proxy``, ``disconnected``, ``silence``, ``timeout`` or ``not_http``.
        message: what happened, on one line.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(kw_only=True)
class Times:
    """Moments of one exchange, ns on ``time.monotonic_ns()``; 0 where it did not come to that.

    Args:
        connect_ns: how long opening the connection took (TCP, proxy and TLS); 0 for a used one.
        reused: the connection had served a request before.
        start_ns: the first byte was handed to the system.
        sent_ns: the last byte was.
        head_ns: the response's headers were there.
        end_ns: its last byte was.
        reads: how many reads brought it.
    """

    connect_ns: int = 0
    reused: bool = False
    start_ns: int = 0
    sent_ns: int = 0
    head_ns: int = 0
    end_ns: int = 0
    reads: int = 0


class Connection(asyncio.Protocol):
    """One connection; carries one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._tapped: tuple[MeasuringLoop, int] | None = None
        self._tap = Tap(self._parse_some)
        self._parser = ResponseParser()
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self.times = Times()
        self.connect_ns = 0
        self.served = 0
        self.host: MachineUse | None = None  # what the host had given when the connection was chosen for a request
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the transport up: small segments leave at once, and the end of a write is known."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clear = transport.get_extra_info("sslcontext") is None and sys.platform == "linux"
            if clear and isinstance(self._loop, MeasuringLoop):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, READ_TIMEOUT)
                self._tapped = self._loop, sock.fileno()
                self._loop.tap(sock.fileno(), self._tap)

    def data_received(self, data: bytes) -> None:
        """Stamp what was read; it is parsed in a later callback."""
        self._tap.last_ns = stamp = time.monotonic_ns()
        self._tap.reads.append((stamp, data))
        if not self._tap.looking:
            self._tap.looking = True
            self._loop.call_soon(self._parse)

    def pause_writing(self) -> None:
        """Take note that the system takes no more bytes for now."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """Take note that all bytes have left."""
        self._drained.set()

    def connection_lost(self, error: Exception | None) -> None:
        """End the request under way: whole where its end is the connection's, else as failed."""
        self.untap()
        self.closed = True
        self._drained.set()
        if self._done is None or self._done.done():
            return
        error = error or self._tap.error
        self._parse()
        if self._done.done():
            return
        if self._parser.at_close():
            self._finish()
            return
        got = "before it answered" if self._parser.head is None else "in the middle of its answer"
        why = f" ({error})" if error else ""
        self._fail(ExchangeError("disconnected", f"the server closed the connection {got}{why}"))

    async def exchange(self, payload: bytes, sink: Sink) -> Head:
        """Send a request and receive its whole response.

        Args:
            payload: the request's bytes, encoded beforehand.
            sink: given every part of the body with its moment, in order, while the response lasts.

        Raises:
            ExchangeError: the connection broke, or what came is no HTTP.
        """
        assert self._transport is not None
        if self.closed:
            raise ExchangeError("disconnected", "the server closed the connection before the request was sent")
        self._parser, self._sink = ResponseParser(), sink
        self._tap.reads.clear()
        self._tap.ending = b""
        self._done = done = self._loop.create_future()
        times = self.times = Times(connect_ns=self.connect_ns, reused=self.served > 0)
        self.connect_ns = 0
        times.start_ns = self._tap.last_ns = time.monotonic_ns()
        self._transport.write(payload)
        await self._drained.wait()
        times.sent_ns = time.monotonic_ns()
        await done
        self.served += 1
        head = self._parser.head
        assert head is not None
        return head

    @property
    def last_read_ns(self) -> int:
        """When something came last, or the request left."""
        return self._tap.last_ns

    @property
    def head(self) -> Head | None:
        """Of the response under way or the last one."""
        return self._parser.head

    def abort(self, error: ExchangeError) -> None:
        """End the request under way with an error, and close."""
        self._parse()
        self._fail(error)
        self.close()

    def close(self) -> None:
        """Close at once."""
        self.untap()
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def may_serve_again(self) -> bool:
        """Whether another request may use this connection."""
        return not self.closed and self._parser.head is not None and self._parser.head.keeps_open

    def untap(self) -> None:
        """Leave reading to asyncio."""
        if self._tapped is not None:
            loop, descriptor = self._tapped
            loop.tap(descriptor, None)
            self._tapped = None

    def _parse_some(self) -> None:
        self._parse(_READS_AT_ONCE)
        if self._tap.reads and self._tapped is not None:
            self._tapped[0].look_again(self._tap)

    def _parse(self, most: int | None = None) -> None:
        tap = self._tap
        tap.looking = False
        reads = tap.reads[:most]
        del tap.reads[:most]
        parser, sink, done = self._parser, self._sink, self._done
        if done is None or done.done():
            return
        self.times.reads += len(reads)
        try:
            for stamp, data in reads:
                for piece_ns, piece in parser.feed(stamp, data):
                    if sink is not None:
                        sink(piece_ns, piece)
                self.times.end_ns = stamp
        except WireError as error:
            self._fail(ExchangeError("not_http", str(error)))
            return
        self.times.head_ns, tap.ending = parser.head_ns, parser.ending
        if parser.complete:
            self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: ExchangeError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


@dataclass(kw_only=True)
class Client:
    """Opens connections to one server.

    Args:
        address: of the server.
        tls: checks its certificate; None for plain HTTP.
        proxy: in between; None for none.
        connect_timeout_s: for opening a connection.
    """

    address: Address
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None
    connect_timeout_s: float = 20.0
    _resolved: tuple[str, int] | None = field(init=False, default=None)

    async def connect(self) -> Connection:
        """Open a connection; how long it took stands in its ``connect_ns``.

        Raises:
            ExchangeError: of kind ``connection``, ``tls`` or ``proxy``.
        """
        begin = time.monotonic_ns()
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                connection = await self._open()
        except TimeoutError as error:
            raise ExchangeError(
                "connection", f"{self._where()} does not answer within {self.connect_timeout_s:g} s"
            ) from error
        except ssl.SSLCertVerificationError as error:
            raise ExchangeError(
                "tls", f"the certificate of {self._where()} is not trusted: {error.verify_message}"
            ) from error
        except ssl.SSLError as error:
            raise ExchangeError(
                "tls", f"{self._where()} and this client find no common TLS: {error.reason or error}"
            ) from error
        except (OSError, EOFError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ExchangeError("connection", f"cannot connect to {self._where()}: {why}") from error
        connection.connect_ns = time.monotonic_ns() - begin
        return connection

    def payload(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """The bytes of a request to this server, in the form that its proxy wants where there is one."""
        headers = dict(headers)
        if self.proxy is not None and self.tls is None:
            target = self.address.url(target)
            if self.proxy.authorization:
                headers["Proxy-Authorization"] = self.proxy.authorization
        return request_bytes(method, target, self.address.authority, headers, body)

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        host, port = await self._resolve()
        if self.proxy is not None and self.tls is not None:
            return await self._tunnel(host, port)
        sock = await _connected(host, port)
        if self.tls is None:
            connection = Connection(loop)
            PlainTransport(loop, sock, connection)
        else:
            _, connection = await loop.create_connection(
                lambda: Connection(loop), sock=sock, ssl=self.tls, server_hostname=self.address.host
            )
        return connection

    async def _resolve(self) -> tuple[str, int]:
        """Address and port to connect to; the name is looked up once, so that no request waits for it."""
        if self._resolved is None:
            host, port = (self.proxy.host, self.proxy.port) if self.proxy else (self.address.host, self.address.port)
            try:  # a numeric address needs no look-up, which would be a thread's
                found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            except socket.gaierror:
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            candidates = [(str(entry[4][0]), port) for entry in found]
            self._resolved = await _first_that_listens(candidates) if len(candidates) > 1 else candidates[0]
        return self._resolved

    async def _tunnel(self, host: str, port: int) -> Connection:
        """A TLS connection through the proxy's CONNECT."""
        assert self.proxy is not None
        loop = asyncio.get_running_loop()
        transport, raw = await loop.create_connection(lambda: Connection(loop), host, port)
        where = f"{self.address.host}:{self.address.port}"
        headers = {"Proxy-Authorization": self.proxy.authorization} if self.proxy.authorization else {}
        status = await _connect_status(raw, request_bytes("CONNECT", where, where, headers))
        if not 200 <= status < 300:
            transport.close()
            raise ExchangeError(
                "proxy", f"the proxy {self.proxy.host}:{self.proxy.port} refuses {where}: HTTP {status}"
            )
        inner = Connection(loop)
        secured = await loop.start_tls(transport, inner, self.tls, server_hostname=self.address.host)  # type: ignore[arg-type]
        assert secured is not None
        inner.connection_made(secured)
        return inner

    def _where(self) -> str:
        proxy = f" through the proxy {self.proxy.host}:{self.proxy.port}" if self.proxy else ""
        return f"{self.address.host}:{self.address.port}{proxy}"


async def _connected(host: str, port: int) -> socket.socket:
    """A socket that is connected to a numeric address; one that is near is there without a turn of the loop."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setblocking(False)
        for _ in range(2):  # the first call asks; where the server is near, the second finds the connection there
            with suppress(BlockingIOError):
                sock.connect((host, port))
                return sock
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _first_that_listens(candidates: list[tuple[str, int]]) -> tuple[str, int]:
    """Of several addresses of a name, the first that takes a connection; the first of all where none does."""
    loop = asyncio.get_running_loop()
    for host, port in candidates:
        try:
            transport, _ = await loop.create_connection(asyncio.Protocol, host, port)
        except OSError:
            continue
        transport.close()
        return host, port
    return candidates[0]


async def _connect_status(raw: Connection, payload: bytes) -> int:
    """The status of a CONNECT: its answer has a head and no body."""
    answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    head = bytearray()

    def received(data: bytes) -> None:
        head.extend(data)
        if b"\r\n\r\n" in head and not answered.done():
            parts = bytes(head).split(b" ", 2)
            answered.set_result(int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0)

    def lost(error: Exception | None) -> None:
        if not answered.done():
            answered.set_exception(ExchangeError("proxy", f"the proxy closed the connection ({error or 'no reason'})"))

    raw.untap()
    raw.data_received = received  # type: ignore[method-assign]
    raw.connection_lost = lost  # type: ignore[method-assign]
    assert raw._transport is not None
    raw._transport.write(payload)
    return await answered

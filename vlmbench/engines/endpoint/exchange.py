"""One request from its intended send time to the end of its answer, as the values of a row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbench.engines.endpoint.answer import Answer, row_values
from vlmbench.engines.endpoint.client import Client, Connection, ExchangeError
from vlmbench.engines.endpoint.dialects import Dialect, server_values
from vlmbench.engines.endpoint.loop import LoopTurns
from vlmbench.engines.endpoint.wire import Head
from vlmbench.machine.host_use import MachineUse, busy_flags

_SLOW_SHARE = 0.05  # of TTFT: a client that is later than this itself changes what it measures
_SLOW_LEAST_MS = 1.0
_KNOWN_IMAGE_WORDS = ("image", "multimodal", "multi-modal", "mmproj", "vision")


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request that is ready to be sent.

    Args:
        sample_id: of its sample.
        repeat: counts the runs of one request.
        body: JSON, encoded.
        asked_tokens: the most new tokens that it asks for.
        forced: it asks for exactly that many.
        values: further values of its row (number of images, bytes of its body …).
    """

    sample_id: str
    repeat: int
    body: bytes
    asked_tokens: int
    forced: bool
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a request.

    Args:
        order: what was sent.
        ok: an answer with tokens came through.
        values: of its row.
        flags: of its row.
        reason: why it is not ok.
        error_class: ``connection``, ``tls``, ``proxy``, ``disconnected``, ``silence``, ``timeout``, ``not_http``,
            ``http``, ``not_streaming``, ``server_error``, ``bad_stream``, ``no_tokens``, ``cut`` or ``not_sent``.
        http_status: of the response, where one came.
    """

    order: Order
    ok: bool
    values: Mapping[str, Any]
    flags: tuple[str, ...] = ()
    reason: str | None = None
    error_class: str | None = None
    http_status: int | None = None


@dataclass(kw_only=True)
class Exchanger:
    """Sends requests to one server and makes rows of the answers.

    Args:
        client: opens connections.
        target: path of the requests.
        headers: of the requests, the key among them.
        kind: the server's dialect.
        reuse: connections are used again.
        timeout_s: for a whole request.
        silence_s: for a stream that sends nothing.
        turns: of the loop that this runs on.
    """

    client: Client
    target: str
    headers: Mapping[str, str]
    kind: Dialect
    reuse: bool
    timeout_s: float
    silence_s: float
    turns: LoopTurns
    _idle: list[Connection] = field(init=False, default_factory=list)
    _busy: set[Connection] = field(init=False, default_factory=set)

    async def connection(self) -> Connection:
        """A connection that is free: a used one where they are used again, else a new one.

        Raises:
            ExchangeError: none can be opened.
        """
        found = await self._free()
        found.host = MachineUse.now()  # before the request is due: it takes tens of us
        return found

    async def _free(self) -> Connection:
        while self.reuse and self._idle:
            found = self._idle.pop()
            if found.may_serve_again:
                return found
        return await self.client.connect()

    def payload(self, body: bytes) -> bytes:
        """The bytes of a request with this body."""
        return self.client.payload("POST", self.target, self.headers, body)

    async def send(self, order: Order, payload: bytes, connection: Connection, due_ns: int) -> Result:
        """Send a request now and wait for its whole answer.

        Args:
            order: the request.
            payload: its bytes.
            connection: a free one.
            due_ns: when it should have been sent.
        """
        answer, head = Answer(), None
        self._busy.add(connection)
        timers = self._guard(connection)
        try:
            head = await connection.exchange(payload, answer.feed)
        except ExchangeError as error:
            wrong = (error.kind, str(error))
            if answer.error is not None:
                wrong = ("server_error", f"the server ended the stream with an error: {answer.error}")
            return self._failed(order, answer, connection, due_ns, wrong)
        finally:
            for timer in timers:
                timer.cancel()
            self._busy.discard(connection)
            self._release(connection)
        if (fault := _what_is_wrong(head, answer)) is not None:
            return self._failed(order, answer, connection, due_ns, fault)
        return self._whole(order, answer, connection, due_ns)

    def not_sent(self, order: Order, due_ns: int, error_class: str, reason: str) -> Result:
        """The result of a request that did not leave."""
        late = (time.monotonic_ns() - due_ns) / 1e6
        values = {**order.values, "T_late": late, "error_class": error_class}
        return Result(order=order, ok=False, values=values, reason=reason, error_class=error_class)

    def abandon(self) -> None:
        """End all requests under way and close all connections."""
        for connection in list(self._busy):
            connection.abort(ExchangeError("abandoned", "the run was told to stop"))
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _release(self, connection: Connection) -> None:
        if self.reuse and connection.may_serve_again:
            self._idle.append(connection)
        else:
            connection.close()

    def _guard(self, connection: Connection) -> list[asyncio.TimerHandle]:
        """The timer, the latest in the list, that ends a request which takes too long or hangs."""
        loop = asyncio.get_running_loop()
        began_ns = time.monotonic_ns()

        def look() -> None:
            now_ns = time.monotonic_ns()
            left = self.timeout_s - (now_ns - began_ns) / 1e9
            quiet = (now_ns - connection.last_read_ns) / 1e9
            if left <= 0:
                connection.abort(ExchangeError("timeout", f"no end after {self.timeout_s:g} s (runtime.timeout_s)"))
            elif quiet >= self.silence_s:
                where = "its answer" if connection.head is None else "the next chunk"
                message = f"nothing came for {self.silence_s:g} s while waiting for {where} (runtime.silence_s)"
                connection.abort(ExchangeError("silence", message))
            else:
                timers[0] = loop.call_later(min(left, self.silence_s - quiet), look)

        timers = [loop.call_later(min(self.timeout_s, self.silence_s), look)]
        return timers

    def _whole(self, order: Order, answer: Answer, connection: Connection, due_ns: int) -> Result:
        times = connection.times
        values, flags = row_values(answer, times, due_ns=due_ns, asked_tokens=order.asked_tokens, forced=order.forced)
        values.update(server_values(self.kind, answer, values["TTFT"]))
        values["client_longest_turn"] = self.turns.longest_between(due_ns, times.end_ns) / 1e6
        values.update(connection.host.until_now() if connection.host else {})
        flags = (*flags, *busy_flags(values, values["T_request"]))
        lag = max(values["T_late"], values["client_longest_turn"])
        if lag > _SLOW_LEAST_MS and lag > _SLOW_SHARE * values["TTFT"]:
            flags = (*flags, "client_slow")
        if values.get("num_cached_tokens"):
            flags = (*flags, "prefix_cache_hit")
        return Result(order=order, ok=True, values={**order.values, **values}, flags=flags)

    def _failed(
        self, order: Order, answer: Answer, connection: Connection, due_ns: int, wrong: tuple[str, str]
    ) -> Result:
        """The row of a request that failed: when, how far it had come, and why."""
        times, head = connection.times, connection.head
        kind, message = wrong
        stamps = answer.token_times_ns
        values: dict[str, Any] = {
            **order.values,
            "error_class": kind,
            "http_status": head.status if head else None,
            "connection_reused": times.reused,
            "num_chunks": len(stamps),
            "T_error": (time.monotonic_ns() - due_ns) / 1e6,
        }
        if times.start_ns:
            values["T_late"] = (times.start_ns - due_ns) / 1e6
        if stamps:
            values["TTFT"] = (stamps[0] - due_ns) / 1e6
            values["chunk_times"] = [round((s - due_ns) / 1e6, 4) for s in stamps]
        return Result(
            order=order,
            ok=False,
            values=values,
            reason=message,
            error_class=kind,
            http_status=head.status if head else None,
        )


def _what_is_wrong(head: Head, answer: Answer) -> tuple[str, str] | None:
    """Class and message of an answer that came whole but is none; None for a good one."""
    if head.status != 200:
        return "http", f"HTTP {head.status}: {answer.complaint(head)}"
    if not answer.kinds and head.content_type == "application/json":
        return "not_streaming", "the server sent its answer in one piece, not as a stream"
    return _wrong_stream(answer, head.content_type or "no content type")


def _wrong_stream(answer: Answer, media: str) -> tuple[str, str] | None:
    if answer.error is not None:
        return "server_error", f"the server ended the stream with an error: {answer.error}"
    if not answer.kinds:
        return "bad_stream", f"the answer holds no events ({media})"
    if answer.broken is not None:
        return "bad_stream", answer.broken
    if not answer.token_times_ns:
        return "no_tokens", "the stream ended without a token"
    if not answer.done and answer.finish_reason is None:
        return "cut", f"the stream ended after {len(answer.token_times_ns)} chunks without saying why"
    return None


def speaks_of_images(message: str) -> bool:
    """Whether a server's complaint is about images."""
    low = message.lower()
    return any(word in low for word in _KNOWN_IMAGE_WORDS)

"""A chat server that replays planted streams and writes down when each chunk really left.

Known answers for every definition of the endpoint runtime: the plan says when a chunk should leave, the log when it
did (``time.monotonic_ns()``, which all processes of a machine share), so a client's error and the server's own can be
told apart. Standard library and the measuring loop only::

    python -m vlmbench.testing.replay --port 8300 --dialect vllm
    python -m vlmbench runtime=endpoint runtime.base_url=http://127.0.0.1:8300/v1 runtime.model=steady
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import signal
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from vlmbench.engines.endpoint.loop import new_loop, sleep_until
from vlmbench.testing.scripts import FRAMINGS, SCRIPTS, Script, Step, script_named

_LINE_LIMIT = 1 << 26
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 422: "Unprocessable Entity"}
_WORD = " tok"
_WHOLE: Mapping[str, Any] = {"id": "replay", "object": "chat.completion.chunk"}


@dataclass(kw_only=True)
class Sent:
    """What really happened to one request.

    Args:
        model: script that was replayed.
        received_ns: its body was read.
        turn_ns: a slot was free; planned moments count from here.
        steps: (kind, planned ns, ns at which it was written) of every chunk.
        images: how many it held.
        body: the JSON that was sent.
    """

    model: str
    received_ns: int = 0
    turn_ns: int = 0
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    images: int = 0
    body: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(kw_only=True)
class ReplayServer:
    """Replays scripts; use as a context manager, which runs it on a thread of its own.

    Args:
        host: to listen on.
        port: to listen on; 0 takes a free one.
        slots: answers that are made at the same time; others wait their turn.
        dialect: ``openai``, ``vllm`` or ``llamacpp``: what it says of itself and which figures it gives.
        framing: of bodies: ``chunked``, ``length`` (collected first; not for streams) or ``close``.
        stall_after_s: from the first request to a stall in which nothing at all is sent; None for none.
        stall_s: how long it lasts.
        api_key: that it wants; None for none.
        keep_alive: connections may be used again.
        drop_every: every n-th request on a used connection is dropped without an answer; 0 for none.
        fail_from: from this request on (counted from 1) all get HTTP 503; 0 for never.
        fail_text: what it says then; None for the words of a server that loads its model.
        tls: its certificate; None for plain HTTP.
        vision_tokens: that an image counts.
        pixels_a_token: an image counts a token for each square of this side instead; None: size does not matter.
    """

    host: str = "127.0.0.1"
    port: int = 0
    slots: int = 1024
    dialect: str = "openai"
    framing: str = "chunked"
    stall_after_s: float | None = None
    stall_s: float = 0.0
    api_key: str | None = None
    keep_alive: bool = True
    drop_every: int = 0
    fail_from: int = 0
    fail_text: str | None = None
    tls: ssl.SSLContext | None = None
    vision_tokens: int = 100
    pixels_a_token: int | None = None
    log: list[Sent] = field(init=False, default_factory=list)
    counters: dict[str, float] = field(init=False, default_factory=dict)
    _first_ns: int = field(init=False, default=0)
    _turns: asyncio.Semaphore = field(init=False)
    _loop: asyncio.AbstractEventLoop | None = field(init=False, default=None)
    _stop: asyncio.Event = field(init=False)
    _thread: threading.Thread | None = field(init=False, default=None)
    _ready: threading.Event = field(init=False, default_factory=threading.Event)
    _used: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.framing not in FRAMINGS:
            raise ValueError(f"'framing' must be one of {', '.join(FRAMINGS)} (got {self.framing!r})")

    @property
    def base_url(self) -> str:
        """Up to and with ``/v1``."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._in_thread, name="replay", daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the replay server did not start within 10 s")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def _in_thread(self) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(self.serve())

    async def serve(self) -> None:
        """Serve until :meth:`stop`."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._turns = asyncio.Semaphore(self.slots)
        connections: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._connection(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client went away, or the server stops
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(handle, self.host, self.port, limit=_LINE_LIMIT, ssl=self.tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def stop(self) -> None:
        """End :meth:`serve`, from its own thread."""
        self._stop.set()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = 0
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, headers = _read_head(head)
            length = int(headers.get("content-length", "0"))
            script, model = Script(), ""
            if method == "POST" and served and self.drop_every:
                self._used += 1
                if self._used % self.drop_every == 0:
                    return
            if "slow_reader" in headers.get("x-replay", ""):
                await asyncio.sleep(0.05)
            body = await reader.readexactly(length) if length else b""
            served += 1
            if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
                await _send_json(writer, 401, {"error": {"message": "planted: wrong key"}})
            elif method == "POST" and target.endswith("/chat/completions"):
                asked = json.loads(body)
                model = str(asked.get("model"))
                script = script_named(model) or Script(status=404, message=f"the model `{model}` does not exist")
                if not await self._chat(writer, script, model, asked):
                    return
            else:
                await self._page(writer, target)
            if not self.keep_alive or self.framing == "close":
                return

    async def _page(self, writer: asyncio.StreamWriter, target: str) -> None:
        """The small pages: models, version, properties, counters and the log of what was sent."""
        owner = {"vllm": "vllm", "llamacpp": "llamacpp"}.get(self.dialect, "vlmbench")
        if target.endswith("/models"):
            entries = [{"id": name, "object": "model", "owned_by": owner} for name in SCRIPTS]
            await _send_json(writer, 200, {"object": "list", "data": entries})
        elif target.endswith("/health"):
            await _send_json(writer, 200, {"status": "ok"})
        elif target.endswith("/version") and self.dialect == "vllm":
            await _send_json(writer, 200, {"version": "0.0.0+replay"})
        elif target.endswith("/metrics") and self.dialect != "openai":
            text = "".join(f"{name} {value}\n" for name, value in self.counters.items())
            await _send(writer, 200, "text/plain; version=0.0.4", text.encode())
        elif target.endswith("/replay/log"):
            log = [
                {
                    "user": s.body.get("user"),
                    "model": s.model,
                    "received_ns": s.received_ns,
                    "turn_ns": s.turn_ns,
                    "steps": s.steps,
                }
                for s in self.log
            ]
            await _send_json(writer, 200, log)
        else:
            await _send_json(writer, 404, {"error": {"message": f"nothing at {target}"}})

    async def _chat(self, writer: asyncio.StreamWriter, script: Script, model: str, asked: dict[str, Any]) -> bool:
        """Answer a request; False when the connection must be closed."""
        sent = Sent(model=model, received_ns=time.monotonic_ns(), images=_images(asked), body=asked)
        self._first_ns = self._first_ns or sent.received_ns
        self.log.append(sent)
        if self.fail_from and len(self.log) >= self.fail_from:
            script = replace(SCRIPTS["loading"], message=self.fail_text or SCRIPTS["loading"].message)
        if script.status != 200:
            await _send_json(writer, script.status, {"error": {"message": script.message, "code": script.status}})
            return True
        if script.read_delay_ms:
            await asyncio.sleep(script.read_delay_ms / 1e3)
        async with self._turns:
            await self._past_stall(0)
            sent.turn_ns = time.monotonic_ns()
            whole = await self._replay(writer, script, asked, sent)
        self._count(sent, script, asked)
        return whole

    async def _replay(self, writer: asyncio.StreamWriter, script: Script, asked: dict[str, Any], sent: Sent) -> bool:
        total = _asked_tokens(script, asked)
        if script.prompt_ms:
            script = replace(script, ttft_ms=script.ttft_ms + script.prompt_ms * self._prompt_tokens(sent))
        steps = _stream(script, total, self.framing)
        if not script.stream or not asked.get("stream"):
            await sleep_until(sent.turn_ns + round(steps[-1][0].at_ms * 1e6))
            await _send_json(writer, 200, _whole(sent.model, total, _usage(self, sent, total)))
            return True
        writer.write(_stream_head(self.framing, keep=self.keep_alive and self.framing == "chunked"))
        shift_ns = 0
        for step, made in steps:
            data = made
            planned = sent.turn_ns + round(step.at_ms * 1e6) + shift_ns
            await sleep_until(planned)
            waited = await self._past_stall(planned)
            shift_ns, planned = shift_ns + waited, planned + waited
            if step.kind == "cut":
                writer.transport.abort()
                return False
            if step.kind == "hang":
                await self._stop.wait()
                return False
            if step.kind == "usage":
                data = _framed(self._last(sent, total), self.framing)
            elif step.kind == "finish" and script.usage == "finish":
                data = _framed(_finish(script, _usage(self, sent, total)), self.framing)
            writer.write(data)
            sent.steps.append((step.kind, planned, time.monotonic_ns()))
            if step.kind == "error":
                return False
            if writer.transport.get_write_buffer_size():
                await writer.drain()
        if self.framing == "chunked":
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return self.framing == "chunked"

    def _vision_tokens(self, sent: Sent) -> int:
        """Tokens of a request's images."""
        side = self.pixels_a_token
        if side is None:
            return self.vision_tokens * sent.images
        return sum((width // side) * (height // side) for width, height in map(_pixels, _image_urls(sent.body)))

    def _prompt_tokens(self, sent: Sent) -> int:
        return 10 + self._vision_tokens(sent) + _words(sent.body)

    async def _past_stall(self, planned_ns: int) -> int:
        """Wait while the server stalls; returns by how much a moment that lies in the stall is moved, ns."""
        if self.stall_after_s is None:
            return 0
        begin = self._first_ns + round(self.stall_after_s * 1e9)
        end = begin + round(self.stall_s * 1e9)
        now = planned_ns or time.monotonic_ns()
        if not begin <= now < end:
            return 0
        await sleep_until(end)
        return end - now

    def _last(self, sent: Sent, total: int) -> bytes:
        """The chunk of token counts, with the figures that the server gives of itself."""
        timings = _timings(sent, total) if self.dialect == "llamacpp" else {}
        return _event({**_WHOLE, "choices": [], "usage": _usage(self, sent, total), **timings})

    def _count(self, sent: Sent, script: Script, asked: Mapping[str, Any]) -> None:
        """The server's own counters, as vLLM names them."""
        tokens = [written for kind, _, written in sent.steps if kind in ("content", "reasoning")]
        changes = {
            "vllm:request_success_total": 1.0,
            "vllm:generation_tokens_total": float(_asked_tokens(script, asked)),
        }
        if tokens:
            queue, first = (sent.turn_ns - sent.received_ns) / 1e9, (tokens[0] - sent.received_ns) / 1e9
            for name, value in (("request_queue_time_seconds", queue), ("time_to_first_token_seconds", first)):
                changes |= {f"vllm:{name}_sum": value, f"vllm:{name}_count": 1.0}
        for name, value in changes.items():
            self.counters[name] = self.counters.get(name, 0.0) + value


@lru_cache(maxsize=64)
def _stream(script: Script, total: int, framing: str) -> list[tuple[Step, bytes]]:
    """The steps of a script with the bytes that each sends, made once: a server must not be late by making them."""
    made, counted = [], 0
    for step in script.steps(total):
        counted += step.tokens if step.kind in ("content", "reasoning") else 0
        made.append((step, _framed(_chunk(step, script, counted), framing)))
    return made


def _chunk(step: Step, script: Script, counted: int) -> bytes:
    """The data of one event, but for those that hold figures of the request."""
    if step.kind == "done":
        return b"data: [DONE]\n\n"
    if step.kind == "error":
        return _event({"error": {"message": script.message, "code": 500}})
    if step.kind == "finish":
        return _finish(script, None)
    text = _WORD * step.tokens + "." * script.padding
    deltas: dict[str, dict[str, Any]] = {
        "role": {"role": "assistant", "content": ""},
        "content": {"content": text},
        "reasoning": {"reasoning_content": text},
        "progress": {"role": "assistant", "content": None},
    }
    delta = deltas.get(step.kind, {})
    whole: dict[str, Any] = {**_WHOLE, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    if step.kind == "progress":
        whole["prompt_progress"] = {"total": 100, "processed": 50}
    if script.usage == "each" and counted:
        whole["usage"] = {"prompt_tokens": 1, "completion_tokens": counted}
    return _event(whole)


def _finish(script: Script, usage: Mapping[str, Any] | None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop" if script.eos else "length"}
    whole: dict[str, Any] = {**_WHOLE, "choices": [choice]}
    return _event(whole | {"usage": usage} if usage else whole)


def _asked_tokens(script: Script, asked: Mapping[str, Any]) -> int:
    """Tokens of the answer: the request's number where it forces one, else no more than it allows."""
    limit = int(asked.get("max_tokens") or script.tokens)
    return limit if asked.get("ignore_eos") else min(limit, script.tokens)


def _usage(server: ReplayServer, sent: Sent, total: int) -> dict[str, Any]:
    eos = 1 if script_named(sent.model) is not None and (script_named(sent.model) or Script()).eos else 0
    prompt = server._prompt_tokens(sent)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": total + eos}
    usage["total_tokens"] = prompt + total + eos
    if server.dialect == "vllm":
        tokens = [planned for kind, planned, _ in sent.steps if kind in ("content", "reasoning")]
        usage["prompt_tokens_details"] = {
            "cached_tokens": 0,
            "multimodal_tokens": {"image": server._vision_tokens(sent)},
        }
        if tokens:
            usage["metrics"] = {
                "time_to_first_token_ms": (tokens[0] - sent.turn_ns) / 1e6,
                "generation_time_ms": (tokens[-1] - tokens[0]) / 1e6,
                "queue_time_ms": (sent.turn_ns - sent.received_ns) / 1e6,
                "mean_itl_ms": (tokens[-1] - tokens[0]) / 1e6 / max(1, total - 1),
            }
    return usage


def _timings(sent: Sent, total: int) -> dict[str, Any]:
    tokens = [planned for kind, planned, _ in sent.steps if kind in ("content", "reasoning")]
    prompt, answer = (tokens[0] - sent.turn_ns) / 1e6, (tokens[-1] - tokens[0]) / 1e6
    per_token = answer / max(1, total - 1)
    found = {"cache_n": 0, "prompt_n": 10, "prompt_ms": prompt, "predicted_n": total, "predicted_ms": answer}
    return {"timings": {**found, "predicted_per_token_ms": per_token}}


def _words(asked: Mapping[str, Any]) -> int:
    """Words of the user's text, which count as tokens here."""
    words = 0
    for message in asked.get("messages", []):
        content = message.get("content", "")
        parts = (
            [content] if isinstance(content, str) else [p.get("text", "") for p in content if p.get("type") == "text"]
        )
        words += sum(len(part.split()) for part in parts)
    return words


def _images(asked: Mapping[str, Any]) -> int:
    return len(_image_urls(asked))


def _image_urls(asked: Mapping[str, Any]) -> list[str]:
    contents = [m.get("content") for m in asked.get("messages", [])]
    parts = [p for c in contents if isinstance(c, list) for p in c]
    return [p["image_url"]["url"] for p in parts if p.get("type") == "image_url"]


def _pixels(url: str) -> tuple[int, int]:
    """(width, height) of an image in a data URL."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return image.size


def _whole(model: str, total: int, usage: Mapping[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": _WORD * total}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    return {"id": "replay", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def _read_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return method, target, headers


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _framed(data: bytes, framing: str) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n" if framing == "chunked" else data


def _stream_head(framing: str, *, keep: bool) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream; charset=utf-8", "Cache-Control: no-cache"]
    lines += ["Transfer-Encoding: chunked"] if framing == "chunked" else []
    lines += [] if keep else ["Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _send_json(writer: asyncio.StreamWriter, status: int, data: Any) -> None:
    await _send(writer, status, "application/json", json.dumps(data).encode())


async def _send(writer: asyncio.StreamWriter, status: int, media: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Planted')}\r\nContent-Type: {media}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal comes; prints the base URL."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmbench.testing.replay", description="replay planted chat streams"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--slots", type=int, default=1024, help="answers at the same time")
    parser.add_argument("--dialect", choices=("openai", "vllm", "llamacpp"), default="openai")
    parser.add_argument("--stall-after-s", type=float, default=None)
    parser.add_argument("--stall-s", type=float, default=0.0)
    given = vars(parser.parse_args(arguments))
    server = ReplayServer(**given)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        task = asyncio.create_task(server.serve())
        await asyncio.to_thread(server._ready.wait, 10)
        sys.stdout.write(f"{server.base_url}\n")
        sys.stdout.flush()
        await task

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

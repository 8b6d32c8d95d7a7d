"""Server-sent events and the kinds of chunk a chat stream is made of. Standard library only, no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

DONE = "[DONE]"
_JSON = json.JSONDecoder()


class Kind(StrEnum):
    """What a chunk of a stream holds; only the first two hold tokens that a user can read."""

    CONTENT = "content"
    REASONING = "reasoning"
    ROLE = "role"  # says who speaks, sent before or with the first token: never a token
    EMPTY = "empty"  # neither text nor news
    PROGRESS = "progress"  # how far the prompt is processed, before the first token
    FINISH = "finish"  # why the answer ended
    USAGE = "usage"  # token counts, no text
    ERROR = "error"
    DONE = "done"


HOLDS_TOKENS = frozenset({Kind.CONTENT, Kind.REASONING})


class Chunk(NamedTuple):
    """One event of a stream.

    Args:
        kind: what it holds.
        tokens_so_far: tokens of the answer up to here, by the server's own count; None where it does not count here.
        usage: token counts and per-request metrics, where the chunk carries them.
        timings: llama.cpp's clock, where the chunk carries it.
        finish_reason: ``stop``, ``length`` …, where the chunk carries it.
        error: the server's message of a chunk of kind ``error``.
    """

    kind: Kind
    tokens_so_far: int | None = None
    usage: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass(kw_only=True)
class EventParser:
    """Cuts a byte stream into events, whatever the size of the reads and the line ends."""

    _buffer: bytes = b""
    _data: list[bytes] = field(default_factory=list)

    def feed(self, piece: bytes) -> list[str]:
        """The data of every event that this piece completes."""
        whole = piece.startswith(b"data: ") and piece.endswith(b"\n") and piece.find(b"\n") == len(piece) - 2
        if whole and not self._buffer and not self._data and b"\r" not in piece:  # as nearly all are
            return [piece[6:-2].decode("utf-8", "replace")]
        return list(self._cut(piece))

    def _cut(self, piece: bytes) -> Iterator[str]:
        text = self._buffer + piece
        held = b"\r" if text.endswith(b"\r") else b""  # the line feed of this line end may follow
        text = text[: len(text) - len(held)]
        *lines, rest = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._buffer = rest + held
        for line in lines:
            if not line:
                if self._data:
                    yield b"\n".join(self._data).decode("utf-8", "replace")
                    self._data.clear()
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            # comments (keep-alives) and the fields event, id, retry carry no chunk

    def rest(self) -> list[str]:
        """The event that a closed connection left without its empty line."""
        return self.feed(b"\n\n")


def chunk_of(data: str) -> Chunk:
    """The chunk that the data of an event describes.

    Raises:
        ValueError: it is no JSON object.
    """
    text = data.strip(" \t\r\n")
    if text == DONE:
        return Chunk(Kind.DONE)
    found, end = _JSON.raw_decode(text)  # half of what json.loads takes
    if end != len(text) or not isinstance(found, dict):
        raise ValueError(f"a chunk must be a JSON object (got {data[:60]!r})")
    if found.get("error"):
        return Chunk(kind=Kind.ERROR, error=error_text(found["error"]))
    usage, timings = found.get("usage") or None, found.get("timings") or None
    choices = found.get("choices")
    choice = choices[0] if choices else {}
    kind = _kind(choice.get("delta") or {}, choice, found)
    counted = _count(usage, timings) if usage or timings else None
    return Chunk(kind, counted, usage, timings, choice.get("finish_reason"))


def error_text(error: Any) -> str:
    """The message in an ``error`` member or an error body, on one line."""
    if isinstance(error, Mapping):
        for key in ("message", "detail", "error"):
            if error.get(key):
                return error_text(error[key])
    return " ".join(str(error).split())


def _kind(delta: Mapping[str, Any], choice: Mapping[str, Any], whole: Mapping[str, Any]) -> Kind:
    if delta.get("content") or delta.get("tool_calls"):
        return Kind.CONTENT
    if delta.get("reasoning_content") or delta.get("reasoning"):
        return Kind.REASONING
    if whole.get("prompt_progress"):
        return Kind.PROGRESS
    if choice.get("finish_reason"):
        return Kind.FINISH
    if not choice and whole.get("usage"):
        return Kind.USAGE
    return Kind.ROLE if delta.get("role") else Kind.EMPTY


def _count(usage: Mapping[str, Any] | None, timings: Mapping[str, Any] | None) -> int | None:
    """The server's running count of the answer's tokens."""
    for source, key in ((usage, "completion_tokens"), (timings, "predicted_n")):
        value = source.get(key) if isinstance(source, Mapping) else None
        if type(value) is int:  # a bool is none
            return value
    return None

"""HTTP/1.1 as bytes: requests written, responses parsed wherever the network cuts them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_MAX_HEAD_BYTES = 65536
Piece = tuple[int, bytes]
"""A part of a body and the moment at which it was read, ns on ``time.monotonic_ns()``."""


class WireError(Exception):
    """What the server sent is not HTTP/1.1; the message says what stands there instead."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Status line and headers of a response.

    Args:
        status: the three-digit status.
        headers: lower-case names; repeated ones joined by a comma.
    """

    status: int
    headers: Mapping[str, str]

    @property
    def content_type(self) -> str:
        """The media type without its parameters, lower case; empty where the server gave none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def keeps_open(self) -> bool:
        """Whether the server lets the connection be used again."""
        return self.headers.get("connection", "").lower() != "close"


def request_bytes(method: str, target: str, host: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A whole request, ready to be written.

    Args:
        method: ``GET``, ``POST`` …
        target: path, or an absolute URL when it goes to a proxy.
        host: of the ``Host`` header, with its port where that is not the scheme's own.
        headers: further ones.
        body: of the request; its length is stated.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{k}: {v}" for k, v in headers.items())]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


@dataclass(kw_only=True)
class ResponseParser:
    """Parses one response from the pieces in which it arrives.

    Attributes:
        head: once it is complete.
        head_ns: when its last byte was read.
        complete: the body has ended.
        ending: what a read of five bytes or more that completes the response ends with, as far as can be told now.
    """

    head: Head | None = None
    head_ns: int = 0
    complete: bool = False
    ending: bytes = b""
    _buffer: bytearray = field(default_factory=bytearray)
    _left: int = 0  # bytes of the body, or of the chunk, still to come
    _mode: str = "head"  # head, length, size, chunk, chunk_end, trailer, until_close

    def feed(self, stamp_ns: int, data: bytes) -> list[Piece]:
        """Take what was read at a moment; returns the parts of the body in it.

        Raises:
            WireError: this is no HTTP/1.1, or a chunk is broken.
        """
        if self._mode == "size" and not self._buffer and (whole := _one_chunk(data)):
            return [(stamp_ns, whole)]
        self._buffer += data
        pieces: list[Piece] = []
        while not self.complete and self._step(stamp_ns, pieces):
            pass
        return pieces

    def at_close(self) -> bool:
        """Take note that the server closed; True where that is how this response ends, not a broken one."""
        if self._mode == "until_close":
            self.complete = True
        return self.complete

    def _step(self, stamp_ns: int, pieces: list[Piece]) -> bool:
        """One step forward; False when more bytes are needed."""
        if self._mode == "head":
            return self._read_head(stamp_ns)
        if self._mode in ("length", "chunk", "until_close"):
            return self._read_body(stamp_ns, pieces)
        line = self._line()
        if line is None:
            return False
        if self._mode == "size":
            self._begin_chunk(line)
        elif self._mode == "chunk_end":
            if line:
                raise WireError(f"a chunk is longer than it says: {_shown(line)}")
            self._mode = "size"
        elif not line:  # the empty line after the trailers
            self.complete = True
        return True

    def _read_head(self, stamp_ns: int) -> bool:
        if len(self._buffer) >= 5 and not self._buffer.startswith(b"HTTP/"):
            raise WireError(f"the answer is no HTTP: {_shown(bytes(self._buffer[:60]))}")
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise WireError("the headers of the answer do not end")
            return False
        head = _parse_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        if 100 <= head.status < 200:  # an interim answer; the real one follows
            return True
        self.head, self.head_ns = head, stamp_ns
        if head.status in (204, 304):
            self.complete = True
        elif "chunked" in head.headers.get("transfer-encoding", "").lower():
            self._mode, self.ending = "size", b"\r\n\r\n"
        elif "content-length" in head.headers:
            self._mode, self._left = "length", _length(head.headers["content-length"])
            self.complete = self._left == 0
        else:
            self._mode = "until_close"
        return True

    def _read_body(self, stamp_ns: int, pieces: list[Piece]) -> bool:
        if not self._buffer:
            return False
        take = len(self._buffer) if self._mode == "until_close" else min(self._left, len(self._buffer))
        if take:
            pieces.append((stamp_ns, bytes(self._buffer[:take])))
            del self._buffer[:take]
        self._left -= take
        if self._mode == "length" and self._left == 0:
            self.complete = True
        elif self._mode == "chunk" and self._left == 0:
            self._mode = "chunk_end"
        return True

    def _begin_chunk(self, line: bytes) -> None:
        size = line.partition(b";")[0].strip()
        try:
            self._left = int(size, 16)
        except ValueError:
            raise WireError(f"the size of a chunk is no number: {_shown(line)}") from None
        self._mode = "chunk" if self._left else "trailer"

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise WireError("a line of the answer does not end")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line


def _one_chunk(data: bytes) -> bytes | None:
    """The body of a read that is one whole chunk, as nearly all of a stream are; None for any other."""
    size, _, rest = data.partition(b"\r\n")
    body = rest[:-2]
    return body if body and rest.endswith(b"\r\n") and size.lower() == b"%x" % len(body) else None


def _parse_head(text: bytes) -> Head:
    first, *rest = text.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise WireError(f"the first line of the answer is no HTTP status: {first[:60]!r}")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        key, value = name.strip().lower(), value.strip()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return Head(status=int(parts[1]), headers=headers)


def _length(text: str) -> int:
    if not text.isdigit():
        raise WireError(f"the length of the answer is no number: {text[:40]!r}")
    return int(text)


def _shown(data: bytes) -> str:
    return repr(data[:40].decode("latin-1"))

"""One streamed answer: what arrived when, and the values of its row. Standard library only, no I/O.

Times of a row are ms from the *intended* send time, so that a request that had to wait to be sent counts its wait.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbench.engines.endpoint.client import Times
from vlmbench.engines.endpoint.sse import HOLDS_TOKENS, EventParser, Kind, chunk_of, error_text
from vlmbench.engines.endpoint.wire import Head

COALESCED_NS = 100_000
"""Chunks closer than this came out of one read, or of reads that had waited for the client, ns."""
_KEPT_ERROR_BYTES = 4096


@dataclass(kw_only=True)
class Answer:
    """Collects the stream of one request.

    Attributes:
        token_times_ns: when each chunk with text arrived.
        counts_so_far: the server's running count of tokens at each of them; None where it gives none.
        kinds: how many chunks of each kind there were.
        first_event_ns: when the first chunk of any kind arrived, 0 where none did.
        usage: the last token counts that the server sent.
        timings: the last clock that the server sent (llama.cpp).
        finish_reason: as the server gave it.
        error: what the server complained of inside the stream.
        done: ``[DONE]`` was seen.
        broken: why a chunk could not be read; None where all could.
    """

    token_times_ns: list[int] = field(default_factory=list)
    counts_so_far: list[int | None] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    first_event_ns: int = 0
    usage: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    error: str | None = None
    done: bool = False
    broken: str | None = None
    body: bytearray = field(default_factory=bytearray)
    _parser: EventParser = field(default_factory=EventParser)

    def feed(self, stamp_ns: int, piece: bytes) -> None:
        """Take a part of the body and the moment it was read at."""
        if len(self.body) < _KEPT_ERROR_BYTES and not self.token_times_ns:
            self.body += piece[:_KEPT_ERROR_BYTES]
        for data in self._parser.feed(piece):
            self._take(stamp_ns, data)

    def _take(self, stamp_ns: int, data: str) -> None:
        try:
            chunk = chunk_of(data)
        except (ValueError, TypeError, AttributeError) as error:  # no JSON, or members of other types
            self.broken = self.broken or f"a chunk of the stream cannot be read: {error}"
            return
        kind, counted, usage, timings, finish_reason, error_said = chunk
        self.kinds[kind] += 1
        self.first_event_ns = self.first_event_ns or stamp_ns
        if kind in HOLDS_TOKENS:
            self.token_times_ns.append(stamp_ns)
            self.counts_so_far.append(counted)
        self.usage = usage or self.usage
        self.timings = timings or self.timings
        self.finish_reason = finish_reason or self.finish_reason
        self.error = error_said or self.error
        self.done = self.done or kind is Kind.DONE

    def complaint(self, head: Head) -> str:
        """What the server says in the body of an answer that is no stream, on one line."""
        text = bytes(self.body).decode("utf-8", "replace")
        try:
            found = json.loads(text)
        except ValueError:
            return " ".join(text.split())[:300] or f"HTTP {head.status}"
        if isinstance(found, Mapping):
            return error_text(found.get("error") or found.get("detail") or found)[:300]
        return error_text(found)[:300]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How the answer's tokens are spread over the chunks that held text.

    Args:
        per_chunk: tokens of each chunk; empty where it cannot be said.
        total: tokens of the answer, by the server's count where it gives one.
        source: ``server`` (a running count on every chunk), ``one_each`` (as many tokens as chunks), ``spread`` (only
            the total is known, and differs from the number of chunks) or ``unknown``.
    """

    per_chunk: tuple[int, ...]
    total: int | None
    source: str


def spread_tokens(counts: list[int | None], total: int | None, *, ended_by_itself: bool) -> Tokens:
    """Tell how many tokens each chunk held.

    Args:
        counts: the server's running count at each chunk with text.
        total: the server's count of the whole answer.
        ended_by_itself: the answer ended with an end-of-sequence token, which is counted but has no text.
    """
    chunks = len(counts)
    if chunks and all(c is not None for c in counts):
        known = [c for c in counts if c is not None]
        steps = tuple(b - a for a, b in zip([0, *known], known, strict=False))
        if min(steps) >= 0 and steps[0] >= 1:
            return Tokens(per_chunk=steps, total=total if total is not None else known[-1], source="server")
    if total is None or not chunks:
        return Tokens(per_chunk=(), total=total, source="unknown")
    if total == chunks or (ended_by_itself and total == chunks + 1):
        return Tokens(per_chunk=(1,) * chunks, total=total, source="one_each")
    ends = [round(total * (i + 1) / chunks) for i in range(chunks)]
    return Tokens(per_chunk=tuple(b - a for a, b in zip([0, *ends], ends, strict=False)), total=total, source="spread")


def gaps_ms(times_ns: list[int], per_chunk: tuple[int, ...]) -> list[float]:
    """The time to each token after those of the first chunk, ms; a chunk's gap is shared by the tokens in it."""
    gaps: list[float] = []
    last = times_ns[0] if times_ns else 0
    for stamp, tokens in zip(times_ns[1:], per_chunk[1:], strict=True):
        if not tokens:  # text without a new token: its time belongs to the next chunk that has one
            continue
        gaps += [(stamp - last) / 1e6 / tokens] * tokens
        last = stamp
    return gaps


def row_values(
    answer: Answer, times: Times, *, due_ns: int, asked_tokens: int, forced: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values and flags of an answer that came through.

    Args:
        answer: whole.
        times: of its exchange.
        due_ns: when the request should have been sent.
        asked_tokens: the most new tokens that were asked for.
        forced: exactly that many were asked for.
    """
    tokens = spread_tokens(
        answer.counts_so_far,
        _whole(answer.usage, "completion_tokens"),
        ended_by_itself=not forced and answer.finish_reason == "stop",
    )
    stamps = answer.token_times_ns
    values: dict[str, Any] = {
        **_moments(answer, times, due_ns),
        "num_input_tokens": _whole(answer.usage, "prompt_tokens"),
        "num_output_tokens": tokens.total,
        "num_chunks": len(stamps),
        "output_forced": forced,
        "finish_reason": answer.finish_reason,
        "tokens_source": tokens.source,
        "chunk_times": [round((s - due_ns) / 1e6, 4) for s in stamps],
        **{f"chunks_{kind}": answer.kinds[kind] for kind in ("role", "empty", "progress", "reasoning", "usage")},
    }
    if tokens.per_chunk:
        values["chunk_tokens"] = list(tokens.per_chunk)
        values["ITL"] = [round(gap, 4) for gap in gaps_ms(stamps, tokens.per_chunk)]
        after_first = sum(tokens.per_chunk[1:])
        if after_first:
            values["TPOT"] = (stamps[-1] - stamps[0]) / 1e6 / after_first
    close = sum(b - a < COALESCED_NS for a, b in itertools.pairwise(stamps))
    if len(stamps) > 1:
        values["coalesced_share"] = close / (len(stamps) - 1)
    return values, _flags(answer, tokens, asked_tokens, forced)


def _moments(answer: Answer, times: Times, due_ns: int) -> dict[str, Any]:
    """The client's times, ms; those that count from the intended send time, and the parts before it."""
    stamps = answer.token_times_ns

    def since_due(stamp_ns: int) -> float:
        return (stamp_ns - due_ns) / 1e6

    return {
        "T_late": since_due(times.start_ns),
        "T_connect": times.connect_ns / 1e6 if times.connect_ns else None,
        "T_send": (times.sent_ns - times.start_ns) / 1e6,
        "T_headers": since_due(times.head_ns),
        "T_first_event": since_due(answer.first_event_ns) if answer.first_event_ns else None,
        "TTFT": since_due(stamps[0]) if stamps else None,
        "T_request": since_due(stamps[-1]) if stamps else None,
        "T_end": since_due(times.end_ns),
        "connection_reused": times.reused,
        "reads": times.reads,
    }


def _flags(answer: Answer, tokens: Tokens, asked: int, forced: bool) -> tuple[str, ...]:
    flags = []
    if tokens.source == "server" and max(tokens.per_chunk) > 1:
        flags.append("tokens_merged")
    if tokens.source in ("spread", "unknown"):
        flags.append("tokens_per_chunk_unknown")
    counted = next((c for c in reversed(answer.counts_so_far) if c is not None), None)
    eos = 0 if forced else 1
    if tokens.total is not None and counted is not None:
        if counted > tokens.total:
            flags.append("token_counts_differ")
        elif tokens.total - counted > eos:  # bytes of a character that never became whole
            flags.append("tokens_without_text")
    if tokens.total is not None and (tokens.total > asked or (forced and tokens.total != asked)):
        flags.append("output_length_differs")
    if not answer.done and answer.finish_reason is None:
        flags.append("stream_without_end")
    return tuple(flags)


def _whole(usage: Mapping[str, Any] | None, key: str) -> int | None:
    value = usage.get(key) if usage else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None

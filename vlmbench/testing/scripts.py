"""Planted streams: what a replayed answer sends, and when. Standard library only.

A script is chosen by the model's name in the request, so that one server replays them all:
``runtime.model=steady``, ``runtime.model=pairs`` …; ``steady,itl_ms=5,tokens=64`` changes its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

FRAMINGS = ("chunked", "length", "close")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that happens in a stream.

    Args:
        at_ms: after the request was received and its turn came.
        kind: ``role``, ``empty``, ``progress``, ``reasoning``, ``content``, ``finish``, ``usage``, ``done``, ``cut``
            (the connection is closed without an end) or ``hang`` (nothing more is ever sent).
        tokens: that a chunk of text holds.
    """

    at_ms: float
    kind: str
    tokens: int = 1


@dataclass(frozen=True, kw_only=True)
class Script:
    """A planted answer.

    Args:
        ttft_ms: to the first token (which waits for the others of its chunk where several travel together).
        prompt_ms: to the first token besides, for each token of the prompt.
        itl_ms: between two tokens.
        tokens: of the answer.
        role_ms: when the role chunk is sent; None sends none.
        tokens_per_chunk: tokens that travel together.
        reasoning: how many of the first chunks are reasoning.
        progress: chunks of kind ``progress`` before the first token.
        usage: ``own`` (a chunk of its own), ``finish`` (rides on the finish chunk), ``each`` (a running count on every
            chunk, then a chunk of its own), ``none``.
        tail_ms: from the last token to the finish, usage and done chunks.
        status: HTTP status; not 200 sends ``message`` as an error body.
        message: of an error.
        cut_after: close the connection after so many chunks of text; None never.
        hang_after: stop sending after so many chunks of text, for ever; None never.
        stream: False sends the answer in one piece of JSON.
        eos: count an end-of-sequence token that has no text.
        error_after: send an error chunk after so many chunks of text; None never.
        read_delay_ms: the server waits so long before it reads a request's body (a slow reader).
        padding: bytes of extra text in every chunk.
    """

    ttft_ms: float = 40.0
    prompt_ms: float = 0.0
    itl_ms: float = 10.0
    tokens: int = 16
    role_ms: float | None = 0.0
    tokens_per_chunk: int = 1
    reasoning: int = 0
    progress: int = 0
    usage: str = "own"
    tail_ms: float = 0.0
    status: int = 200
    message: str = "planted"
    cut_after: int | None = None
    hang_after: int | None = None
    error_after: int | None = None
    stream: bool = True
    eos: bool = False
    read_delay_ms: float = 0.0
    padding: int = 0

    def __post_init__(self) -> None:
        if self.usage not in ("own", "finish", "each", "none"):
            raise ValueError(f"'usage' must be own, finish, each or none (got {self.usage!r})")
        for name in ("tokens", "tokens_per_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"'{name}' must be 1 or more (got {getattr(self, name)})")

    def steps(self, tokens: int | None = None) -> list[Step]:
        """Everything that is sent, in order.

        Args:
            tokens: of the answer, where the request asks for another number than the script has.
        """
        total = tokens or self.tokens
        steps = [Step(at_ms=self.role_ms, kind="role")] if self.role_ms is not None else []
        steps += [
            Step(at_ms=self.ttft_ms * (i + 1) / (self.progress + 1), kind="progress") for i in range(self.progress)
        ]
        sent = chunks = 0
        while sent < total:
            if chunks in (self.cut_after, self.hang_after, self.error_after):
                at = self.ttft_ms + self.itl_ms * sent
                kind = {self.cut_after: "cut", self.hang_after: "hang", self.error_after: "error"}[chunks]
                return [*steps, Step(at_ms=at, kind=kind)]
            now = min(self.tokens_per_chunk, total - sent)
            kind = "reasoning" if chunks < self.reasoning else "content"
            ready = self.ttft_ms + self.itl_ms * (sent + now - 1)  # a chunk leaves when its last token is ready
            steps.append(Step(at_ms=ready, kind=kind, tokens=now))
            sent, chunks = sent + now, chunks + 1
        end = steps[-1].at_ms + self.tail_ms
        steps.append(Step(at_ms=end, kind="finish"))
        if self.usage in ("own", "each"):
            steps.append(Step(at_ms=end, kind="usage"))
        return [*steps, Step(at_ms=end, kind="done")]


SCRIPTS: Mapping[str, Script] = {
    "steady": Script(),
    "counted": Script(usage="each"),
    "prefill": Script(usage="each", ttft_ms=5.0, prompt_ms=0.2, itl_ms=2.0),
    "late_role": Script(role_ms=20.0, ttft_ms=60.0),
    "pairs": Script(tokens_per_chunk=2),
    "counted_pairs": Script(tokens_per_chunk=2, usage="each"),
    "usage_on_finish": Script(usage="finish"),
    "no_usage": Script(usage="none"),
    "late_usage": Script(tail_ms=100.0),
    "progress": Script(progress=4),
    "reasoning": Script(reasoning=6),
    "natural_end": Script(eos=True),
    "cut": Script(cut_after=5),
    "hung": Script(hang_after=5),
    "hung_at_once": Script(hang_after=0, role_ms=None),
    "error_in_stream": Script(error_after=3, message="planted: the engine died"),
    "whole": Script(stream=False),
    "slow_reader": Script(read_delay_ms=50.0),
    "bad_field": Script(status=422, message="Unexpected fields in the request: {'ignore_eos'}"),
    "busy": Script(status=429, message="planted: too many requests"),
    "loading": Script(status=503, message="planted: loading model"),
    "no_images": Script(status=400, message="planted is not a multimodal model"),
}
"""The scripts by the name of the model that replays them."""


def script_named(model: str) -> Script | None:
    """The script of a model name, ``NAME`` or ``NAME,key=value,…``; None where there is none.

    Raises:
        ValueError: a key or value is wrong.
    """
    name, *changes = model.split(",")
    if name not in SCRIPTS:
        return None
    kinds = {f.name: f.type for f in fields(Script)}
    found: dict[str, object] = {}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in kinds:
            raise ValueError(f"a script has no '{key}' (it has: {', '.join(kinds)})")
        found[key] = _value(text, str(kinds[key]))
    return replace(SCRIPTS[name], **found)  # type: ignore[arg-type]


def _value(text: str, kind: str) -> object:
    if text == "none" and "None" in kind:
        return None
    if "bool" in kind:
        return text == "true"
    for cast in (int, float):
        if cast.__name__ in kind:
            return cast(text)
    return text

"""What kinds of server add to the common protocol: fields of a request, figures of an answer. No I/O.

Some servers refuse a request with a field that they do not know (HTTP 422), so each dialect sends its own only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbench.engines.endpoint.answer import Answer

DIALECTS = ("auto", "openai", "vllm", "llamacpp", "transformers")
IN_PROCESS = "in_process"
"""What stands for a dialect where an engine of this process is under load."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure that a server gives of a request.

    Args:
        column: name in the row.
        unit: of it.
        meaning: what the server means by it.
        path: where it stands, below ``usage`` or ``timings``.
    """

    column: str
    unit: str
    meaning: str
    path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One kind of server.

    Args:
        name: as ``runtime.dialect`` has it.
        forces_length: it can be asked for an exact number of new tokens.
        extra: fields that it understands besides the common ones.
        forced: fields that forbid the answer to end early.
        stream_options: of the request; empty for none.
        figures: what it says of a request.
        salted: name of the field that keeps requests out of each other's prefix cache; None for none.
        has_metrics: it serves ``/metrics``.
    """

    name: str
    forces_length: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    forced: Mapping[str, Any] = field(default_factory=dict)
    stream_options: Mapping[str, Any] = field(default_factory=lambda: {"include_usage": True})
    figures: tuple[Figure, ...] = ()
    salted: str | None = None
    has_metrics: bool = False


def _figures(*rows: tuple[str, str, str, str]) -> tuple[Figure, ...]:
    """Figures from (column, unit, dotted path, meaning)."""
    return tuple(Figure(column=c, unit=u, path=tuple(where.split(".")), meaning=said) for c, u, where, said in rows)


_CACHED = _figures(
    ("num_cached_tokens", "tokens", "usage.prompt_tokens_details.cached_tokens",
     "prompt tokens that the server took from its prefix cache"),
)  # fmt: skip
_OPENAI = Dialect(name="openai", figures=_CACHED)
_VLLM = Dialect(
    name="vllm",
    forces_length=True,
    forced={"ignore_eos": True},
    stream_options={"include_usage": True, "continuous_usage_stats": True},
    salted="cache_salt",
    has_metrics=True,
    figures=_CACHED + _figures(
        ("num_vision_tokens", "tokens", "usage.prompt_tokens_details.multimodal_tokens.image",
         "image tokens of the prompt, counted by the server"),
        ("server_queue_time_ms", "ms", "usage.metrics.queue_time_ms",
         "arrived in the engine until scheduled"),
        ("server_time_to_first_token_ms", "ms", "usage.metrics.time_to_first_token_ms",
         "scheduled (not arrived) until first token: encoder and prefill"),
        ("server_generation_time_ms", "ms", "usage.metrics.generation_time_ms",
         "first token until last token"),
        ("server_mean_itl_ms", "ms", "usage.metrics.mean_itl_ms",
         "mean time between tokens"),
    ),
)  # fmt: skip
_LLAMACPP = Dialect(
    name="llamacpp",
    forces_length=True,
    forced={"ignore_eos": True},
    extra={"timings_per_token": True, "cache_prompt": False},
    has_metrics=True,
    figures=_figures(
        ("num_cached_tokens", "tokens", "timings.cache_n",
         "prompt tokens that the slot still held"),
        ("server_prompt_n", "tokens", "timings.prompt_n",
         "prompt tokens that were computed"),
        ("server_prompt_ms", "ms", "timings.prompt_ms",
         "prompt taken up until first token: image encoder and prefill, without the wait for a slot"),
        ("server_predicted_ms", "ms", "timings.predicted_ms",
         "first token until last token"),
        ("server_predicted_per_token_ms", "ms", "timings.predicted_per_token_ms",
         "predicted_ms over the tokens after the first"),
    ),
)  # fmt: skip
_TRANSFORMERS = Dialect(name="transformers", stream_options={})
_IN_PROCESS = Dialect(
    name=IN_PROCESS,
    figures=_figures(
        ("engine_queued_time", "ms", "", "joined the engine until scheduled"),
        ("engine_prefill_time", "ms", "", "scheduled until first token, encoder included, in steps shared with others"),
        ("engine_decode_time", "ms", "", "first token until last token, in steps shared with others"),
    ),
)  # fmt: skip
_ALL = {d.name: d for d in (_OPENAI, _VLLM, _LLAMACPP, _TRANSFORMERS, _IN_PROCESS)}
# columns whose sum is the server's own time until the first token, by dialect
_UNTIL_FIRST = {
    "vllm": ("server_queue_time_ms", "server_time_to_first_token_ms"),
    "llamacpp": ("server_prompt_ms",),
}


def dialect(name: str) -> Dialect:
    """The dialect of that name (not ``auto``, which asks the server)."""
    return _ALL[name]


def definitions(name: str) -> dict[str, str]:
    """The server's figures of a dialect with their units and what the server means by them."""
    return {figure.column: f"{figure.unit}: {figure.meaning}" for figure in _ALL[name].figures}


def server_values(kind: Dialect, answer: Answer, ttft_ms: float | None) -> dict[str, Any]:
    """The server's figures of a request, under its own names; absent where it gave none.

    ``T_unattributed`` is the client's TTFT minus what the server says it spent until the first token: network, HTTP,
    decoding of the image, preprocessing, and (llama.cpp) the wait for a slot. It compares two clocks, so it may be
    negative.

    Args:
        kind: of the server.
        answer: whole.
        ttft_ms: the client's.
    """
    sources = {"usage": answer.usage or {}, "timings": answer.timings or {}}
    values: dict[str, Any] = {}
    for figure in kind.figures:
        found: Any = sources
        for step in figure.path:
            found = found.get(step) if isinstance(found, Mapping) else None
        if isinstance(found, int | float) and not isinstance(found, bool):
            values[figure.column] = found
    parts = [values.get(column) for column in _UNTIL_FIRST.get(kind.name, ())]
    known = [part for part in parts if part is not None]
    if ttft_ms is not None and parts and len(known) == len(parts):
        values["T_unattributed"] = ttft_ms - sum(known)
    return values

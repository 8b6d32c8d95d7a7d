"""A server's own counters before and after a point. Standard library only, no I/O.

Only sums, counts and counters are used: the buckets of its histograms are too coarse for percentiles (vLLM's first for
the time between tokens ends at 10 ms).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(\{.*\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')

# the number of requests that a server finished, by the names it may have
_REQUESTS = ("vllm:request_success_total", "sglang:num_requests_total", "vllm:e2e_request_latency_seconds_count")
_IMAGE_HITS = ("vllm:mm_cache_hits_total",)
_PREFIX_HITS = ("vllm:prefix_cache_hits_total", "llamacpp:prompt_tokens_cached_total", "sglang:cached_tokens_total")


def parse(text: str) -> dict[str, float]:
    """Every sample of a Prometheus page: name to value, summed over labels; buckets and quantiles left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = _LINE.match(line.strip())
        if match is None or match[1].endswith(("_bucket", "_created")):
            continue
        labels = dict(_LABEL.findall(match[2] or ""))
        if "quantile" in labels:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if math.isfinite(value):
            found[match[1]] = found.get(match[1], 0.0) + value
    return found


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a server's counters say of the time between two looks.

    Args:
        deltas: increase of every counter, sum and count that moved.
        means: of every histogram: increase of its sum over increase of its count, in the unit of its name.
        requests: it finished; None where it does not say.
        image_hits: of its image cache; None where it does not say.
        prefix_hits: tokens taken from its prefix cache; None where it does not say.
    """

    deltas: Mapping[str, float]
    means: Mapping[str, float]
    requests: int | None
    image_hits: int | None
    prefix_hits: int | None

    def flags(self, ours: int) -> tuple[str, ...]:
        """What makes the point doubtful.

        Args:
            ours: requests that this client had answered in the window.
        """
        flags = []
        if self.requests is not None and self.requests != ours:
            flags.append("server_shared")
        if self.image_hits:
            flags.append("image_cache_hits")
        if self.prefix_hits:
            flags.append("prefix_cache_hits")
        return tuple(flags)


def between(before: Mapping[str, float], after: Mapping[str, float]) -> Window | None:
    """The window between two pages; None where the server was started anew in between (a counter fell)."""
    deltas = {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.endswith(("_total", "_sum", "_count"))
    }
    if any(delta < 0 for delta in deltas.values()):
        return None
    means = {
        name.removesuffix("_sum"): delta / deltas[count]
        for name, delta in deltas.items()
        if name.endswith("_sum") and deltas.get(count := name.removesuffix("_sum") + "_count", 0) > 0
    }

    def first(names: tuple[str, ...]) -> int | None:
        return next((round(deltas[name]) for name in names if name in deltas), None)

    return Window(
        deltas={name: delta for name, delta in deltas.items() if delta},
        means=means,
        requests=first(_REQUESTS),
        image_hits=first(_IMAGE_HITS),
        prefix_hits=first(_PREFIX_HITS),
    )

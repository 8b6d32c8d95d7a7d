"""The table that says what is inside a printed latency, and the table of a comparison's arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmbench.text import DASH, digits, percent, quantile_cell, span, whole

Summary = Mapping[str, Any]
_TOWERS = {"vision_encoder": "vision encoder", "LLM_prefill": "prefill", "LLM_decode": "decode"}


def scope_rows(scope: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, how it is) of every label that a latency needs to be compared with another paper's."""
    total = scope["T_total"]
    yield "T_total", "one generate() from prepared inputs to the last token: vision encoder, projector, prefill, decode"
    yield "T_request", "T_total with preprocessing, transfer and detokenising"
    yield "outside both", "reading files, loading weights, warm-up, queueing, network"
    yield "model", f"{scope['model'] or DASH}, {scope['weights'] or DASH} weights, {scope['dtype'] or DASH}"
    yield "vision tokens", _range(scope["vision_tokens"])
    yield "input tokens", _range(scope["input_tokens"])
    forced = {"True": " (forced)", "False": " (natural)"}.get(str(scope["output_forced"]), "")
    yield "output tokens", _range(scope["output_tokens"]) + forced
    yield "batch size", _range(scope["batch_size"])
    yield "attention", scope["attention"] or DASH
    for tower, words in (scope["attention_by_tower"] or {}).items():
        yield f"attention, {_TOWERS.get(tower, tower)}", words
    yield "SM clock after runs (MHz)", _range(scope["sm_clock_mhz"])
    yield "runs (requests)", f"{scope['runs']:,} ({scope['requests']:,}), after {scope['warmup_runs']:,} for warm-up"
    yield "median T_total (ms), 95 % interval", quantile_cell(total) if total else DASH
    yield "clock", "device idle before and after each run, no synchronisation inside; garbage collection frozen"


def _range(ends: Sequence[float] | None) -> str:
    if not ends:
        return DASH
    low, high = ends
    return whole(low) if low == high else f"{whole(low)} to {whole(high)}"


ARM_COLUMNS: tuple[tuple[str, bool], ...] = (
    ("arm", False),
    ("role", False),
    ("kept", True),
    ("generate()", True),
    ("saved", True),
    ("95 % interval", True),
    ("FLOPs promised", True),
    ("own time", True),
    ("kernels", False),
    ("pairs", True),
)


def arm_rows(arms: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Cells of :data:`ARM_COLUMNS`, the baseline of each point first."""
    seen: set[str] = set()
    for arm in arms:
        total = arm["savings"].get("T_total")
        if total is None:
            continue
        if arm["point"] not in seen:
            seen.add(arm["point"])
            name = f"baseline {arm['point']}".strip()
            yield (name, "", _number(arm["vision_tokens"]), _ms(total["baseline_ms"]), *([""] * 6))
        saved = total["saved_ms"]
        value = saved["value"]
        share = "" if total["share"] is None else f" ({percent(total['share'])})"
        yield (
            arm["label"],
            arm["role"],
            _number(arm["kept"]),
            DASH if value is None else _ms(total["baseline_ms"] - value),
            DASH if value is None else _ms(value) + share,
            span(saved["low"], saved["high"]) or DASH,
            _ms(sum(arm["promised_ms"].values())) if arm["promised_ms"] else DASH,
            _ms(arm["method_ms"]["total"]) if arm["method_ms"].get("total") is not None else DASH,
            "unlike: kernel + tokens" if arm["unlike_kernels"] else "baseline's",
            f"{arm['pairs']:,}",
        )


def _ms(value: float) -> str:
    """Milliseconds always: a table has one unit."""
    return f"{digits(value)} ms"


def _number(value: float | None) -> str:
    return DASH if value is None else digits(value)

"""What the checks of the instrument found on the card, from the lines of ``scripts/gpu/truth.py``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from published import CARD, NOT_MEASURED, Published, table, times

from vlmbench.text import digits, percent


def truth_table(results: Published) -> str:
    """What the checks of the instrument found on the card, from the lines of ``scripts/gpu/truth.py``."""
    file = results.results / f"{CARD}_truth" / "truth.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if not line.get("done"):
            found.setdefault(line["part"], []).append(line)
    rows = [[f"`{part}`", _TRUTH[part](of)] for part, of in found.items() if part in _TRUTH]
    return table(("part of `scripts/gpu/truth.py`", "what it found"), rows) if rows else f"{NOT_MEASURED}."


def _of(lines: Sequence[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    return next(line for line in lines if all(line.get(key) == word for key, word in wanted.items()))


def _truth_energy(lines: Sequence[dict[str, Any]]) -> str:
    aligned = sorted(line["energy_j"]["median"] for line in lines if str(line.get("what")).startswith("aligned"))
    block = _of(lines, what="block")
    off = block["integral_j"] / block["rise_j"] - 1
    return (
        f"a request takes {digits(block['energy_j_a_run'])} J above idle by one block of {block['runs']} runs, "
        f"{digits(aligned[0])}–{digits(aligned[-1])} J by runs aligned with the counter's steps (medians of "
        f"{len(aligned)} gaps); the integral of sampled power is {percent(abs(off))} "
        f"{'above' if off > 0 else 'below'} it"
    )


def _truth_floor(lines: Sequence[dict[str, Any]]) -> str:
    over = sorted(line["over_floor"] for line in lines)
    return (
        f"the prefill of {lines[0]['vision_tokens']:,} vision tokens takes {times(over[0])}–{times(over[-1])} × its "
        f"floor ({len(over)} runs): a bound, not crossed"
    )


def _truth_recompiles(lines: Sequence[dict[str, Any]]) -> str:
    seen = [line for line in lines if line.get("first_step_ms") is not None]
    again, kept = (
        sorted(one["first_step_ms"] for one in seen if bool(one["captured"]) is was) for was in (True, False)
    )
    words = []
    if again:
        words.append(f"{digits(again[0])}–{digits(again[-1])} ms in {len(again)} runs that captured a CUDA graph again")
    if kept:
        words.append(f"{digits(kept[0])}–{digits(kept[-1])} ms in {len(kept)} that captured none")
    return f"the first compiled step of a `generate()` takes {', '.join(words)}"


def _truth_busy(lines: Sequence[dict[str, Any]]) -> str:
    busy, whole = _of(lines, what="busy_total"), _of(lines, what="T_total")
    return (
        f"busy time of one request over {busy['n']} traces varies by {percent(busy['relative_sd'])} (standard "
        f"deviation over mean), its `generate()` by {percent(whole['relative_sd'])}: the noise is the host's"
    )


def _truth_overhead(lines: Sequence[dict[str, Any]]) -> str:
    row = _of(lines, metric="thread_cpu_ms")
    ends = f"{row['low']:.4f}–{row['high']:.4f}, {row['pairs']} pairs"
    return f"processor time of the launching thread with the instrument over without: {row['ratio']:.4f} ({ends})"


def _truth_side_stream(lines: Sequence[dict[str, Any]]) -> str:
    row = lines[0]
    seen = digits(row["T_vision_encoder_ms"], 5)
    return f"work of {digits(row['planted_ms'], 5)} ms on a side stream of the tower is seen as {seen} ms"


def _truth_moe(lines: Sequence[dict[str, Any]]) -> str:
    row = next(line for line in lines if "pairs" in line)
    ends = f"{row['low']:.3f}–{row['high']:.3f}, {row['pairs']} pairs"
    return f"a step of a batch of eight different prompts over eight copies (MolmoE-1B): {row['ratio']:.3f} ({ends})"


_TRUTH: Mapping[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "energy": _truth_energy,
    "floor": _truth_floor,
    "recompiles": _truth_recompiles,
    "busy": _truth_busy,
    "overhead": _truth_overhead,
    "side_stream": _truth_side_stream,
    "moe_batch": _truth_moe,
}

"""Reads what ``scripts/gpu/vllm.sh`` measured: ratios of vLLM to ``runtime=cudagraph`` over rounds, and agreements.

    python scripts/gpu/vllm_rounds.py DIR      # with vllm_1, cudagraph_1, vllm_2 …, vllm_stats below it

A round gives one ratio of medians; the interval is Student's t over the logarithms of the rounds' ratios, so that what
drifts within a round is in it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, whatever vlmbench is installed
from vlmbench.records.reading import iter_rows

STAGES = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "T_answer_out", "T_residual")
TIMES = ("T_request", "T_preprocess", "TTFT", "T_total", *STAGES, "ITL")
Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    pairs = [
        (vllm, directory / f"cudagraph_{vllm.name.removeprefix('vllm_')}")
        for vllm in sorted(directory.glob("vllm_[0-9]*"))
    ]
    rounds = [(measured(a), measured(b)) for a, b in pairs if a.is_dir() and b.is_dir()]
    print(f"{directory.name}: {len(rounds)} rounds, rows {[(len(a), len(b)) for a, b in rounds]}")
    print(f"{'':18}{'vLLM, ms':>10}{'cudagraph':>11}   ratio (95 % interval over rounds)")
    for name in TIMES:
        found = [(median(a, name), median(b, name)) for a, b in rounds]
        both = [(x, y) for x, y in found if x is not None and y is not None and x > 0 and y > 0]
        if both:
            middle = [statistics.median(values) for values in zip(*both, strict=True)]
            print(f"{name:18}{middle[0]:10.3f}{middle[1]:11.3f}   {over_rounds([x / y for x, y in both])}")
    for folder in sorted(directory.glob("vllm_*")):
        for line in agreements(folder):
            print(f"{folder.name}: {line}")


def measured(folder: Path) -> list[Row]:
    """Rows of the workload that were watched."""
    return [
        row
        for row in iter_rows(folder)
        if row["status"] == "ok" and row["mode"] == "instrumented" and row["point_id"] == "dataset"
    ]


def median(rows: list[Row], name: str) -> float | None:
    values = [x for row in rows for x in (row["ITL"] if name == "ITL" else [row.get(name)]) if x is not None]
    return statistics.median(values) if values else None


def over_rounds(ratios: list[float]) -> str:
    logs = [math.log(ratio) for ratio in ratios]
    middle = math.exp(statistics.fmean(logs))
    if len(logs) < 3:
        return f"{middle:.3f} (no interval: {len(logs)} rounds, 3 are needed)"
    reach = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"{middle:.3f} ({middle * math.exp(-reach):.3f}–{middle * math.exp(reach):.3f})"


def agreements(folder: Path) -> Iterator[str]:
    """Our marks over vLLM's own figures, the residual, and what watching costs."""
    rows = measured(folder)
    if not rows:
        return
    pairs: dict[str, tuple[Callable[[Row], float], str]] = {
        "encoder and projector": (lambda row: row["T_vision_encoder"] + row["T_projector"], "engine_encoder_forward"),
        "time to first token": (lambda row: row["TTFT_model"], "engine_first_token_latency"),
        "decode": (lambda row: row["T_LLM_decode"], "engine_decode_time"),
    }
    for name, (ours, theirs) in pairs.items():
        ratios = [ours(row) / row[theirs] for row in rows if row.get(theirs) and row.get("T_projector") is not None]
        if ratios:
            low, high = (statistics.quantiles(ratios, n=20)[at] for at in (0, -1)) if len(ratios) > 1 else ratios * 2
            middle = statistics.median(ratios)
            print_as = f"{middle:.4f} (5th to 95th percentile {low:.4f}–{high:.4f}, n={len(ratios)})"
            yield f"{name}, marks over {theirs}: {print_as}"
    residuals = [abs(row["T_residual"]) / row["T_total"] for row in rows]
    yield f"median |residual| {statistics.median(residuals):.3%} of T_total"
    summary = folder / "summary.json"
    if summary.is_file():
        overhead = json.loads(summary.read_text(encoding="utf-8")).get("instrument_overhead")
        yield f"instrument overhead {json.dumps(overhead)[:200]}"


if __name__ == "__main__":
    main()

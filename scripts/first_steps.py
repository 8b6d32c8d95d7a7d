"""What the first decode step at each length of the cache costs, from the rows of finished runs.

    python scripts/first_steps.py docs/results/*/records.jsonl.gz

A step attends over a cache of some length; the first step of a process at a length may have to choose or build a
kernel. Runs since this was found warm every length; these figures say what earlier ones hold. Standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a records file, packed or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
        yield from map(json.loads, stream)


def split(path: Path) -> tuple[list[float], list[float], list[float], list[float]]:
    """(first gaps, later gaps, T_total of all measured runs, T_total of those without a first gap), all in ms."""
    seen: set[tuple[int, int, int]] = set()
    first: list[float] = []
    later: list[float] = []
    totals: list[float] = []
    usual: list[float] = []
    for row in rows(path):
        count = row.get("num_output_tokens") or 0
        steps = [
            (row["session"], row.get("batch_size", 1), row.get("num_input_tokens", 0) + i) for i in range(1, count)
        ]
        if row["status"] == "ok" and row["mode"] == "instrumented":
            new = [step not in seen for step in steps]
            for gap, is_new in zip(row["ITL"], new, strict=True):
                (first if is_new else later).append(gap)
            totals.append(row["T_total"])
            if not any(new):
                usual.append(row["T_total"])
        seen.update(steps)
    return first, later, totals, usual


def main() -> None:
    """One line a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path, help="records.jsonl or records.jsonl.gz")
    for path in parser.parse_args().records:
        first, later, totals, usual = split(path)
        if not first:
            print(f"{path.parent}: none of {len(later)} gaps is a first one")
            continue
        typical = statistics.median(later)
        extra = sum(gap - typical for gap in first) / sum(totals)
        print(
            f"{path.parent}: {len(first)} first gaps, median {statistics.median(first):.1f} ms; {len(later)} later, "
            f"{typical:.1f} ms; {extra:.1%} of all measured time; median T_total {statistics.median(totals):.1f} ms, "
            f"{statistics.median(usual):.1f} ms over the {len(usual)} of {len(totals)} runs without a first gap"
        )


if __name__ == "__main__":
    main()

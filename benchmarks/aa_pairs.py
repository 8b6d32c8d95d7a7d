"""Two runs of the same command on the same machine: how often does a comparison see a difference that is not there?

    python benchmarks/aa_pairs.py                        # 20 pairs of the tiny model on the CPU, some 20 s a pair
    python benchmarks/aa_pairs.py --out DIR              # keeps rows, pairs.jsonl and table.md there, and goes on
    python benchmarks/aa_pairs.py --pairs 5 --runs 100   # fewer and longer
    python benchmarks/aa_pairs.py --turns                # the two runs of a pair take turns
    python benchmarks/aa_pairs.py -- model=llava_1_5_7b weights=random    # any other overrides, on a GPU for instance

Each run is a process of its own; the runs of a pair follow each other, or take turns. A pair is an alarm where
``experiment=compare`` calls any time *faster* or *slower*; of 20 pairs one at most should be. ``without`` names what
the same rows would be called if nothing were known of the machine's own change. Between the pairs of equal runs stand
pairs whose second run is slower in truth (``benchmarks/slower.py``): they must be called so where the machine kept
still, or the two took turns.
``benchmarks/coverage.py`` asks the same of simulated runs, where the truth is known.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from child import checked, run  # noqa: E402

from vlmbench.analysis.compare import Change, Comparison, compare  # noqa: E402
from vlmbench.analysis.frames import load_runs  # noqa: E402
from vlmbench.analysis.two_sides import judge  # noqa: E402
from vlmbench.text import count, digits, percent, span  # noqa: E402

DIFFERENT = (Change.FASTER, Change.SLOWER)
COLUMNS = (
    "pair", "slower by", "machine (95 %)", "T_total (95 %)", "verdict on T_total", "faster or slower", "without",
    "status",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the pairs and print a line each, and how many differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="of equal runs")
    parser.add_argument("--planted", type=int, default=3, help="pairs whose second run is slower in truth")
    parser.add_argument("--slower", type=float, default=0.1, help="by this share")
    parser.add_argument("--runs", type=int, default=50, help="requests of a run")
    parser.add_argument("--turns", action="store_true", help="the two runs of a pair take turns")
    parser.add_argument("--minutes", type=float, default=7.5, help="then no further pair is begun (0: no limit)")
    parser.add_argument("--out", type=Path, help="keep everything there")
    parser.add_argument("overrides", nargs="*", help="of the command line, after --")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = chosen.out or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        _measure(chosen, place)


def _measure(chosen: argparse.Namespace, place: Path) -> None:
    began, found, slowest = time.monotonic(), [], 0.0
    print(HEAD, flush=True)
    with (place / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number, planted in enumerate(_order(chosen.pairs, chosen.planted)):
            first = time.monotonic()
            if chosen.minutes and first - began + slowest > 60 * chosen.minutes:
                break
            one = _pair(chosen, place, number, chosen.slower if planted else 0.0)
            slowest = max(slowest, time.monotonic() - first)
            found.append(one)
            file.write(f"{json.dumps(one)}\n")
            file.flush()
            print(one["line"], flush=True)
    said = list(_summary(found, chosen))
    print("", *said, sep="\n")
    lines = [HEAD, *(one["line"] for one in found), "", *said]
    (place / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _order(pairs: int, planted: int) -> list[bool]:
    """Whether each pair is a planted one: they are spread over the others, the first of them early."""
    order = [False] * pairs
    for number in range(planted):
        order.insert(1 + number * (pairs // max(planted, 1) + 1), True)
    return order


def _pair(chosen: argparse.Namespace, place: Path, number: int, slower: float) -> dict[str, Any]:
    asked = [
        f"dataset.num_samples={chosen.runs}", "output.tokens=4", "measurement.bare_every=0", "measurement.costs=false",
        "measurement.reference=false", "measurement.trace_requests=0", "probe=[timeline]", "progress=false",
        "report=none", *chosen.overrides,
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    sides = [place / "runs" / f"{number:02}{side}" for side in "ab"]
    load = os.getloadavg()[0]
    if chosen.turns:
        asked.append(f"measurement.turns.directory={place / 'turns' / f'{number:02}'}")
    commands = {}
    for side in sides:
        program = ["-m", "vlmbench"]
        if slower and side is sides[1]:
            program = [str(ROOT / "benchmarks" / "slower.py")]
        if (side / "records.jsonl").is_file() and b'"done"' in (side / "outcome.json").read_bytes():
            continue  # of an earlier call with the same --out
        commands[side.name] = [sys.executable, *program, *asked, f"output_dir={side}"]
    measure = partial(run, env={"PYTHONPATH": path, "SLOWER": str(slower)})
    with ThreadPoolExecutor(len(sides) if chosen.turns else 1) as pool:
        for name, cost in zip(commands, pool.map(measure, commands.values()), strict=True):
            checked(cost, name)
    verdict = judge(*sides)
    with_machine = verdict.pairs[0].comparison
    without = compare(load_runs(sides[0]), load_runs(sides[1]), same_machine=False, in_turns=chosen.turns)
    whole, pace = with_machine.changes["T_total"], with_machine.pace
    one: dict[str, Any] = {
        "pair": number, "slower": slower, "load": load, "status": verdict.exit_status,
        "pairs": with_machine.pairs,
        "differs": _differs(with_machine), "without": _differs(without), "gated": list(verdict.gate),
        "regression_without": any(
            c.change is Change.SLOWER and (c.ratio.value or 1) > 1 + verdict.threshold
            for name, c in without.changes.items() if name in verdict.gate
        ),
        "comparison": with_machine.as_dict(),
    }  # fmt: skip
    machine = "not known" if pace is None else _ratio(pace.ratio)
    cells = [
        str(number + 1), percent(slower) if slower else "–", machine, _ratio(whole.ratio), whole.verdict(),
        ", ".join(one["differs"]) or "nothing", ", ".join(one["without"]) or "nothing", str(verdict.exit_status),
    ]  # fmt: skip
    return {**one, "line": f"| {' | '.join(cells)} |"}


def _ratio(ratio: Any) -> str:
    return f"{digits(ratio.value, 4)}× ({span(ratio.low, ratio.high, '×') or 'no interval'})"


def _differs(found: Comparison) -> list[str]:
    return [name for name, one in found.changes.items() if one.change in DIFFERENT]


def _summary(found: Sequence[dict[str, Any]], chosen: argparse.Namespace) -> list[str]:
    equal, planted = ([one for one in found if bool(one["slower"]) is slower] for slower in (False, True))
    lines = []
    if equal:
        n = len(equal)
        alarms, before = (sum(bool(one[name]) for one in equal) for name in ("differs", "without"))
        ended, gate = ([one["status"] for one in equal].count(status) for status in (2, 1))
        would = sum(one["regression_without"] for one in equal)
        lines.append(
            f"{count(n, 'pair')} of equal runs ({chosen.runs} requests each{', in turns' if chosen.turns else ''}): "
            f"{alarms} called faster or slower in some time ({percent(alarms / n)}), {before} if nothing were known of "
            f"the machine; regressions (exit status 1): {gate}, {would} if nothing were known; cannot be told (exit "
            f"status 2): {ended}. Load average before "
            f"a pair: {min(one['load'] for one in equal):.1f} to {max(one['load'] for one in equal):.1f}, "
            f"{count(os.cpu_count() or 0, 'processor')}."
        )
    if planted:
        hit = [one["status"] for one in planted]
        lines.append(
            f"{count(len(planted), 'pair')} whose second run was slower by {percent(chosen.slower)}: "
            f"{hit.count(1)} called a regression, {hit.count(2)} cannot be told, {hit.count(0)} passed."
        )
    return lines


if __name__ == "__main__":
    main()

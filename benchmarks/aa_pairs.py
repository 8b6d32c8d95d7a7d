"""Two runs of the same command on the same machine: how often does a comparison see a difference that is not there?

    python benchmarks/aa_pairs.py                        # 20 pairs of the tiny model on the CPU, some 10 s a pair
    python benchmarks/aa_pairs.py --pairs 5 --runs 100   # fewer and longer
    python benchmarks/aa_pairs.py -- model=llava_1_5_7b weights=random    # any other overrides, on a GPU for instance

Each run is a process of its own; the runs of a pair follow each other. ``differs`` names the times whose verdict is
*faster* or *slower*; of 20 pairs one at most should have any. A machine that does change between two processes is told
from a false alarm by the processor time that the calling thread needed for the same work: ``processor`` is its ratio.
``benchmarks/coverage.py`` asks the same of simulated runs, where the truth is known.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from child import checked, run

import vlmbench
from vlmbench.analysis.compare import Change
from vlmbench.text import count, digits, percent

DIFFERENT = (Change.FASTER, Change.SLOWER)
APART = 0.03  # a processor that needs so much more or less time for the same work is another machine


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the pairs and print a line each, and how many differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--runs", type=int, default=50, help="requests of a run")
    parser.add_argument("overrides", nargs="*", help="of the command line, after --")
    chosen = parser.parse_args(arguments)
    asked = [
        f"dataset.num_samples={chosen.runs}", "output.tokens=4", "measurement.bare_every=0", "measurement.costs=false",
        "measurement.reference=false", "measurement.trace_requests=0", "probe=[timeline]", "progress=false",
    ]  # fmt: skip
    alarms = compared = changed = 0
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(chosen.pairs):
            sides = [Path(folder, f"{pair}{side}") for side in "ab"]
            for place in sides:
                command = [sys.executable, "-m", "vlmbench", "report=none", *asked, *chosen.overrides]
                checked(run([*command, f"output_dir={place}"]), place.name)
            found = vlmbench.compare(*sides).changes
            differs = [
                f"{name} {digits(one.ratio.value or 0)}×" for name, one in found.items() if one.change in DIFFERENT
            ]
            compared += 1
            alarms += bool(differs)
            before, after = (vlmbench.read(place).frame["thread_cpu_ms"].median() for place in sides)
            changed += bool(differs) and abs(after / before - 1) > APART
            whole = found["T_total"]
            said = f"processor {digits(after / before, 4)}×, T_total {digits(whole.ratio.value or 0, 4)}×"
            said += f" ({whole.verdict()})"
            print(f"pair {pair + 1}: {said}; differs: {', '.join(differs) or 'nothing'}", flush=True)
    print(
        f"{alarms} of {count(compared, 'pair')} differ in some time ({percent(alarms / compared)}); in {changed} of "
        f"them the processor took over {percent(APART)} more or less time for the same work."
    )


if __name__ == "__main__":
    main()

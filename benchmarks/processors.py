#!/usr/bin/env python3
"""What runs are worth when the kernel keeps their thread on a processor, and when it is changed before each.

    python benchmarks/processors.py                    # four minutes; on a machine that is shared, or busy
    python benchmarks/processors.py --seconds 15       # of each of the four parts

A run is a calculation in Python of some 50 ms that never changes. Parts take turns (kept, changed, kept, changed), so
that both see the machine at two times. Printed are the median and the spread of a part, its lag-1 autocorrelation, how
many independent runs its runs are worth, and how much longer the first 2 ms take right after a change.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np

from vlmbench.analysis.dependence import dependence
from vlmbench.analysis.quantiles import median
from vlmbench.errors import DeviceError
from vlmbench.machine.processors import Processors, processor
from vlmbench.machine.yardstick import Yardstick


def main() -> int:
    """Print a line a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each part")
    parser.add_argument("--run-ms", type=float, default=50.0, help="of a run")
    options = parser.parse_args()
    try:
        Processors(on=True)
    except DeviceError as error:
        sys.exit(str(error))
    calculate = Yardstick()._calculate
    each_ms = _ms(calculate, 200) / 200
    calls = max(int(options.run_ms / each_ms), 1)
    print(f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f}; a run is {calls} calculations")
    heads = f"{'part':10} {'runs':>5} {'median, ms':>22} {'P95/P50':>8} {'lag-1':>6} {'worth':>6} {'used':>5}"
    print(f"{heads} {'first 2 ms':>11}")
    for name in ("kept", "changed") * 2:
        processors = Processors(on=name == "changed", seed=0)
        runs, first, used, end = [], [], set(), time.monotonic() + options.seconds
        while not runs or time.monotonic() < end:
            processors.take(f"{len(runs)}", 0)
            few = max(int(2 / each_ms), 1)
            begin = _ms(calculate, few)
            runs.append(begin + _ms(calculate, calls - few))
            first.append(begin / few * calls / runs[-1])
            used.add(processor())
        known, middle = dependence(runs), median(runs)
        inside = f"{middle.value:.1f} ({middle.low:.1f}-{middle.high:.1f})" if middle.low else f"{middle.value:.1f}"
        tail = np.quantile(runs, 0.95) / np.median(runs)
        print(
            f"{name:10} {len(runs):5} {inside:>22} {tail:8.2f} {known.lag1:6.2f} {known.effective_n:6.0f} "
            f"{len(used):5} {np.median(first):10.3f}x",
            flush=True,
        )
    return 0


def _ms(calculate: object, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        calculate()  # type: ignore[operator]
    return (time.perf_counter() - begin) * 1e3


if __name__ == "__main__":
    sys.exit(main())

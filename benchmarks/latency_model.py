"""What a latency model answers in, and how far off it is at points that it has not seen.

    python benchmarks/latency_model.py                               # the published H200 sweeps, one line a runtime
    python benchmarks/latency_model.py DIR [DIR …]                   # rows of your own, those of one line together

``predict`` and ``interval`` are medians of single calls with plain numbers, as a controller makes them. ``left out``:
each point foretold by a fit on all others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vlmbench.analysis.latency_fit import fit_latency_model
from vlmbench.analysis.results import ResultSet, concatenated, read_results
from vlmbench.errors import InputError
from vlmbench.records.reading import records_in
from vlmbench.text import digits, percent

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
CALLS = 5000


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit one model a model and runtime, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, default=[RESULTS], help="directories of runs")
    found = [run for place in parser.parse_args(arguments).runs for run in _runs(place)]
    together: dict[tuple[str, str], list[ResultSet]] = {}
    for run in found:
        together.setdefault(_law(run), []).append(run)
    print("| model | runtime | points | left out: median | 9 in 10 | worst | fit, s | predict, µs | interval, µs |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (model_name, runtime), runs in sorted(together.items()):
        began = time.perf_counter()
        try:
            model = fit_latency_model(concatenated([run.frame for run in runs]))
        except InputError:
            continue
        took = time.perf_counter() - began
        error = model.held_out
        if error["median"] is None:
            continue
        middle = {name: (low + high) / 2 for name, (low, high) in model.ranges.items()}
        cells = [percent(error[name]) for name in ("median", "p90", "max")]
        cells += [digits(took), digits(_median_us(partial(model.predict, **middle)))]
        cells.append("–" if model.uncertainty is None else digits(_median_us(partial(model.interval, **middle))))
        print(f"| {model_name} | {runtime} | {error['points']} | {' | '.join(cells)} |", flush=True)
    print(f"of these, the call and the clock: {digits(_median_us(lambda: None))} µs")


def _law(run: ResultSet) -> tuple[str, str]:
    """Model and runtime, with what of it was compiled before it was captured: a law of latency is of one."""
    model, runtime = (run.provenance.get(part) or {} for part in ("model", "runtime"))
    compiled = [name for name in ("decode_compile", "prefill_compile") if runtime.get(name)]
    return str(model.get("name")), ", ".join([str(runtime.get("name")), *compiled])


def _runs(place: Path) -> list[ResultSet]:
    """The runs of a folder and of those below it; folders without rows are passed over."""
    runs: list[ResultSet] = []
    for folder in [place, *sorted(p for p in place.rglob("*") if p.is_dir())]:
        if records_in(folder) is not None:
            runs += read_results(folder)
    return runs


def _median_us(call: Callable[[], object]) -> float:
    times = []
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1e3


if __name__ == "__main__":
    main()

"""Does a run's memory grow with its requests? Peak memory of 100 against 100,000 requests, and of the default run.

    python benchmarks/memory_growth.py
    python benchmarks/memory_growth.py --requests 100 10000 --no-default-run     # quicker

Each size runs in a process of its own through the real loop, store, timeline and memory probes, and report (figures
included), on a model that takes next to no time and images of 100 kB that are made when read. The peak is read once the
model is there, after the last request, and after the report. The default run is ``vlmbench experiment=phase1``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from child import checked, run

HERE = Path(__file__).resolve()


def measure_here(requests: int, tokens: int, directory: Path) -> dict[str, Any]:
    """Run so many requests in this process and write their report; peaks in MiB."""
    import time

    from light_model import LightModel, LightSamples

    from vlmbench.probes.memory import MemoryProbe, peak_rss_bytes
    from vlmbench.probes.timeline import TimelineProbe
    from vlmbench.records.store import RecordStore
    from vlmbench.report.phase1 import write_phase1
    from vlmbench.request import Output
    from vlmbench.runner.loop import Runner, Warmup
    from vlmbench.runner.plan import Knobs, dataset_series
    from vlmbench.session.progress import ProgressBar

    model = LightModel()
    knobs = Knobs(output=Output(max_new_tokens=tokens, forced=True))
    series = dataset_series(LightSamples(requests), knobs, repeats=1, bare_every=2, reference=True)
    peaks = {"begin_mib": peak_rss_bytes() / 2**20}
    start = time.perf_counter()
    with RecordStore(directory) as store, ProgressBar(show=False) as progress:
        probes = [TimelineProbe(), MemoryProbe()]
        Runner(model=model, probes=probes, store=store, warmup=Warmup(), seed=0, progress=progress).run(series)
        rows = len(store)
    measured = time.perf_counter()
    peaks["measured_mib"] = peak_rss_bytes() / 2**20
    write_phase1(directory)
    peaks["reported_mib"] = peak_rss_bytes() / 2**20
    return {
        **peaks,
        "rows": rows,
        "measuring_s": measured - start,
        "report_s": time.perf_counter() - measured,
        "records_mb": (directory / "records.jsonl").stat().st_size / 1e6,
    }


def measure(requests: int, tokens: int) -> dict[str, Any]:
    """The same in a fresh process."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, str(HERE), "--child", temporary, "--tokens", str(tokens), "--requests"]
        cost = checked(run([*command, str(requests)], cwd=HERE.parent), f"{requests} requests")
        figures: dict[str, Any] = json.loads(cost.out.splitlines()[-1])
        return figures


def default_run() -> float:
    """Peak MiB of the default run's process."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "vlmbench", "experiment=phase1", f"output_dir={temporary}/run"]
        return checked(run(command, cwd=Path(temporary)), "vlmbench experiment=phase1").peak_mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--requests", type=int, nargs="+", default=[100, 100_000], help="sizes to compare (default: 100 100000)"
    )
    parser.add_argument("--tokens", type=int, default=32, help="new tokens a request (default: %(default)s)")
    parser.add_argument("--no-default-run", action="store_true", help="leave the default run out")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_here(options.requests[0], options.tokens, options.child)))
        return
    print(f"{'requests':>10}{'rows':>10}{'records MB':>12}{'measuring s':>13}{'report s':>10}", end="")
    print(f"{'MiB before':>12}{'measured':>10}{'reported':>10}")
    figures = []
    for requests in options.requests:
        figures.append(row := measure(requests, options.tokens))
        print(f"{requests:>10,}{row['rows']:>10,}{row['records_mb']:>12.1f}{row['measuring_s']:>13.1f}", end="")
        print(f"{row['report_s']:>10.1f}{row['begin_mib']:>12.0f}{row['measured_mib']:>10.0f}", end="")
        print(f"{row['reported_mib']:>10.0f}", flush=True)
    for when in ("measured", "reported"):
        growth = figures[-1][f"{when}_mib"] - figures[0][f"{when}_mib"]
        print(f"growth, {when}: {growth:.0f} MiB = {growth * 1.048576:.0f} MB (aim: below 100 MB)")
    if not options.no_default_run:
        peak = default_run()
        print(f"default run: {peak:.0f} MiB = {peak * 1.048576e-3:.2f} GB (aim: below 1.5 GB)")


if __name__ == "__main__":
    main()

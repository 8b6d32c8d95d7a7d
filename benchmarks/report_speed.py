"""Loading a million rows and writing the report about them: wall time and peak memory, beside plain readers.

    python benchmarks/report_speed.py
    python benchmarks/report_speed.py --rows 100000

The rows are made here, streamed to disk, with the columns of a real instrumented run and a lognormal latency. Each job
is a fresh process; imports are not in its times. ``us/row`` and ``ratio`` are of CPU time. ``json.loads`` parses every
line and keeps nothing: the floor for anything that parses the file. ``pandas.read_json`` is what one would write
without vlmbench; because it holds every cell as an object, it gets a tenth of the rows, with vlmbench's loader on the
same tenth beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from child import checked, run

from vlmbench.schema import SCHEMA_VERSION

TOKENS = 32
# name -> (imports, not timed; the job)
JOBS = {
    "json.loads": ("import json", "for line in open(directory + '/records.jsonl', 'rb'): json.loads(line)"),
    "load_runs": (
        "from vlmbench.analysis.frames import load_runs\nfrom vlmbench.report.phase1_summary import COLUMNS",
        "load_runs(directory, COLUMNS)",
    ),
    "load_token_gaps": ("from vlmbench.analysis.frames import load_token_gaps", "load_token_gaps(directory)"),
    "write_phase1": ("from vlmbench.report.phase1 import write_phase1", "write_phase1(directory)"),
    "write_page": (
        "from vlmbench.report.page import write_page",
        "write_page(directory)",  # of the summary that write_phase1 left there
    ),
    "report": (
        "from pathlib import Path\nfrom vlmbench.report.from_rows import report",
        "report([Path(directory)])",  # experiment=report: summary, phase file, figures, tables, page
    ),
    "pandas.read_json": ("import pandas", "pandas.read_json(directory + '/records.jsonl', lines=True)"),
}
WITH_FIGURES = """
import json, resource, sys, time
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
directory = sys.argv[1]
exec(sys.argv[2])
before, job = peak_mib(), compile(sys.argv[3], "job", "exec")
wall, cpu = time.perf_counter(), time.process_time()
exec(job)
print(json.dumps({"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
                  "before_mib": before, "peak_mib": peak_mib()}))
"""


def rows(number: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Rows of a data set run: every second request has a bare run beside it, every fiftieth row is a warm-up."""
    for index in range(number):
        slow = math.exp(rng.gauss(0.0, 0.25))
        vision = rng.randrange(64, 576)
        setup, tower, projector, prefill = 1.2 * slow, 0.02 * vision * slow, 0.002 * vision, 0.05 * vision * slow
        gaps = [round(4.0 * slow * rng.uniform(0.9, 1.1), 6) for _ in range(TOKENS - 1)]
        decode = sum(gaps)
        residual = rng.gauss(0.0, 0.01)
        total = setup + tower + projector + prefill + decode + residual
        bare = index % 3 == 2
        row = {
            "schema_version": SCHEMA_VERSION,
            "point_id": "dataset",
            "sample_id": f"{index // 3 * 2 + (index % 3) % 2:09d}",
            "repeat": 0,
            "mode": "bare" if bare else "instrumented",
            "status": "warmup" if index % 50 == 0 else "ok",
            "session": 0,
            "started_unix_s": 1.7e9 + index * 0.2,
            "T_total": total,
            "T_preprocess": 6.0 * slow,
            "T_transfer": 0.01,
            "T_detokenize": 0.1,
            "num_input_tokens": vision + 20,
            "num_prompt_tokens": 20,
            "num_vision_tokens": vision,
            "num_vision_patches": 4 * vision,
            "num_crops": 1,
            "num_cross_attention_tokens": None,
            "num_images": 1,
            "num_output_tokens": TOKENS,
            "max_new_tokens": TOKENS,
            "output_forced": True,
            "batch_size": 1,
            "gc": "frozen",
            "T_request": total + 6.0 * slow + 0.11,
        }
        if not bare:
            row |= {
                "T_setup": setup,
                "T_vision_encoder": tower,
                "T_projector": projector,
                "T_LLM_prefill": prefill,
                "T_LLM_decode": decode,
                "T_decode_forward": 0.9 * decode,
                "T_decode_loop": 0.1 * decode,
                "TTFT_model": total - decode,
                "ITL": gaps,
                "T_residual": residual,
                "peak_rss_bytes": 400_000_000 + index // 1000,
                "TTFT": total - decode + 6.0 * slow,
            }
        yield {**row, "flags": ["gc_pause"] if index % 1000 == 7 else [], "reason": None}


def write(directory: Path, number: int, head: int) -> tuple[Path, Path]:
    """Two run directories: all rows, and the first ``head`` of them."""
    all_rows, tenth = directory / "all", directory / "tenth"
    for folder in (all_rows, tenth):
        folder.mkdir(parents=True)
    with (all_rows / "records.jsonl").open("w") as file:
        for row in rows(number, random.Random(0)):
            file.write(json.dumps(row) + "\n")
    with (all_rows / "records.jsonl").open() as file, (tenth / "records.jsonl").open("w") as short:
        short.writelines(islice(file, head))
    return all_rows, tenth


def measure(job: str, directory: Path) -> dict[str, float]:
    """Figures of one job in a fresh process, imports left out of the times."""
    cost = checked(run([sys.executable, "-c", WITH_FIGURES, str(directory), *JOBS[job]], cwd=directory), job)
    figures: dict[str, float] = json.loads(cost.out.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--dir", type=Path, help="where the files are made, about 1.3 kB a row (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as temporary:
        everything, tenth = write(Path(temporary), options.rows, options.rows // 10)
        size = (everything / "records.jsonl").stat().st_size
        print(f"{options.rows:,} rows, {size / 1e6:,.0f} MB; ratios are of json.loads on the same rows", flush=True)
        print(f"{'rows':>10}  {'':18}{'wall s':>8}{'CPU s':>8}{'us/row':>8}{'ratio':>8}{'peak MiB':>10}", end="")
        print(f"{'of it imports':>15}")
        whole = ("json.loads", "load_runs", "load_token_gaps", "write_phase1", "write_page", "report")
        for directory, number, jobs in (
            (everything, options.rows, whole),
            (tenth, options.rows // 10, ("json.loads", "load_runs", "pandas.read_json")),
        ):
            floor = 0.0
            for job in jobs:
                row = measure(job, directory)
                floor = floor or row["cpu_s"]
                print(f"{number:>10,}  {job:18}{row['wall_s']:>8.1f}{row['cpu_s']:>8.1f}", end="")
                print(f"{row['cpu_s'] / number * 1e6:>8.1f}{row['cpu_s'] / floor:>8.2f}", end="")
                print(f"{row['peak_mib']:>10.0f}{row['before_mib']:>15.0f}", flush=True)
        page = everything / "report.html"
        print(f"report.html of {options.rows:,} rows: {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

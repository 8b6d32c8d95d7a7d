"""How much of a run's wall time is measurement: three points of the tiny model, and how often the model is loaded.

    python benchmarks/measured_share.py

Measured time is the sum of ``T_request`` of the rows that enter statistics (status ok, instrumented and bare). Three
shares, from the kindest to the hardest: of the time from the start of the first row to the end of the last; of the
time from the end of loading the model to the end of the last row; of the whole process, imports and report included.
``warm-up`` is what cold and warm-up rows take of the first of these: needed, but not counted as measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from child import Cost, checked, run

OVERRIDES = ("experiment=phase2", "sweep=vision_tokens", "sweep.axes.vision_tokens=[16,64,144]")

# The command line with the one function that loads models wrapped: it notes when each load began and ended.
WITH_LOADS_NOTED = """
import json, sys, time
from vlmbench.models import loading
load, loads, path = loading.load, [], sys.argv.pop(1)
def noted(*args, **kwargs):
    began = time.time()
    model = load(*args, **kwargs)
    loads.append([began, time.time()])
    open(path, "w").write(json.dumps(loads))
    return model
loading.load = noted
from vlmbench.__main__ import main
main()
"""


def figures(directory: Path, loads: list[list[float]], cost: Cost) -> dict[str, float]:
    """The shares of one run, from its rows."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in (directory / "records.jsonl").open()]
    timed = [row for row in rows if row.get("T_request") is not None]
    begin = timed[0]["started_unix_s"] - timed[0]["T_request"] / 1e3  # a row's clock is that of its writing
    end = timed[-1]["started_unix_s"]
    measured = [row for row in timed if row["status"] == "ok" and row["mode"] in ("instrumented", "bare")]
    warm = [row for row in timed if row["status"] in ("cold", "warmup")]
    measured_s = sum(row["T_request"] for row in measured) / 1e3
    return {
        "points": len({row["point_id"] for row in measured}),
        "loads": len(loads),
        "rows": len(measured),
        "measured s": measured_s,
        "loop s": end - begin,
        "process s": cost.wall_s,
        "share of loop": measured_s / (end - begin),
        "share since load": measured_s / (end - loads[-1][1]),
        "share of process": measured_s / cost.wall_s,
        "warm-up": sum(row["T_request"] for row in warm) / 1e3 / (end - begin),
    }


def measure(overrides: list[str]) -> dict[str, float]:
    """One run in a fresh process and directory."""
    with tempfile.TemporaryDirectory() as temporary:
        directory, loads = Path(temporary) / "run", Path(temporary) / "loads.json"
        command = [sys.executable, "-c", WITH_LOADS_NOTED, str(loads), *overrides, f"output_dir={directory}"]
        cost = checked(run(command, cwd=Path(temporary)), "vlmbench " + " ".join(overrides))
        return figures(directory, json.loads(loads.read_text()), cost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="fresh runs (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", default=list(OVERRIDES), help="of the run (default: %(default)s)")
    options = parser.parse_args()
    runs = [measure(options.overrides) for _ in range(options.repeats)]
    print(f"{'':18}{'median':>9}   each run")
    for name in runs[0]:
        values = [run[name] for run in runs]
        form = "{:.0f}" if name in ("points", "loads", "rows") else "{:.3f}"
        print(f"{name:18}{form.format(statistics.median(values)):>9}   {' '.join(map(form.format, values))}")


if __name__ == "__main__":
    main()

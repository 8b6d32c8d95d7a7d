"""Time to predict a grid of 1,000 points of a 72B, beside a single point of it and beside doing every step in full.

    python benchmarks/dry_run.py

Every row is a fresh process, imports and all, the rows taken in turn; medians. ``of a point`` is the wall time as a
share of the single point's: what a thousand points cost beyond one. The row "in full" prepares each pair of image and
prompt from the encoded image on and runs every block of the model on shapes; its predictions must be the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from child import Cost, interleaved, median, run

GRID = (
    'sweep.axes.vision_tokens="log(64,2048,10)"',
    '+sweep.axes.prompt_tokens="log(16,1024,10)"',
    '+sweep.axes.output_tokens="log(8,512,10)"',
)
POINT = ("sweep.axes.vision_tokens=[256]", "+sweep.axes.prompt_tokens=[64]", "+sweep.axes.output_tokens=[32]")
# Runs ``python -m vlmbench ARGUMENTS`` with nothing remembered and no block left out.
IN_FULL = """
import runpy, sys
from vlmbench.cost.flop_counting import count_generate
from vlmbench.cost.planning import Preparer
count_generate.__kwdefaults__["every_block"] = True
Preparer.__init__.__kwdefaults__["kept_bytes"] = 0
sys.argv = ["vlmbench", *sys.argv[1:]]
runpy.run_module("vlmbench", run_name="__main__", alter_sys=True)
"""


def commands(python: str, model: str, folder: Path) -> dict[str, list[str]]:
    """Row name to command; each writes its predictions to a folder of its own."""
    job = ["experiment=phase2", "dry_run=true", f"model={model}", "target_device=NVIDIA H200", "target_memory_gib=139"]
    return {
        "a single point": [python, "-m", "vlmbench", *job, *POINT, f"output_dir={folder / 'point'}"],
        "1,000 points": [python, "-m", "vlmbench", *job, *GRID, f"output_dir={folder / 'grid'}"],
        "1,000 points in full": [python, "-c", IN_FULL, *job, *GRID, f"output_dir={folder / 'full'}"],
    }


def predictions(folder: Path) -> list[dict[str, Any]]:
    """The points that a dry run wrote."""
    points: list[dict[str, Any]] = json.loads((folder / "dry_run.json").read_text(encoding="utf-8"))["points"]
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2_5_vl_72b", help="a file of conf/model (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes per row (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lines = commands(sys.executable, options.model, folder)
        rows = {name: functools.partial(run, line, cwd=folder) for name, line in lines.items()}
        costs: dict[str, list[Cost]] = interleaved(rows, options.repeats)
        grid, same = predictions(folder / "grid"), predictions(folder / "grid") == predictions(folder / "full")
    point = median(costs["a single point"], "wall_s")
    print(f"{'':24}{'wall s':>8}{'fastest':>9}{'CPU s':>8}{'peak MiB':>10}{'of a point':>12}")
    for name, row in costs.items():
        wall = median(row, "wall_s")
        print(
            f"{name:24}{wall:>8.2f}{min(c.wall_s for c in row):>9.2f}{median(row, 'cpu_s'):>8.2f}"
            f"{median(row, 'peak_mib'):>10.0f}{wall / point:>12.2f}"
        )
    print(f"{len(grid)} points; in full the predictions are {'the same' if same else 'NOT THE SAME'}")
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()

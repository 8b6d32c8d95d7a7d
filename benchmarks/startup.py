"""Time to answer ``--help`` and ``--cfg job``, and to import vlmbench, beside the imports of torch and transformers.

    python benchmarks/startup.py

Every row is a fresh process, the rows taken in turn; medians. ``of hydra`` is the processor time as a multiple of that
of ``import hydra`` in the same run (aim: 3 at most), ``of torch`` the wall time as a share of ``import torch``'s.
``imported`` lists which heavy packages the command had imported at its end.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from pathlib import Path

from child import Cost, interleaved, median, run

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "scipy")

# Runs ``python -m vlmbench ARGUMENTS`` and then says what it imported.
COMMAND_LINE = f"""
import runpy, sys
sys.argv = ["vlmbench", *sys.argv[1:]]
try:
    runpy.run_module("vlmbench", run_name="__main__", alter_sys=True)
finally:
    sys.stderr.write("\\nimported:" + ",".join(m for m in {HEAVY} if m in sys.modules))
"""
IMPORT = f"""
import sys
import {{}}
sys.stderr.write("\\nimported:" + ",".join(m for m in {HEAVY} if m in sys.modules))
"""


def commands(python: str) -> dict[str, list[str]]:
    """Row name to command; ``python -m vlmbench`` itself is timed, its twin that tells its imports is not."""
    return {
        "python -c pass": [python, "-c", "pass"],
        "import hydra": [python, "-c", "import hydra"],
        "import vlmbench": [python, "-c", "import vlmbench"],
        "vlmbench --help": [python, "-m", "vlmbench", "--help"],
        "vlmbench --cfg job": [python, "-m", "vlmbench", "--cfg", "job"],
        "import torch": [python, "-c", "import torch"],
        "import transformers": [python, "-c", "import transformers"],
        "import torch, AutoModel": [python, "-c", "import torch; from transformers import AutoModelForImageTextToText"],
    }


def imported(python: str, cwd: Path) -> dict[str, str]:
    """Row name to the heavy packages that it had imported at its end."""
    twins = {
        "import vlmbench": [python, "-c", IMPORT.format("vlmbench")],
        "vlmbench --help": [python, "-c", COMMAND_LINE, "--help"],
        "vlmbench --cfg job": [python, "-c", COMMAND_LINE, "--cfg", "job"],
    }
    return {name: run(command, cwd=cwd).err.rpartition("imported:")[2] or "none" for name, command in twins.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="fresh processes per row (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cwd = Path(temporary)
        rows = {name: functools.partial(run, line, cwd=cwd) for name, line in commands(sys.executable).items()}
        interleaved(rows, 1)  # files into the page cache, bytecode written
        costs: dict[str, list[Cost]] = interleaved(rows, options.repeats)
        seen = imported(sys.executable, cwd)
    torch, hydra = median(costs["import torch"], "wall_s"), median(costs["import hydra"], "cpu_s")
    print(f"{'':26}{'wall s':>8}{'fastest':>9}{'CPU s':>8}{'of hydra':>10}{'peak MiB':>10}{'of torch':>10}  imported")
    for name, row in costs.items():
        wall = median(row, "wall_s")
        print(
            f"{name:26}{wall:>8.2f}{min(c.wall_s for c in row):>9.2f}{median(row, 'cpu_s'):>8.2f}"
            f"{median(row, 'cpu_s') / hydra:>10.2f}{median(row, 'peak_mib'):>10.0f}{wall / torch:>10.2f}"
            f"  {seen.get(name, '')}"
        )


if __name__ == "__main__":
    main()

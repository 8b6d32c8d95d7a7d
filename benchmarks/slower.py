"""The command line on a model whose every part takes longer by a known share: a regression that is really there.

    SLOWER=0.1 python benchmarks/slower.py model=tiny output_dir=DIR

After each linear layer the thread works for that share of the processor time that it took since it did so before.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
LONGEST_NS = 20_000_000  # between two requests nothing is made slower


def slow_down(share: float) -> None:
    """Make all that lies between two linear layers take longer by ``share``, in every model of this process."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_hook

    before = time.thread_time_ns()

    def hook(module: nn.Module, *_: Any) -> None:
        nonlocal before
        if not isinstance(module, nn.Linear):
            return
        now = time.thread_time_ns()
        end = now + int((now - before) * share) if now - before < LONGEST_NS else now
        while now < end:
            now = time.thread_time_ns()
        before = now

    register_module_forward_hook(hook)


def main() -> NoReturn:
    """Run the command line with models made slower."""
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit(0)
    from vlmbench.cli.main import main as command_line

    slow_down(float(os.environ["SLOWER"]))
    sys.argv[0] = "vlmbench"
    command_line()


if __name__ == "__main__":
    main()

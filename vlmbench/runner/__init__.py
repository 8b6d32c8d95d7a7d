"""The measurement loop: plan, warm-up, execution of one run, rows."""

from vlmbench.runner.warmup import Warmup

__all__ = ["Warmup"]  # stored configurations name it vlmbench.runner.Warmup

"""Whether the processor time of a run's thread is the host's own."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import values

_LAUNCH_BOUND = 0.5  # above, the device waits for the host more than it works


def on_gpu(frame: pd.DataFrame) -> bool:
    """Whether rows were measured on a GPU, by what they carry."""
    return "gpu_uuid" in frame and bool(frame["gpu_uuid"].notna().any())


def time_is_host(frame: pd.DataFrame) -> bool:
    """Whether processor time of the launching thread is the host's own: on a CPU, or where the GPU is mostly idle.

    A thread that waits for a GPU spins, which costs processor time, too.
    """
    if not on_gpu(frame):
        return True
    traced = values(frame[frame["mode"] == "trace"], "launch_bound_total")
    return bool(len(traced)) and not np.isnan(traced).all() and float(np.nanmedian(traced)) > _LAUNCH_BOUND

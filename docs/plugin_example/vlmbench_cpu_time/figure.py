"""A figure: processor time against latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vlmbench.analysis.frames import workload


def cpu_share(frame: pd.DataFrame, provenance: Mapping[str, Any]) -> Figure | None:
    """Draw processor time against ``T_total``, one dot a run; None where the probe did not watch.

    Args:
        frame: all rows of a run.
        provenance: where they come from.
    """
    rows = workload(frame)
    if "cpu_time_ms" not in rows:
        return None
    figure = Figure(figsize=(3.3, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(rows["T_total"], rows["cpu_time_ms"], s=8)
    axes.set(xlabel="T_total, ms", ylabel="processor time, ms")
    axes.set_title(str((provenance.get("model") or {}).get("name", "")), fontsize=8)
    return figure

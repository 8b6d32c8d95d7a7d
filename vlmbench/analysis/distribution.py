"""How long a request takes, and how much of the tail a repeated single request has too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.estimate import Estimate
from vlmbench.analysis.frames import TokenGaps, reference, sample_codes, values, workload
from vlmbench.analysis.quantiles import finite, quantiles, ratio_draws
from vlmbench.analysis.ratios import ratio_of_quantiles

QUANTILES: tuple[float, ...] = (0.50, 0.90, 0.95, 0.99)
LATENCIES: tuple[str, ...] = ("T_request", "T_total", "TTFT", "TTFT_model", "T_LLM_decode")


def quantile_name(q: float) -> str:
    """``p50``, ``p99``, ``p99.9``."""
    return f"p{q * 100:g}"


def quantile_of(name: str) -> float:
    """The quantile that :func:`quantile_name` names."""
    return float(name.removeprefix("p")) / 100


def _row(metric: str, group: str, data: NDArray[np.float64], clusters: NDArray[Any] | None) -> dict[str, Any]:
    good = finite(data)
    row: dict[str, Any] = {
        "metric": metric,
        "group": group,
        "n": len(good),
        "samples": len(good) if clusters is None else len(pd.unique(clusters[~np.isnan(data)])),
        "mean": float(good.mean()) if len(good) else None,
        "std": float(good.std(ddof=1)) if len(good) > 1 else None,
        "min": float(good.min()) if len(good) else None,
        "max": float(good.max()) if len(good) else None,
    }
    estimates = quantiles(data, QUANTILES, clusters=clusters)
    row |= {"lag1": estimates[0].lag1, "effective_n": estimates[0].effective_n}
    for q, found in zip(QUANTILES, estimates, strict=True):
        name = quantile_name(q)
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_note": found.note}
        row[f"{name}_shortfall"] = found.shortfall.key if found.shortfall else None
        row[f"{name}_effective_n"] = found.effective_n
    return row


def latency_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and quantiles with intervals of several latencies, for the workload and for the repeated single request.

    Args:
        frame: all rows of a run (:func:`vlmbench.analysis.frames.load_runs`).

    Returns:
        One row for each metric and group (``workload``, ``reference``) that has values: ``metric``, ``group``, ``n``
        runs of so many ``samples``, ``lag1`` (autocorrelation of neighbours) and ``effective_n`` (independent runs, or
        samples, that they are worth at the median), ``mean``, ``std``, ``min``, ``max``, then ``pQ``, ``pQ_low``,
        ``pQ_high``, ``pQ_note``, ``pQ_shortfall`` (a name of ``Shortfall``) and ``pQ_effective_n`` for P50, P90, P95,
        P99 (None and a note where n is too small). Runs of one sample count as one cluster.
    """
    rows = []
    for group, part, clusters in _groups(frame):
        for metric in LATENCIES:
            data = values(part, metric)
            if not np.isnan(data).all():
                rows.append(_row(metric, group, data, clusters))
    columns = list(_row("", "", np.empty(0), None))
    return pd.DataFrame(rows, columns=columns)


def _groups(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame, NDArray[Any] | None]]:
    work, ref = workload(frame), reference(frame)
    return [("workload", work, sample_codes(work)), ("reference", ref, None)]


def gap_table(gaps: TokenGaps, group: str = "workload") -> pd.DataFrame:
    """The row of :func:`latency_table` for ``ITL``; whole requests are counted. No row without gaps.

    For a repeated single request pass gaps loaded with ``cluster="run"``: all its runs are of one sample.
    """
    if not len(gaps.values):
        return pd.DataFrame(columns=list(_row("", "", np.empty(0), None)))
    return pd.DataFrame([_row("ITL", group, gaps.values.astype(np.float64), gaps.clusters)])


def tail_ratios(frame: pd.DataFrame, metric: str = "T_total") -> pd.DataFrame:
    """Tail of the workload against the tail of nothing.

    Returns:
        One row for each of P90, P95, P99: ``quantile``; ``workload`` and ``reference``, the quantile over the median
        of each with its interval (``_low``, ``_high``, ``_note``); ``beyond``, the first over the second
        with its interval: only what exceeds 1 belongs to the workload.
    """
    groups = _groups(frame)
    rows = []
    for q in QUANTILES[1:]:
        row: dict[str, Any] = {"quantile": quantile_name(q)}
        draws: list[NDArray[np.float64]] = []
        found: list[Estimate] = []
        for group, part, clusters in groups:
            data = values(part, metric)
            ratio = ratio_of_quantiles(data, q, clusters=clusters)
            found.append(ratio)
            row |= {
                group: ratio.value,
                f"{group}_low": ratio.low,
                f"{group}_high": ratio.high,
                f"{group}_note": ratio.note,
            }
            if ratio.value is not None:
                draws.append(ratio_draws(data, q, clusters=clusters, seed=len(draws)))
        top, base = found
        row |= {"beyond": None, "beyond_low": None, "beyond_high": None}
        if top.value is not None and base.value:
            count = min(map(len, draws))
            low, high = np.quantile(draws[0][:count] / draws[1][:count], (0.025, 0.975))
            row |= {"beyond": top.value / base.value, "beyond_low": float(low), "beyond_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)

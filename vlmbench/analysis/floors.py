"""What each stage's work needs at least on its device (its floor), against the time it took; workload runs only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.launch import launch_table
from vlmbench.analysis.quantiles import median
from vlmbench.analysis.roofline import STAGE_COSTS
from vlmbench.analysis.rows import sample_codes, values, workload
from vlmbench.cost.roofline import stage_roofline
from vlmbench.machine.peaks import DevicePeaks
from vlmbench.text import digits, factor, ms, span

COLUMNS: tuple[str, ...] = (
    *(f"{kind}_{stage}" for kind in ("flops", "bytes", "floor_ms") for stage in (*STAGE_COSTS.values(), "total")),
    *(f"{kind}_{stage}" for kind in ("mfu", "mbu") for stage in STAGE_COSTS.values()),
)
"""What :func:`vlmbench.analysis.load.load_runs` must read for this module, beside the stage times."""

WHOLE = "T_total"
_TIMES: Mapping[str, str] = {**STAGE_COSTS, WHOLE: "total"}
_TABLE = [
    "component", "n", "flops", "bytes", "time_ms", "floor_ms",
    "over_floor", "over_floor_low", "over_floor_high", "verdict",
]  # fmt: skip


def floor_table(frame: pd.DataFrame, peaks: DevicePeaks | None = None) -> pd.DataFrame:
    """FLOPs, floor and measured time of each stage, and of the whole, over the workload's measured runs.

    Args:
        frame: rows of a run with :data:`COLUMNS`.
        peaks: of the device; without them there is no verdict.

    Returns:
        One row a stage that has FLOPs, and one for ``T_total``: ``component``; ``n`` runs; medians of ``flops``,
        ``bytes`` (the fewest that must move), ``time_ms`` and ``floor_ms``; ``over_floor``, the median of each run's
        own time over its own floor, with interval; ``verdict``, what keeps it above its floor. ``floor_ms`` and
        what follows are None where the device's peaks were not known; the whole has no verdict.
    """
    rows = workload(frame)
    codes = sample_codes(rows)
    waiting = {f"T_{row['stage']}": float(row["launch_bound"]) for row in launch_table(frame).to_dict("records")}
    table = []
    for component, suffix in _TIMES.items():
        flops, moved, floor = (_median(values(rows, f"{kind}_{suffix}")) for kind in ("flops", "bytes", "floor_ms"))
        time = values(rows, component)
        if flops is None or not flops > 0 or np.isnan(time).all():
            continue
        least = values(rows, f"floor_ms_{suffix}")
        # A floor of 0 is no work, and no factor.
        over = median(time / np.where(least > 0, least, np.nan), clusters=codes)
        middle = _median(time)
        verdict = None
        if peaks is not None and component != WHOLE and moved is not None:
            share = waiting.get(component)
            verdict = stage_roofline(
                suffix, round(flops), round(moved), peaks,
                measured_ms=middle, busy_share=None if share is None else 1 - share,
            ).verdict  # fmt: skip
        number = int((~np.isnan(time)).sum())
        table.append((component, number, flops, moved, middle, floor, over.value, over.low, over.high, verdict))
    return pd.DataFrame(table, columns=_TABLE)


def _median(data: Any) -> float | None:
    good = data[~np.isnan(data)]
    return float(np.median(good)) if len(good) else None


def floor_sentences(cost: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """The finding in words.

    Args:
        cost: ``stages`` (rows of :func:`floor_table`) and ``peaks`` (mapping with ``source``, or None).
        labels: component to its words.
    """
    stages = [row for row in cost["stages"] if row["over_floor"] is not None]
    if not stages:
        unknown = "the device's peaks are not known" if cost["stages"] else ""
        return [f"How far above the least possible time that is, is not known: {unknown}."] if unknown else []
    sentences = []
    whole = next((row for row in stages if row["component"] == WHOLE), None)
    if whole is not None:
        sentences.append(
            f"At the device's peak rates the work of generate() ({digits(whole['flops'] / 1e9)} GFLOP) needs at least "
            f"{ms(whole['floor_ms'])}, its floor; it takes {_factor(whole)} that."
        )
    parts = [row for row in stages if row["component"] != WHOLE]
    listed = (f"{labels.get(r['component'], r['component'])} {factor(r['over_floor'])}{_why(r)}" for r in parts)
    sentences.append(f"By stage, time over floor: {'; '.join(listed)}.")
    below = [labels.get(r["component"], r["component"]) for r in parts if r["over_floor"] < 1]
    if below:
        sentences.append(
            f"Below its floor: {', '.join(below)}. No work is faster than its device, so the peaks "
            f"({cost['peaks']['source'] or 'as recorded'}) are too low here: take floors as rough."
        )
    return sentences


def _factor(row: Mapping[str, Any]) -> str:
    inside = span(row["over_floor_low"], row["over_floor_high"], "×")
    return f"{factor(row['over_floor'])}{f' ({inside})' if inside else ''}"


def _why(row: Mapping[str, Any]) -> str:
    return f" ({short_verdict(row['verdict'])})" if row["verdict"] else ""


def short_verdict(verdict: str) -> str:
    """A verdict of :mod:`vlmbench.cost.roofline` without the brackets that say what is not told apart."""
    return verdict.partition(" (")[0]

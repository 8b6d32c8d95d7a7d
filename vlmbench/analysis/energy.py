"""What a request and an output token cost in energy, from the runs that the energy probe watched.

The counter behind it is brought up to date only every so often (``energy_resolution_ms``): each run is
read at a step of the counter on either side, and a run that met no step (``energy_below_resolution``) says nothing by
itself. Runs whose energy cannot be right (below idle, or unlike the integral of sampled power by more than 5 %) are
withheld from every figure, and counted; so are those whose power samples have holes, for nothing checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import sample_codes, values, workload
from vlmbench.analysis.quantiles import median
from vlmbench.text import count, digits, span, worth

COLUMNS: tuple[str, ...] = (
    "energy_gross_j",
    "energy_per_request_j",
    "energy_per_output_token_j",
    "idle_power_w",
    "energy_resolution_ms",
    "energy_gpus",
)
"""What :func:`vlmbench.analysis.frames.load_runs` must read for this module."""

_SHOWN: Mapping[str, str] = {
    "per_request_j": "energy_per_request_j",
    "per_output_token_j": "energy_per_output_token_j",
    "gross_per_run_j": "energy_gross_j",
}


def energy_summary(frame: pd.DataFrame, provenance: Mapping[str, Any], *, pooled: bool = True) -> dict[str, Any] | None:
    """The energy of the workload's runs, J; None where none was measured.

    Args:
        frame: rows of a run with :data:`COLUMNS`.
        provenance: says how many GPUs share the model.
        pooled: whether the runs of all points are taken together as well (a sweep's points are unlike requests).

    Returns:
        ``runs`` with energy; ``per_request_j`` and ``per_output_token_j`` (above idle; absent where idle power is not
        known) and ``gross_per_run_j`` (idle power included, of a whole batch), each with ``value`` (median),
        ``low``, ``high``, ``n``, ``mean``, all three only if ``pooled``; ``idle_power_w``, ``resolution_ms`` (medians);
        ``below_resolution``: runs shorter than a step of the counter; ``negative``: runs that came out below idle;
        ``unverified``, ``samples_missing``: runs unlike the integral of sampled power, or without enough of it;
        ``gpus`` whose energy is summed and ``gpus_of_model``; ``points``: the same for each point; ``words``.
    """
    rows = workload(frame)
    rows = rows[~np.isnan(values(rows, "energy_gross_j"))]
    if not len(rows):
        return None
    runtime = provenance.get("runtime") or {}
    points = [
        {"point_id": str(point), **_of(rows[rows["point_id"] == point])}
        for point in rows["point_id"].astype(object).unique()
    ]
    found: dict[str, Any] = {
        **_counted(rows),
        **(_estimates(rows) if pooled else {}),
        "idle_power_w": _middle(rows, "idle_power_w"),
        "resolution_ms": _middle(rows, "energy_resolution_ms"),
        "gpus": _middle(rows, "energy_gpus"),
        "gpus_of_model": max(runtime.get("devices") or 1, runtime.get("processes") or 1),
        "points": points,
    }
    return found | {"words": _words(found)}


def _of(rows: pd.DataFrame) -> dict[str, Any]:
    return {**_counted(rows), **_estimates(rows)}


def _counted(rows: pd.DataFrame) -> dict[str, int]:
    flags = rows["flags"].astype(object).where(rows["flags"].notna(), "").astype(str).str.split()
    return {
        "runs": len(rows),
        "below_resolution": int(sum("energy_below_resolution" in names for names in flags)),
        "negative": int(sum("negative_energy" in names for names in flags)),
        "unverified": int(sum("energy_unverified" in names for names in flags)),
        "samples_missing": int(sum("energy_samples_missing" in names for names in flags)),
    }


def _estimates(rows: pd.DataFrame) -> dict[str, Any]:
    found = {}
    rows = rows[~rows["flags"].astype(str).str.contains("negative_energy|energy_unverified|energy_samples_missing")]
    # Runs of one sample are one cluster; where there is one sample alone, its runs are what is looked at.
    codes = sample_codes(rows) if rows["sample_id"].nunique() > 1 else None
    for name, metric in _SHOWN.items():
        joules = values(rows, metric)
        if not np.isnan(joules).all():
            found[name] = {**median(joules, clusters=codes).as_dict(), "mean": float(np.nanmean(joules))}
    return found


def _middle(rows: pd.DataFrame, metric: str) -> float | None:
    known = values(rows, metric)
    return None if np.isnan(known).all() else float(np.nanmedian(known))


def _words(found: Mapping[str, Any]) -> list[str]:
    said = _pooled(found) if "gross_per_run_j" in found else _over_points(found["points"])
    return [*said, _subtracted(found), *_doubts(found)]


def _joules(entry: Mapping[str, Any]) -> str:
    inside = span(entry["low"], entry["high"], "J")
    return f"{digits(entry['value'])} J ({inside})" if inside else f"{digits(entry['value'])} J"


def _pooled(found: Mapping[str, Any]) -> list[str]:
    if "per_request_j" not in found:
        return [f"A run takes {_joules(found['gross_per_run_j'])} at the median, with what an idle GPU takes in it."]
    request, token = found["per_request_j"], found["per_output_token_j"]
    return [
        f"`generate()` of a request takes {_joules(request)} at the median of {count(found['runs'], 'run')}"
        f"{worth(request['n'], request.get('effective_n'))}, {digits(request['mean'])} "
        f"J on average; over its output tokens that is {_joules(token)} each, {digits(token['mean'])} J on average."
    ]


def _over_points(points: list[dict[str, Any]]) -> list[str]:
    known = [point for point in points if "per_request_j" in point]
    if not known:
        return ["Only the energy with what an idle GPU takes in it is known."]
    known.sort(key=lambda point: float(point["per_request_j"]["value"]))
    ends = known[:1] if len(known) == 1 else [known[0], known[-1]]
    parts = [
        f"{_joules(point['per_request_j'])} at {point['point_id']} ({_joules(point['per_output_token_j'])} an output "
        "token)"
        for point in ends
    ]
    return [f"`generate()` of a request takes, at the median, {' to '.join(parts)}."]


def _subtracted(found: Mapping[str, Any]) -> str:
    gpus, shared = found["gpus"], found["gpus_of_model"]
    whose = "the GPU" if gpus in (None, 1) else f"{gpus:,.0f} GPUs together"
    if gpus is not None and gpus < shared:
        whose = f"{gpus:,.0f} of the {shared:,} GPUs that share the model"
    if found["idle_power_w"] is None:
        return f"That is the energy of {whose}; its idle power is not known, so nothing is subtracted."
    gross = found.get("gross_per_run_j")
    seen = f"; with it a run takes {_joules(gross)}" if gross else ""
    return f"That is the energy of {whose} above idle: {digits(found['idle_power_w'])} W are subtracted{seen}."


def _doubts(found: Mapping[str, Any]) -> list[str]:
    withheld = [
        f"{count(number, 'run')} {why}"
        for number, why in (
            (found["negative"], "took less than an idle GPU"),
            (found["unverified"], "differ from the integral of sampled power by more than 5 %"),
            (found["samples_missing"], "cannot be checked, as power samples of more than a tenth of them are missing"),
        )
        if number
    ]
    said = [f"Withheld: {', '.join(withheld)}."] if withheld else []
    if not found["below_resolution"]:
        return said
    step = f" ({digits(found['resolution_ms'])} ms)" if found["resolution_ms"] else ""
    return [
        *said,
        f"{found['below_resolution']:,} of {count(found['runs'], 'run')} met no step of the energy counter"
        f"{step} on one side or both: their figures are too low.",
    ]

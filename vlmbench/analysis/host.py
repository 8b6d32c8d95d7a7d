"""Whose tail is it: how much of the spread of a latency is the host's speed, its absence, the device, the workload.

A run's time is the processor time of the thread that launched it plus the time in which that thread was on no
processor. The two add up exactly, so each has a share of the variance: its covariance with the whole. What token counts
explain is taken out first, from all of them. On a GPU the launching thread waits by spinning, which costs processor
time too: there, processor time is the host's own only as far as the device is idle
(:mod:`vlmbench.analysis.launch_bound`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis.frames import reference, values, workload

COLUMNS: tuple[str, ...] = (
    "thread_cpu_ms",
    "thread_waited_ms",
    "switches_involuntary",
    "page_faults_major",
    "steal_ms",
    "sm_clock_after_mhz",
    "throttled_power_ms",
    "throttled_thermal_ms",
    "gpu_uuid",
)
"""What :func:`vlmbench.analysis.frames.load_runs` must read for this module."""

SPEED, ABSENCE, DEVICE, WORKLOAD = "host_speed", "host_absence", "device", "workload"
HOST_OR_DEVICE = "host_or_device"
"""Processor time on a GPU whose idle share is not known, or small."""
LEAST_RUNS = 20
_TOKENS = ("num_vision_tokens", "num_prompt_tokens", "num_output_tokens")
_OF_DEVICE = ("sm_clock_after_mhz", "throttled_power_ms", "throttled_thermal_ms")
_LAUNCH_BOUND = 0.5  # above, the device waits for the host more than it works
_DRAWS = 400

Array = NDArray[np.float64]


def on_gpu(frame: pd.DataFrame) -> bool:
    """Whether rows were measured on a GPU, by what they carry."""
    return "gpu_uuid" in frame and bool(frame["gpu_uuid"].notna().any())


def time_is_host(frame: pd.DataFrame) -> bool:
    """Whether processor time of the launching thread is the host's own: on a CPU, or where the GPU is mostly idle."""
    if not on_gpu(frame):
        return True
    traced = values(frame[frame["mode"] == "trace"], "launch_bound_total")
    return bool(len(traced)) and not np.isnan(traced).all() and float(np.nanmedian(traced)) > _LAUNCH_BOUND


def variance_sources(frame: pd.DataFrame, metric: str = "T_total", seed: int = 0) -> pd.DataFrame:
    """Split the variance of a time into workload, device, and the host's speed and absence.

    Args:
        frame: rows of a run, in the order measured, with :data:`COLUMNS` and token counts.
        metric: the time, ms.
        seed: of the bootstrap (blocks of neighbouring runs, for runs are not independent).

    Returns:
        Rows ``workload``, ``device``, ``host_speed`` (``host_or_device`` where the two cannot be told apart) and
        ``host_absence`` with ``share`` (they add up to 1), ``low``, ``high`` and ``of_rest``, the share of what the
        workload leaves. Empty where rows lack the thread's processor time, or for fewer than 20 runs.
    """
    columns = ["source", "share", "low", "high", "of_rest"]
    rows = _rows(frame, metric)
    if len(rows) < LEAST_RUNS:
        return pd.DataFrame(columns=columns)
    time, cpu = values(rows, metric), values(rows, "thread_cpu_ms")
    tokens, device = _varying(rows, _TOKENS), _varying(rows, _OF_DEVICE)
    found = _split(time, cpu, tokens, device)
    drawn = np.array([_split(time[i], cpu[i], tokens[i], device[i]) for i in _blocks(len(rows), seed)])
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    speed = SPEED if time_is_host(frame) else HOST_OR_DEVICE
    rest = 1 - found[0]
    return pd.DataFrame(
        {
            "source": [WORKLOAD, DEVICE, speed, ABSENCE],
            "share": found,
            "low": low,
            "high": high,
            "of_rest": [np.nan, *(found[1:] / rest if rest > 0 else found[1:] * np.nan)],
        }
    )


def _rows(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The workload's runs that have both times; those of the repeated request where the workload has too few."""
    for rows in (workload(frame), reference(frame)):
        known = rows[~np.isnan(values(rows, metric)) & ~np.isnan(values(rows, "thread_cpu_ms"))]
        if len(known) >= LEAST_RUNS and np.ptp(values(known, metric)) > 0:
            return known
    return frame.iloc[:0]


def _varying(rows: pd.DataFrame, names: Sequence[str]) -> Array:
    """The columns that all rows have and that vary, scaled; shape (rows, columns)."""
    kept = [column for name in names if not np.isnan(column := values(rows, name)).any() and np.ptp(column) > 0]
    table = np.column_stack(kept) if kept else np.empty((len(rows), 0))
    scaled: Array = (table - table.mean(axis=0)) / table.std(axis=0) if kept else table
    return scaled


def _split(time: Array, cpu: Array, tokens: Array, device: Array) -> Array:
    """Shares of workload, device, processor time and absence; they add up to 1."""
    variance = float(time.var())
    if variance <= 0:
        return np.full(4, np.nan)
    left, left_cpu = _without(tokens, time), _without(tokens, cpu)
    of_workload = _adjusted(1 - float(left.var()) / variance, len(time), tokens.shape[1])
    rest = 1 - of_workload
    inside = float(left.var())
    if inside <= 0:
        return np.array([of_workload, 0.0, 0.0, rest])
    of_cpu = _share(left_cpu, left) * rest
    clocks = _without(tokens, device)
    left_device = left_cpu - _without(clocks, left_cpu)
    r2 = _adjusted(float(left_device.var() / left_cpu.var()) if left_cpu.var() > 0 else 0.0, len(time), device.shape[1])
    of_device = _share(left_device, left) * rest if r2 > 0 else 0.0
    return np.array([of_workload, of_device, of_cpu - of_device, rest - of_cpu])


def _share(part: Array, whole: Array) -> float:
    """Covariance of a part with the whole over the whole's variance."""
    centred = whole - whole.mean()
    return float((part - part.mean()) @ centred / (centred @ centred))


def _without(columns: Array, what: Array) -> Array:
    """What is left of one or several columns when a linear effect of others, and the mean, is taken out."""
    design = np.column_stack([np.ones(len(what)), columns])
    left: Array = what - design @ np.linalg.lstsq(design, what, rcond=None)[0]
    return left


def _adjusted(r2: float, runs: int, predictors: int) -> float:
    """R² without what predictors that have no effect would take by chance; 0 where that is all there is."""
    if predictors == 0 or runs <= predictors + 1:
        return 0.0
    adjusted = 1 - (1 - r2) * (runs - 1) / (runs - predictors - 1)
    return adjusted if adjusted > 0 else 0.0


def _blocks(count: int, seed: int) -> NDArray[np.int64]:
    """Positions of runs of bootstrap samples made of blocks of neighbours, shape (draws, count)."""
    length = max(5, round(count**0.5))
    random = np.random.default_rng(seed)
    starts = random.integers(0, count, (_DRAWS, -(-count // length)))
    found: NDArray[np.int64] = (starts[:, :, None] + np.arange(length)) % count  # the last run is before the first
    return found.reshape(_DRAWS, -1)[:, :count]

"""Whose tail is it: how much of the spread of a latency is the workload, the device, the host.

Parts that add up to a time share its variance exactly: the share of a part is its covariance with the whole over the
variance of the whole. Three partitions are made of that:

* what the *shape* of a request (its token counts) explains is the workload's. Where shapes come again often enough each
  has a mean of its own, which also sees what no line through token counts does (a prompt of an odd number of tokens can
  take longer than one of an even number); otherwise least squares on the counts. Adjusted for the number of shapes;
* on a GPU with traced runs, what is left is shared out by stage, and each stage is the device's or the host's as its
  traces say (:mod:`vlmbench.analysis.launch_bound`);
* otherwise by thread: a run is the processor time of the thread that launched it plus the time in which that thread was
  on no processor. On a GPU the thread waits by spinning, so processor time is not called the host's there.

A share is a sum of products over a sum of squares, one of each for every run, and its interval that of such a ratio:
with the leave-one-out correction of each run's part, the dependence of runs in time, and no more degrees of freedom
than runs carry the variance (R. M. Bell, D. F. McCaffrey, Survey Methodology 28, 169 (2002)): few slow runs that make
most of a variance leave its shares open. A variance lies in the tail, so that fewer runs than a P95 needs say nothing
of how well it is known. Resampling blocks of runs instead held 0.35 to 0.96 where 0.95 was said
(``benchmarks/coverage.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from vlmbench.analysis import launch_bound
from vlmbench.analysis.dependence import long_run, slow_variance
from vlmbench.analysis.estimate import CONFIDENCE, Array
from vlmbench.analysis.frames import reference, shapes, values, workload
from vlmbench.analysis.launch_bound import on_gpu, time_is_host
from vlmbench.schema import TOTAL, TOTAL_PARTS, TOTAL_STAGES

COLUMNS: tuple[str, ...] = (
    "thread_cpu_ms", "thread_waited_ms", "switches_involuntary", "page_faults_major", "steal_ms",
    "sm_clock_after_mhz", "throttled_power_ms", "throttled_thermal_ms", "gpu_uuid",
)  # fmt: skip
"""What :func:`vlmbench.analysis.frames.load_runs` must read for this module, beside times and token counts."""

WORKLOAD, DEVICE, HOST = "workload", "device", "host"
SPEED, ABSENCE = "host_speed", "host_absence"
"""Parts of the host, where no stage tells more: the thread's processor time, and its time on no processor."""
HOST_OR_DEVICE = "host_or_device"
"""What cannot be told apart: time on a GPU in stages of which no trace says whether the device worked."""
LEAST_RUNS = 20
_TOKENS = ("num_vision_tokens", "num_prompt_tokens", "num_output_tokens")
_OF_DEVICE = ("sm_clock_after_mhz", "throttled_power_ms", "throttled_thermal_ms")
_RUNS_A_SHAPE = 4  # on average, for each shape to have a mean of its own
_LEAST_KNOWN = 72  # runs, for an interval
_TABLE = ["source", "share", "low", "high", "of_rest", "stages"]


def variance_parts(frame: pd.DataFrame, whole: str, parts: Sequence[str]) -> pd.DataFrame:
    """Share the variance of a time out to the parts that add up to it.

    Args:
        frame: rows of a run, in the order measured.
        parts: columns; those that some row lacks are left out.

    Returns:
        ``part``, ``share`` of the variance of the whole (covariance with it; negative where a part is short when the
        whole is long), ``low``, ``high`` (nan below 72 runs); the largest share first. Empty below 20 runs, or where
        nothing varies.
    """
    rows = _rows(frame, (whole,))
    kept = [name for name in parts if len(rows) and not np.isnan(values(rows, name)).any()]
    if not kept:
        return pd.DataFrame(columns=["part", "share", "low", "high"])
    off = _centred(values(rows, whole))
    found, low, high = _ratios(np.stack([off * _centred(values(rows, name)) for name in kept], axis=1), off**2)
    made = pd.DataFrame({"part": kept, "share": found, "low": low, "high": high})
    return made.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def variance_sources(frame: pd.DataFrame) -> pd.DataFrame:
    """Split the variance of ``T_total`` into workload, device and host.

    Args:
        frame: rows of a run, in the order measured, with :data:`COLUMNS`, stage times and token counts; with what
            :mod:`vlmbench.analysis.launch_bound` reads, stages are told apart.

    Returns:
        Rows with ``share`` (they add up to 1), ``low``, ``high``, ``of_rest``, the share of what the workload leaves,
        and ``stages``, which ones, where stages tell. ``workload``, ``device``, then ``host`` and ``host_or_device``
        where traces tell stages apart; else ``host_speed`` (``host_or_device`` on a GPU that is not known to be mostly
        idle) and ``host_absence``. Empty where rows lack the thread's processor time, or for fewer than 20 runs.
    """
    rows = _rows(frame, (TOTAL, "thread_cpu_ms"))
    if not len(rows):
        return pd.DataFrame(columns=_TABLE)
    shape = Shape.of(rows)
    time = values(rows, TOTAL)
    sources = _by_stage(frame, rows, shape)
    if sources is None:
        sources = _by_thread(rows, shape, time, SPEED if time_is_host(frame) else HOST_OR_DEVICE)
    found, low, high = _shares(_centred(time), shape.without(time), [one.left for one in sources], shape)
    rest = 1 - found[0]
    return pd.DataFrame(
        {
            "source": [WORKLOAD, *(one.name for one in sources)],
            "share": found,
            "low": low,
            "high": high,
            "of_rest": [np.nan, *(found[1:] / rest if rest > 0 else found[1:] * np.nan)],
            "stages": ["", *(" ".join(one.stages) for one in sources)],
        }
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Args: name; left: its part of each run without what the shape explains, ms; stages: whose times these are."""

    name: str
    left: Array
    stages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the shape of a request, its token counts, explains of a time.

    Args:
        groups: number of each run's shape, where each shape has its own mean; else None.
        counts: scaled token counts, shape (runs, columns), for least squares.
        spent: degrees of freedom that it takes beside the mean.
    """

    groups: np.ndarray | None
    counts: Array
    spent: int

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Shape:
        """Find the shapes of the requests of some rows."""
        counts = _varying(rows, _TOKENS)
        groups = shapes(rows)
        if groups is not None and 1 < (kinds := int(groups.max()) + 1) <= len(rows) / _RUNS_A_SHAPE:
            return cls(groups=groups, counts=counts, spent=kinds - 1)
        return cls(groups=None, counts=counts, spent=counts.shape[1])

    def without(self, what: Array) -> Array:
        """What is left of a time, or of several side by side, when what the shape explains is taken out."""
        if self.groups is None:
            return _without(self.counts, what)
        sizes = np.bincount(self.groups)
        table = what if what.ndim > 1 else what[:, None]
        sums = [np.bincount(self.groups, column) for column in table.T]
        means = np.stack(sums, axis=1) / sizes[:, None] if sums else np.empty((len(sizes), 0))
        left: Array = (table - means[self.groups]).reshape(what.shape)
        return left


def _by_stage(frame: pd.DataFrame, rows: pd.DataFrame, shape: Shape) -> list[_Source] | None:
    """What is left, by where each stage's time is spent; None where no trace, or not every stage, is there."""
    verdicts = launch_bound.launch_table(frame).set_index("stage")["verdict"].to_dict() if on_gpu(frame) else {}
    stages = [name for name in TOTAL_PARTS if not np.isnan(values(rows, name)).all()]
    left = {name: shape.without(values(rows, name)) for name in stages}
    if not any(name in verdicts for name in TOTAL_STAGES) or any(np.isnan(part).any() for part in left.values()):
        return None
    made = []
    for source, verdict in ((DEVICE, "device-bound"), (HOST, "host-bound"), (HOST_OR_DEVICE, None)):
        mine = tuple(name for name in stages if _told(verdicts.get(name.removeprefix("T_"))) == verdict)
        made.append(_Source(name=source, left=sum((left[n] for n in mine), np.zeros(len(rows))), stages=mine))
    return made


def _told(verdict: str | None) -> str | None:
    return verdict if verdict in ("device-bound", "host-bound") else None


def _by_thread(rows: pd.DataFrame, shape: Shape, time: Array, speed: str) -> list[_Source]:
    """What is left, by what the thread did: explained by the device's clocks, on a processor, on none."""
    cpu = shape.without(values(rows, "thread_cpu_ms"))
    device = _varying(rows, _OF_DEVICE)
    of_clocks = cpu - _without(shape.without(device), cpu)
    r2 = float(of_clocks.var() / cpu.var()) if cpu.var() > 0 else 0.0
    if _adjusted(r2, len(cpu), device.shape[1]) == 0.0:
        of_clocks = np.zeros(len(cpu))
    return [
        _Source(name=DEVICE, left=of_clocks),
        _Source(name=speed, left=cpu - of_clocks),
        _Source(name=ABSENCE, left=shape.without(time) - cpu),
    ]


def _rows(frame: pd.DataFrame, needed: Sequence[str]) -> pd.DataFrame:
    """The workload's runs that have all of these; those of the repeated request where the workload has too few."""
    for rows in (workload(frame), reference(frame)):
        missing = np.column_stack([np.isnan(values(rows, name)) for name in needed]).any(axis=1)
        known = rows.iloc[np.flatnonzero(~missing)]
        if len(known) >= LEAST_RUNS and np.ptp(values(known, needed[0])) > 0:
            return known
    return frame.iloc[:0]


def _varying(rows: pd.DataFrame, names: Sequence[str]) -> Array:
    """The columns that all rows have and that vary, scaled; shape (rows, columns)."""
    kept = [column for name in names if not np.isnan(column := values(rows, name)).any() and np.ptp(column) > 0]
    table = np.column_stack(kept) if kept else np.empty((len(rows), 0))
    scaled: Array = (table - table.mean(axis=0)) / table.std(axis=0) if kept else table
    return scaled


def _shares(off: Array, left: Array, sources: Sequence[Array], shape: Shape) -> tuple[Array, Array, Array]:
    """Shares of the workload and of each source with their ends, from what each run is off the mean and what is left of
    that without its shape.
    """
    n = len(off)
    r2 = 1 - float(np.square(left).sum() / np.square(off).sum())
    kept = (n - 1) / max(n - shape.spent - 1, 1)
    products = [off**2 - kept * left**2, *(kept * left * one for one in sources)]
    found, low, high = _ratios(np.stack(products, axis=1), off**2)
    low[0], high[0] = np.clip(low[0], 0.0, 1.0), np.clip(high[0], 0.0, 1.0)  # a share of R² lies there
    if _adjusted(r2, n, shape.spent) == 0.0:
        found[0] = 0.0
        found[1:], low[1:], high[1:] = _ratios(np.stack([left * one for one in sources], axis=1), left**2)
    return found, low, high


def _ratios(products: Array, squares: Array) -> tuple[Array, Array, Array]:
    """Sums of products (runs, k) over the sum of squares (runs,): values and ends, each of shape (k,)."""
    n, whole = len(squares), float(squares.sum())
    found = products.sum(axis=0) / whole
    leverage = 1 / n + squares / whole
    errors = (products - found * squares[:, None]) / np.maximum(1 - leverage, 1 / n)[:, None]
    errors -= errors.mean(axis=0)
    reach = np.array([reach_of_sum(one, squares) for one in errors.T]) / whole
    if n < _LEAST_KNOWN:
        reach[:] = np.nan
    return found, found - reach, found + reach


def reach_of_sum(errors: Array, squares: Array) -> float:
    """Half the 95 % interval of a sum of what runs add to a share of a variance.

    Args:
        errors: of each run, in the order measured, mean 0.
        squares: what each run adds to the variance itself.
    """
    n = len(errors)
    if not np.square(errors).sum() > 0:
        return 0.0
    in_time, effective = (float(one) for one in long_run(errors))
    slow, freedom = slow_variance(errors)
    known = min(effective * 2 / 3 - 1, freedom, _carriers(squares), _carriers(np.square(errors)))
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(known, 1.0))) * float(np.sqrt(n * max(in_time, slow)))


def _carriers(squares: Array) -> float:
    """How many equal squares would make up a sum as these do: 1 where one of them is nearly all."""
    return float(squares.sum() ** 2 / np.square(squares).sum())


def _centred(column: Array) -> Array:
    off: Array = column - column.mean()
    return off


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

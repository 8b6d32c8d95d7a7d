"""Do the printed intervals hold what they promise when runs resemble the run before them?

    python benchmarks/coverage.py                  # every table; up to an hour on one core
    python benchmarks/coverage.py --trials 100     # quicker and coarser
    python benchmarks/coverage.py --only halves shares
    python benchmarks/coverage.py --only heaps orders

Simulated runs have a known truth. ``before`` is the method that takes runs as independent (a small copy of it is kept
below, and asked in the first 100 simulations), ``after`` what vlmbench prints. A cell shows the share of simulations
whose 95 % interval holds the truth (or that raise an alarm where there is nothing), and after it, where not all were
given an interval, the share that was. Where few are, they are those that look independent by chance; what a reader is
told wrong is the share of all simulations with an interval that misses, and the line below the table has its largest.

Noise: ``lognormal`` (5 %); ``heavy``: 3 % of these runs are slowed by a factor of 1.1 + 0.3 × Pareto(2.5). Columns:
autocorrelation ρ of neighbouring runs (AR(1)); ``blocks``: half of the variance is the machine's state, which changes
every ten runs; ``slow``: a fifth of it is, AR(1) with a memory of thirty runs, under noise that no run shares.

``--only turns`` asks about processes that take turns (eight runs of 80 ms each, there and back: A B B A). What the
machine does then happens in time, not from run to run: it keeps ``levels`` for 0.5 to 5 s, rolls in ``waves`` of one to
five minutes, has a ``trend`` from -10 % to +10 %, or an autocorrelation per 80 ms. First: do intervals of one process
hold, whose runs lie eight in a row and then pause for 0.3 to 2 s? Then: two processes in sequence → in turns, with a
drift of ± 6 % (standard deviation) that both see beside 3 % of noise of their own.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import lfilter

from vlmbench.analysis.compare import Change, compare
from vlmbench.analysis.drift import correct_family
from vlmbench.analysis.estimate import holm
from vlmbench.analysis.latency_fit import fit_latency_model
from vlmbench.analysis.launch_bound import launch_table
from vlmbench.analysis.quantiles import median, needed, quantile, quantiles
from vlmbench.analysis.ratios import ratio_of_quantiles, ratio_of_sums
from vlmbench.analysis.regression import Fit, fieller, least_squares
from vlmbench.analysis.serving import rates, share_within
from vlmbench.analysis.shift import (
    TOLERANCE,
    Shift,
    partners,
    shift_between,
    shift_in_time,
    shift_in_turns,
    shift_within,
)
from vlmbench.analysis.tail import variance_split
from vlmbench.analysis.variance import variance_parts, variance_sources

Array = NDArray[np.float64]
SIGMA = 0.05
TAILS = ("lognormal", "heavy")
COLUMNS: tuple[float | str, ...] = (0.0, 0.3, 0.5, 0.8, "blocks", "slow")
BLOCK = 10
SLOW, LASTS = 0.2, 30
"""Share of the variance that is the machine's in ``slow``, and the runs for which it remembers."""
BEFORE = 100
"""Simulations in which the method before is asked."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table.

    Args:
        table: ``coverage``, ``alarms``, ``power``.
        row: what was asked, with n and tail.
        column: autocorrelation or ``blocks``.
        before, after: share that held the truth, or that raised an alarm; nan where nothing was answered.
        answered: share that was given an interval by the method of ``after``.
    """

    table: str
    row: str
    column: float | str
    before: float
    after: float
    answered: float = 1.0

    @property
    def wrong(self) -> float:
        """Share of all simulations that were given an interval which misses."""
        return 0.0 if math.isnan(self.after) else self.answered * (1 - self.after)


class Plan(NamedTuple):
    """What every question is asked with: simulations a cell, random numbers, columns, counts of runs."""

    trials: int
    random: np.random.Generator
    columns: Sequence[float | str]
    counts: Sequence[int]


# Simulated runs


def machine(random: np.random.Generator, n: int, column: float | str) -> Array:
    """The machine's state at each run, standard normal."""
    noise = random.standard_normal(n)
    if isinstance(column, str) and column.startswith(IN_TURNS):
        own = 0.5 if column.endswith("levels") else 0.0
        pauses = np.concatenate([[0], np.cumsum(random.integers(4, 26, n // TURN))])  # for the others' turns
        at = np.arange(n) + pauses[np.arange(n) // TURN]
        states = drift(random, int(at[-1]) + 1, column.removeprefix(IN_TURNS))[at]
        return np.asarray(math.sqrt(1 - own) * states + math.sqrt(own) * noise)
    if column == "blocks":
        states = random.standard_normal(n // BLOCK + 2)
        place = (np.arange(n) + random.integers(BLOCK)) // BLOCK
        return np.asarray(math.sqrt(0.5) * states[place] + math.sqrt(0.5) * noise)
    if column == "slow":
        return np.asarray(
            math.sqrt(SLOW) * machine(random, n, math.exp(-1 / LASTS)) + math.sqrt(1 - SLOW) * noise, dtype=np.float64
        )
    rho = float(column)
    noise[1:] *= math.sqrt(1 - rho**2)
    return np.asarray(lfilter([1.0], [1.0, -rho], noise))


TURN, STEP_S, IN_TURNS = 8, 0.08, "in turns, "


def drift(random: np.random.Generator, steps: int, kind: str) -> Array:
    """What a machine does in time, every 80 ms: standard normal but for ``waves`` and the ``trend``."""
    if kind == "levels":
        kept = np.exp(random.uniform(math.log(0.5), math.log(5.0), steps // 6 + 2)) / STEP_S
        place = np.searchsorted(np.cumsum(kept), np.arange(steps) + random.uniform(0, kept[0]), side="right")
        return np.asarray(random.standard_normal(len(kept) + 1)[place])
    if kind == "waves":
        periods, phases = random.uniform(60, 300, 3) / STEP_S, random.uniform(0, 1, 3)
        angles = 2 * math.pi * (np.arange(steps)[:, None] / periods + phases)
        return np.asarray(math.sqrt(2 / 3) * np.sin(angles).sum(axis=1))
    if kind == "trend":
        return np.linspace(-0.1, 0.1, steps) / DRIFT
    return machine(random, steps, float(kind.removeprefix("ρ ")))


def runs(random: np.random.Generator, n: int, column: float | str, tail: str, sigma: float = SIGMA) -> Array:
    """Times of n runs of one request, median 1 without the tail."""
    found = np.exp(sigma * machine(random, n, column))
    if tail == "heavy":
        slow = 1.1 + 0.3 * (1 + random.pareto(2.5, n))
        found = np.where(random.random(n) < 0.03, found * slow, found)
    return np.asarray(found)


@cache
def truth(tail: str) -> tuple[Array, float]:
    """Many independent runs, sorted, and their mean."""
    many = np.sort(runs(np.random.default_rng(1), 1_000_000, 0.0, tail))
    return many, float(many.mean())


def true_quantile(tail: str, q: float) -> float:
    """Of independent runs."""
    return float(np.quantile(truth(tail)[0], q))


# The method before: every run is independent. Kept for the comparison.


@cache
def old_ranks(n: int, q: float) -> tuple[int, int]:
    """Places of the order statistics that enclose a quantile of n independent values."""
    return int(stats.binom.ppf(0.025, n, q)), int(stats.binom.isf(0.025, n, q)) + 1


def old_ends(values: Array, q: float) -> tuple[float, float] | None:
    """Order statistics of n independent values."""
    n = len(values)
    if n < math.log(0.025) / math.log(max(q, 1 - q)):
        return None
    low, high = old_ranks(n, q)
    ordered = np.sort(values)
    return (float(ordered[low - 1]), float(ordered[high - 1])) if low >= 1 and high <= n else None


def old_share(part: Array, whole: Array) -> tuple[float, float]:
    """Ratio of sums with independent errors."""
    share, n = part.sum() / whole.sum(), len(part)
    spread = math.sqrt(n / (n - 1) * float(np.square(part - share * whole).sum())) / whole.sum()
    stretch = math.exp(float(stats.t.ppf(0.975, n - 1)) * spread / share)
    return share / stretch, share * stretch


def old_ratio(values: Array, q: float, random: np.random.Generator) -> tuple[float, float]:
    """Bootstrap of the quantile over the median."""
    drawn = random.choice(values, (300, len(values)))
    upper, middle = np.quantile(drawn, (q, 0.5), axis=1)
    low, high = np.quantile(upper / middle, (0.025, 0.975))
    return float(low), float(high)


def old_halves(first: Array, second: Array) -> bool:
    """Whether the intervals of two medians, squared and added, exclude a ratio of 1."""
    a, b = old_ends(first, 0.5), old_ends(second, 0.5)
    if a is None or b is None:
        return False
    base, top = float(np.median(first)), float(np.median(second))
    down = math.hypot(math.log(top / b[0]), math.log(a[1] / base))
    up = math.hypot(math.log(b[1] / top), math.log(base / a[0]))
    ratio = top / base
    return not ratio * math.exp(-down) <= 1 <= ratio * math.exp(up) and abs(ratio - 1) > TOLERANCE


def old_sweep(times: Array, later: NDArray[np.bool_], codes: NDArray[np.int64]) -> bool:
    """Student's t over the points' ratios of medians."""
    kinds = int(codes.max()) + 1
    logs = np.array(
        [
            math.log(np.median(times[later & (codes == k)]) / np.median(times[~later & (codes == k)]))
            for k in range(kinds)
        ]
    )
    reach = float(stats.t.ppf(0.975, kinds - 1)) * logs.std(ddof=1) / math.sqrt(kinds)
    return bool(abs(logs.mean()) > reach and abs(math.exp(logs.mean()) - 1) > TOLERANCE)


def old_slope(fit: Fit) -> tuple[float, float]:
    """The wider of HC3 and the point jackknife."""
    found = [fit.estimate([0, 1], method=name) for name in ("HC3", "point jackknife")]
    widest = max(found, key=lambda one: one.high - one.value)
    return widest.low, widest.high


def old_within(held: NDArray[np.bool_]) -> tuple[float, float]:
    """Wilson's interval of a share of independent requests."""
    found = stats.binomtest(int(held.sum()), len(held)).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


# Coverage


def counted(table: str, row: str, column: float | str, old: Sequence[bool | None], new: Sequence[bool | None]) -> Cell:
    """A cell from one truth value a trial; None where no interval was given."""
    before, after = ([hit for hit in side if hit is not None] for side in (old, new))
    return Cell(
        table=table,
        row=row,
        column=column,
        before=float(np.mean(before)) if before else math.nan,
        after=float(np.mean(after)) if after else math.nan,
        answered=len(after) / len(new),
    )


def holds(ends: tuple[float | None, float | None] | None, value: float) -> bool | None:
    """Whether an interval holds a value; None without an interval."""
    if ends is None or ends[0] is None or ends[1] is None:
        return None
    return ends[0] <= value <= ends[1]


def of_quantiles(plan: Plan) -> Iterator[Cell]:
    """Median, P90, P95, P99 of one request repeated."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        for n in counts:
            qs = [q for q in (0.5, 0.9, 0.95, 0.99) if n >= math.log(0.025) / math.log(q)]
            for column in columns:
                old: dict[float, list[bool | None]] = {q: [] for q in qs}
                new: dict[float, list[bool | None]] = {q: [] for q in qs}
                for _ in range(trials):
                    times = runs(random, n, column, tail)
                    for q, found in zip(qs, quantiles(times, qs), strict=True):
                        value = true_quantile(tail, q)
                        if len(old[q]) < BEFORE:
                            old[q].append(holds(old_ends(times, q), value))
                        new[q].append(holds((found.low, found.high), value))
                for q in qs:
                    yield counted("coverage", f"P{100 * q:g}, n {n}, {tail}", column, old[q], new[q])


HEAP, APART = 0.15, 0.4
"""Share of the runs that lie in a heap of their own, and how long these take."""


def of_heaps(plan: Plan) -> Iterator[Cell]:
    """The median of runs in two heaps, of which the larger depends on the machine's state."""
    trials, random, columns, counts = plan
    value = math.exp(0.02 * float(stats.norm.ppf((0.5 - HEAP) / (1 - HEAP))))
    for n in (n for n in counts if n >= 100):
        for column in columns:
            old, new = [], []
            for _ in range(trials):
                times = np.where(random.random(n) < HEAP, APART, runs(random, n, column, "lognormal", sigma=0.02))
                if len(old) < BEFORE:
                    old.append(holds(old_ends(times, 0.5), value))
                found = median(times)
                new.append(holds((found.low, found.high), value))
            yield counted("coverage", f"P50, n {n}, two heaps", column, old, new)


def of_ratios(plan: Plan) -> Iterator[Cell]:
    """A percentile over the median."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        values = {q: true_quantile(tail, q) / true_quantile(tail, 0.5) for q in (0.9, 0.95, 0.99)}
        for n in (n for n in counts if n >= 100):
            qs = [q for q in values if n >= needed(q)]
            for column in columns:
                old: dict[float, list[bool | None]] = {q: [] for q in qs}
                new: dict[float, list[bool | None]] = {q: [] for q in qs}
                for _ in range(trials):
                    times = runs(random, n, column, tail)
                    for q in qs:
                        found = ratio_of_quantiles(times, q)
                        if len(old[q]) < BEFORE:
                            old[q].append(holds(old_ratio(times, q, random), values[q]))
                        new[q].append(holds((found.low, found.high), values[q]))
                for q in qs:
                    yield counted("coverage", f"P{100 * q:g}/P50, n {n}, {tail}", column, old[q], new[q])


def of_shares(plan: Plan) -> Iterator[Cell]:
    """Share of one stage (30 %) whose noise is its own; 2 % and 98 % over requests of all lengths, which may drift."""
    trials, random, columns, counts = plan
    for value, kind in (
        (0.3, "share"),
        (0.02, "share of 2%, unlike requests"),
        (0.98, "share of 98%, unlike requests"),
        (0.02, "share of 2%, workload drifts"),
    ):
        for tail in TAILS:
            for n in counts:
                for column in columns:
                    old, new = [], []
                    for _ in range(trials):
                        sizes = np.ones((2, n))
                        if kind.endswith("unlike requests"):
                            sizes = np.exp(random.standard_normal((2, n)))
                        elif kind.endswith("drifts"):
                            sizes = np.exp([machine(random, n, column) for _ in range(2)])
                        part = value * sizes[0] * runs(random, n, column, tail)
                        whole = part + (1 - value) * sizes[1] * runs(random, n, column, tail)
                        found = ratio_of_sums(part, whole)
                        if len(old) < BEFORE:
                            old.append(holds(old_share(part, whole), value))
                        new.append(holds((found.low, found.high), value))
                    yield counted("coverage", f"{kind}, n {n}, {tail}", column, old, new)


def of_gaps(plan: Plan) -> Iterator[Cell]:
    """Quantiles of the gaps between 32 tokens: ``between`` is the requests' part of their variance."""
    trials, random, columns, counts = plan
    sigma, tokens = 0.1, 32
    for between in (0.2, 0.8):
        many = np.exp(sigma * random.standard_normal(2_000_000))
        many = np.where(random.random(len(many)) < 0.01, 1.8 * many, many)
        for n in counts:
            qs = [q for q in (0.5, 0.9, 0.95, 0.99) if n >= math.log(0.025) / math.log(q)]
            codes = np.repeat(np.arange(n), tokens)
            values = {q: float(np.quantile(many, q)) for q in qs}
            for column in columns:
                old: dict[float, list[bool | None]] = {q: [] for q in qs}
                new: dict[float, list[bool | None]] = {q: [] for q in qs}
                for _ in range(trials if n <= 100 else max(trials // 2, 1)):
                    state = math.sqrt(between) * machine(random, n, column)[codes]
                    gaps = np.exp(sigma * (state + math.sqrt(1 - between) * random.standard_normal(len(codes))))
                    gaps = np.where(random.random(len(gaps)) < 0.01, 1.8 * gaps, gaps)
                    drawn = None
                    if n <= 100 and len(old[0.5]) < BEFORE:
                        picked = gaps.reshape(n, tokens)[random.integers(n, size=(80, n))].reshape(80, -1)
                        drawn = np.quantile(picked, qs, axis=1)
                    for place, (q, found) in enumerate(zip(qs, quantiles(gaps, qs, clusters=codes), strict=True)):
                        if drawn is not None:
                            ends = np.quantile(drawn[place], (0.025, 0.975))
                            old[q].append(holds((float(ends[0]), float(ends[1])), values[q]))
                        new[q].append(holds((found.low, found.high), values[q]))
                for q in qs:
                    row = f"ITL P{100 * q:g}, {n} requests, between {between:g}"
                    yield counted("coverage", row, column, old[q], new[q])


SWEEPS = {
    "576 … 3,456 vision tokens": (576, 1152, 1728, 2304, 2880, 3456),
    "8 … 256 output tokens": (8, 16, 32, 64, 128, 256),
}


def swept(
    random: np.random.Generator, points: Sequence[int], repeats: int, column: float | str, tail: str
) -> tuple[Array, Array]:
    """Counts and times of an interleaved sweep: 20 ms and half a millisecond a token."""
    order = np.concatenate([random.permutation(len(points)) for _ in range(repeats)])
    x = np.asarray(points, dtype=float)[order]
    return x, (20 + 0.5 * x) * runs(random, len(x), column, tail)


def of_slopes(plan: Plan) -> Iterator[Cell]:
    """Slopes of six-point sweeps on raw runs."""
    trials, random, columns, counts = plan
    for name, points in SWEEPS.items():
        for tail in TAILS:
            value = 0.5 * truth(tail)[1]
            for repeats in (5, 15) if len(counts) > 1 else (15,):
                for column in columns:
                    old, new = [], []
                    for _ in range(trials):
                        x, y = swept(random, points, repeats, column, tail)
                        fit = least_squares(np.column_stack([np.ones_like(x), x]), y, x)
                        slope = fit.estimate([0, 1])
                        old.append(holds(old_slope(fit), value))
                        new.append(holds((slope.low, slope.high), value))
                    yield counted("coverage", f"slope, {name} × {repeats}, {tail}", column, old, new)
        for column in columns:
            old, new = [], []
            for _ in range(trials):
                x, y = swept(random, points, 15, column, "lognormal")
                off = np.exp(SIGMA * random.standard_normal(len(points)))
                fit = least_squares(np.column_stack([np.ones_like(x), x]), y * off[np.searchsorted(points, x)], x)
                slope, plain = fit.estimate([0, 1]), fit.estimate([0, 1], method="HC3")
                value = 0.5 * truth("lognormal")[1] ** 2
                old.append(holds((plain.low, plain.high), value))
                new.append(holds((slope.low, slope.high), value))
            yield counted("coverage", f"slope, {name} × 15, points off the line by 5 %", column, old, new)


def of_slope_ratios(plan: Plan) -> Iterator[Cell]:
    """Fieller's ratio of the slopes of two sweeps."""
    trials, random, columns, _ = plan
    for tail in TAILS:
        for column in columns:
            old, new = [], []
            for _ in range(trials):
                fits = []
                for points in SWEEPS.values():
                    x, y = swept(random, points, 10, column, tail)
                    fits.append(least_squares(np.column_stack([np.ones_like(x), x]), y, x))
                both = [fit.estimate([0, 1]) for fit in fits]
                plain = [
                    max((fit.estimate([0, 1], method=m) for m in ("HC3", "point jackknife")), key=lambda e: e.high)
                    for fit in fits
                ]
                found, without = fieller(both[1], both[0]), fieller(plain[1], plain[0])
                new.append(holds((found.low, found.high), 1.0))
                old.append(holds((without.low, without.high), 1.0))
            yield counted("coverage", f"ratio of two slopes, {tail}", column, old, new)


def of_launch(plan: Plan) -> Iterator[Cell]:
    """Share of waiting (65 %) from few traces beside 200 untraced runs."""
    trials, random, columns, counts = plan
    n = 200 if len(counts) > 1 else 100
    for traces in (1, 3, 5, 10) if len(counts) > 1 else (3,):
        for busy in (0.005, 0.02, 0.05):
            for column in columns:
                old, new = [], []
                for _ in range(max(trials // 4, 1)):
                    times = 100 * runs(random, n, column, "lognormal")
                    worked = 35 * np.exp(busy * random.standard_normal(traces))
                    ends = old_ends(times, 0.5)
                    assert ends is not None
                    old.append(holds((1 - worked.mean() / ends[0], 1 - worked.mean() / ends[1]), 0.65))
                    row = launch_table(traced(times, worked)).iloc[0]
                    low, high = row["launch_bound_low"], row["launch_bound_high"]
                    new.append(None if pd.isna(low) or pd.isna(high) else holds((low, high), 0.65))
                yield counted("coverage", f"launch bound, {traces} traces, busy ± {100 * busy:g} %", column, old, new)


def traced(times: Array, worked: Array) -> pd.DataFrame:
    """Rows of one request: untraced runs and traces of their busy time."""
    n, k = len(times), len(worked)
    return pd.DataFrame(
        {
            "status": "ok",
            "mode": ["instrumented"] * n + ["trace"] * k,
            "point_id": "p",
            "sample_id": "s",
            "T_total": np.concatenate([times, np.full(k, 120.0)]),
            "busy_total": np.concatenate([np.full(n, np.nan), worked]),
            "num_output_tokens": 1.0,
        }
    )


def of_pairs(plan: Plan) -> Iterator[Cell]:
    """The instrument's own cost: bare and instrumented runs in turn, 0.2 % slower, position effect 2 %."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        for n in (n for n in counts if n >= 100):
            for column in columns:
                old, new = [], []
                for _ in range(trials):
                    times = runs(random, 2 * n, column, tail).reshape(n, 2)
                    turn = np.arange(n) % 2
                    times[np.arange(n), 1] *= 1.02
                    ratio = 1.002 * times[np.arange(n), turn] / times[np.arange(n), 1 - turn]
                    found = median(ratio)
                    if len(old) < BEFORE:
                        old.append(holds(old_ends(ratio, 0.5), 1.002))
                    new.append(holds((found.low, found.high), 1.002))
                yield counted("coverage", f"paired overhead, {n} pairs, {tail}", column, old, new)


def of_savings(plan: Plan) -> Iterator[Cell]:
    """What a method saves (20 of 100 ms): the median of paired differences of neighbouring runs."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        for column in columns:
            many = runs(np.random.default_rng(4), 1_000_000, column, tail).reshape(-1, 2)
            value = float(np.median(100 * many[:, 0] - 80 * many[:, 1]))
            for n in counts:
                new = []
                for _ in range(trials):
                    times = runs(random, 2 * n, column, tail).reshape(n, 2)
                    turn = random.integers(2, size=n)
                    found = median(100 * times[np.arange(n), turn] - 80 * times[np.arange(n), 1 - turn])
                    new.append(holds((found.low, found.high), value))
                yield counted("coverage", f"saving of a method, {n} pairs, {tail}", column, [None], new)


def of_loads(plan: Plan) -> Iterator[Cell]:
    """What a server gives: answers a second (tokens: as many times these), and shares within the true P90 and P99."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        for n in (n for n in counts if n >= 100):
            limits = {q: true_quantile(tail, q) for q in (0.9, 0.99)}
            for column in columns:
                speed: dict[str, list[bool | None]] = {}
                within: dict[float, list[bool | None]] = {q: [] for q in limits}
                alone: dict[float, list[bool | None]] = {q: [] for q in limits}
                for _ in range(trials):
                    times = runs(random, n, column, tail)
                    for users in (1, 16):
                        given, _tokens = rates(closed_loop(random, n, column, tail, users), "load", closed=True)
                        rate = closed_loop_rate(tail, column, users)
                        speed.setdefault(f"users {users}", []).append(holds((given.low, given.high), rate))
                    given, _tokens = rates(loaded(times, np.cumsum(random.exponential(0.1, n))), "load", closed=False)
                    speed.setdefault("arrivals at random", []).append(holds((given.low, given.high), 10))
                    for q, limit in limits.items():
                        share = share_within(times <= limit, times)
                        within[q].append(holds((share.low, share.high), q))
                        if len(alone[q]) < BEFORE:
                            alone[q].append(holds(old_within(times <= limit), q))
                for name, of_rate in speed.items():
                    yield counted("coverage", f"load: answers a second, {name}, n {n}, {tail}", column, [None], of_rate)
                for q, of_share in within.items():
                    row = f"load: share within a limit ({q:.0%}), n {n}, {tail}"
                    yield counted("coverage", row, column, alone[q], of_share)


def closed_loop(random: np.random.Generator, n: int, column: float | str, tail: str, users: int) -> pd.DataFrame:
    """Rows of users who begin together and wait for each answer, one second on average: n measured, then fillers."""
    many = n + 2 * users
    times = runs(random, many, column, tail)
    free, due = np.zeros(users), np.empty(many)
    for i in range(many):
        user = int(free.argmin())
        due[i] = free[user]
        free[user] += times[i]
    frame = loaded(times, due)
    frame.loc[n:, "status"] = "warmup"
    return frame


@cache
def closed_loop_rate(tail: str, column: float | str, users: int) -> float:
    """Answers a second of a load that lasts."""
    frame = closed_loop(np.random.default_rng(2), 300_000, column, tail, users)
    measured = frame[frame["status"] == "ok"]
    return len(measured) / float(measured["due_s"].max())


def loaded(times: Array, due: Array) -> pd.DataFrame:
    """Rows of requests, s: when they were due and what they took; two tokens each, the first at half of it."""
    return pd.DataFrame(
        {
            "status": "ok", "point_id": "load", "session": 0, "load_number": 0, "num_output_tokens": 2.0,
            "due_s": due, "TTFT": 500 * times, "T_end": 1e3 * times, "T_request": 1e3 * times,
        }
    )  # fmt: skip


def of_predictions(plan: Plan) -> Iterator[Cell]:
    """A latency model of a sweep (nine points × 20): typical time of a request it has not seen, and one run of it."""
    trials, random, columns, _ = plan
    for tail in TAILS:
        for column in columns:
            typical, single = [], []
            for _ in range(max(trials // 2, 1)):
                order = np.concatenate([random.permutation(9) for _ in range(20)])
                vision, output = np.array([0, 1000, 2000])[order % 3], np.array([2, 17, 33])[order // 3]
                ratio = runs(random, len(order), column, tail)
                prefill, decode = (20 + 0.05 * vision) * ratio, 10 * (output - 1) * ratio
                model = fit_latency_model(
                    {"T_total": prefill + decode, "T_LLM_prefill": prefill, "T_LLM_decode": decode,
                     "num_vision_tokens": vision, "num_prompt_tokens": 50 + 0 * vision, "num_output_tokens": output}
                )  # fmt: skip
                asked = {"vision": 1500, "prompt": 50, "output": 25}
                middle = 20 + 0.05 * 1500 + 240
                one = middle * runs(random, 1, 0.0, tail)[0]
                typical.append(holds(model.interval(**asked, typical=True), middle * true_quantile(tail, 0.5)))
                single.append(holds(model.interval(**asked), one))
            yield counted("coverage", f"prediction of a typical time, {tail}", column, [None], typical)
            yield counted("coverage", f"prediction of one run, {tail}", column, [None], single)


def of_budgets(plan: Plan) -> Iterator[Cell]:
    """A setting whose P95 is a hair beyond the budget: is it said to fit, or a promise of it to be kept?"""
    trials, random, columns, counts = plan
    for tail in TAILS:
        limit = true_quantile(tail, 0.95)
        for n in (n for n in counts if n >= 100):
            for column in columns:
                new = []
                for _ in range(trials):
                    high = quantile(runs(random, n, column, tail), 0.95).high
                    new.append(high is not None and high <= limit)  # as analysis/budget.py judges
                yield counted("alarms", f"budget: P95 beyond it is said to fit, n {n}, {tail}", column, [None], new)


def of_split(plan: Plan) -> Iterator[Cell]:
    """Prompt tokens without any effect beside vision tokens with one: is their share told from none, the other's held?

    Times have 90 % of their variance from vision tokens.
    """
    trials, random, columns, counts = plan
    for n in (n for n in counts if n >= 20):
        for column in columns:
            old, new, held = [], [], []
            for _ in range(max(trials // 4, 1)):
                vision, prompt = random.integers(100, 1000, n).astype(float), random.integers(5, 60, n).astype(float)
                frame = pd.DataFrame(
                    {
                        "status": "ok", "mode": "instrumented", "point_id": "dataset",
                        "sample_id": [f"s{i}" for i in range(n)],
                        "T_total": 100 + vision / 18 + 100 * SIGMA * machine(random, n, column),
                        "num_vision_tokens": vision, "num_prompt_tokens": prompt,
                    }
                )  # fmt: skip
                found = variance_split(frame).set_index("source")
                new.append(bool(found.loc["num_prompt_tokens", "low"] > 0))
                held.append(_held(found.loc["num_vision_tokens"], _share_of_vision()))
                old.append(True)  # a share of R² is never below 0, and no resampling of it either
            yield counted("alarms", f"tail split: share of what has no effect, n {n}", column, old, new)
            yield counted("coverage", f"tail split: share of vision tokens, n {n}", column, [None], held)


def _share_of_vision() -> float:
    """Of counts evenly between 100 and 999, and noise of 100 × SIGMA."""
    of_tokens = (900**2 - 1) / 12 / 18**2
    return of_tokens / (of_tokens + (100 * SIGMA) ** 2)


# Alarms and power


BEST = "A/A, best possible (noise and its dependence known), n {n}"


def best_power(n: int, column: float | str, change: float = math.log(1.05)) -> float:
    """Power of the best test of a step in the middle of n lognormal times: the noise's covariance is known to it."""
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    step = np.column_stack([np.ones(n), np.arange(n) >= n // 2])
    if column == "blocks":
        offsets = [(np.arange(n) + offset) // BLOCK for offset in range(BLOCK)]
        covered = [0.5 * np.equal.outer(place, place) + 0.5 * np.eye(n) for place in offsets]
    elif column == "slow":
        covered = [SLOW * np.exp(-lag / LASTS) + (1 - SLOW) * np.eye(n)]
    else:
        covered = [float(column) ** lag]
    found = []
    for covariance in covered:
        spread = math.sqrt(np.linalg.inv(step.T @ np.linalg.solve(SIGMA**2 * covariance, step))[1, 1])
        found.append(stats.norm.sf(1.96 - change / spread) + stats.norm.cdf(-1.96 - change / spread))
    return float(np.mean(found))


def of_halves(plan: Plan) -> Iterator[Cell]:
    """A/A of one request: first half against second, nothing planted; and a real drift of 5 %."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        for n in (*counts, 140):
            later = np.arange(n) >= n // 2
            for column in columns:
                for table, factor in (("alarms", 1.0), ("power", 1.05)):
                    if (table == "power" and n < 100) or (table == "alarms" and n not in counts):
                        continue
                    old, new, held = [], [], []
                    for _ in range(trials):
                        times = runs(random, n, column, tail) * np.where(later, factor, 1.0)
                        if len(old) < BEFORE:
                            old.append(old_halves(times[~later], times[later]))
                        shift = shift_in_time(times, later, np.zeros(n))
                        new.append(shift.differs())
                        held.append(_inside(shift, factor))
                    yield counted(table, f"A/A, one request, n {n}, {tail}", column, old, new)
                    if table == "alarms":
                        yield counted("coverage", f"ratio of halves, n {n}, {tail}", column, [None], held)
                if n >= 100 and tail == "lognormal" and not str(column).startswith(IN_TURNS):
                    best = best_power(n, column)
                    yield Cell(table="power", row=BEST.format(n=n), column=column, before=math.nan, after=best)
    if not any(str(column).startswith(IN_TURNS) for column in columns):
        yield from of_mixes(plan)


SHARES = np.array([[0.15, 0.28, 0.57], [0.25, 0.40, 0.35]])
"""Of requests of three shapes in each half: 48 and 29 large pictures of 84, as a published run met them."""


def of_mixes(plan: Plan) -> Iterator[Cell]:
    """A/A of a workload whose requests differ in shape, compared within shapes. Before: as if they were of one; of a
    real drift: the same drift where they are of one.
    """
    trials, random, columns, counts = plan
    for kind in ("3 shapes in unlike mix", "n / 4 shapes by chance"):
        for tail in TAILS:
            for n in (n for n in (*counts, 140) if n >= 100):
                later = np.arange(n) >= n // 2
                for column in columns:
                    for table, factor in (("alarms", 1.0), ("power", 1.05)):
                        old, new, held = [], [], []
                        for _ in range(trials):
                            three = (random.random(n)[:, None] > SHARES.cumsum(axis=1)[later.astype(int)]).sum(axis=1)
                            shape = three if kind.startswith("3") else random.integers(n // 4, size=n)
                            times = runs(random, n, column, tail) * np.where(later, factor, 1.0)
                            unlike = np.exp(random.standard_normal(n))[shape] * times
                            both = np.isin(shape, np.intersect1d(shape[later], shape[~later]))
                            seen = unlike if table == "alarms" else times
                            old.append(shift_in_time(seen, later, np.zeros(n), clip=False).differs())
                            shift = shift_within(unlike[both], later[both], shape[both])
                            new.append(shift.differs())
                            held.append(_inside(shift, factor))
                        yield counted(table, f"A/A, {kind}, n {n}, {tail}", column, old, new)
                        if table == "alarms":
                            yield counted("coverage", f"ratio within {kind}, n {n}, {tail}", column, [None], held)


def _inside(shift: Shift, factor: float) -> bool | None:
    return holds((shift.estimate.low, shift.estimate.high), factor)


def of_sweeps(plan: Plan) -> Iterator[Cell]:
    """A/A of interleaved sweeps of two and of six points."""
    trials, random, columns, counts = plan
    sizes = ((2, 10), (2, 50), (6, 6), (6, 10), (6, 30)) if len(counts) > 1 else ((6, 10),)
    for tail in TAILS:
        for points, repeats in sizes:
            for column in columns:
                old, new = [], []
                for _ in range(trials):
                    codes = np.concatenate([random.permutation(points) for _ in range(repeats)])
                    later = np.repeat(np.arange(repeats) >= repeats // 2, points)
                    times = (1.0 + codes) * runs(random, len(codes), column, tail)
                    if len(old) < BEFORE:
                        old.append(old_sweep(times, later, codes))
                    new.append(shift_in_time(times, later, codes).differs())
                yield counted("alarms", f"A/A, sweep of {points} points × {repeats}, {tail}", column, old, new)


PARTS = (1.0, 8.0, 1.0, 20.0, 70.0)


def of_family(plan: Plan) -> Iterator[Cell]:
    """A/A of the whole and five stages: does any raise an alarm? Half of a stage's variance is the machine's."""
    trials, random, columns, counts = plan
    for n in counts:
        later = np.arange(n) >= n // 2
        for column in columns:
            old, new = [], []
            for _ in range(trials):
                stages = staged(random, n, column)
                whole = stages.sum(axis=0)
                if len(old) < BEFORE:
                    old.append(any(old_halves(t[~later], t[later]) for t in (whole, *stages)))
                found = [shift_in_time(t, later, np.zeros(n)) for t in (whole, *stages)]
                corrected = correct_family([shift.p_value for shift in found])
                new.append(any(shift.differs(p) for shift, p in zip(found, corrected, strict=True)))
            yield counted("alarms", f"A/A, whole and five stages, n {n}", column, old, new)


def staged(random: np.random.Generator, n: int, column: float | str, tail: str = "lognormal") -> Array:
    """Times of five stages, shape (5, n); the slow runs of ``heavy`` are each stage's own."""
    common = np.exp(SIGMA * math.sqrt(0.5) * machine(random, n, column))
    return np.stack([part * common * runs(random, n, column, tail, SIGMA * math.sqrt(0.5)) for part in PARTS])


def of_comparisons(plan: Plan) -> Iterator[Cell]:
    """Two runs: of one request, of a data set request by request, of all stages; and a real change of 5 %."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        for n in counts:
            for column in columns:
                for table, factor in (("alarms", 1.0), ("power", 1.05)):
                    if table == "power" and n < 100:
                        continue
                    old, new, paired = [], [], []
                    held: tuple[list[bool | None], list[bool | None]] = ([], [])
                    for _ in range(trials):
                        first, second = (runs(random, n, column, tail) for _ in range(2))
                        size, names = np.exp(random.standard_normal(n)), np.arange(n)
                        if len(old) < BEFORE:
                            old.append(old_halves(first, factor * second))
                        one = shift_between(first, names * 0, factor * second, names * 0)
                        many = shift_between(size * first, names, factor * size * second, names)
                        new.append(one.differs())
                        paired.append(many.differs())
                        for hits, shift in zip(held, (one, many), strict=True):
                            hits.append(_inside(shift, factor))
                    kinds = (f"two runs of one request, n {n} each, {tail}", f"two runs of {n} requests, {tail}")
                    yield counted(table, kinds[0], column, old, new)
                    yield counted(table, kinds[1], column, [None], paired)
                    if table == "alarms":
                        for kind, hits in zip(kinds, held, strict=True):
                            yield counted("coverage", f"ratio of {kind}", column, [None], hits)
    for n in counts:
        for column in columns:
            old, new = [], []
            for _ in range(trials):
                first, second = staged(random, n, column), staged(random, n, column)
                pairs = [*zip(first, second, strict=True), (first.sum(axis=0), second.sum(axis=0))]
                if len(old) < BEFORE:
                    old.append(any(old_halves(a, b) for a, b in pairs))
                found = [shift_between(a, np.zeros(n), b, np.zeros(n)) for a, b in pairs]
                corrected = holm([shift.p_value for shift in found])
                new.append(any(s.differs(p) for s, p in zip(found, corrected, strict=True)))
            yield counted("alarms", f"two runs, whole and five stages, n {n} each", column, old, new)


def of_orders(plan: Plan) -> Iterator[Cell]:
    """Two runs of the same requests, each in an order of its own."""
    trials, random, columns, counts = plan
    for n in (n for n in counts if n >= 100):
        for column in columns:
            alarms, inside = [], []
            for _ in range(trials):
                first, second = (runs(random, n, column, "lognormal") for _ in range(2))
                shift = shift_between(first, np.arange(n), second, random.permutation(n))
                alarms.append(shift.differs())
                inside.append(_inside(shift, 1.0))
            yield counted("alarms", f"two runs of {n} requests in unlike orders", column, [None], alarms)
            yield counted("coverage", f"ratio of two runs of {n} requests in unlike orders", column, [None], inside)


def of_machines(plan: Plan) -> Iterator[Cell]:
    """Two processes with the fixed calculation beside their runs (± 5 %): on one machine that keeps still, and on one
    whose speed differs by some 10 % from process to process which stages follow to the power of 0 to
    1.5. ``before`` knows nothing of the machine.
    """
    trials, random, columns, counts = plan
    for n in counts:
        for column in columns:
            for table, spread, factor in (
                ("alarms", 0.0, 1.0), ("alarms", 0.1, 1.0), ("power", 0.0, 1.05), ("power", 0.0, 1.1),
            ):  # fmt: skip
                old, new = [], []
                for _ in range(max(trials // 4, 1)):
                    sides = [
                        beside_yardstick(random, n, column, math.exp(spread * random.standard_normal()), code)
                        for code in (1.0, factor)
                    ]
                    for found, same in ((old, False), (new, True)):
                        told = compare(sides[0], sides[1], STAGES, same_machine=same).changes.values()
                        found.append(any(one.change in (Change.FASTER, Change.SLOWER) for one in told))
                words = f"speed ± {100 * spread:g} %" if spread else "machine keeps still"
                size = f", + {100 * (factor - 1):.0f} %" if table == "power" else ""
                yield counted(table, f"two processes, {words}, n {n} each{size}", column, old, new)


def beside_yardstick(
    random: np.random.Generator, n: int, column: float | str, machine_takes: float, code: float
) -> pd.DataFrame:
    """Rows of a process whose machine takes so much longer than another; ``code`` multiplies the largest stage."""
    times = staged(random, n, column) * (machine_takes ** np.array([0.0, 0.5, 1.0, 1.0, 1.5]))[:, None]
    times[-1] *= code
    beside = 0.2 * machine_takes * runs(random, n, column, "lognormal")
    table = {**_requests(n), "yardstick_ms": beside, **dict(zip(STAGES, times, strict=True))}
    return pd.DataFrame({**table, "T_total": times.sum(axis=0), "thread_waited_ms": 0.0})


DRIFT, OWN = 0.06, 0.03
SHARED = ("levels", "waves", "trend", "ρ 0.8", "ρ 0.95")


def of_turns(plan: Plan) -> Iterator[Cell]:
    """One process that takes turns: its intervals; two of them: false alarms and power, beside the same in sequence."""
    alone = plan._replace(columns=[f"{IN_TURNS}{kind}" for kind in ("levels", "ρ 0.8", "ρ 0.95")])
    for question in (of_quantiles, of_shares, of_slopes, of_halves):
        for cell in question(alone):
            if cell.table != "power":
                yield replace(cell, table=f"turns_{cell.table}")
    trials, random, _, counts = plan
    for kind in SHARED:
        for work in ("one request", "a data set", "a sweep of five points"):
            for n in (n for n in counts if n >= 20):
                for table, factor in (("pairs_alarms", 1.0), ("pairs_power", 1.02), ("pairs_power", 1.05)):
                    if table == "pairs_power" and n < 100:
                        continue
                    found, held = [], []
                    for _ in range(trials):
                        both = [taken(random, n, kind, work, factor, in_turns=way) for way in (False, True)]
                        found.append([shift.differs() for shift in both])
                        held.append([_inside(shift, factor) for shift in both])
                    row = f"{work}, n {n} each" + (f", + {100 * (factor - 1):.0f} %" if factor > 1 else "")
                    yield counted(table, row, kind, *zip(*found, strict=True))
                    if table == "pairs_alarms":
                        yield counted("pairs_coverage", f"ratio of {row}", kind, *zip(*held, strict=True))


def there_and_back(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The turn of each run of two processes: A B B A."""
    rounds = np.arange(n) // TURN
    return 2 * rounds + rounds % 2, 2 * rounds + 1 - rounds % 2


def taken(random: np.random.Generator, n: int, kind: str, work: str, factor: float, *, in_turns: bool) -> Shift:
    """The comparison of two processes whose second takes ``factor`` times as long; in sequence, ten seconds apart."""
    place, turns = np.arange(n), there_and_back(n)
    at = [TURN * turn + place % TURN for turn in turns] if in_turns else [place, n + 125 + place]
    state = drift(random, int(max(map(max, at))) + 1, kind)
    names = {"one request": place * 0, "a data set": place}.get(work, np.argsort(random.random((n // 5, 5))).ravel())
    size = np.exp(random.standard_normal(n))[names]
    first, second = (size * np.exp(DRIFT * state[when] + OWN * random.standard_normal(n)) for when in at)
    if not in_turns:
        return shift_between(first, names, factor * second, names)
    ours, theirs = partners(turns[0], names, turns[1], names)
    return shift_in_turns(first[ours], factor * second[theirs], names[ours])


STAGES = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode")


def of_variance(plan: Plan) -> Iterator[Cell]:
    """Shares of a variance: of the largest of five stages, of the shape of requests, of the thread's processor time."""
    trials, random, columns, counts = plan
    for tail in TAILS:
        for n in counts:
            for column in columns:
                hits: dict[str, list[bool | None]] = {"decode": [], "shape": [], "processor": []}
                for _ in range(max(trials // 2, 1)):
                    stages = staged(random, n, column, tail)
                    table = pd.DataFrame({**_requests(n), **dict(zip(STAGES, stages, strict=True))})
                    table["T_total"] = stages.sum(axis=0)
                    parts = variance_parts(table, "T_total", STAGES).set_index("part")
                    hits["decode"].append(_held(parts.loc["T_LLM_decode"], _share_of_stage(tail)))
                    sources = variance_sources(shaped(random, n, column, tail)).set_index("source")
                    hits["shape"].append(_held(sources.loc["workload"], _shares_of_shape(tail)[0]))
                    hits["processor"].append(_held(sources.loc["host_speed"], _shares_of_shape(tail)[1]))
                for name, held in hits.items():
                    yield counted("coverage", f"variance: share of {name}, n {n}, {tail}", column, [None], held)


def _requests(n: int) -> dict[str, object]:
    return {"status": "ok", "mode": "instrumented", "point_id": "dataset", "sample_id": [f"s{i}" for i in range(n)]}


def shaped(random: np.random.Generator, n: int, column: float | str, tail: str) -> pd.DataFrame:
    """Requests of ten sizes, 60 ms on the processor and 40 ms off it, each with noise of its own."""
    vision = random.choice(np.arange(1, 11) * 100, n).astype(float)
    size = 1 + vision / 5000
    on, off = 60 * size * runs(random, n, column, tail), 40 * runs(random, n, column, tail)
    return pd.DataFrame({**_requests(n), "num_vision_tokens": vision, "thread_cpu_ms": on, "T_total": on + off})


@cache
def _share_of_stage(tail: str) -> float:
    """Of the last of the stages, from many independent runs."""
    stages = staged(np.random.default_rng(2), 2_000_000, 0.0, tail)
    whole = stages.sum(axis=0)
    return float(np.cov(stages[-1], whole)[0, 1] / whole.var())


@cache
def _shares_of_shape(tail: str) -> tuple[float, float]:
    """Of the shape, and of the processor time in what it leaves, from many independent runs."""
    rows = shaped(np.random.default_rng(3), 2_000_000, 0.0, tail)
    rest = rows[["T_total", "thread_cpu_ms"]] - rows.groupby("num_vision_tokens")[
        ["T_total", "thread_cpu_ms"]
    ].transform("mean")
    shape = 1 - float(rest["T_total"].var() / rows["T_total"].var())
    return shape, float(rest.cov().loc["T_total", "thread_cpu_ms"] / rows["T_total"].var())


def _held(row: pd.Series, value: float) -> bool | None:
    return None if pd.isna(row["low"]) else bool(row["low"] <= value <= row["high"])


QUESTIONS: dict[str, Callable[[Plan], Iterator[Cell]]] = {
    "quantiles": of_quantiles,
    "ratios": of_ratios,
    "shares": of_shares,
    "gaps": of_gaps,
    "slopes": of_slopes,
    "slope_ratios": of_slope_ratios,
    "launch": of_launch,
    "pairs": of_pairs,
    "halves": of_halves,
    "sweeps": of_sweeps,
    "family": of_family,
    "comparisons": of_comparisons,
    "machines": of_machines,
    "split": of_split,
    "variance": of_variance,
    "savings": of_savings,
    "loads": of_loads,
    "predictions": of_predictions,
    "budgets": of_budgets,
    "turns": of_turns,
    "heaps": of_heaps,
    "orders": of_orders,
}
TITLES = {
    "coverage": "Share of 95 % intervals that hold the truth: before → after (share that was given an interval)",
    "alarms": "Alarms where there is nothing (nominal at most 0.05): before → after",
    "power": "A real change of 5 % found: before → after",
    "turns_coverage": "One process that takes turns. Share of 95 % intervals that hold the truth: before → after",
    "turns_alarms": "One process that takes turns, alarms where there is nothing: before → after",
    "pairs_coverage": "Two processes. Share of 95 % intervals that hold the truth: in sequence → in turns",
    "pairs_alarms": "Two processes, alarms where there is nothing: in sequence → in turns",
    "pairs_power": "Two processes, a real change found: in sequence → in turns",
}


def simulate(
    trials: int,
    only: Sequence[str] = tuple(QUESTIONS),
    columns: Sequence[float | str] = COLUMNS,
    counts: Sequence[int] = (20, 100, 400),
) -> list[Cell]:
    """All cells of the chosen questions; the same for the same arguments."""
    return [
        cell
        for number, (name, question) in enumerate(QUESTIONS.items())
        if name in only
        for cell in question(Plan(trials, np.random.default_rng(100 + number), columns, counts))
    ]


def as_markdown(cells: Sequence[Cell]) -> str:
    """One table for coverage, one for alarms, one for power."""
    said = []
    for table, title in TITLES.items():
        here = [cell for cell in cells if cell.table == table]
        if not here:
            continue
        columns = list(dict.fromkeys(cell.column for cell in here))
        heads = [_head(column) for column in columns]
        said += ["", f"**{title}**", "", f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        for row in dict.fromkeys(cell.row for cell in here):
            by_column = {cell.column: _shown(cell) for cell in here if cell.row == row}
            said.append(f"| {row} | {' | '.join(by_column.get(column, '') for column in columns)} |")
        said += ["", _worst(table, here)]
    return "\n".join(said).strip()


def _shown(cell: Cell) -> str:
    before = "–" if math.isnan(cell.before) else f"{cell.before:.2f}"
    after = "–" if math.isnan(cell.after) else f"{cell.after:.2f}"
    return f"{before} → {after}" + (f" ({cell.answered:.2f})" if cell.answered < 0.995 else "")


def _worst(table: str, cells: Sequence[Cell]) -> str:
    """What the table says in a line or two; coverage over cells where at least half were given an interval."""
    table = table.rpartition("_")[2]
    kept = [c for c in cells if c.answered >= 0.5] if table == "coverage" else list(cells)
    after, before = (
        [getattr(c, side) for c in kept if not math.isnan(getattr(c, side))] for side in ("after", "before")
    )
    sides = [side for side in (before, after) if side]
    middle = " → ".join(f"{np.mean(side):.3f}" for side in sides)
    ends = " → ".join(f"{min(side):.2f}–{max(side):.2f}" for side in sides)
    said = f"Mean {middle}, range {ends}, {len(kept)} cells{' where at least half' if table == 'coverage' else ''}"
    if table == "alarms":
        return f"{said}; {sum(value > 0.07 for value in after)} above 0.07."
    if table == "power":
        return f"{said}."
    beyond = [c for c in kept if not 0.90 <= c.after <= 0.99]
    listed = "; ".join(f"{c.row}, {_head(c.column)}: {c.after:.3f}" for c in beyond[:40])
    wrong = max(cells, key=lambda c: c.wrong)
    listed = f" ({listed})" if listed else ""
    return (
        f"{said} were given an interval; {len(beyond)} of them outside 0.90 to 0.99{listed}. Of all {len(cells)} "
        f"cells, the largest share of simulations with an interval that misses is {wrong.wrong:.3f} ({wrong.row}, "
        f"{_head(wrong.column)})."
    )


def _head(column: float | str) -> str:
    return column if isinstance(column, str) else f"ρ {column:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400, help="simulations a cell (half where one is dear)")
    parser.add_argument("--only", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS), metavar="QUESTION")
    chosen = parser.parse_args(arguments)
    started = time.process_time()
    print(as_markdown(simulate(chosen.trials, chosen.only)))
    error = math.sqrt(0.95 * 0.05 / chosen.trials)
    took = f"{time.process_time() - started:.0f} s of processor time"
    print(f"\n{chosen.trials} simulations a cell (error of a share of 0.95: ±{error:.3f}), {took}.")


if __name__ == "__main__":
    main()

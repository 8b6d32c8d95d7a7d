"""Why requests differ: what tokens explain, what is left as jitter, and why the slowest were slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations, compress, pairwise
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import hypergeom

from vlmbench.analysis.frames import is_cause, reference, sample_codes, values, workload
from vlmbench.analysis.launch_bound import time_is_host
from vlmbench.analysis.quantiles import quantile
from vlmbench.analysis.ratios import on_log_odds
from vlmbench.analysis.variance import ABSENCE, SPEED, Shape, reach_of_sum
from vlmbench.schema import HOST_PARTS, TOTAL, TOTAL_PARTS

# Which flags of runs are a cause of their being slow: those that slow runs carry clearly more often than the rest.

LEVEL = 0.05
COLUMNS = ["flag", "slow", "slow_runs", "all", "runs", "p", "cause"]


def flag_causes(flags: Sequence[str], slow: NDArray[np.bool_]) -> pd.DataFrame:
    """How often each flag that may be a cause stands on slow runs and on all runs.

    Args:
        flags: of each run, names joined by spaces.
        slow: whether each run is one of the slow, shape (runs,).

    Returns:
        One row a flag that some slow run carries, the commonest among them first: ``flag``; ``slow`` of ``slow_runs``
        carry it, ``all`` of ``runs`` do; ``p``: the chance of at least so many among the slow, were they drawn from
        all runs blindly (Fisher's exact test, one-sided); ``cause``: whether that is too small to be chance.
    """
    everywhere, here = _carriers(flags), _carriers(compress(flags, slow))
    runs, slow_runs = len(flags), int(np.sum(slow))
    rows = []
    for flag in sorted(here):
        p = float(hypergeom.sf(here[flag] - 1, runs, everywhere[flag], slow_runs))
        rows.append((flag, here[flag], slow_runs, everywhere[flag], runs, p, p <= LEVEL / len(here)))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["slow", "p"], ascending=[False, True], kind="stable", ignore_index=True)


def _carriers(flags: Iterable[str]) -> Counter[str]:
    """How many runs carry each flag that may be a cause."""
    found: Counter[str] = Counter()
    for text, runs in Counter(flags).items():
        found.update(dict.fromkeys(filter(is_cause, text.split()), runs))
    return found


def shares(row: Mapping[str, Any]) -> str:
    """``12 of 20 slow, 15 of 200 overall``.

    Args:
        row: of :func:`flag_causes`, as a mapping.
    """
    return f"{row['slow']:,} of {row['slow_runs']:,} slow, {row['all']:,} of {row['runs']:,} overall"


PREDICTORS: tuple[str, ...] = ("num_vision_tokens", "num_prompt_tokens", "num_output_tokens")
LEAST_RUNS = 20  # fewer leave the share of three predictors to chance
LEAST_SAMPLES = 10  # an adjusted R² of three predictors needs some to spare
_GROUPS = 400  # of neighbouring samples; fewer samples stand alone
_OTHERS = 3  # runs of a shape whose mean predicts another one


def _design(rows: pd.DataFrame, metric: str) -> tuple[NDArray[np.float64], list[str], NDArray[np.bool_]]:
    """(1, tokens …, time) of the runs that have all, the names of the token columns that vary, and which runs."""
    present = [name for name in PREDICTORS if not np.isnan(values(rows, name)).all()]
    columns = [values(rows, name) for name in present]
    time = values(rows, metric)
    good = np.asarray(~np.isnan(np.column_stack([*columns, time])).any(axis=1), dtype=np.bool_)
    varying = [i for i, column in enumerate(columns) if good.any() and np.ptp(column[good]) > 0]
    chosen = [columns[i][good] for i in varying]
    table = np.column_stack([np.ones(int(good.sum())), *chosen, time[good]])
    return table, [present[i] for i in varying], good


def _explained(moments: NDArray[np.float64], subset: tuple[int, ...], samples: int) -> float:
    """Adjusted R² of least squares on the columns ``subset``, from the centred moment matrix whose last column is the
    time. Adjusted, because a column without any effect has an R² above 0; its adjusted R² is 0 on average.
    """
    variance = moments[-1, -1]
    if not subset or variance <= 0:
        return 0.0
    cross = moments[list(subset), -1]
    weights = np.linalg.lstsq(moments[np.ix_(subset, subset)], cross, rcond=None)[0]
    return 1 - (1 - float(weights @ cross / variance)) * (samples - 1) / (samples - len(subset) - 1)


def _centred(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moments about the mean of all columns but the first (the ones), from sums of products."""
    result: NDArray[np.float64] = sums[1:, 1:] - np.outer(sums[0, 1:], sums[0, 1:]) / sums[0, 0]
    return result


def _shapley(moments: NDArray[np.float64], count: int, samples: int) -> NDArray[np.float64]:
    """Each predictor's share of the variance, averaged over all orders of entering; shape (count,)."""
    shares = np.zeros(count)
    for player in range(count):
        others = [i for i in range(count) if i != player]
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for coalition in combinations(others, size):
                gain = _explained(moments, (*coalition, player), samples) - _explained(moments, coalition, samples)
                shares[player] += weight * gain
    return shares


def variance_split(frame: pd.DataFrame, metric: str = "T_total") -> pd.DataFrame:
    """The variance of a time over the workload: what each kind of token explains, and what is left.

    Method: ordinary least squares of the time on the observed token counts; adjusted R² is divided among the counts by
    Shapley's value (the average over all orders in which they can enter: Lindeman, Merenda and Gold 1980), because
    counts that go together have no share of their own. A count that has no effect gets 0 on average, and so may get a
    little less. The rest is what no linear effect of token counts explains:
    jitter of the system, and effects that are not linear. Intervals: what each sample adds is seen by leaving it out,
    and summed up with the dependence in time (:func:`vlmbench.analysis.variance.reach_of_sum`).

    Returns:
        Rows ``num_vision_tokens``, ``num_prompt_tokens``, ``num_output_tokens``, ``rest`` with ``share``, ``low``,
        ``high`` and ``note`` (a count that never varied explains nothing); then ``reference_jitter``: variance of the
        repeated single request over that of the workload, not a part of the sum but what the rest should be compared
        with. Empty below 20 runs of 10 samples, or when the time never varied.
    """
    columns = ["source", "share", "low", "high", "note"]
    rows = workload(frame)
    table, names, good = _design(rows, metric)
    time = table[:, -1]
    if len(table) < LEAST_RUNS or np.ptp(time) == 0 or len(pd.unique(sample_codes(rows)[good])) < LEAST_SAMPLES:
        return pd.DataFrame(columns=columns)
    scaled = _scaled(table)
    shares, added = _split(scaled, sample_codes(rows)[good], len(names))
    squares = np.square(scaled[:, -1])
    result = [_split_row(name, names, shares, added, squares) for name in PREDICTORS if name in rows]
    rest = 1 - float(shares.sum())
    low, high = _ends(rest, reach_of_sum(added.sum(axis=1), squares))
    result.append(("rest", rest, low, high, "jitter and what is not linear"))
    again = values(reference(frame), metric)
    again = again[~np.isnan(again)]
    if len(again) > 1:
        jitter = float(again.var(ddof=1) / time.var(ddof=1))
        result.append(("reference_jitter", jitter, None, None, "variance of the repeated request over the workload's"))
    return pd.DataFrame(result, columns=columns)


def _scaled(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns after the first with mean 0 and standard deviation 1, so that sums of products lose no digits."""
    scaled = table.copy()
    scaled[:, 1:] = (table[:, 1:] - table[:, 1:].mean(axis=0)) / table[:, 1:].std(axis=0)
    return scaled


def _split(
    table: NDArray[np.float64], codes: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shapley shares, shape (count,), and what each sample adds to them, shape (samples, count), in the order measured.

    What a sample adds is seen by leaving it out; neighbours are left out together where there are more than enough.
    """
    order_of = np.argsort(np.unique(codes, return_index=True)[1], kind="stable")
    place = np.empty_like(order_of)
    place[order_of] = np.arange(len(order_of))
    kinds = len(order_of)
    groups = min(kinds, _GROUPS)
    group_of = place[codes] * groups // kinds
    order = np.argsort(group_of, kind="stable")
    edges = np.searchsorted(group_of[order], np.arange(groups + 1))
    sums = np.stack([table[order[a:b]].T @ table[order[a:b]] for a, b in pairwise(edges)])
    whole = sums.sum(axis=0)
    shares = _shapley(_centred(whole), count, kinds)
    without = np.stack([_shapley(_centred(whole - one), count, kinds - kinds // groups) for one in sums])
    added = (groups - 1) / groups * (without.mean(axis=0) - without)
    return shares, added


def _split_row(
    name: str, names: list[str], shares: NDArray[np.float64], added: NDArray[np.float64], squares: NDArray[np.float64]
) -> tuple[str, float, float | None, float | None, str]:
    if name not in names:
        return name, 0.0, None, None, "the same in every request"
    place = names.index(name)
    share = float(shares[place])
    return name, share, *_ends(share, reach_of_sum(added[:, place], squares)), ""


def _ends(share: float, reach: float) -> tuple[float, float]:
    """The interval of a share: on the scale of log-odds where both ends lie between 0 and 1.

    A large share is off by what its small rest is off by, which is far more often too small than too large.
    """
    if not 0 < share - reach < share + reach < 1:
        return share - reach, share + reach
    return on_log_odds(share, reach)


def _predicted(rows: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """What the token counts alone predict, ms, shape (rows,); the mean where nothing varies, NaN where data lack.

    The mean of the *other* runs of the same shape where there are three and shapes come again often enough
    (:class:`vlmbench.analysis.variance.Shape`), else least squares on the counts.
    """
    table, _, good = _design(rows, metric)
    found = np.full(len(rows), np.nan)
    if not len(table):
        return found
    time = table[:, -1]
    fitted = table[:, :-1] @ np.linalg.lstsq(table[:, :-1], time, rcond=None)[0]
    groups = Shape.of(rows[good]).groups
    if groups is not None:
        others = np.bincount(groups)[groups] - 1
        means = (np.bincount(groups, time)[groups] - time) / np.maximum(others, 1)
        fitted = np.where(others >= _OTHERS, means, fitted)
    found[good] = fitted
    return found


def slow_requests(frame: pd.DataFrame, metric: str = "T_total", q: float = 0.99, most: int = 50) -> pd.DataFrame:
    """The workload's requests at or above the q-quantile, the slowest first, each with its cause where one is known.

    Causes, in this order: ``tokens`` when its token counts explain at least half of what it took beyond the median;
    the flags that it carries (``gc_pause``, ``clock_drop`` …) and that slow runs carry clearly more often than the
    rest (:func:`vlmbench.analysis.tail.flag_causes`); ``host_absence`` when its thread was on no processor for at least
    half of that; when what tokens leave is within what a repeated single request shows beyond its own median,
    ``host_speed`` if half of it is processor time of a thread that does not wait for a device, else ``jitter``; else
    ``unknown``.

    Returns:
        ``sample_id``, ``repeat``, the metric, ``over_median`` (ms), ``from_tokens`` (ms of it that the other runs of
        its shape, or else the least-squares fit on token counts, give), the token counts, ``flags``, ``cause``, and
        ``place``: the column of the stage in which at least half of what it took beyond the median lies, which is
        where, not why. At most ``most`` rows. Of all slow runs: ``attrs["slow_runs"]`` is their count,
        ``attrs["causes"]`` how many have each cause, ``attrs["places"]`` where those of unknown cause lie,
        ``attrs["flags"]`` the rows of that table of flags. With fewer runs than the quantile needs, the slowest ones
        all the same.
    """
    rows = workload(frame)
    time = values(rows, metric)
    counts = [name for name in PREDICTORS if name in rows]
    columns = ["sample_id", "repeat", metric, "over_median", "from_tokens", *counts, "flags", "cause", "place"]
    if np.isnan(time).all():
        found = pd.DataFrame(columns=columns)
        found.attrs |= {"slow_runs": 0, "causes": {}, "places": {}, "flags": []}
        return found
    middle, limit = np.nanquantile(time, (0.5, q))
    fitted = _predicted(rows, metric)
    from_tokens = fitted - np.nanmedian(fitted) if not np.isnan(fitted).all() else np.full(len(rows), np.nan)
    slow = np.flatnonzero(time >= limit)
    slow = slow[np.argsort(-time[slow], kind="stable")]
    flags = rows["flags"].astype(object).where(rows["flags"].notna(), "").astype(str)
    timed = ~np.isnan(time)
    of_flags = flag_causes(flags[timed].tolist(), time[timed] >= limit)
    named = set(of_flags.loc[of_flags["cause"].astype(bool), "flag"])
    found = rows.iloc[slow][["sample_id", "repeat", metric, *counts]].astype({"sample_id": str})
    found = found.assign(
        over_median=(time - middle)[slow], from_tokens=from_tokens[slow], flags=flags.iloc[slow].astype(object)
    )
    jitter = _jitter_limit(frame, metric)
    away, busy = _beyond_median(rows, metric, slow)
    found["place"] = _places(rows, metric, slow)
    host = time_is_host(frame)
    found["cause"] = [
        _cause({**row, "away": away[i], "busy": busy[i] if host else np.nan}, named, jitter)
        for i, row in enumerate(found.to_dict("records"))
    ]
    shown = found[columns].head(most).reset_index(drop=True)
    places = _counted(found.loc[(found["cause"] == "unknown") & (found["place"] != ""), "place"])
    shown.attrs |= {"slow_runs": len(slow), "causes": _counted(found["cause"]), "places": places}
    shown.attrs["flags"] = of_flags.to_dict("records")
    return shown


def _beyond_median(
    rows: pd.DataFrame, metric: str, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(time on no processor, processor time) of the launching thread beyond their medians, ms; NaN where not known."""
    busy = values(rows, "thread_cpu_ms")
    away = values(rows, metric) - busy
    if np.isnan(busy).all():
        return busy[chosen], busy[chosen]
    return (away - np.nanmedian(away))[chosen], (busy - np.nanmedian(busy))[chosen]


def _jitter_limit(frame: pd.DataFrame, metric: str) -> float | None:
    """How far the repeated single request goes beyond its median, ms: P99 where n allows it, else the most seen."""
    again = values(reference(frame), metric)
    again = again[~np.isnan(again)]
    if not len(again):
        return None
    top = quantile(again, 0.99).value
    return float((again.max() if top is None else top) - np.median(again))


def _cause(row: Mapping[Any, Any], named: Collection[str], jitter: float | None) -> str:
    beyond, explained = row["over_median"], row["from_tokens"]
    if beyond > 0 and explained >= beyond / 2:
        return "tokens"
    known = [flag for flag in str(row["flags"]).split() if flag in named]
    if known:
        return " ".join(known)
    if row["away"] >= beyond / 2 > 0:
        return ABSENCE
    if jitter is not None and beyond - (0.0 if np.isnan(explained) else explained) <= jitter:
        return SPEED if row["busy"] >= beyond / 2 > 0 else "jitter"
    return "unknown"


def _places(rows: pd.DataFrame, metric: str, chosen: NDArray[np.int64]) -> list[str]:
    """For each chosen run the stage that took at least half of what it took beyond the median; else nothing."""
    beyond = (values(rows, metric) - np.nanmedian(values(rows, metric)))[chosen]
    found = [""] * len(chosen)
    for name in TOTAL_PARTS if metric == TOTAL else (TOTAL, *HOST_PARTS):
        times = values(rows, name)
        if np.isnan(times).all():
            continue
        here = ((times - np.nanmedian(times))[chosen] >= beyond / 2) & (beyond > 0)
        found = [name if is_here else before for is_here, before in zip(here, found, strict=True)]
    return found


def _counted(causes: pd.Series) -> dict[str, int]:
    return {str(cause): int(count) for cause, count in causes.value_counts().items()}


def cause_counts(slow: pd.DataFrame) -> dict[str, int]:
    """How many of all slow requests have each cause, the commonest first; those beyond the list are counted, too.

    Args:
        slow: of :func:`slow_requests`.
    """
    counts: dict[str, int] = slow.attrs["causes"]
    return counts

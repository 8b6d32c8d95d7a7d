"""How far out the runs of a set reach, and whether what makes requests alike is the machine's or a process's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from published import EACH, FULL, MODELS, RUNTIMES, Published, counted, table, value
from scipy import stats

from vlmbench.analysis.dependence import long_run, t_reach
from vlmbench.analysis.estimate import Array
from vlmbench.analysis.longer_run import lasted_s, longer_run
from vlmbench.analysis.quantiles import needed
from vlmbench.records.comparable import turns_taken
from vlmbench.text import count, digits, lasting

_P99 = needed(0.99)
_FEWEST_TURNS = 100  # medians of fewer tell correlations of 0.2 from none too seldom


def far_table(results: Published) -> str:
    """What phase 1 of the full models tells of P99 under each runtime, and how long a run would tell it."""
    rows = []
    for model in FULL:
        for runtime in EACH:
            run = results.run(f"{model}_{runtime}", "phase1")
            if run is None:
                continue
            requests = counted(results.results / run.folder)
            whole, generate = (run.summary["distribution"][metric]["workload"] for metric in ("T_request", "T_total"))
            request, generate = whole["p99"], generate["p99"]
            lasted = lasted_s(*([row[name] for row in requests] for name in ("session", "started_unix_s")))
            rows.append(
                [
                    MODELS[model], RUNTIMES[runtime],
                    f"{count(len(requests), 'request')}{'' if lasted is None else f' in {lasting(lasted)}'}{run.mark}",
                    f"{_worth(request)} and {_worth(generate)}",
                    value(request, digits), value(generate, digits), _would_take(whole, lasted),
                ]
            )  # fmt: skip
    heads = (
        "model", "runtime", "measured, turns of others included", f"worth at P99, of {_P99}: request, `generate()`",
        "P99 of a request, ms", "P99 of `generate()`, ms", "P99 of a request would take, to be safe, some",
    )  # fmt: skip
    return table(heads, rows) if rows else ""


def far_words(results: Published) -> str:
    """What P99 takes, in a table, and why it takes so much."""
    rows = far_table(results)
    alike = alike_words(results)
    return (
        "How far out runs reach, and how long one would have to last for P99 if its requests stayed as alike:\n\n"
        f"{rows}"
        f"{alike and f'{chr(10)}{chr(10)}{alike}'}"
        if rows
        else ""
    )


def _worth(entry: Mapping[str, Any]) -> str:
    return "enough" if entry["value"] is not None else f"{math.floor(entry.get('effective_n') or 0)}"


def _would_take(whole: Mapping[str, Any], lasted: float | None) -> str:
    """How many requests, and how long, as the report of the run says it."""
    if whole["p99"]["value"] is not None:
        return "–"
    more = longer_run(whole["p99"], whole.get("effective_n"), lasted)
    if more is None:
        return "cannot be told"
    return f"{count(more.requests, 'request')}{f', {lasting(more.lasts_s)}' if more.lasts_s else ''}"


def alike_words(results: Published) -> str:
    """Whether the turns of processes that alternate are slow together, or each process by itself."""
    own, others = together_in(in_turns(results))
    if not own.values:
        return ""
    begin = f"Of processes that took at least {_FEWEST_TURNS} turns,"
    if own.ends()[0] <= 0:
        return (
            f"{begin} whether the median of a turn goes together with that of the next turn of the same process cannot "
            f"be told: rank correlation {own.words('run')}."
        )
    words = (
        f"{begin} the median of a turn goes together with that of the next turn of the same process: rank correlation "
        f"{own.words('run')}. With the turn of another process in the same round, which on average is nearer in time, "
        f"it is {others.words('pair')}."
    )
    if not is_each_its_own(own, others):
        return words
    return (
        f"{words} So most of what makes requests of one process alike is not the machine as a whole, but what that "
        f"process has of it; its processor, for instance."
    )


def is_each_its_own(own: Together, others: Together) -> bool:
    """Whether less than half of what makes turns of a process alike is shared with the others, by the intervals.

    It is wrongly said in at most one case in twenty where half is shared, and hardly ever where all is, or where turns
    are not alike (simulated in the tests; where spells last longer than ten turns the correlation with the next turn
    comes out too small, which is on the safe side).
    """
    return own.ends()[0] > 0 and own.beyond(others, times=2).ends()[0] > 0


@dataclass(frozen=True, kw_only=True)
class Together:
    """Rank correlations of turns, and the error of their mean.

    Args:
        values: the correlations.
        mean: theirs.
        errors: what each turn of each group adds to the error of the mean, shape (turns,), mean 0.
    """

    values: tuple[float, ...]
    mean: float
    errors: Array

    def ends(self) -> tuple[float, float]:
        """The 95 % interval of the mean, with the dependence of turns on those before."""
        variance, effective = long_run(self.errors)
        reach = float(t_reach(effective) * np.sqrt(variance / len(self.errors)))
        return self.mean - reach, self.mean + reach

    def beyond(self, other: Together, *, times: float) -> Together:
        """By how much the mean is more than so many times that of others in the same turns."""
        return Together(values=(), mean=self.mean - times * other.mean, errors=self.errors - times * other.errors)

    def words(self, of: str) -> str:
        """``0.37 (0.29 to 0.45) over 4 runs (single ones 0.20 to 0.52)``."""
        low, high = self.ends()
        text = f"{self.mean:z.2f} ({low:z.2f} to {high:z.2f}) over {count(len(self.values), of)}"
        spread = f" (single ones {min(self.values):z.2f} to {max(self.values):z.2f})" if len(self.values) > 1 else ""
        return f"{text}{spread}".replace("-", "−")


def in_turns(results: Published) -> list[dict[str, list[float]]]:
    """The medians of the turns of each run, a dictionary for those that took turns with each other."""
    groups: dict[str, dict[str, list[float]]] = {}
    for name in results.names():
        run = results.run(name, "phase1")
        if run is None or run.mark or not (turns := turns_taken(run.provenance["sessions"][-1])):
            continue
        medians = of_turns(counted(results.results / run.folder))
        if len(medians) >= _FEWEST_TURNS:
            groups.setdefault(turns["id"], {})[name] = medians
    return [members for members in groups.values() if len(members) > 1]


def together_in(groups: Sequence[Mapping[str, Sequence[float]]]) -> tuple[Together, Together]:
    """Rank correlations of turns with the next of the same process, and with those of the others of its group."""
    own, others = [], []
    for members in groups:
        turns = min(map(len, members.values()))
        series = [np.asarray(of[:turns], dtype=np.float64) for of in members.values()]
        own.append([_with_next(of) for of in series])
        others.append([_together(one[:-1], other[:-1]) for one, other in combinations(series, 2)])
    return _mean_of(own), _mean_of(others)


def _with_next(series: Array) -> tuple[float, Array]:
    """That of each turn and the next, the bias of short series taken out (as in vlmbench.analysis.dependence)."""
    n = len(series)
    value, errors = _together(series[:-1], series[1:])
    return (n * value + 1) / (n - 3), errors * n / (n - 3)


def _together(first: Array, second: Array) -> tuple[float, Array]:
    """The rank correlation, and what each of the values adds to its error (its influence), mean 0."""
    one, other = (stats.zscore(stats.rankdata(series)) for series in (first, second))
    value = float((one * other).mean())
    return value, one * other - value * (one**2 + other**2) / 2


def _mean_of(groups: Sequence[Sequence[tuple[float, Array]]]) -> Together:
    """The mean over all groups, whose turns follow each other in its errors: each counts by its group's share of it."""
    values = tuple(value for found in groups for value, _ in found)
    turns = sum(len(found[0][1]) for found in groups)
    shares = [np.sum([errors for _, errors in found], axis=0) / len(values) for found in groups]
    errors = [share * turns / len(share) for share in shares]
    return Together(
        values=values,
        mean=float(np.mean(values)) if values else 0.0,
        errors=np.concatenate(errors) if errors else np.zeros(0),
    )


def of_turns(requests: Sequence[Mapping[str, Any]]) -> list[float]:
    """The median of `generate()` in each turn, in their order, as a share of that of requests with as many vision
    tokens.
    """
    sizes: dict[int, list[float]] = {}
    for row in requests:
        sizes.setdefault(int(row["num_vision_tokens"]), []).append(float(row["T_total"]))
    usual = {size: median(times) for size, times in sizes.items()}
    turns: dict[int, list[float]] = {}
    for row in requests:
        if "turn" in row:
            turns.setdefault(int(row["turn"]), []).append(float(row["T_total"]) / usual[int(row["num_vision_tokens"])])
    return [median(turns[turn]) for turn in sorted(turns)]

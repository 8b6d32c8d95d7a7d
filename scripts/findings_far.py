"""How far out the runs of a set reach, and whether what makes requests alike is the machine's or a process's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

from published import EACH, FULL, MODELS, RUNTIMES, Published, counted, table, value
from scipy.stats import spearmanr

from vlmbench.analysis.quantiles import needed
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
            request, generate = (
                run.summary["distribution"][metric]["workload"]["p99"] for metric in ("T_request", "T_total")
            )
            lasted = _lasted_s(requests)
            rows.append(
                [
                    MODELS[model], RUNTIMES[runtime],
                    f"{count(len(requests), 'request')} in {lasting(lasted)}{run.mark}",
                    f"{_worth(request)} and {_worth(generate)}",
                    value(request, digits), value(generate, digits), _would_take(request, lasted),
                ]
            )  # fmt: skip
    heads = (
        "model", "runtime", "measured, turns of others included", f"worth at P99, of {_P99}: request, `generate()`",
        "P99 of a request, ms", "P99 of `generate()`, ms", "P99 of a request would take at least",
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


def _would_take(entry: Mapping[str, Any], lasted_s: float) -> str:
    if entry["value"] is not None:
        return "–"
    worth = float(entry.get("effective_n") or 0.0)
    return lasting(lasted_s * _P99 / worth) if worth >= 1 else "cannot be told"


def _lasted_s(requests: Sequence[Mapping[str, Any]]) -> float:
    """From the first to the last of each session, s."""
    started: dict[int, list[float]] = {}
    for row in requests:
        started.setdefault(int(row["session"]), []).append(float(row["started_unix_s"]))
    return sum(max(times) - min(times) for times in started.values())


def alike_words(results: Published) -> str:
    """Whether the turns of processes that alternate are slow together, or each process by itself."""
    own, others = together_in(in_turns(results))
    if not own:
        return ""
    words = (
        f"Of processes that took at least {_FEWEST_TURNS} turns, the median of a turn goes together with that of the "
        f"next turn of the same process (rank correlation {_ends(own)}, {count(len(own), 'run')}); with the turns of "
        f"the other processes, which lie between these two in time, {_ends(others)} ({count(len(others), 'pair')})."
    )
    if median(others) > median(own) / 2:
        return words
    return (
        f"{words} So most of what makes requests of one process alike is not the machine as a whole, but what that "
        f"process has of it; its processor, for instance."
    )


def in_turns(results: Published) -> list[dict[str, list[float]]]:
    """The medians of the turns of each run, a dictionary for those that took turns with each other."""
    groups: dict[str, dict[str, list[float]]] = {}
    for name in results.names():
        run = results.run(name, "phase1")
        turns = None if run is None or run.mark else run.provenance["sessions"][-1].get("turns")
        if run is None or not turns:
            continue
        medians = of_turns(counted(results.results / run.folder))
        if len(medians) >= _FEWEST_TURNS:
            groups.setdefault(turns["id"], {})[name] = medians
    return [members for members in groups.values() if len(members) > 1]


def together_in(groups: Sequence[Mapping[str, Sequence[float]]]) -> tuple[list[float], list[float]]:
    """Rank correlations of turns with the next of the same process, and with those of the others of its group."""
    own = [_together(of[1:], of[:-1]) for members in groups for of in members.values()]
    others = [_together(one, other) for members in groups for one, other in combinations(members.values(), 2)]
    return own, others


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


def _together(first: Sequence[float], second: Sequence[float]) -> float:
    least = min(len(first), len(second))
    return float(spearmanr(first[:least], second[:least]).statistic)


def _ends(values: Sequence[float]) -> str:
    low, middle, high = min(values), median(values), max(values)
    return f"median {middle:.2f}, {low:.2f} to {high:.2f}".replace("-", "−")

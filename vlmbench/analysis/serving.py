"""What a server gives under a load: throughput, goodput, latency, and whether the client was in its own way.

A rate is of the span in which measured requests were sent; every answer in it counts, those that kept the load up as
well. Users of a closed loop go in step: they answer in bursts, and its span begins and ends as a request is sent, so
that a count of answers is high by a part of a burst (3 % of 100 requests of 16 users), and tokens from the first to the
last are low by one (5 % of 320 requests of 64 users). There each answer, and its tokens, counts by the share of its
request's time that lies inside, which is right on average because as many are in flight at either end, and has no
bursts.

How well a rate is known is seen in the slowest waves of its blocks: the mean of a span moves as these do, whatever
requests that share a server do to their neighbours (E. Lazarus, D. J. Lewis, J. H. Stock, M. W. Watson, J. Business &
Economic Statistics 36, 541 (2018)). ``benchmarks/coverage.py --only loads`` simulates what the intervals hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.fft import dct

from vlmbench.analysis import frames
from vlmbench.analysis.dependence import at_quantile, dependence, found_worth, inflation, pulled_in
from vlmbench.analysis.estimate import CONFIDENCE, Estimate, Shortfall
from vlmbench.analysis.quantiles import finite, median, quantile
from vlmbench.engines.endpoint.dialects import IN_PROCESS
from vlmbench.text import percent, whole

BLOCKS = 20
CLOSED_WAVES, OPEN_WAVES = 3, 5
"""Blocks of a span, and how many of their slowest waves tell how well the mean is known.

Of a closed loop on a machine that remembers for a tenth of the span, ten blocks that were taken as independent held
0.76 to 0.92, and these hold 0.90 to 0.96; with four waves intervals are a tenth shorter and hold less. An open loop has
its noise from arrivals, which know nothing of each other, and more waves know that noise better.
"""
_CPU_LIMIT = 0.8  # of one core: one thread does all
_LATE_LIMIT = 0.05  # of the median TTFT
_SLOW_LIMIT = 0.05  # share of rows flagged client_slow; of chunks that came out of one read


def served(provenance: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Facts of what answered a load: a server, or the engine of the run's own process; None for a run without either.

    Args:
        provenance: content of ``provenance.json``.
    """
    endpoint = (provenance.get("model") or {}).get("endpoint")
    if isinstance(endpoint, Mapping):
        return endpoint
    load = ((provenance.get("config") or {}).get("load") or {}).get("name")
    return None if load in (None, "none") else {"dialect": IN_PROCESS}


COLUMNS: tuple[str, ...] = (
    "TTFT", "T_request", "T_end", "TPOT", "T_late", "T_connect", "T_send", "T_headers", "T_first_event",
    "T_unattributed", "due_s", "in_flight_at_start", "attempt", "http_status", "error_class", "coalesced_share",
    "client_longest_turn", "num_output_tokens", "num_input_tokens", "num_vision_tokens", "num_images",
    "num_cached_tokens", "pair_contrast", "pair_arm", "pair_number", "session", "load_number", "reason",
)  # fmt: skip
"""The columns of a load's rows that the summaries need."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a user accepts of a request, ms; None is no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    request_ms: float | None = None

    def __bool__(self) -> bool:
        return any(v is not None for v in (self.ttft_ms, self.tpot_ms, self.request_ms))

    def held(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Which requests stayed within every limit; one without the value (an error, one token) only where none is set.

        Args:
            frame: rows of requests.
        """
        good = (frame["status"] == "ok").to_numpy(dtype=bool).copy()
        for limit, name in ((self.ttft_ms, "TTFT"), (self.tpot_ms, "TPOT"), (self.request_ms, "T_request")):
            if limit is None or name not in frame:
                continue
            values = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
            one_token = (name == "TPOT") & np.isnan(values)
            good &= one_token | (values <= limit)
        return good


def requests_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The measured requests of a load, failed ones with them; no warm-up, no filler, no pair."""
    kinds = frame["status"].isin(["ok", "error"])
    paired = frame["point_id"].astype(str).str.startswith("paired")
    return frame[kinds & ~paired]


def load_points(frame: pd.DataFrame) -> list[str]:
    """Names of the points under load, in the order measured."""
    return [str(name) for name in requests_of(frame)["point_id"].drop_duplicates()]


def spans(rows: pd.DataFrame) -> list[tuple[int, float, float]]:
    """(session, first, last moment) in which measured requests of a point were due, s on the machine's clock.

    A point that was loaded several times, between loads on others, has as many spans.
    """
    found = []
    known = rows.dropna(subset=["due_s"])
    loads = pd.Series(frames.values(known, "load_number"), index=known.index, name="load").fillna(0)
    for _, part in known.groupby(["session", loads], sort=True):
        due = part["due_s"].to_numpy(dtype=np.float64)
        if len(due) > 1 and due.max() > due.min():
            found.append((int(part["session"].iloc[0]), float(due.min()), float(due.max())))
    return found


def _overlap(begin: NDArray[Any], end: NDArray[Any], edges: NDArray[Any]) -> NDArray[np.float64]:
    """Share of each interval that lies in each block, shape (rows, blocks); a point interval lies in one."""
    low = np.maximum(begin[:, None], edges[None, :-1])
    high = np.minimum(end[:, None], edges[None, 1:])
    length = (end - begin)[:, None]
    inside = (begin[:, None] >= edges[None, :-1]) & (begin[:, None] < edges[None, 1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(length > 0, np.where(high > low, high - low, 0.0) / length, inside.astype(np.float64))
    return np.asarray(share, dtype=np.float64)


def rates(frame: pd.DataFrame, point_id: str, *, closed: bool) -> tuple[Estimate, Estimate]:
    """(answers a second, output tokens a second) of a point.

    An answer of an open loop counts when it ends, and its tokens are spread from its first to its last: requests that
    wait in a growing queue are no share of an answer. In a closed loop both are spread over the request's time.

    Args:
        frame: all rows of a run, warm-up and fillers with them.
        closed: whether the load was a closed loop.
    """
    here = frame[frame["point_id"].astype(str) == point_id]
    answers: list[float] = []
    tokens: list[float] = []
    good = here[here["TTFT"].notna() & here["T_end"].notna() & here["due_s"].notna()]
    for session, first, last in spans(requests_of(here)):
        part = good[good["session"] == session]
        due = part["due_s"].to_numpy(dtype=np.float64)
        edges = np.linspace(first, last, BLOCKS + 1)
        length = (last - first) / BLOCKS
        end = due + part["T_end"].to_numpy(dtype=np.float64) / 1e3
        count = part["num_output_tokens"].to_numpy(dtype=np.float64, na_value=np.nan)
        answered = _overlap(due if closed else end, end, edges)
        begin, stop = (due + part[n].to_numpy(dtype=np.float64) / 1e3 for n in ("TTFT", "T_request"))
        written = answered if closed else _overlap(begin, stop, edges)
        known = ~np.isnan(count)
        answers += list(answered.sum(axis=0) / length)
        tokens += list((written[known] * count[known, None]).sum(axis=0) / length)
    waves = CLOSED_WAVES if closed else OPEN_WAVES
    return _mean(answers, waves), _mean(tokens, waves)


def _mean(blocks: Sequence[float], waves: int) -> Estimate:
    """Mean of block rates with the interval of its slowest waves; a rate below 0 is none."""
    n = len(blocks)
    if not n:
        return Estimate(
            value=None, n=n, n_needed=BLOCKS, shortfall=Shortfall.TOO_FEW_RUNS, detail="too short for a rate"
        )
    value = math.fsum(blocks) / n
    slow = dct(np.asarray(blocks) - value, norm="ortho")[1 : waves + 1]
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, waves)) * math.sqrt(float(np.square(slow).mean()) / n)
    low = value - reach if value > reach else 0.0
    return Estimate(value=value, low=low, high=value + reach, n=n, n_needed=BLOCKS)


def share_within(held: ArrayLike, times: ArrayLike) -> Estimate:
    """A share of requests with Wilson's interval, for the independent requests that they are worth.

    Args:
        held: whether each request is counted, in the order sent.
        times: of each request, ms; whether one is slow hangs on those before it as its time does, and may do so where
            no time says it (failures come in rows): the larger dependence is used.
    """
    counted = np.asarray(held, dtype=np.float64).ravel()
    n = len(counted)
    if not n:
        return Estimate(value=None, n=0, n_needed=1, shortfall=Shortfall.TOO_FEW_RUNS)
    share, known = float(counted.mean()), dependence(times)
    series, of_times = finite(times), 1.0
    if len(series):  # a point whose requests all failed has no times
        of_times = float(at_quantile(min(max(share, 1 - share), 1 - 0.5 / n), pulled_in(series)))
    m = n / max(of_times, float(inflation(counted)), 1.0)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    middle = (share + z**2 / (2 * m)) / (1 + z**2 / m)
    reach = z / (1 + z**2 / m) * math.sqrt(share * (1 - share) / m + (z / (2 * m)) ** 2)
    # rounding alone would leave an end of none or all a hair inside
    low, high = (0.0 if share == 0 else middle - reach), (1.0 if share == 1 else middle + reach)
    return Estimate(value=share, low=low, high=high, n=n, n_needed=1, lag1=known.lag1, effective_n=found_worth(n, m))


def serving_table(frame: pd.DataFrame, *, closed: bool, limits: Limits | None = None, devices: int = 1) -> pd.DataFrame:
    """One row a point: what the server gave.

    Args:
        frame: rows of an endpoint run (:data:`COLUMNS`).
        closed: whether its loads were closed loops.
        limits: for goodput; None for none.

    Returns:
        ``point_id``, ``axis_*``, ``requests``, ``errors``; and with ``_low`` and ``_high``: ``requests_per_s``,
        ``tokens_per_s``, ``tokens_per_s_device``, ``tokens_per_s_user`` (1000 / median TPOT), ``TTFT_p50``,
        ``TTFT_p99``, ``TPOT_p50``, ``T_request_p50``, ``good_share``; ``goodput_per_s``.
    """
    made = []
    axes = [name for name in frame.columns if str(name).startswith("axis_")]
    for point in load_points(frame):
        rows = requests_of(frame)
        rows = rows[rows["point_id"].astype(str) == point]
        ok = rows[rows["status"] == "ok"]
        row: dict[str, Any] = {"point_id": point, "requests": len(ok), "errors": int((rows["status"] == "error").sum())}
        row |= {name: rows[name].iloc[0] for name in axes}
        answers, tokens = rates(frame, point, closed=closed)
        row |= _cells("requests_per_s", answers) | _cells("tokens_per_s", tokens)
        row |= _cells("tokens_per_s_device", _scaled(tokens, 1 / devices))
        for name, q in (("TTFT", 0.5), ("TTFT", 0.99), ("TPOT", 0.5), ("T_request", 0.5)):
            row |= _cells(f"{name}_p{100 * q:g}", quantile(ok[name].to_numpy(dtype=np.float64, na_value=np.nan), q))
        row |= _cells("tokens_per_s_user", _inverse(median(ok["TPOT"].to_numpy(dtype=np.float64, na_value=np.nan))))
        if limits:
            final = rows[~_tried_again(rows)]
            final = final.sort_values("due_s", kind="stable")
            good = share_within(limits.held(final), frames.values(final, "T_request"))
            row |= _cells("good_share", good)
            row["goodput_per_s"] = None if answers.value is None or good.value is None else answers.value * good.value
        made.append(row)
    table = pd.DataFrame(made)
    return table.sort_values(axes, kind="stable", ignore_index=True) if axes and len(table) else table


def _tried_again(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Failed attempts that a later one of the same request made good or repeated."""
    last = rows.groupby(["sample_id", "repeat"], observed=True)["attempt"].transform("max")
    earlier: NDArray[np.bool_] = np.less(rows["attempt"].to_numpy(dtype=np.float64), last.to_numpy(dtype=np.float64))
    return earlier


def _cells(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _scaled(e: Estimate, factor: float) -> Estimate:
    def times(value: float | None) -> float | None:
        return None if value is None else value * factor

    return replace(e, value=times(e.value), low=times(e.low), high=times(e.high))


def _inverse(e: Estimate) -> Estimate:
    """1000 over an estimate in ms; no interval where an end is 0 ms, which bounds no rate."""

    def over(value: float | None) -> float | None:
        return 1e3 / value if value else None

    if e.low == 0:
        return replace(e, value=over(e.value), low=None, high=None)
    return replace(e, value=over(e.value), low=over(e.high), high=over(e.low))


def frontier(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which points no other beats in tokens a second both per user and per device, shape (rows,)."""
    axes = ("tokens_per_s_user", "tokens_per_s_device")
    xs, ys = (table[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in axes)
    beaten = (xs[None, :] >= xs[:, None]) & (ys[None, :] >= ys[:, None])
    beaten &= (xs[None, :] > xs[:, None]) | (ys[None, :] > ys[:, None])
    best: NDArray[np.bool_] = ~beaten.any(axis=1) & ~np.isnan(xs) & ~np.isnan(ys)
    return best


def paired_differences(frame: pd.DataFrame, arms: Mapping[str, tuple[str, str, str]]) -> pd.DataFrame:
    """Differences of paired runs, one row a contrast.

    Args:
        frame: rows of an endpoint run.
        arms: contrast to (first arm, second arm, metric).

    Returns:
        ``contrast``, ``first``, ``second``, ``metric``, ``difference`` (median of first minus second over pairs, ms)
        with ``low`` and ``high``, ``pairs``, ``note``, and the median prompt tokens of both arms.
    """
    made: list[dict[str, Any]] = []
    if "pair_contrast" not in frame or frame["pair_contrast"].isna().all():
        return pd.DataFrame(made)
    ok = frame[frame["status"] == "ok"]
    for contrast, (first, second, metric) in arms.items():
        rows = ok[ok["pair_contrast"].astype(object) == contrast]
        if rows.empty:
            continue
        sides = [rows[rows["pair_arm"].astype(object) == arm] for arm in (first, second)]
        keyed = [side.set_index(["session", "pair_number"])[metric].astype(float) for side in sides]
        both = pd.concat(keyed, axis=1, keys=["first", "second"]).dropna()
        found = median((both["first"] - both["second"]).to_numpy())
        made.append(
            {
                "contrast": contrast,
                "first": first,
                "second": second,
                "metric": metric,
                "difference": found.value,
                "low": found.low,
                "high": found.high,
                "pairs": len(both),
                "note": found.note,
                "prompt_tokens_first": _middle(sides[0], "num_input_tokens"),
                "prompt_tokens_second": _middle(sides[1], "num_input_tokens"),
            }
        )
    return pd.DataFrame(made)


def _middle(rows: pd.DataFrame, name: str) -> float | None:
    values = rows[name].to_numpy(dtype=np.float64, na_value=np.nan)
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None


def client_in_the_way(rows: pd.DataFrame, loads: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the client itself may have changed what it measured; empty where nothing speaks for it.

    Args:
        loads: what its loads cost the client (``cpu_s``, ``wall_s``).
    """
    reasons = []
    share = max((float(f["cpu_s"]) / float(f["wall_s"]) for f in loads if f.get("wall_s")), default=0.0)
    if share > _CPU_LIMIT:
        reasons.append(f"its thread was busy {percent(share, 2)} of the time")
    ok = rows[rows["status"] == "ok"]
    if ok.empty:
        return reasons
    late = quantile(ok["T_late"].to_numpy(dtype=np.float64, na_value=np.nan), 0.99).value
    late = float(ok["T_late"].max()) if late is None else late
    middle = float(ok["TTFT"].median())
    if late > _LATE_LIMIT * middle:
        reasons.append(f"requests left up to {late:.1f} ms late ({percent(late / middle, 2)} of the median TTFT)")
    slow = float(ok["flags"].astype(str).str.contains("client_slow").mean())
    if slow > _SLOW_LIMIT:
        reasons.append(
            f"{percent(slow, 2)} of the requests met a pause of the client of more than "
            f"{whole(100 * _LATE_LIMIT)} % of TTFT"
        )
    busy = float(ok["flags"].astype(str).str.contains("busy_host").mean())
    if busy > _SLOW_LIMIT:
        reasons.append(
            f"{percent(busy, 2)} of the requests waited here for a processor for more than "
            f"{whole(100 * _LATE_LIMIT)} % of their time"
        )
    together = float(ok["coalesced_share"].mean()) if "coalesced_share" in ok else 0.0
    if together > _SLOW_LIMIT:
        reasons.append(f"{percent(together, 2)} of the chunks came out of one read with the one before")
    return reasons


def saturated(frame: pd.DataFrame, point_id: str) -> str | None:
    """Whether an open loop asked for more than the server gives: the number of unanswered requests grows.

    Args:
        frame: rows of an endpoint run.
        point_id: of a point with open arrivals.
    """
    rows = requests_of(frame)
    rows = rows[(rows["point_id"].astype(str) == point_id) & rows["in_flight_at_start"].notna()].sort_values("due_s")
    if len(rows) < 20:
        return None
    waiting = rows["in_flight_at_start"].to_numpy(dtype=np.float64)
    quarter = len(waiting) // 4
    early, late = float(waiting[:quarter].mean()), float(waiting[-quarter:].mean())
    if late > 2 * early + 2:
        return f"unanswered requests grew from {early:.1f} to {late:.1f}: the server cannot keep up with this rate"
    return None

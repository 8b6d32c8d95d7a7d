"""The requests of a run for the charts: all of them where they are few, counts and chosen ones where they are many.

Nothing is thinned in silence: above a limit every request is still counted in the histogram and in the curve of the
tail, and those that a reader may ask for (marked by a flag, slowest, fastest, spread over the ranks) are kept one by
one. ``said`` tells what was done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vlmbench.analysis import frames
from vlmbench.analysis.row_file import row_file
from vlmbench.records.reading import token_gaps
from vlmbench.report.page.cells import STAGE_CODES, point_key, rounded, rounded_list
from vlmbench.text import count

ONE_REPEATED = "one request repeated"
"""The group of the runs of one request, which the workload's stand beside."""

MOST_FLAGS = 24
_BINS = 160
_SLOWEST, _FASTEST, _FLAGGED, _CURVE_TAIL, _CURVE = 60, 10, 150, 150, 300
_MOST_GAPS = 400
_TOKENS = ("num_vision_tokens", "num_prompt_tokens", "num_output_tokens")

Ints = NDArray[np.int64]
_LOAD_AXES = {
    "load.concurrency": ("user", "users"),
    "load.rate_per_s": ("arrival a second", "arrivals a second"),
}


def metric_of(frame: pd.DataFrame) -> str:
    """The time that stands for a request: ``T_request`` where it was measured, else ``T_total``."""
    good = frames.measured(frame)
    return "T_request" if "T_request" in good and good["T_request"].notna().any() else "T_total"


def requests_of(frame: pd.DataFrame, directory: Path, *, limit: int, gaps: int) -> dict[str, Any] | None:
    """Measured requests of a run, column by column.

    Args:
        frame: rows of the run, as :func:`vlmbench.analysis.frames.load_runs` gives them.
        directory: where they lie; the times between tokens are read from there.
        limit: the most requests to keep one by one.
        gaps: the most requests to keep times between tokens of.

    Returns:
        ``metric``; ``groups`` (name and number, and where not all requests are kept ``hist`` and ``curve`` of all);
        ``id``, ``group``, ``at`` (s since the first row), ``ms``, ``stages`` (code to ms), ``tokens``, ``flags`` (bits
        of ``flag_names``), ``itl`` (ms, None where not kept); ``said`` in words. None where nothing was measured.
    """
    metric = metric_of(frame)
    times = frames.values(frame, metric)
    groups = _groups(frame)
    usable = [group[np.isfinite(times[group])] for _, group in groups]
    total = int(sum(map(len, usable)))
    if not total:
        return None
    names, bits = flag_bits(frame)
    kept = _kept(usable, times, bits, limit)
    order = np.concatenate(kept)
    with_gaps = set(_spread(order, times, gaps).tolist())
    start = float(np.nanmin(frames.values(frame, "started_unix_s"))) if "started_unix_s" in frame else 0.0
    thinned = len(order) < total
    made: dict[str, Any] = {
        "metric": metric,
        "total": total,
        "groups": [_group(name, times[all_], thinned) for (name, _), all_ in zip(groups, usable, strict=True)],
        "id": [str(frame["sample_id"].iat[i]) for i in order],
        "group": [g for g, part in enumerate(kept) for _ in part],
        "at": rounded_list(frames.values(frame, "started_unix_s")[order] - start, 7),
        "ms": rounded_list(times[order], 5),
        "stages": _stages(frame, order),
        "ttft": rounded_list(frames.values(frame, "TTFT")[order]) if "TTFT" in frame else None,
        "tokens": [rounded_list(frames.values(frame, name)[order]) for name in _TOKENS],
        "flag_names": names,
        "flags": [int(bits[i]) for i in order],
        "itl": _token_gaps(directory, order, with_gaps),
        "said": _said(total, len(order), len(with_gaps)),
    }
    return made


def _groups(frame: pd.DataFrame) -> list[tuple[str, Ints]]:
    """(name, row numbers): the workload and the repeated request, or one group for each point of a sweep."""
    positions = pd.Series(np.arange(len(frame)), index=frame.index)
    if frames.compares(frame):
        return [(name, positions[part.index].to_numpy(np.int64)) for name, part in _arms(frame)]
    good, reference = frames.workload(frame), frames.reference(frame)
    if len(reference) and not _under_loads(good):
        found = [("workload", good), (ONE_REPEATED, reference)]
        return [(name, positions[part.index].to_numpy(np.int64)) for name, part in found if len(part)]
    names = sorted((str(name) for name in pd.unique(good["point_id"].astype(object))), key=point_key)
    if len(names) < 2 or len(names) > 200:  # more have no colour and no button of their own
        return [("workload", positions[good.index].to_numpy(np.int64))]
    texts = good["point_id"].astype(object).astype(str)
    return [(point_words(name), positions[good.index[texts == name]].to_numpy(np.int64)) for name in names]


def _under_loads(good: pd.DataFrame) -> bool:
    """Whether requests were sent under several loads: each has a distribution of its own."""
    return any(f"axis_{name}" in good and good[f"axis_{name}"].nunique() > 1 for name in _LOAD_AXES)


def point_words(point: str) -> str:
    """A point as its axes say it: ``4 users``, ``2 arrivals a second``, ``resolution=448``."""
    words = []
    for part in point.split(","):
        name, _, value = part.partition("=")
        if name in _LOAD_AXES:
            one, many = _LOAD_AXES[name]
            words.append(f"{float(value):g} {one if float(value) == 1 else many}")
        elif part != "dataset":
            words.append(part)
    return ", ".join(words) or point


def _arms(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The measured rows of each arm of a comparison of methods, the baseline's first."""
    measured = frames.arms(frame)
    columns = ["intervention", "intervention_arguments", "intervention_role"]
    texts = [measured[name].astype(object).fillna("") if name in measured else "" for name in columns]
    keys = pd.DataFrame(dict(zip(columns, texts, strict=True)), index=measured.index)
    found = []
    for (method, arguments, role), part in keys.groupby(columns, sort=False):
        name = "baseline" if method == frames.BASELINE else " ".join(filter(None, [str(method), str(arguments)]))
        found.append((f"{name} (control)" if role == "control" else name, measured.loc[part.index]))
    return sorted(found, key=lambda item: item[0] != "baseline")


def flag_bits(frame: pd.DataFrame) -> tuple[list[str], Ints]:
    """Names of the flags of a run (the commonest), and for each row a number with a bit for each that it carries.

    ``filler`` is no mark: it says what a request was sent for.
    """
    counted = frames.flag_counts(frame)
    names = [str(name) for name in counted.loc[counted["flag"] != frames.FILLER, "flag"].head(MOST_FLAGS)]
    places = {name: 1 << place for place, name in enumerate(names)}
    texts = frame["flags"].astype(object)
    value = {text: sum(places.get(flag, 0) for flag in str(text).split()) for text in texts.unique()}
    return names, texts.map(value).to_numpy(np.int64)


def _kept(groups: Sequence[Ints], times: NDArray[np.float64], bits: Ints, limit: int) -> list[Ints]:
    """Which rows of each group stand on the page one by one, in the order measured."""
    total = sum(map(len, groups))
    if total <= limit:
        return list(groups)
    found = []
    for group in groups:
        share = max(limit * len(group) // total, min(len(group), 40))
        ranked = group[np.argsort(times[group], kind="stable")]
        marked = ranked[bits[ranked] > 0]
        chosen = {*ranked[-_SLOWEST:].tolist(), *ranked[:_FASTEST].tolist(), *marked[-_FLAGGED:].tolist()}
        even = np.linspace(0, len(ranked) - 1, max(share - len(chosen), 20)).round().astype(int)
        chosen |= set(ranked[even].tolist())
        found.append(np.array(sorted(chosen), dtype=np.int64))
    return found


def _spread(order: Ints, times: NDArray[np.float64], most: int) -> Ints:
    """At most so many rows, spread over the ranks, the slowest among them."""
    if len(order) <= most:
        return order
    ranked = order[np.argsort(times[order], kind="stable")]
    return np.asarray(
        ranked[np.unique(np.linspace(0, len(ranked) - 1, max(most, 2)).round().astype(int))], dtype=np.int64
    )


def _group(name: str, times: NDArray[np.float64], thinned: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "n": len(times)}
    if thinned and len(times):
        ordered = np.sort(times)
        made |= {"hist": _histogram(ordered), "curve": _curve(ordered)}
    return made


def _histogram(ordered: NDArray[np.float64]) -> dict[str, Any]:
    """Counts in equal steps of the logarithm; every value is in one."""
    low, high = float(ordered[0]), float(ordered[-1])
    if low <= 0 or high <= low:
        return {"edges": [rounded(low, 5), rounded(high if high > low else low + 1, 5)], "counts": [len(ordered)]}
    edges = np.geomspace(low, high, _BINS + 1)
    edges[0], edges[-1] = low, high
    return {"edges": rounded_list(edges, 5), "counts": np.histogram(ordered, edges)[0].tolist()}


def _curve(ordered: NDArray[np.float64]) -> list[list[Any]]:
    """(ms, share of all requests that take longer), at the slowest one by one and at even ranks below."""
    n = len(ordered)
    even = np.linspace(0, n - 1, _CURVE).round().astype(int)
    ranks = np.unique(np.concatenate([even, np.arange(max(n - _CURVE_TAIL, 0), n)]))
    return [[rounded(ordered[r], 5), rounded((n - 1 - r) / n, 5)] for r in ranks]


def _stages(frame: pd.DataFrame, order: Ints) -> Mapping[str, list[Any]]:
    return {
        code: rounded_list(frames.values(frame, name)[order])
        for name, code in STAGE_CODES.items()
        if name in frame and frame[name].notna().any()
    }


def _token_gaps(directory: Path, order: Ints, wanted: set[int]) -> list[Any]:
    """Times between tokens of the wanted rows; a long output in steps of several tokens each, as ``[tokens, ms…]``."""
    found: dict[int, list[Any]] = {}
    if wanted:
        numbers = sorted(wanted)
        for number, line in zip(numbers, row_file(directory, ()).lines(numbers), strict=True):
            if gaps := token_gaps(line):
                found[number] = _steps([gap for gap in gaps if gap is not None])
    return [found.get(int(i)) for i in order]


def _steps(gaps: Sequence[float]) -> list[Any]:
    """``[tokens a step, ms, ms …]``: one token a step, or as many as keep the list short."""
    size = -(-len(gaps) // _MOST_GAPS)
    return [size, *rounded_list((sum(gaps[i : i + size]) for i in range(0, len(gaps), size)), 3)]


def _said(total: int, kept: int, gaps: int) -> str:
    if kept == total:
        return ""
    return (
        f"All {count(total, 'request')} are counted in the histograms and curves. {kept:,} stand one by one: the "
        f"slowest and fastest, marked ones, and others spread evenly over the ranks; {gaps:,} of them with the times "
        "between their tokens. The rows of all are in the run’s directory."
    )

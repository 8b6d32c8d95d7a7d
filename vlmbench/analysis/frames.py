"""Records into a compact DataFrame, read in blocks: memory grows by the columns asked for and nothing else.

Times and counts are kept as float32 (seven digits: a clock has fewer), all other numbers as float64, texts as
categoricals. The lists of token gaps (``ITL``) stay out of the frame; :func:`load_token_gaps` reads them on their own.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vlmbench.analysis.estimate import observed
from vlmbench.analysis.row_file import once, row_file
from vlmbench.errors import InputError
from vlmbench.records.comparable import sessions_of, turns_taken
from vlmbench.records.reading import token_gaps
from vlmbench.schema import Mode, Status
from vlmbench.text import count


def load_runs(path: Path | str, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """All rows of a run as a DataFrame, one row a run, in the order written.

    Args:
        columns: which columns to keep (identity columns point_id, sample_id, repeat, mode, status, flags come always;
            one that no row has is all NaN); all but nested ones if None.

    Returns:
        ``T_*``, ``TTFT*`` in ms and counts as float32, other numbers float64, texts categorical, ``flags`` as one
        text of names joined by spaces. ``attrs["lines_left_out"]`` counts lines that are no rows (cut off, damaged).

    Raises:
        InputError: no file, no rows, or rows of another schema version.
    """
    wanted = None if columns is None else list(columns)
    return row_file(path, wanted).frame(wanted)


def left_out_words(lines: int) -> str:
    """That lines of a records file were left out, in words."""
    what = "is no row (cut off or damaged) and is" if lines == 1 else "are no rows (cut off or damaged) and are"
    return f"{count(lines, 'line')} of the records {what} left out"


@dataclass(frozen=True, kw_only=True)
class TokenGaps:
    """Times between tokens, with the request that each belongs to.

    Args:
        values: gaps in ms, float32, shape (gaps,).
        clusters: code of the sample (or run) that each gap is of, shape (gaps,): gaps of one code are not independent.
        requests: how many requests ``values`` come from.
        requests_total, gaps_total: how many there were; more than were kept when a random sample of requests was taken.
    """

    values: NDArray[np.float32]
    clusters: NDArray[np.int32]
    requests: int
    requests_total: int
    gaps_total: int

    @classmethod
    def none(cls) -> TokenGaps:
        """Return the gaps of rows whose gaps were not read: there are none."""
        nothing = np.empty(0, np.int32)
        return cls(values=nothing.astype(np.float32), clusters=nothing, requests=0, requests_total=0, gaps_total=0)


def load_token_gaps(
    path: Path | str,
    *,
    point_ids: Iterable[str] | None = None,
    cluster: Literal["sample", "run"] = "sample",
    max_gaps: int = 1_000_000,
) -> TokenGaps:
    """The token gaps of all measured (``ok``) runs of some points.

    More than ``max_gaps`` are not held: then whole requests are drawn at random (seeded, each with equal chance), so
    that memory stays bounded and quantiles stay unbiased.

    Args:
        point_ids: the points; all if None.
        cluster: what gaps that are not independent have in common: the sample, or only the run.
        max_gaps: the most gaps to hold.
    """
    rows = row_file(path, ())
    eligible = rows.equals("status", Status.OK) & rows.equals("mode", Mode.INSTRUMENTED) & (rows.gaps >= 0)
    if point_ids is not None:
        eligible &= rows.equals("point_id", *point_ids)
    numbers = np.flatnonzero(eligible)
    lengths, tickets, threshold = (
        rows.gaps[numbers].astype(np.int64),
        np.random.default_rng(0).random(len(numbers)),
        1.0,
    )
    stay = np.ones(len(numbers), bool)
    while lengths[stay].sum() > max_gaps and stay.sum() > 1:
        threshold /= 2
        stay = tickets < threshold
    values, names = array("f"), []
    for place, line in zip(np.flatnonzero(stay), rows.lines(numbers[stay]), strict=True):
        values.extend(gap for gap in token_gaps(line) or () if gap is not None)  # null: not finite, and flagged as such
        names.append(rows.text("sample_id", numbers[place]) if cluster == "sample" else str(place + 1))
    samples = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True) for name in names]
    codes = np.unique(np.array(samples, dtype=np.int64), return_inverse=True)[1].astype(np.int32)
    return TokenGaps(
        values=np.array(values, dtype=np.float32),
        clusters=np.repeat(codes, lengths[stay]),
        requests=int(stay.sum()),
        requests_total=len(numbers),
        gaps_total=int(lengths.sum()),
    )


# Which rows count as what: the workload, the repeated single request, and what went wrong or carries a flag.

BASELINE = "none"
"""``intervention`` of the arm that is the model as it is."""
DATASET, REFERENCE = "dataset", "reference"
"""``point_id`` of requests of a data set, and of one identical request repeated."""


FILLER = "filler"
"""Flag of a request that kept a load up until the last measured one had ended."""

FIRST_TIME = frozenset({"first_seen_length", "shape_changed", "recompiled"})
"""Flags of runs that did more work than later ones of the same request: what they did, they did for the first time."""

_CAUSES = frozenset({"gc_pause", "clock_drop", "busy_host", "suspended"}) | FIRST_TIME
_CAUSE_KINDS = ("throttled:",)  # then the reason


def is_cause(flag: str) -> bool:
    """Whether a flag can make a run slow.

    The others name a goal or an invariant that the record breaks (``residual_above_goal``, ``negative_…``), or a value
    that it lacks (``energy_below_resolution``, ``not_finite:…``, ``no_costs``).
    """
    return flag in _CAUSES or flag.startswith(_CAUSE_KINDS)


@once
def measured(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The rows that are latencies: status ``ok``, watched as ``mode`` says. Warm-up, cold and trace rows never are.

    Of a comparison of methods only the baseline's: its other arms are other models (:func:`arms`).
    """
    rows = frame[(frame["status"] == "ok") & (frame["mode"] == mode)]
    return rows[rows["intervention"].eq(BASELINE)] if compares(frame) else rows


def arms(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The measured rows of all arms of a comparison of methods; no rows where none was made."""
    rows = frame[(frame["status"] == "ok") & (frame["mode"] == mode)]
    return rows if compares(frame) else rows.iloc[:0]


def compares(frame: pd.DataFrame) -> bool:
    """Whether the rows are of a comparison of methods."""
    return "intervention" in frame and bool(frame["intervention"].notna().any())


def _of(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The rows of ``kind`` at any point of a sweep: ``dataset``, ``dataset,resolution=336`` …"""
    found = _are_of(rows, kind)
    return rows if found.all() else rows[found]


def _are_of(rows: pd.DataFrame, kind: str) -> pd.Series:
    names = rows["point_id"].cat.categories if hasattr(rows["point_id"], "cat") else rows["point_id"].unique()
    return rows["point_id"].isin([name for name in names if str(name).split(",")[0] == kind])


def repeated(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The measured runs of the repeated single request at every point of a sweep; no rows if there was none."""
    return _of(measured(frame, mode), REFERENCE)


@once
def reference(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The measured runs of the repeated single request; no rows if there was none.

    Where a sweep repeats one request at each of its points, those of the point with the most runs.
    """
    rows = repeated(frame, mode)
    points = rows["point_id"].astype(object).value_counts()
    return rows[rows["point_id"] == points.index[0]] if len(points) > 1 else rows


@once
def workload(frame: pd.DataFrame, mode: str = "instrumented") -> pd.DataFrame:
    """The measured runs of the workload: the data set's requests (at all points of a sweep), or all but the repeated
    single request where there is no data set.
    """
    rows = measured(frame, mode)
    of_dataset = _of(rows, DATASET)
    return of_dataset if len(of_dataset) else rows[~_are_of(rows, REFERENCE)]


TOKENS = ("num_input_tokens", "num_prompt_tokens", "num_vision_tokens", "num_vision_patches", "num_output_tokens")
"""Counts that make the shape of a request."""


def token_counts(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The counts of tokens that are known of all rows, shape (rows, counts)."""
    known = [counts for name in TOKENS if not np.isnan(counts := values(rows, name)).any()]
    return np.column_stack(known) if known else np.empty((len(rows), 0))


def shapes(rows: pd.DataFrame) -> NDArray[np.intp] | None:
    """Number the shapes of requests: runs whose token counts are all the same are of one.

    Args:
        rows: rows of a run; counts that some row lacks tell nothing.

    Returns:
        The shape of each row, from 0; None where no count is known of all rows.
    """
    known = token_counts(rows)
    if not known.size:
        return None
    return np.asarray(pd.DataFrame(known).groupby(list(range(known.shape[1]))).ngroup(), dtype=np.intp)


def in_time(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one run directory in the order measured: by process first, for the wall clock may be set between two."""
    order = [name for name in ("session", "started_unix_s", "repeat") if name in rows]
    return rows.sort_values(order, kind="stable") if order else rows


def with_turns(rows: pd.DataFrame, provenance: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with a column ``turns``: the id of the turns that the row's session took; as they are if none did."""
    ids = {one.get("session"): turns.get("id") for one in sessions_of(provenance) if (turns := turns_taken(one))}
    if not ids or "session" not in rows:
        return rows
    return pd.concat([rows, rows["session"].map(ids).rename("turns")], axis=1)


def took_turns(baseline: pd.DataFrame, candidate: pd.DataFrame) -> bool:
    """Whether rows of two runs are of the same turns (:func:`with_turns`)."""
    ids = [set(rows["turns"].dropna()) if "turns" in rows else set() for rows in (baseline, candidate)]
    return bool(ids[0] & ids[1])


def turns_of(rows: pd.DataFrame, requests: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """The turn of each row, and its request, which is another one in other turns."""
    ids = rows["turns"] if "turns" in rows else [""] * len(rows)
    return values(rows, "turn"), np.array([f"{id}\n{one}" for id, one in zip(ids, np.asarray(requests), strict=True)])


def sample_codes(frame: pd.DataFrame) -> NDArray[np.int64]:
    """One number a sample, shape (rows,): runs of one sample are not independent."""
    return np.asarray(pd.factorize(frame["sample_id"])[0], dtype=np.int64)


def values(frame: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """A metric's values, shape (rows,), NaN where a run lacks it or none has it.

    Raises:
        InputError: a row has something else than a number there, or an infinite one.
    """
    if metric not in frame:
        return np.full(len(frame), np.nan)
    try:
        return observed(frame[metric].to_numpy(dtype=np.float64, na_value=np.nan), metric)
    except (ValueError, TypeError) as error:
        raise InputError(f"'{metric}' of a row must be a number ({error})") from None


def whole_metric(frame: pd.DataFrame) -> str:
    """Name the latency of the whole: of ``generate()``, or of the request where that is all that was seen (a server).

    Args:
        frame: rows of a run.
    """
    return "T_request" if np.isnan(values(frame, "T_total")).all() else "T_total"


def status_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by status and mode: columns ``status``, ``mode``, ``rows``."""
    counts = frame.groupby(["status", "mode"], observed=True).size()
    return counts.rename("rows").reset_index()


def flag_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """How many of the rows carry each flag: columns ``flag``, ``rows``, the commonest first."""
    found: Counter[str] = Counter()
    for flags, rows in frame["flags"].astype(object).value_counts().items():
        for flag in str(flags).split():
            found[flag] += int(rows)
    return pd.DataFrame(found.most_common(), columns=["flag", "rows"])


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """What failed and why: columns ``status``, ``reason``, ``rows``, the commonest first.

    A request that failed in several sessions counts once, with its last reason; one that a later session measured
    does not count.
    """
    bad = _standing(frame)
    if "reason" not in bad:
        bad = bad.assign(reason="")
    reasons = bad["reason"].astype(object).where(bad["reason"].notna(), "no reason given")
    counts = bad.assign(reason=reasons).groupby(["status", "reason"], observed=True).size()
    return counts.rename("rows").reset_index().sort_values("rows", ascending=False, kind="stable", ignore_index=True)


def _standing(frame: pd.DataFrame) -> pd.DataFrame:
    bad = frame[frame["status"].isin(["error", "oom", "skipped"])]
    key = [name for name in ("point_id", "sample_id", "repeat") if name in frame]
    if len(key) < 3 or bad.empty:  # rows of older files
        return bad
    traced = bad["mode"].eq("trace")
    good = frame[frame["status"].eq("ok") & frame["mode"].ne("trace")]
    last = bad[~traced].drop_duplicates(key, keep="last")
    measured = pd.MultiIndex.from_frame(last[key].astype(object)).isin(
        pd.MultiIndex.from_frame(good[key].astype(object))
    )
    # a point that was skipped as a whole has a row without a sample
    whole = last["sample_id"].astype(object).eq("") & last["point_id"].astype(object).isin(set(good["point_id"]))
    return pd.concat([last[~measured & ~whole], bad[traced]])


def as_counts(table: pd.DataFrame, key: str) -> Mapping[str, int]:
    """A table of counts as a mapping, rows of one key added up."""
    return {str(k): int(v) for k, v in table.groupby(key, observed=True)["rows"].sum().items()}

"""Fits a :class:`~vlmbench.analysis.latency_model.LatencyModel` to measured rows.

A stage is fitted to the medians of the measured points (a controller wants the typical time, which a few slow runs must
not move) with weights 1 / ``T_total``, so that a per cent counts the same for short and long requests. Coefficients may
be negative: nothing is forced. Which features a stage gets is decided by the leave-one-point-out error; a larger set
must bring its square down by a tenth.

What a prediction may be off by has three parts: how far the coefficients move when the runs, which depend on the runs
before them, fall out otherwise; how far off the fits on all other points are at each point; and what single runs of one
request differ by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vlmbench.analysis.dependence import inflation, pulled_in
from vlmbench.analysis.estimate import CONFIDENCE, observed
from vlmbench.analysis.latency_model import FEATURES, FIRST_TOKEN, Array, Counts, LatencyModel, StageModel, Uncertainty
from vlmbench.errors import InputError

MIN_CELLS = 3
_SPREAD_REPEATS = 20  # fewer say nothing about a 95 % quantile

_VISION_FORMS = (
    ("any_vision",),
    ("any_vision", "vision"),
    ("any_vision", "vision_above"),
    ("any_vision", "vision", "vision_sq"),
    ("any_vision", "vision", "vision_above"),
)
_FORMS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "T_setup": (("one",), ("one", "context")),
    "T_vision_encoder": _VISION_FORMS,
    "T_projector": _VISION_FORMS,
    "T_LLM_prefill": (
        ("one",),
        ("one", "context"),
        ("one", "context_above"),  # a plateau: below the knot the host is the limit, not the number of tokens
        ("one", "context", "context_sq"),
        ("one", "context", "vision"),
        ("one", "context", "context_above"),
    ),
    "T_LLM_decode": (("steps",), ("steps", "steps_context"), ("one", "steps"), ("one", "steps", "steps_context")),
    "T_residual": (("one",), ("one", "steps")),
    # only for files that know no stages
    "T_total": (
        ("one", "context"),
        ("one", "steps"),
        ("one", "context", "steps"),
        ("one", "context", "steps", "steps_context"),
        ("one", "context", "context_sq", "steps", "steps_context"),
    ),
}
_GAIN = 0.9  # a larger set of features must bring the squared leave-one-out error below this share


def fit_latency_model(frame: Any, *, provenance: Mapping[str, Any] | None = None) -> LatencyModel:
    """Fit to measured rows.

    Args:
        frame: a DataFrame of records or a mapping of column name to array; rows whose status is not ``ok``, that were
            not watched by the timeline, or whose batch size is not the commonest, are left out.

    Raises:
        InputError: no measured times, a request whose median is 0, fewer than three different requests, or rows of
            several runtimes.
    """
    data = Cells.of(frame)
    stages = _fit_stages(data)
    left_out = _left_out(data)
    return LatencyModel(
        stages=stages,
        ranges=data.ranges(),
        vision_column=data.vision_column,
        held_out=_held_out(left_out),
        p95_over_median=data.p95_over_median,
        provenance=dict(provenance or {}),
        uncertainty=_uncertainty(data, stages, left_out),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Medians of the stages at each distinct (vision, prompt, output), and the runs behind them.

    Args:
        counts: of each point.
        stages, total: medians, ms, shape (points,).
        vision_column: which observed count ``counts.vision`` is.
        p95_over_median: median over the points with twenty runs or more; nan without any.
        cell: point of each run in the order measured, shape (runs,).
        runs: times of the runs by stage, ms, and their ``T_total``, shape (runs,).
    """

    counts: Counts
    stages: Mapping[str, Array]
    total: Array
    vision_column: str
    p95_over_median: float
    cell: NDArray[np.int64]
    runs: Mapping[str, Array]

    @classmethod
    def of(cls, frame: Any) -> Cells:
        """The points of measured rows; see :func:`fit_latency_model`."""
        total = _column(frame, "T_total")
        if total is None:
            raise InputError("a latency model needs rows with T_total; nothing was measured")
        keep = np.isfinite(total) & _measured(frame, len(total))
        _refuse_mixture(frame, keep)
        vision_column, vision = _vision(frame, keep)
        prompt, output = (_column(frame, name) for name in ("num_prompt_tokens", "num_output_tokens"))
        filled = [np.zeros_like(total) if c is None else np.nan_to_num(c) for c in (vision, prompt, output)]
        if output is None:
            filled[2] = np.ones_like(total)
        cells, where = np.unique(np.column_stack(filled)[keep], axis=0, return_inverse=True)
        where = where.reshape(-1)
        if len(cells) < MIN_CELLS:
            raise InputError(
                f"a latency model needs at least {MIN_CELLS} different requests (got {len(cells)}); "
                "sweep vision, prompt or output tokens over three values or more"
            )
        groups = [np.flatnonzero(where == i) for i in range(len(cells))]
        totals = total[keep]
        times = _stage_times(frame, keep, totals, filled[0][keep])
        medians = np.array([np.median(totals[g]) for g in groups])
        if nothing := int((medians == 0).sum()):
            raise InputError(
                "a latency model needs times above 0 "
                f"(the median of T_total is 0 at {nothing} of {len(cells)} requests)"
            )
        ends = zip(groups, medians, strict=True)
        spreads = [np.quantile(totals[g], 0.95) / middle for g, middle in ends if len(g) >= _SPREAD_REPEATS]
        return cls(
            counts=Counts(
                vision=cells[:, 0],
                prompt=cells[:, 1],
                output=cells[:, 2],
                vision_in_context=vision_column == "num_vision_tokens",
            ),
            stages={name: np.array([np.median(values[g]) for g in groups]) for name, values in times.items()},
            total=medians,
            vision_column=vision_column,
            p95_over_median=float(np.median(spreads)) if spreads else math.nan,
            cell=where,
            runs={**times, "T_total": totals},
        )

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and most of each count."""
        named = {"vision": self.counts.vision, "prompt": self.counts.prompt, "output": self.counts.output}
        return {name: (float(values.min()), float(values.max())) for name, values in named.items()}

    def take(self, keep: NDArray[np.bool_]) -> Cells:
        """Some of the points, without their runs; ``keep`` has one truth value a point."""
        c = self.counts
        return Cells(
            counts=Counts(
                vision=c.vision[keep],
                prompt=c.prompt[keep],
                output=c.output[keep],
                vision_in_context=c.vision_in_context,
            ),
            stages={name: values[keep] for name, values in self.stages.items()},
            total=self.total[keep],
            vision_column=self.vision_column,
            p95_over_median=self.p95_over_median,
            cell=np.empty(0, dtype=np.int64),
            runs={},
        )


def _column(frame: Any, name: str) -> Array | None:
    return observed(frame[name], name) if name in frame else None


def _measured(frame: Any, rows: int) -> NDArray[np.bool_]:
    keep = np.ones(rows, dtype=bool)
    for name, value in (("status", "ok"), ("mode", "instrumented")):
        if name in frame:
            keep &= np.asarray(frame[name]).astype(str) == value
    if "intervention" in frame:  # another method is another model
        keep &= np.isin(np.asarray(frame["intervention"], dtype=object).astype(str), ("none", "nan", "None"))
    if "cache_filled_with" in frame:  # no whole request
        keep &= np.isin(np.asarray(frame["cache_filled_with"], dtype=object).astype(str), ("nan", "None"))
    batch = _column(frame, "axis_batch_size")
    if batch is not None and np.isfinite(batch[keep]).any():
        sizes, counts = np.unique(np.nan_to_num(batch[keep], nan=1.0), return_counts=True)
        keep &= np.nan_to_num(batch, nan=1.0) == sizes[counts.argmax()]
    return keep


_UNNAMED = {"nan", "None"}  # rows from before the column was there say nothing of their runtime


def _refuse_mixture(frame: Any, keep: NDArray[np.bool_]) -> None:
    """A law is of one runtime.

    Raises:
        InputError: the rows are of several.
    """
    if "runtime" not in frame:
        return
    names = sorted(set(np.asarray(frame["runtime"], dtype=object)[keep].astype(str)) - _UNNAMED)
    if len(names) > 1:
        raise InputError(
            f"a latency model is of one runtime, and the rows are of {', '.join(names)}\n"
            "Fit each by itself: fit_latency_model(frame[frame['runtime'] == NAME])."
        )


def _vision(frame: Any, keep: NDArray[np.bool_]) -> tuple[str, Array | None]:
    tokens = _column(frame, "num_vision_tokens")
    crossed = _column(frame, "num_cross_attention_tokens")
    seen = tokens is not None and bool(np.nan_to_num(tokens[keep]).any())
    if not seen and crossed is not None and bool(np.nan_to_num(crossed[keep]).any()):
        return "num_cross_attention_tokens", crossed
    return "num_vision_tokens", tokens


def _stage_times(frame: Any, keep: NDArray[np.bool_], total: Array, vision: Array) -> dict[str, Array]:
    times: dict[str, Array] = {}
    for name in (*FIRST_TOKEN, "T_LLM_decode"):
        values = _column(frame, name)
        if values is None or not np.isfinite(values[keep]).any():
            continue
        kept = values[keep]
        # A request without images has no vision stage: it costs nothing there.
        kept = np.where(np.isnan(kept) & (vision == 0), 0.0, kept)
        if np.isfinite(kept).all():
            times[name] = kept
    if "T_LLM_prefill" not in times or "T_LLM_decode" not in times:
        return {"T_total": total}
    times["T_residual"] = total - np.sum(list(times.values()), axis=0)
    return times


def _matrices(features: tuple[str, ...], counts: Counts, knots: Array) -> Array:
    """The features of all points with each of the knots, shape (knots, points, features)."""
    return np.stack([np.column_stack([FEATURES[name](counts, knot) for name in features]) for knot in knots])


def _solve(matrices: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Weighted least squares of one time on several sets of features at once.

    Args:
        matrices: shape (sets, points, features).
        y, weight: shape (points,).

    Returns:
        Coefficients, shape (sets, features), and mean squared leave-one-out errors, shape (sets,): infinite where the
        coefficients are not determined.
    """
    weighted, target = matrices * weight[:, None], y * weight
    scale = np.linalg.norm(weighted, axis=1, keepdims=True)
    if len(y) <= matrices.shape[2] or not (scale > 0).all():
        return np.zeros(matrices.shape[::2]), np.full(len(matrices), math.inf)
    left, values, right = np.linalg.svd(weighted / scale, full_matrices=False)
    determined = values[:, -1] >= 1e-9 * values[:, 0]
    inverse = np.where(determined[:, None], 1 / np.where(determined[:, None], values, 1.0), 0.0)
    coefficients = np.einsum("kji,kj->ki", right, np.einsum("knj,n->kj", left, target) * inverse) / scale[:, 0]
    leverage = np.einsum("kij,kij->ki", left, left)
    # A point that alone determines a coefficient cannot be predicted without it.
    left_out = (target - np.einsum("knj,kj->kn", weighted, coefficients)) / np.maximum(1 - leverage, 1e-3)
    return coefficients, np.where(determined, np.mean(left_out**2, axis=1), math.inf)


def _fit_stage(name: str, y: Array, data: Cells) -> StageModel:
    weight = 1 / data.total
    chosen, error = None, math.inf
    for features in _FORMS[name]:
        knots = _knots(features, data.counts)
        if not len(knots):
            continue
        coefficients, errors = _solve(_matrices(features, data.counts, knots), y, weight)
        best = int(errors.argmin())
        if math.isfinite(errors[best]) and (chosen is None or errors[best] < _GAIN * error):
            solved = tuple(map(float, coefficients[best]))
            chosen, error = StageModel(features=features, coefficients=solved, knot=float(knots[best])), errors[best]
    if chosen is None:
        chosen = StageModel(features=("one",), coefficients=(float(np.median(y)),))
    return chosen


def _knots(features: tuple[str, ...], counts: Counts) -> Array:
    """Where a kink may lie: two distinct values or more on either side; one nan for features without a kink."""
    kinked = next((name for name in features if name.endswith("_above")), None)
    if kinked is None:
        return np.array([math.nan])
    values = np.unique(counts.vision if kinked.startswith("vision") else counts.context)
    return np.linspace(values[1], values[-2], 61) if len(values) >= 6 else np.empty(0)


def _fit_stages(data: Cells) -> dict[str, StageModel]:
    return {name: _fit_stage(name, values, data) for name, values in data.stages.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _LeftOut:
    """What fits on all other points say of each point.

    Args:
        total: relative errors of ``T_total``, signed, shape (points,); none where the others are too few for a fit.
        stages: errors of each stage as a share of ``T_total``, signed.
    """

    total: Array
    stages: Mapping[str, Array]


def _left_out(data: Cells) -> _LeftOut:
    """Each point foretold by a fit on all others, features and kinks chosen anew."""
    n = len(data.total)
    points = np.arange(n) if n > MIN_CELLS else np.empty(0, dtype=np.int64)
    errors: dict[str, list[float]] = {name: [] for name in data.stages}
    whole = []
    for point in points:
        apart = np.arange(n) == point
        one = data.take(apart)
        found = {name: stage.predict(one.counts)[0] for name, stage in _fit_stages(data.take(~apart)).items()}
        for name, value in found.items():
            errors[name].append(float((value - one.stages[name][0]) / one.total[0]))
        whole.append(sum(found.values()) / one.total[0] - 1)
    return _LeftOut(total=np.array(whole), stages={name: np.array(values) for name, values in errors.items()})


def _held_out(left_out: _LeftOut) -> dict[str, Any]:
    if not len(left_out.total):
        return {"points": 0, "median": None, "p90": None, "max": None, "stages": {}}
    error = np.abs(left_out.total)
    return {
        "points": len(error),
        "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
        "max": float(error.max()),
        "stages": {name: float(np.median(np.abs(values))) for name, values in left_out.stages.items()},
    }


def _uncertainty(data: Cells, stages: Mapping[str, StageModel], left_out: _LeftOut) -> Uncertainty | None:
    """What predictions may be off by; None where no point has enough runs, or too few points were left out."""
    n = np.bincount(data.cell, minlength=len(data.total))
    shares = (data.runs["T_total"] / data.total[data.cell])[n[data.cell] >= _SPREAD_REPEATS]
    if not len(shares) or len(left_out.total) <= MIN_CELLS:
        return None
    half = (1 - CONFIDENCE) / 2
    low, high = np.quantile(shares, (half, 1 - half), method="weibull")
    reach = float(stats.t.ppf(1 - half, len(left_out.total) - 1))
    return Uncertainty(
        covariance=_covariance(data, stages, n),
        off=reach * math.sqrt(float(np.mean(left_out.total**2))),
        spread=(float(low), float(high)),
    )


def _covariance(data: Cells, stages: Mapping[str, StageModel], n: NDArray[np.int64]) -> Array:
    """Covariance of the coefficients of all stages: each run moves them by what it moves its point's median.

    A median is known as well as a mean of 2/π as many runs. Runs depend on those before them: all is multiplied by the
    inflation of their relative deviations in the order measured, which is too much for slopes (a slow time of the
    machine meets all points of an interleaved sweep) and right for the level.
    """
    weight = 1 / data.total
    moved = []
    for name, stage in stages.items():
        matrix = _matrices(stage.features, data.counts, np.array([stage.knot]))[0]
        solved = np.linalg.pinv(matrix * weight[:, None]) * weight  # (features, points)
        moved.append(solved[:, data.cell] * (_near(data.runs[name], data) / n[data.cell]))
    of_runs = np.concatenate(moved)
    relative = _near(data.runs["T_total"], data) / data.total[data.cell]
    covariance: Array = math.pi / 2 * float(inflation(pulled_in(relative))) * (of_runs @ of_runs.T)
    return covariance


def _near(times: Array, data: Cells) -> Array:
    """Deviations of runs from the median of their point, those beyond 2.5 robust standard deviations pulled in, ms."""
    groups = [np.flatnonzero(data.cell == i) for i in range(len(data.total))]
    middles = np.array([np.median(times[g]) for g in groups])[data.cell]
    spread = 2.5 * 1.4826 * np.array([np.median(np.abs(times[g] - np.median(times[g]))) for g in groups])[data.cell]
    near: Array = np.clip(times - middles, -spread, spread)
    return near

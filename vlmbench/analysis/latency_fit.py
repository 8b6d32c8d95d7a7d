"""Fits a :class:`~vlmbench.analysis.latency_model.LatencyModel` to measured rows. numpy only.

A stage is fitted to the medians of the measured points (a controller wants the typical time, which a few slow runs must
not move) with weights 1 / ``T_total``, so that a per cent counts the same for short and long requests. Coefficients may
be negative: nothing is forced. Which features a stage gets is decided by the leave-one-point-out error; a larger set
must bring its square down by a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbench.analysis.latency_model import FEATURES, FIRST_TOKEN, Array, Counts, LatencyModel, StageModel
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
        provenance: kept with the model.

    Raises:
        InputError: no measured times, or fewer than three different requests.
    """
    data = Cells.of(frame)
    return LatencyModel(
        stages=_fit_stages(data),
        ranges=data.ranges(),
        vision_column=data.vision_column,
        held_out=_held_out(data, data.checkerboard()),
        p95_over_median=data.p95_over_median,
        provenance=dict(provenance or {}),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Medians of the stages at each distinct (vision, prompt, output)."""

    counts: Counts
    stages: Mapping[str, Array]
    total: Array
    vision_column: str
    p95_over_median: float

    @classmethod
    def of(cls, frame: Any) -> Cells:
        """The points of measured rows; see :func:`fit_latency_model`."""
        total = _column(frame, "T_total")
        if total is None:
            raise InputError("a latency model needs rows with T_total; nothing was measured")
        keep = np.isfinite(total) & _measured(frame, len(total))
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
        spreads = [np.quantile(totals[g], 0.95) / np.median(totals[g]) for g in groups if len(g) >= _SPREAD_REPEATS]
        return cls(
            counts=Counts(
                vision=cells[:, 0],
                prompt=cells[:, 1],
                output=cells[:, 2],
                vision_in_context=vision_column == "num_vision_tokens",
            ),
            stages={name: np.array([np.median(values[g]) for g in groups]) for name, values in times.items()},
            total=np.array([np.median(totals[g]) for g in groups]),
            vision_column=vision_column,
            p95_over_median=float(np.median(spreads)) if spreads else math.nan,
        )

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and most of each count."""
        named = {"vision": self.counts.vision, "prompt": self.counts.prompt, "output": self.counts.output}
        return {name: (float(values.min()), float(values.max())) for name, values in named.items()}

    def take(self, keep: NDArray[np.bool_]) -> Cells:
        """Some of the points; ``keep`` has one truth value a point."""
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
        )

    def checkerboard(self) -> NDArray[np.bool_]:
        """Every other point along each axis; on a grid the squares of one colour: no whole column is left out."""
        ranks = [np.unique(v, return_inverse=True)[1].reshape(-1) for v in (self.counts.vision, self.counts.output)]
        ranks.append(np.unique(self.counts.prompt, return_inverse=True)[1].reshape(-1))
        even: NDArray[np.bool_] = np.sum(ranks, axis=0) % 2 == 0
        return even


def _column(frame: Any, name: str) -> Array | None:
    return np.asarray(frame[name], dtype=float) if name in frame else None


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


def _matrix(features: tuple[str, ...], counts: Counts, knot: float) -> Array:
    return np.column_stack([FEATURES[name](counts, knot) for name in features])


def _solve(matrix: Array, y: Array, weight: Array) -> tuple[Array, float] | None:
    """Weighted least squares: coefficients and mean squared leave-one-out error; None if they are not determined."""
    weighted, target = matrix * weight[:, None], y * weight
    scale = np.linalg.norm(weighted, axis=0)
    if len(y) <= matrix.shape[1] or not (scale > 0).all():
        return None
    left, values, right = np.linalg.svd(weighted / scale, full_matrices=False)
    if values[-1] < 1e-9 * values[0]:
        return None
    coefficients = right.T @ ((left.T @ target) / values) / scale
    leverage = np.einsum("ij,ij->i", left, left)
    # A point that alone determines a coefficient cannot be predicted without it.
    left_out = (target - weighted @ coefficients) / np.maximum(1 - leverage, 1e-3)
    return coefficients, float(np.mean(left_out**2))


def _fit_stage(name: str, y: Array, data: Cells) -> StageModel:
    weight = 1 / data.total
    chosen, error = None, math.inf
    for features in _FORMS[name]:
        found = min(
            (
                (*solved, knot)
                for knot in _knots(features, data.counts)
                if (solved := _solve(_matrix(features, data.counts, knot), y, weight)) is not None
            ),
            key=lambda candidate: candidate[1],
            default=None,
        )
        if found is not None and (chosen is None or found[1] < _GAIN * error):
            chosen = StageModel(features=features, coefficients=tuple(map(float, found[0])), knot=found[2])
            error = found[1]
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


def _held_out(data: Cells, even: NDArray[np.bool_]) -> dict[str, Any]:
    train, test = data.take(even), data.take(~even)
    if len(train.total) < MIN_CELLS or not len(test.total):
        return {"points": 0, "median": None, "p90": None, "max": None, "stages": {}}
    fitted = _fit_stages(train)
    predicted = {name: stage.predict(test.counts) for name, stage in fitted.items()}
    error = np.abs(np.sum(list(predicted.values()), axis=0) - test.total) / test.total
    return {
        "points": len(test.total),
        "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
        "max": float(error.max()),
        "stages": {n: float(np.median(np.abs(v - test.stages[n]) / test.total)) for n, v in predicted.items()},
    }

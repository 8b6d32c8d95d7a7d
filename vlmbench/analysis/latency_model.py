"""A latency model for controllers: T = f(vision, prompt, output tokens), stage by stage, as a small JSON file.

Importing this module and predicting need numpy and nothing else::

    from vlmbench.analysis.latency_model import LatencyModel

    model = LatencyModel.load("latency_model.json")
    model.predict(vision=576, prompt=32, output=64)["T_total"]  # ms
    model.predict(vision=np.array([144, 576]), prompt=32, output=64)["TTFT_model"]
    model.interval(vision=576, prompt=32, output=64)  # (low, high) of one request, ms
    print(model)  # what it is of, where it holds, how far off it was at points that it had not seen

Each stage is a sum of features with physical meaning: its cost per image, per vision token, per token of context, per
decoding step, per step and token of cached context. :mod:`vlmbench.analysis.latency_fit` makes such files.
``benchmarks/latency_model.py`` measures what an answer takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlmbench.errors import InputError
from vlmbench.schema import TOTAL_PARTS
from vlmbench.text import count, parse_json, percent, whole

Array = NDArray[np.float64]
MODEL_SCHEMA_VERSION = 1
FIRST_TOKEN = TOTAL_PARTS[: TOTAL_PARTS.index("T_LLM_decode")]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Token counts of requests, arrays of one shape; ``context`` is what the language model prefills."""

    vision: Array
    prompt: Array
    output: Array
    vision_in_context: bool

    @property
    def context(self) -> Array:
        """Tokens that the language model prefills."""
        return self.prompt + self.vision if self.vision_in_context else self.prompt

    @property
    def steps(self) -> Array:
        """Decoding steps after the first token."""
        return self.output - 1


FEATURES: Mapping[str, Callable[[Counts, float], Array]] = {
    "one": lambda c, _: np.ones_like(c.vision),
    "any_vision": lambda c, _: (c.vision > 0).astype(float),
    "vision": lambda c, _: c.vision,
    "vision_sq": lambda c, _: c.vision**2,
    "vision_above": lambda c, knot: np.clip(c.vision - knot, 0.0, None),
    "context": lambda c, _: c.context,
    "context_sq": lambda c, _: c.context**2,
    "context_above": lambda c, knot: np.clip(c.context - knot, 0.0, None),
    "steps": lambda c, _: c.steps,
    # the cache grows by one token a step: sum of the context lengths that the steps attend to
    "steps_context": lambda c, _: c.steps * c.context + c.steps * (c.steps + 1) / 2,
}


@dataclass(frozen=True, kw_only=True)
class StageModel:
    """One stage: the weighted sum of its features, ms.

    Args:
        features: names; ``*_above`` counts tokens beyond ``knot``.
        coefficients: ms per unit of each feature.
        knot: tokens; nan where no feature uses it.
    """

    features: tuple[str, ...]
    coefficients: tuple[float, ...]
    knot: float = math.nan

    def predict(self, counts: Counts) -> Array:
        """Times in ms, shaped like the counts."""
        terms = (
            w * FEATURES[name](counts, self.knot) for name, w in zip(self.features, self.coefficients, strict=True)
        )
        total: Array = np.sum(list(terms), axis=0)
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """What a prediction of ``T_total`` may be off by.

    Args:
        covariance: of the coefficients of all stages, in their order, ms², shape (p, p): how far they move when blocks
            of neighbouring runs are drawn again.
        off: root mean square of the relative errors at points that were left out of the fit, times Student's quantile
            for so many points: how far off the typical time of an unseen request may be.
        spread: 2.5 % and 97.5 % quantile of single runs over the median of their point.
    """

    covariance: Array
    off: float
    spread: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """The fitted stages with the range they were fitted in and the error they were found to have.

    Args:
        stages: name of the time to its model; their sum is ``T_total``.
        ranges: ``vision``, ``prompt``, ``output`` to (least, most) measured.
        vision_column: which observed count ``vision`` stands for.
        held_out: error at each point left out of a fit on all others: ``median``, ``p90``, ``max`` of the relative
            error of ``T_total``, ``points``, and the median per stage as a share of ``T_total``.
        p95_over_median: spread of repeats of one request (median over the points), for those who need a bound rather
            than the typical time; nan with fewer than 20 repeats.
        provenance: of the run it was fitted to.
        uncertainty: for :meth:`interval`; None where there were too few points or repeats to tell.
    """

    stages: Mapping[str, StageModel]
    ranges: Mapping[str, tuple[float, float]]
    vision_column: str
    held_out: Mapping[str, Any]
    p95_over_median: float
    provenance: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: Uncertainty | None = None

    def predict(
        self, *, vision: ArrayLike, prompt: ArrayLike, output: ArrayLike, extrapolate: bool = False
    ) -> dict[str, Any]:
        """Typical times in ms of one request: every stage, ``T_total``, and ``TTFT_model`` where stages are known.

        Args:
            vision, prompt, output: observed token counts; numbers or arrays that broadcast.
            extrapolate: answer beyond the measured counts too, as if the law went on there.

        Returns:
            Floats for numbers, arrays for arrays.

        Raises:
            InputError: a count that no request has (below 0, or no output token), or one beyond those measured.
        """
        if self._is_one(vision, prompt, output, extrapolate):
            return self._predict_one(float(vision), float(prompt), float(output))  # type: ignore[arg-type]
        self._check(vision, prompt, output, extrapolate)
        counts = self._counts(vision, prompt, output)
        times = {name: stage.predict(counts) for name, stage in self.stages.items()}
        total = np.sum(list(times.values()), axis=0)
        if "T_total" not in times:
            times["TTFT_model"] = np.sum([times[name] for name in FIRST_TOKEN if name in times], axis=0)
        times["T_total"] = total
        return {name: float(value) if value.ndim == 0 else value for name, value in times.items()}

    def interval(
        self, *, vision: float, prompt: float, output: float, typical: bool = False, extrapolate: bool = False
    ) -> tuple[float, float]:
        """95 % interval of ``T_total`` of one request, ms.

        It holds the error of the fit (with the dependence of runs in it), how far off the model was at points that it
        had not seen, and what single runs of one request differ by.

        Args:
            typical: of the typical time of such requests: without the spread of single runs.
            extrapolate: answer beyond the measured counts too. Nothing there says how far off it is.

        Raises:
            InputError: counts as in :meth:`predict`; or the points and repeats were too few to tell.
        """
        if (known := self.uncertainty) is None:
            raise InputError(
                "this latency model has no intervals: too few points or repeats, or an earlier version wrote it\n"
                "Measure five points or more, each twenty times or more, and fit again."
            )
        if not self._is_one(vision, prompt, output, extrapolate):
            self._check(vision, prompt, output, extrapolate)
        values = self._values(float(vision), float(prompt), float(output))
        row = np.array([values[name, stage.knot] for stage in self.stages.values() for name in stage.features])
        total = sum(
            weight * values[name, stage.knot]
            for stage in self.stages.values()
            for name, weight in zip(stage.features, stage.coefficients, strict=True)
        )
        # 1.96: the fit's error, on hundreds of draws; `off` holds its own, larger quantile
        half = math.sqrt(1.96**2 * max(float(row @ known.covariance @ row), 0.0) + (known.off * total) ** 2)
        if typical:
            return total - half, total + half
        low, high = known.spread
        return total - math.hypot(half, (1 - low) * total), total + math.hypot(half, (high - 1) * total)

    def _is_one(self, vision: ArrayLike, prompt: ArrayLike, output: ArrayLike, extrapolate: bool) -> bool:
        """Whether these are plain numbers that may be answered: the quick way of a controller."""
        given: Any
        for name, given in (("vision", vision), ("prompt", prompt), ("output", output)):
            if not isinstance(given, int | float):
                return False
            low, high = self.ranges[name]
            if extrapolate:
                low, high = float(name == "output"), math.inf
            if not low <= given <= high:
                return False
        return True

    def _check(self, vision: ArrayLike, prompt: ArrayLike, output: ArrayLike, extrapolate: bool) -> None:
        """Refuse counts that no request has, and counts that were never measured unless they are asked for."""
        for name, given, least in (("vision", vision, 0), ("prompt", prompt, 0), ("output", output, 1)):
            values = np.asarray(given, dtype=float)
            if not (values >= least).all():
                raise InputError(f"'{name}' must be {least} or more tokens (got {np.min(values):g})")
        for name, given in () if extrapolate else (("vision", vision), ("prompt", prompt), ("output", output)):
            low, high = self.ranges[name]
            values = np.asarray(given, dtype=float)
            beyond = values[(values < low) | (values > high)]
            if beyond.size:
                raise InputError(
                    f"'{name}' was measured from {whole(low)} to {whole(high)} tokens (got {beyond.flat[0]:g})\n"
                    "Measure there too, or say extrapolate=True: then the law is taken to go on."
                )

    def _values(self, vision: float, prompt: float, output: float) -> dict[tuple[str, float], float]:
        """Each feature that a stage uses, with its knot, to its value for one request."""
        context = prompt + vision if self.vision_column == "num_vision_tokens" else prompt
        steps = output - 1
        known = {
            "one": 1.0,
            "any_vision": float(vision > 0),
            "vision": vision,
            "vision_sq": vision * vision,
            "context": context,
            "context_sq": context * context,
            "steps": steps,
            "steps_context": steps * context + steps * (steps + 1) / 2,
        }
        found = {}
        for stage in self.stages.values():
            for name in stage.features:
                if name in known:
                    found[name, stage.knot] = known[name]
                else:
                    found[name, stage.knot] = max((vision if name == "vision_above" else context) - stage.knot, 0.0)
        return found

    def _predict_one(self, vision: float, prompt: float, output: float) -> dict[str, Any]:
        """:meth:`predict` of one request without arrays: some microseconds."""
        values = self._values(vision, prompt, output)
        times: dict[str, Any] = {}
        for stage_name, stage in self.stages.items():
            time = 0.0
            for name, weight in zip(stage.features, stage.coefficients, strict=True):
                time += weight * values[name, stage.knot]
            times[stage_name] = time
        total = sum(times.values())
        if "T_total" not in times:
            times["TTFT_model"] = sum(times[name] for name in FIRST_TOKEN if name in times)
        times["T_total"] = total
        return times

    def __str__(self) -> str:
        """What it is of, where it holds, and how far off it was at points that it had not seen."""
        told = [str((self.provenance.get(part) or {}).get("name") or "") for part in ("model", "runtime", "device")]
        runtime = told[1] or "its runtime"
        seen = ", ".join(f"{whole(low)} to {whole(high)} {name}" for name, (low, high) in self.ranges.items())
        error = self.held_out
        if error.get("median") is None:
            off = f"{runtime}: too few points to leave one out: its error is not known"
        else:
            off = (
                f"{runtime}: each of {count(error['points'], 'point')} left out in turn, the others foretell it within "
                f"{percent(error['median'])} (median), {percent(error['p90'])} (9 in 10), {percent(error['max'])} (all)"
            )
        single = ""
        if self.uncertainty is not None:
            low, high = map(percent, self.uncertainty.spread)
            single = f"; single runs: {low} to {high} of the typical time"
        return f"T_total of {', '.join(filter(None, told)) or 'a model'} for {seen} tokens\n{off}{single}"

    def inside(self, *, vision: ArrayLike, prompt: ArrayLike, output: ArrayLike) -> Any:
        """Whether counts lie within the measured range; a prediction outside is extrapolated."""
        given = {"vision": vision, "prompt": prompt, "output": output}
        each = [
            (np.asarray(value) >= self.ranges[name][0]) & (np.asarray(value) <= self.ranges[name][1])
            for name, value in given.items()
        ]
        within = np.logical_and.reduce(np.broadcast_arrays(*each))
        return bool(within) if within.ndim == 0 else within

    def _counts(self, vision: ArrayLike, prompt: ArrayLike, output: ArrayLike) -> Counts:
        arrays = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (vision, prompt, output)))
        return Counts(
            vision=arrays[0],
            prompt=arrays[1],
            output=arrays[2],
            vision_in_context=self.vision_column == "num_vision_tokens",
        )

    def to_dict(self) -> dict[str, Any]:
        """Content of the JSON file."""
        return {
            "schema_version": MODEL_SCHEMA_VERSION,
            "kind": "latency_model",
            "unit": "ms",
            "vision_column": self.vision_column,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "held_out_error": dict(self.held_out),
            "p95_over_median": self.p95_over_median if math.isfinite(self.p95_over_median) else None,
            "stages": {
                name: {
                    "features": list(stage.features),
                    "coefficients": list(stage.coefficients),
                    "knot": stage.knot if math.isfinite(stage.knot) else None,
                }
                for name, stage in self.stages.items()
            },
            "provenance": dict(self.provenance),
            "uncertainty": None
            if self.uncertainty is None
            else {
                "covariance": self.uncertainty.covariance.tolist(),
                "off": self.uncertainty.off,
                "spread": list(self.uncertainty.spread),
            },
        }

    def save(self, path: Path | str) -> Path:
        """Write the JSON file (whole or not at all)."""
        from vlmbench.records.files import write_json

        return write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> LatencyModel:
        """Read a JSON file that :meth:`save` wrote.

        Raises:
            InputError: missing, torn, or of another schema.
        """
        try:
            content = parse_json(Path(path).read_text(encoding="utf-8"))
            if content["schema_version"] != MODEL_SCHEMA_VERSION or content["kind"] != "latency_model":
                raise KeyError("schema_version")
            stages = {
                name: StageModel(
                    features=tuple(stage["features"]),
                    coefficients=tuple(float(c) for c in stage["coefficients"]),
                    knot=math.nan if stage["knot"] is None else float(stage["knot"]),
                )
                for name, stage in content["stages"].items()
            }
            if unknown := {name for stage in stages.values() for name in stage.features} - set(FEATURES):
                raise KeyError(f"features {sorted(unknown)}")
            spread = content["p95_over_median"]
            return cls(
                stages=stages,
                ranges={name: (float(ends[0]), float(ends[1])) for name, ends in content["ranges"].items()},
                vision_column=str(content["vision_column"]),
                held_out=content["held_out_error"],
                p95_over_median=math.nan if spread is None else float(spread),
                provenance=content["provenance"],
                uncertainty=_uncertainty(content.get("uncertainty"), sum(len(one.features) for one in stages.values())),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"'{path}' is not a latency model of version {MODEL_SCHEMA_VERSION} ({type(error).__name__}: {error})\n"
                "Give the latency_model.json that a phase 2, phase 3 or comparison run wrote."
            ) from None


def _uncertainty(content: Any, terms: int) -> Uncertainty | None:
    """From the JSON file; files of earlier versions have none.

    Raises:
        ValueError, KeyError, TypeError: something else stands there.
    """
    if content is None:
        return None
    covariance = np.asarray(content["covariance"], dtype=float)
    if covariance.shape != (terms, terms) or not np.isfinite(covariance).all():
        raise ValueError(f"'covariance' must be {terms} by {terms} numbers")
    low, high = (float(end) for end in content["spread"])
    return Uncertainty(covariance=covariance, off=float(content["off"]), spread=(low, high))

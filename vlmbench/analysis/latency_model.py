"""A latency model for controllers: T = f(vision, prompt, output tokens), stage by stage, as a small JSON file.

Importing this module and predicting need numpy and nothing else::

    from vlmbench.analysis.latency_model import LatencyModel

    model = LatencyModel.load("latency_model.json")
    model.predict(vision=576, prompt=32, output=64)["T_total"]  # ms
    model.predict(vision=np.array([144, 576]), prompt=32, output=64)["TTFT_model"]

Each stage is a sum of features with physical meaning: its cost per image, per vision token, per token of context, per
decoding step, per step and token of cached context. :mod:`vlmbench.analysis.latency_fit` makes such files.
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
from vlmbench.text import parse_json

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


@dataclass(frozen=True, kw_only=True)
class LatencyModel:
    """The fitted stages with the range they were fitted in and the error they were found to have.

    Args:
        stages: name of the time to its model; their sum is ``T_total``.
        ranges: ``vision``, ``prompt``, ``output`` to (least, most) measured.
        vision_column: which observed count ``vision`` stands for.
        held_out: error at points left out of a fit on every other point: ``median``, ``p90``, ``max`` of the relative
            error of ``T_total``, ``points``, and the median per stage as a share of ``T_total``.
        p95_over_median: spread of repeats of one request (median over the points), for those who need a bound rather
            than the typical time; nan with fewer than 20 repeats.
        provenance: of the run it was fitted to.
    """

    stages: Mapping[str, StageModel]
    ranges: Mapping[str, tuple[float, float]]
    vision_column: str
    held_out: Mapping[str, Any]
    p95_over_median: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, *, vision: ArrayLike, prompt: ArrayLike, output: ArrayLike) -> dict[str, Any]:
        """Typical times in ms of one request: every stage, ``T_total``, and ``TTFT_model`` where stages are known.

        Args:
            vision, prompt, output: observed token counts; numbers or arrays that broadcast.

        Returns:
            Floats for numbers, arrays for arrays.

        Raises:
            InputError: a count that no request has: below 0, or no output token.
        """
        for name, given, least in (("vision", vision, 0), ("prompt", prompt, 0), ("output", output, 1)):
            if not (np.asarray(given, dtype=float) >= least).all():
                raise InputError(f"'{name}' must be {least} or more tokens (got {np.min(np.asarray(given)):g})")
        counts = self._counts(vision, prompt, output)
        times = {name: stage.predict(counts) for name, stage in self.stages.items()}
        total = np.sum(list(times.values()), axis=0)
        if "T_total" not in times:
            times["TTFT_model"] = np.sum([times[name] for name in FIRST_TOKEN if name in times], axis=0)
        times["T_total"] = total
        return {name: float(value) if value.ndim == 0 else value for name, value in times.items()}

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
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"'{path}' is not a latency model of version {MODEL_SCHEMA_VERSION} ({type(error).__name__}: {error})\n"
                "Give the latency_model.json that a phase 2, phase 3 or comparison run wrote."
            ) from None

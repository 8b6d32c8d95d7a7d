"""What is looked at before a request is run: images that the model does not see, positions that it does not have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vlmbench.errors import SampleError, UnreachablePointError
from vlmbench.models.protocol import Target, VisionLanguageModel
from vlmbench.records.attempts import Attempts
from vlmbench.request import Request, TokenCounts
from vlmbench.runner.execution import PreparedRun
from vlmbench.runner.plan import Series

BEYOND = "beyond_positions"
MUCH_LARGER = 20.0
"""A point whose predicted work is so many times the median point's is warned of."""
OUTSIZED, LARGE_TOKENS = 8.0, 1024
"""A request with so many times the tokens of those before it (of the first one: so many tokens) is told of."""
_REMEMBERED = 50
_STEP_TOKENS = 100  # a decode step costs about as much as that many tokens of a prefill: it reads all weights for one


def check_inputs(model: VisionLanguageModel, run: PreparedRun, *, swept: bool) -> tuple[str, ...]:
    """Refuse or flag a request whose latency would not be what its row says.

    Args:
        swept: whether it stands for a point of a sweep, which is skipped where a request of a data set is flagged.

    Returns:
        Flags: ``beyond_positions`` for a request longer than the positions that the model was made for.

    Raises:
        SampleError: images were given and the model sees none of them.
        UnreachablePointError: a point of a sweep lies beyond the model's positions, or the engine cannot begin over a
            cache.
    """
    counts = run.prepared.counts
    if run.request.over_cache and run.prepared.cached is None:
        raise UnreachablePointError(
            "this engine begins with an empty cache; kv_length and reuse_cache need runtime=eager"
        )
    if run.request.frames is not None and run.prepared.num_frames is None:
        raise UnreachablePointError("this engine is given images only; frames need runtime=eager or cudagraph")
    if run.request.turns != len(run.request.earlier_answers) + 1:
        raise UnreachablePointError("this engine asks single questions; turns need runtime=eager or cudagraph")
    shown = f"{len(run.request.images)} image(s)" if run.request.frames is None else "a clip"
    given = run.request.images or run.request.frames is not None
    if given and not counts.num_vision_tokens and not counts.num_cross_attention_tokens:
        raise SampleError(
            f"{shown} were given and the language model sees no vision token: the prompt "
            "holds no place for them, so this would be the latency of a text"
        )
    longer = beyond_positions(positions_of(model), counts, run.request)
    if longer is None:
        return ()
    if swept:
        raise UnreachablePointError(longer)
    return (BEYOND,)


def beyond_positions(positions: int | None, counts: TokenCounts, request: Request) -> str | None:
    """Say in words that a request and its answer are longer than a model's positions; None where they are not."""
    asked = counts.num_input_tokens + request.output.max_new_tokens
    if positions is None or asked <= positions:
        return None
    return (
        f"{counts.num_input_tokens:,} input and {request.output.max_new_tokens:,} output tokens are more than the "
        f"{positions:,} positions that the model was made for"
    )


def positions_of(model: Any) -> int | None:
    """Positions of the language model, from its configuration; None where it names none."""
    config: Any = getattr(getattr(model, "module", None), "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def much_larger(model: Target, series: Sequence[Series], attempts: Attempts | None = None) -> str | None:
    """Warn of a point that will cost far more than the others, before it eats the night.

    The work of a point is predicted from its token counts and the model's parameters: 2 FLOPs a parameter and token,
    a decode step as much as 100 tokens.

    Args:
        attempts: names what is looked at on disk; a point in which a process died is not looked at again.
    """
    attempts = attempts or Attempts(Path())  # not open: it names nothing
    parameters = model.facts.get("parameters") or {}
    work: dict[str, float] = {}
    for one in series:
        if not one.axes or attempts.deaths(one.point_id):
            continue
        try:
            asked = one.request(0)
            with attempts.foresight(one.point_id, asked.sample.sample_id):
                request = model.resolve(asked)
                counts = model.prepare(request).counts
        except Exception:  # noqa: S112  # it gets its row when it is run
            continue
        work[one.point_id] = _work(parameters, counts, request)
    if len(work) < 3 or not (middle := median(work.values())):
        return None
    point, most = max(work.items(), key=lambda item: item[1])
    if most < MUCH_LARGER * middle:
        return None
    return (
        f"the point {point} will take about {most / middle:,.0f} times the work of the median point; "
        "dry_run=true predicts its time, measurement.time_limit_s bounds the whole run"
    )


class Outsized:
    """Notices a request that holds far more tokens than those before it: it will take as much longer."""

    def __init__(self) -> None:
        self._seen: list[int] = []

    def words(self, sample_id: str, counts: TokenCounts) -> str | None:
        """Say that a request is far above the rest; None for one that is not."""
        tokens = counts.num_input_tokens
        usual = median(self._seen) if self._seen else LARGE_TOKENS
        self._seen = [*self._seen[-_REMEMBERED:], tokens]
        if tokens < OUTSIZED * usual:
            return None
        compared = f"{tokens / usual:,.0f} times those before it, " if len(self._seen) > 1 else ""
        return (
            f"the request '{sample_id}' has {tokens:,} input tokens "
            f"({compared}{counts.num_vision_tokens:,} of vision); "
            "it may take minutes, measurement.image_size=[WIDTH,HEIGHT] makes images smaller"
        )


def _work(parameters: Any, counts: TokenCounts, request: Request) -> float:
    language = float(parameters.get("language_model") or 1)
    vision = float(parameters.get("vision_encoder") or 0)
    tokens = counts.num_input_tokens + _STEP_TOKENS * request.output.max_new_tokens
    return request.batch_size * (language * tokens + vision * (counts.num_vision_patches or 0))

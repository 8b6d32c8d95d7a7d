"""A dry run: what every request of a sweep will cost, from a model's YAML, its own processor and no weights.

Token counts are not guessed: the model's processor prepares each distinct image and prompt, exactly as a measured run
would (:mod:`vlmbench.cost.preparing`). Only what the model would compute is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmbench.cost.bytes import Parameters
from vlmbench.cost.costs import TOLERANCE, grids_of
from vlmbench.cost.counted import count_generate
from vlmbench.cost.counter import Counter
from vlmbench.cost.inputs import text_inputs
from vlmbench.cost.predict import Overheads, Prediction, Predictor
from vlmbench.cost.preparing import Preparer
from vlmbench.machine.peaks import PeaksAnswer
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.models.weightless import GhostError, ghost_inputs
from vlmbench.request import Output, Request, TokenCounts

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What preparing one row showed: its counts, the images' grids, and inputs whose floats are shapes only."""

    counts: TokenCounts
    grids: Sequence[tuple[int, int]] | None
    inputs: Mapping[str, Any]


class Planner:
    """Predicts requests of one model on one device.

    The closed form answers where it holds. That it does is checked once, by counting the language model on a few
    tokens; where it does not, or the vision part is not known, every distinct image is counted instead (slower).

    Args:
        model: from :func:`weightless`.
        peaks: of the device, or why there are none.
        dtype: of weights and cache.
        memory_bytes: the device's memory, where known.
        overheads: between floor and expected time.

    Raises:
        ClosedFormError: not even the language model has a closed form.
    """

    def __init__(
        self,
        model: TransformersModel,
        *,
        peaks: PeaksAnswer,
        dtype: str = "bfloat16",
        memory_bytes: int | None = None,
        overheads: Overheads | None = None,
    ) -> None:
        self.model = model
        self.predictor = Predictor(
            model.module.config,
            dtype=dtype,
            peaks=peaks,
            memory_bytes=memory_bytes,
            overheads=overheads,
            parameters=Parameters.of_model(model.module, model.anatomy),
        )
        self._preparer = Preparer(model)
        self._seen: dict[str, _Seen] = {}
        holds = not self.predictor.unknown and self._closed_form_holds()
        self._counter = None if holds else Counter(model.module, model.anatomy)

    def _closed_form_holds(self) -> bool:
        decoder = self.predictor.closed.decoder
        tokens = 8
        try:
            texts = text_inputs(self.model.module.config, tokens)
            found = count_generate(self.model.module, texts, new_tokens=2, anatomy=self.model.anatomy)
        except GhostError:
            return True  # takes no text alone: nothing to compare with
        counted = (found.prefill, found.steps[0])
        closed = (decoder.prefill(tokens) + 2 * decoder.head_elements, decoder.step(tokens + 1))
        return all(abs(b / a - 1) <= TOLERANCE for a, b in zip(counted, closed, strict=True))

    def _look(self, request: Request) -> _Seen:
        # Neither batch nor output changes what one row looks like.
        alone = replace(request, batch_size=1, output=Output(max_new_tokens=1, forced=True))
        key = repr(replace(alone, sample=replace(alone.sample, images=())))
        if key not in self._seen:
            prepared = self._preparer.prepare(alone)
            self._seen[key] = _Seen(
                counts=prepared.counts,
                grids=grids_of(prepared.inputs, prepared.counts.num_images),
                inputs=ghost_inputs(prepared.inputs),
            )
        return self._seen[key]

    def counts(self, request: Request) -> TokenCounts:
        """What the model would see of one row; each distinct image and prompt is prepared once.

        Raises:
            UnreachablePointError: the model cannot reach this point; a run would skip it.
            SampleError: an image that cannot be used.
        """
        return self._look(request).counts

    def plan(self, request: Request) -> Prediction:
        """One point: its counts, FLOPs, bytes, floors, memory need and expected time.

        Raises:
            UnreachablePointError, SampleError: as of :meth:`counts`.
            ClosedFormError: the counts lack what the vision tower needs.
            GhostError: the closed form does not hold and the model cannot be counted.
        """
        seen, output_tokens = self._look(request), request.output.max_new_tokens
        counted = None
        if self._counter is not None:
            counted = self._counter.count(seen.inputs, output_tokens=output_tokens) * request.batch_size
        return self.predictor.predict(
            seen.counts, output_tokens, batch_size=request.batch_size, grids=seen.grids, counted=counted
        )

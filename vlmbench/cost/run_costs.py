"""The cost columns of a row: counted and closed FLOPs with their agreement, bytes, floors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmbench.cost.bytes import ELEMENT_BYTES, Bytes, Parameters
from vlmbench.cost.decoder_formula import ClosedForm
from vlmbench.cost.roofline import StageRoofline, rooflines
from vlmbench.cost.stage_costs import ClosedFormError, StageFlops, agreement, disagreements
from vlmbench.errors import VlmbenchError
from vlmbench.machine.peaks import PeaksAnswer
from vlmbench.request import TokenCounts

if TYPE_CHECKING:
    from vlmbench.cost.flop_sharing import Counter
    from vlmbench.models.protocol import Anatomy

TOLERANCE = 0.01
"""Counted and closed FLOPs that differ by more than this share are reported stage by stage."""

_QUANTISED = "no bytes and no floor: quantised weights move fewer bytes, at other rates, than is modelled"


class Costs:
    """Cost columns for the records of one model on one device.

    Args:
        config: transformers configuration of the model (it is not changed).
        dtype: name of the dtype the model runs in.
        peaks: of the device, or why there are none.
        anatomy: which module is which stage; found by rule where not given.
        counted: whether to count; without it only the closed form is given.
    """

    def __init__(
        self, config: Any, *, dtype: str, peaks: PeaksAnswer, anatomy: Anatomy | None = None, counted: bool = True
    ) -> None:
        self._config = copy.deepcopy(config)
        self._anatomy = anatomy
        self._counted = counted
        self._counter: Counter | None = None
        self._failure = ""
        quantised = getattr(config, "quantization_config", None) is not None
        self.peaks = PeaksAnswer(peaks=None, reason=_QUANTISED) if quantised else peaks
        self._quantised = quantised
        self._element = ELEMENT_BYTES[dtype]
        self._bytes: Bytes | None = None
        self.closed: ClosedForm | None = None
        try:
            self.closed, self._missing = ClosedForm.as_far_as_known(config)
        except ClosedFormError as error:
            self._missing = str(error)

    def counter(self) -> Counter | None:
        """The counter, built at the first call (a second or two); None where the model cannot be built on shapes."""
        if self._counter is None and self._counted and not self._failure:
            from vlmbench.cost.flop_sharing import Counter

            try:
                self._counter = Counter.of_config(self._config, self._anatomy)
            except (VlmbenchError, RuntimeError, ValueError, NotImplementedError) as error:
                self._failure = f"not counted: {error}"
        return self._counter

    def columns(
        self,
        inputs: Mapping[str, Any],
        counts: TokenCounts,
        *,
        output_tokens: int,
        batch_size: int = 1,
    ) -> dict[str, Any]:
        """Compute all cost columns of one run; they follow from its inputs, not from its times.

        Args:
            inputs: the prepared inputs of ``generate``, whole batch (values of float tensors are not read).
            counts: of one row.
            output_tokens: tokens that came out of each row.
            batch_size: rows.

        Returns:
            ``flops_<stage>``, ``flops_total`` (counted; closed where it could not be counted), the same with
            ``_closed``, ``flops_note``, ``bytes_<stage>``, ``floor_ms_<stage>``, ``floor_ms_total``;
            ``flops_llm_prefill_needed``, the causal half,
            from which the prefill's floor is.
        """
        notes: list[str] = []
        counted = self._count(inputs, output_tokens, notes)
        closed = self._close(inputs, counts, output_tokens, batch_size, notes)
        blind = bool(self._missing) and counts.num_images > 0  # the closed form knows the language model only
        row: dict[str, Any] = {}
        if closed:
            row.update(closed.columns("_closed"))
            if blind:
                for stage in ("vision_encoder", "projector", "total"):
                    row[f"flops_{stage}_closed"] = None
        best = counted or (None if blind else closed)
        if best:
            row.update(best.columns())
        if counted and closed:
            notes.append(
                _agreement_note(counted, closed, skip=("vision_encoder", "projector", "total") if blind else ())
            )
        if self._quantised:
            notes.append(_QUANTISED)
        row["flops_note"] = "; ".join(notes)
        if best and self.closed is not None and not self._quantised:
            row.update(self._floors(best, counts, output_tokens=output_tokens, batch_size=batch_size))
        return row

    def _count(self, inputs: Mapping[str, Any], output_tokens: int, notes: list[str]) -> StageFlops | None:
        counter = self.counter()
        if counter is not None:
            try:
                result = counter.count(inputs, output_tokens=output_tokens)
                notes.extend(counter.notes)
                return result
            except VlmbenchError as error:
                self._failure, self._counter = f"not counted: {error}", None
        if self._failure:
            notes.append(self._failure)
        return None

    def _close(
        self, inputs: Mapping[str, Any], counts: TokenCounts, output_tokens: int, batch_size: int, notes: list[str]
    ) -> StageFlops | None:
        if self._missing:
            notes.append(self._missing)
        if self.closed is None:
            return None
        try:
            grids = grids_of(inputs, counts.num_images)
            return self.closed.flops(counts, output_tokens, batch_size=batch_size, grids=grids)
        except ClosedFormError as error:
            notes.append(f"no closed form: {error}")
            return None

    def _byte_counts(self) -> Bytes:
        """Byte counts with exact parameters where the model could be built on shapes."""
        if self._bytes is None:
            assert self.closed is not None
            counter = self.counter()
            exact = Parameters.of_model(counter.model, counter.anatomy) if counter else None
            self._bytes = Bytes(
                closed=self.closed, parameters=exact or Parameters.of_closed(self.closed), element=self._element
            )
        return self._bytes

    def _floors(self, flops: StageFlops, counts: TokenCounts, *, output_tokens: int, batch_size: int) -> dict[str, Any]:
        moved = self._byte_counts().stages(counts, output_tokens, batch_size=batch_size)
        assert self.closed is not None
        needed = self.closed.needed(flops, counts, batch_size=batch_size)
        row: dict[str, Any] = {**moved.columns(), "flops_llm_prefill_needed": needed.llm_prefill}
        if self.peaks.peaks is None:
            return row
        lines = rooflines(needed, moved, self.peaks.peaks)
        row.update({f"floor_ms_{stage}": line.floor_ms for stage, line in lines.items()})
        row["floor_ms_total"] = floor_total_ms(lines)
        return row


def floor_total_ms(lines: Mapping[str, StageRoofline]) -> float:
    """Sum of the floors: stages run one after another."""
    return sum(line.floor_ms for line in lines.values())


def grids_of(inputs: Mapping[str, Any], images: int) -> Sequence[tuple[int, int]] | None:
    """(height, width) in patches of each image of one row, where the inputs say so."""
    grid = inputs.get("image_grid_thw")
    if grid is None:
        return None
    return [(int(h), int(w)) for _, h, w in grid[:images].tolist()]


def _agreement_note(counted: StageFlops, closed: StageFlops, *, skip: Sequence[str]) -> str:
    difference = {stage: d for stage, d in agreement(counted, closed).items() if stage not in skip}
    if apart := disagreements(difference, tolerance=TOLERANCE):
        return "closed form differs from the count: " + ", ".join(f"{s} {d:+.2%}" for s, d in apart.items())
    exact = all(d in (None, 0.0) for d in difference.values())
    how = "exactly" if exact else f"within {TOLERANCE:.0%}"
    of = " of the language model" if skip else ""
    return f"causal attention counted in full; count and closed form{of} agree {how}"

"""The cost columns of a row: counted and closed FLOPs with their agreement, bytes, floors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from vlmbench.cost.bytes import ELEMENT_BYTES, Bytes, Parameters, Visits
from vlmbench.cost.decoder_formula import ClosedForm
from vlmbench.cost.roofline import StageRoofline, rooflines
from vlmbench.cost.stage_costs import ClosedFormError, StageFlops, agreement, disagreements
from vlmbench.errors import VlmbenchError
from vlmbench.machine.peaks import PeaksAnswer
from vlmbench.request import TokenCounts
from vlmbench.text import whole

if TYPE_CHECKING:
    from vlmbench.cost.flop_sharing import Counter
    from vlmbench.models.protocol import Anatomy

TOLERANCE = 0.01
"""Counted and closed FLOPs that differ by more than this share are reported stage by stage."""

_EXPECTED = "bytes of experts: as many as are expected when tokens choose evenly, not those that were seen"
_EXPECTED_PREFILL = "bytes of the prefill's experts: as many as are expected when tokens choose evenly, none were seen"
_SEEN = "bytes of experts: of those that tokens visited, seen in an extra run of the same inputs"
_ENDED_APART = "no floor of the decode: the requests of the batch ended at different steps"
_QUANTISED = "no bytes and no floor: how many bytes quantised weights take is known only of a loaded model"
_WEIGHT_ONLY = ("awq", "gptq", "torchao", "hqq", "quanto", "bitsandbytes_4bit")
"""Formats whose weights are unpacked before the product; others multiply at their own, higher rate."""


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """What was run.

    Args:
        inputs: prepared, whole batch.
        counts: of one row, or the means of different ones.
        output_tokens: tokens that came out of each row.
        size: rows.
        each: the counts of different requests; empty where all rows are equal.
        visits: of a mixture, the experts that were seen.
    """

    inputs: Mapping[str, Any]
    counts: TokenCounts
    output_tokens: int
    size: int
    each: Sequence[TokenCounts]
    visits: Visits | None

    @property
    def padded(self) -> list[TokenCounts]:
        """The counts of each row with its padding, as the language model computes it."""
        length = int(self.inputs["input_ids"].shape[1])
        return [replace(counts, num_input_tokens=length) for counts in self.each]


class Costs:
    """Cost columns for the records of one model on one device.

    Args:
        config: transformers configuration of the model (it is not changed).
        dtype: name of the dtype the model runs in.
        peaks: of the device, or why there are none.
        anatomy: which module is which stage; found by rule where not given.
        counted: whether to count; without it only the closed form is given.
        stored: bytes of the weights of each stage as they lie in memory; asked for where weights are quantised.
    """

    def __init__(
        self,
        config: Any,
        *,
        dtype: str,
        peaks: PeaksAnswer,
        anatomy: Anatomy | None = None,
        counted: bool = True,
        stored: Parameters | None = None,
    ) -> None:
        self._config = copy.deepcopy(config)
        self._anatomy = anatomy
        self._counted = counted
        self._counter: Counter | None = None
        self._failure = ""
        kind = quantised_as(config)
        self._quantised, self._stored = kind, stored if kind else None
        self._blind = bool(kind) and stored is None
        self.peaks = PeaksAnswer(peaks=None, reason=_QUANTISED) if self._blind else _peaks_of(kind, peaks)
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
        each: Sequence[TokenCounts] = (),
        ended_apart: bool = False,
        visits: Visits | None = None,
    ) -> dict[str, Any]:
        """Compute all cost columns of one run; they follow from its inputs, not from its times.

        Args:
            inputs: the prepared inputs of ``generate``, whole batch (values of float tensors are not read).
            counts: of one row, or the means of different ones.
            output_tokens: tokens that came out of each row.
            each: the counts of every request of a batch of different ones; empty where all rows are equal.
            ended_apart: whether some request of the batch ended before the last step: then a decode has no floor.
            visits: of a mixture, the experts that the run visited; None: they were not seen, and are as expected.

        Returns:
            ``flops_<stage>``, ``flops_total`` (counted; closed where it could not be counted), the same with
            ``_closed``, ``flops_note``, ``bytes_<stage>``, ``floor_ms_<stage>``, ``floor_ms_total``;
            ``flops_llm_prefill_needed``, the causal half,
            from which the prefill's floor is.
        """
        notes: list[str] = []
        counted = self._count(inputs, output_tokens, notes)
        batch = _Batch(
            inputs=inputs, counts=counts, output_tokens=output_tokens, size=batch_size, each=each, visits=visits
        )
        closed = self._close(batch, notes)
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
        if self._blind:
            notes.append(_QUANTISED)
        elif self._quantised:
            notes.append(f"bytes of {self._quantised} weights as they lie in memory")
        row["flops_note"] = "; ".join(notes)
        if best and self.closed is not None and not self._blind and (closed or not each):
            if self.closed.decoder.experts is not None:
                expected = _EXPECTED if batch_size > 1 and each else _EXPECTED_PREFILL
                row["flops_note"] += f"; {expected if visits is None else _SEEN}"
                row.update({} if visits is None else visits.columns())
            row.update(self._floors(self._needed(best, batch), batch))
            if ended_apart:
                row["flops_note"] += f"; {_ENDED_APART}"
                for name in ("floor_ms_llm_decode", "floor_ms_total", "bytes_llm_decode", "bytes_total"):
                    row.pop(name, None)
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

    def _close(self, batch: _Batch, notes: list[str]) -> StageFlops | None:
        if self._missing:
            notes.append(self._missing)
        if self.closed is None:
            return None
        try:
            if batch.each:
                return self._sum(batch, batch.padded)
            grids = grids_of(batch.inputs, batch.counts.num_images)
            return self.closed.flops(batch.counts, batch.output_tokens, batch_size=batch.size, grids=grids)
        except ClosedFormError as error:
            notes.append(f"no closed form: {error}")
            return None

    def _sum(self, batch: _Batch, each: Sequence[TokenCounts]) -> StageFlops:
        """Closed FLOPs of different requests, one by one."""
        assert self.closed is not None
        first, found = 0, []
        for counts in each:
            grids = grids_of(batch.inputs, counts.num_images, first)
            first += counts.num_images
            found.append(self.closed.flops(counts, batch.output_tokens, grids=grids))
        return reduce(add, found)

    def _byte_counts(self) -> Bytes:
        """Byte counts with exact parameters where the model could be built on shapes."""
        if self._bytes is None:
            assert self.closed is not None
            counter = self.counter()
            exact = Parameters.of_model(counter.model, counter.anatomy) if counter else None
            self._bytes = Bytes(
                closed=self.closed,
                parameters=exact or Parameters.of_closed(self.closed),
                element=self._element,
                stored=self._stored,
            )
        return self._bytes

    def _needed(self, flops: StageFlops, batch: _Batch) -> StageFlops:
        """FLOPs that cannot be left out: neither what a causal mask hides nor what padding adds."""
        assert self.closed is not None
        if not batch.each:
            return self.closed.needed(flops, batch.counts, batch_size=batch.size)
        padded, own = self._sum(batch, batch.padded), self._sum(batch, batch.each)
        hidden = sum(self.closed.decoder.masked(one.num_input_tokens) for one in batch.each)
        return replace(
            flops,
            llm_prefill=flops.llm_prefill - (padded.llm_prefill - own.llm_prefill) - hidden,
            llm_decode=flops.llm_decode - (padded.llm_decode - own.llm_decode),
        )

    def _floors(self, needed: StageFlops, batch: _Batch) -> dict[str, Any]:
        moved = self._byte_counts().stages(
            batch.counts,
            batch.output_tokens,
            batch_size=batch.size,
            copies=not batch.each,
            visits=batch.visits,
        )
        row: dict[str, Any] = {**moved.columns(), "flops_llm_prefill_needed": needed.llm_prefill}
        if self.peaks.peaks is None:
            return row
        lines = rooflines(needed, moved, self.peaks.peaks)
        row.update({f"floor_ms_{stage}": line.floor_ms for stage, line in lines.items()})
        row["floor_ms_total"] = floor_total_ms(lines)
        return row


def quantised_as(config: Any) -> str:
    """What a model's weights are quantised as, by its configuration; empty where they are not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return ""
    known = found if isinstance(found, Mapping) else found.to_dict()
    method = str(getattr(known.get("quant_method"), "value", known.get("quant_method")))
    if method != "bitsandbytes":
        return method
    return f"{method}_{'4bit' if known.get('load_in_4bit') else '8bit'}"


def _peaks_of(kind: str, peaks: PeaksAnswer) -> PeaksAnswer:
    """The most at which weights of a format can be multiplied: 8 bits twice, 4 bits four times as fast as 16."""
    if peaks.peaks is None or not kind or kind in _WEIGHT_ONLY:
        return peaks
    factor = 4 if "fp4" in kind else 2
    source = f"{factor} x the rate of 16 bits, for products of {kind}: {peaks.peaks.source}"
    return replace(peaks, peaks=replace(peaks.peaks, flops_per_s=factor * peaks.peaks.flops_per_s, source=source))


def floor_total_ms(lines: Mapping[str, StageRoofline]) -> float:
    """Sum of the floors: stages run one after another."""
    return sum(line.floor_ms for line in lines.values())


def grids_of(inputs: Mapping[str, Any], images: int, first: int = 0) -> Sequence[tuple[int, int]] | None:
    """(height, width) in patches of each image of one row, where the inputs say so."""
    grid = inputs.get("image_grid_thw")
    if grid is None:
        return None
    return [(int(h), int(w)) for _, h, w in grid[first : first + images].tolist()]


def _agreement_note(counted: StageFlops, closed: StageFlops, *, skip: Sequence[str]) -> str:
    difference = {stage: d for stage, d in agreement(counted, closed).items() if stage not in skip}
    if apart := disagreements(difference, tolerance=TOLERANCE):
        return "closed form differs from the count: " + ", ".join(f"{s} {d:+.2%}" for s, d in apart.items())
    exact = all(d in (None, 0.0) for d in difference.values())
    how = "exactly" if exact else f"within {whole(100 * TOLERANCE)} %"
    of = " of the language model" if skip else ""
    return f"causal attention counted in full; count and closed form{of} agree {how}"

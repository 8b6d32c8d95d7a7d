"""What a request will cost, before anything runs: from a configuration, token counts and a device's peaks.

No weights and no accelerator are needed, and a point takes microseconds, so that a whole sweep can be looked at first:
which points fit in memory, and how long they will take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmbench.cost.bytes import ELEMENT_BYTES, Bytes, MemoryNeed, Parameters, StageBytes
from vlmbench.cost.decoder_formula import ClosedForm
from vlmbench.cost.roofline import StageRoofline, rooflines
from vlmbench.cost.stage_costs import StageFlops
from vlmbench.machine.peaks import PeaksAnswer
from vlmbench.request import TokenCounts
from vlmbench.schema import COST_STAGES


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """What lies between the floor and the expected time. Estimates, good enough to choose a time limit.

    Args:
        host_ms_per_layer: time that Python and kernel launches take for one block in one forward. 0.55 ms is what
            eager transformers 5 takes on current server processors (LLaVA-1.5-7B, 32 blocks: 18.9 ms a token).
        floor_share: share of the roofline that kernels reach.
        other_ms: setup of one ``generate()`` call.
    """

    host_ms_per_layer: float = 0.55
    floor_share: float = 0.6
    other_ms: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.floor_share <= 1:
            raise ValueError(f"'floor_share' must be above 0 and at most 1 (got {self.floor_share})")
        for name in ("host_ms_per_layer", "other_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"'{name}' must be 0 or more (got {getattr(self, name)})")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One point's prediction.

    Args:
        counts: what it is for, one row.
        output_tokens, batch_size: likewise.
        flops: by stage, closed form.
        bytes: the fewest bytes by stage.
        memory: need at the peak.
        rooflines: stage name to roofline; empty without peaks.
        expected_ms: expected ``T_total`` (see :class:`Overheads`); None without peaks.
        fits: whether the need is below the device's memory; None where that is not known.
        unknown: stages without a closed form; their FLOPs and floors are missing, and totals are too.
        notes: reasons for what is missing, assumptions.
    """

    counts: TokenCounts
    output_tokens: int
    batch_size: int
    flops: StageFlops
    bytes: StageBytes
    memory: MemoryNeed
    rooflines: dict[str, StageRoofline]
    expected_ms: float | None
    fits: bool | None
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def floor_ms(self) -> float | None:
        """The least ``T_total`` of this device; None without peaks, or with a stage unknown."""
        if not self.rooflines or self.unknown:
            return None
        return sum(line.floor_ms for line in self.rooflines.values())

    def columns(self) -> dict[str, Any]:
        """A flat row: ``flops_<stage>``, ``bytes_<stage>``, ``floor_ms_<stage>``, ``floor_ms_total``, memory, time."""
        row: dict[str, Any] = {**self.flops.columns(), **self.bytes.columns()}
        for stage in COST_STAGES:
            line = self.rooflines.get(stage)
            known = bool(self.rooflines) and stage not in self.unknown
            row[f"floor_ms_{stage}"] = line.floor_ms if line else (0.0 if known else None)
        row["floor_ms_total"] = self.floor_ms
        for stage in self.unknown:
            row[f"flops_{stage}"] = row[f"bytes_{stage}"] = row[f"floor_ms_{stage}"] = None
        if self.unknown:
            row["flops_total"] = row["bytes_total"] = None
        row["memory_need_bytes"] = self.memory.total
        row["kv_cache_bytes"] = self.memory.kv_cache
        row["expected_ms"] = self.expected_ms
        row["fits"] = self.fits
        row["flops_note"] = "; ".join(self.notes)
        return row


class Predictor:
    """Predicts points of one model on one device.

    Args:
        config: transformers configuration of the model.
        dtype: name of the dtype of weights and cache: ``bfloat16``, ``float16``, ``float32``.
        peaks: of the device, or why there are none.
        memory_bytes: the device's memory, where known.
        overheads: between floor and expected time.
        parameters: exact parameter counts, where a model (also one without weights) is at hand.

    Raises:
        ClosedFormError: not even the language model has a closed form.
        ValueError: an unknown dtype.
    """

    def __init__(
        self,
        config: Any,
        *,
        dtype: str,
        peaks: PeaksAnswer,
        memory_bytes: int | None = None,
        overheads: Overheads | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        if dtype not in ELEMENT_BYTES:
            raise ValueError(f"'dtype' must be one of {', '.join(ELEMENT_BYTES)} (got {dtype!r})")
        self.closed, missing = ClosedForm.as_far_as_known(config)
        self.unknown: tuple[str, ...] = ("vision_encoder", "projector") if missing else ()
        self._notes: tuple[str, ...] = (missing,) if missing else ()
        self.parameters = parameters or Parameters.of_closed(self.closed)
        if peaks.peaks is None:
            self._notes = (*self._notes, peaks.reason)
        self._bytes = Bytes(closed=self.closed, parameters=self.parameters, element=ELEMENT_BYTES[dtype])
        self._peaks = peaks.peaks
        self._memory = memory_bytes
        self._overheads = overheads or Overheads()

    def predict(
        self,
        counts: TokenCounts,
        output_tokens: int,
        *,
        batch_size: int = 1,
        grids: Sequence[tuple[int, int]] | None = None,
        counted: StageFlops | None = None,
    ) -> Prediction:
        """One point.

        Args:
            counts: of one row, observed on prepared inputs.
            output_tokens: tokens that come out of each row, 1 or more.
            grids: (height, width) in patches of each image, for towers that take any size (see
                :meth:`vlmbench.cost.decoder_formula.ClosedForm.flops`).
            counted: FLOPs of the whole batch, where they were counted; the closed form's otherwise.

        Raises:
            ClosedFormError: the counts lack what the vision tower needs.
        """
        flops = counted or self.closed.flops(counts, output_tokens, batch_size=batch_size, grids=grids)
        moved = self._bytes.stages(counts, output_tokens, batch_size=batch_size)
        memory = self._bytes.memory_need(counts, output_tokens, batch_size=batch_size)
        needed = self.closed.needed(flops, counts, batch_size=batch_size)
        lines = rooflines(needed, moved, self._peaks) if self._peaks is not None else {}
        return Prediction(
            counts=counts,
            output_tokens=output_tokens,
            batch_size=batch_size,
            flops=flops,
            bytes=moved,
            memory=memory,
            rooflines=lines,
            expected_ms=self._expected_ms(lines, counts, output_tokens) if lines else None,
            fits=None if self._memory is None else memory.total <= self._memory,
            unknown=self.unknown if counts.num_images and counted is None else (),
            notes=self._notes if counted is None else (*self._notes, "FLOPs counted"),
        )

    def _expected_ms(self, lines: dict[str, StageRoofline], counts: TokenCounts, output_tokens: int) -> float:
        per_layer = self._overheads.host_ms_per_layer
        vision_layers = self.closed.vision.tower.layers if self.closed.vision and counts.num_images else 0
        layers = self.closed.decoder.layers
        host = {
            "vision_encoder": vision_layers * per_layer,
            "projector": per_layer,
            "llm_prefill": layers * per_layer,
            "llm_decode": (output_tokens - 1) * layers * per_layer,
        }
        work = {stage: line.floor_ms / self._overheads.floor_share for stage, line in lines.items()}
        return self._overheads.other_ms + sum(max(ms, host[stage]) for stage, ms in work.items())


def wall_s(predictions: Iterable[Prediction], *, runs_per_point: int, extra_ms_per_run: float = 0.0) -> float | None:
    """Expected time of a sweep in seconds, without loading the model.

    Args:
        runs_per_point: measured and warm-up runs of each.
        extra_ms_per_run: preparing inputs, moving them, writing records.

    Returns:
        None if a point has no expected time; points that do not fit count nothing.
    """
    total = 0.0
    for prediction in predictions:
        if prediction.fits is False:
            continue
        if prediction.expected_ms is None:
            return None
        total += runs_per_point * (prediction.expected_ms + extra_ms_per_run)
    return total / 1e3

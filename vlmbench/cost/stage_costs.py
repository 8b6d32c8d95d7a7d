"""What a request costs, stage by stage: the number types that counting, closed forms and prediction share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from vlmbench.errors import ModelError
from vlmbench.schema import COST_STAGES


@dataclass(frozen=True, kw_only=True)
class StageFlops:
    """Floating-point operations of one ``generate()`` call, 1 multiply-add = 2 FLOPs.

    Matrix products, convolutions and attention are counted; element-wise work (norms, activations, rotary tables) is
    not. Causal attention is counted in full (both triangles), as a dense kernel computes it.

    Args:
        vision_encoder: the tower, without a projector that lies inside it.
        projector: connector.
        llm_prefill: the language model on the whole input and its head on what the model applies it to (one token,
            with nearly all models).
        llm_decode: all later steps, heads included.
        head: the part of ``llm_prefill`` that is the head.
    """

    vision_encoder: int
    projector: int
    llm_prefill: int
    llm_decode: int
    head: int = 0

    @property
    def total(self) -> int:
        """All stages."""
        return self.vision_encoder + self.projector + self.llm_prefill + self.llm_decode

    def by_stage(self) -> dict[str, int]:
        """Stage name to FLOPs, in the order of :data:`vlmbench.schema.COST_STAGES`."""
        return {stage: getattr(self, stage) for stage in COST_STAGES}

    def columns(self, suffix: str = "") -> dict[str, int]:
        """As record columns: ``flops_<stage><suffix>`` and ``flops_total<suffix>``."""
        return {f"flops_{stage}{suffix}": value for stage, value in {**self.by_stage(), "total": self.total}.items()}

    def __add__(self, other: StageFlops) -> StageFlops:
        """Of two requests of one batch."""
        return StageFlops(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, batch_size: int) -> StageFlops:
        """The same for a batch of equal requests."""
        return StageFlops(**{f.name: getattr(self, f.name) * batch_size for f in fields(self)})


def agreement(counted: StageFlops, closed: StageFlops) -> dict[str, float | None]:
    """Relative difference ``closed / counted - 1`` of each stage and of the total; None where both are 0.

    A stage that only one of the two knows gives infinity or -1.
    """
    pairs = {stage: (counted.by_stage()[stage], closed.by_stage()[stage]) for stage in COST_STAGES}
    pairs["total"] = (counted.total, closed.total)
    return {stage: _relative(*pair) for stage, pair in pairs.items()}


def _relative(counted: int, closed: int) -> float | None:
    if counted == 0:
        return None if closed == 0 else float("inf")
    return closed / counted - 1


def disagreements(difference: Mapping[str, float | None], *, tolerance: float = 0.01) -> dict[str, float]:
    """The stages whose relative difference is above the tolerance."""
    return {stage: d for stage, d in difference.items() if d is not None and abs(d) > tolerance}


# Errors of this package that callers turn into a reason in a record instead of a failed run.


class ClosedFormError(ModelError):
    """No closed form is known for an architecture or a part of it; the message says for which."""

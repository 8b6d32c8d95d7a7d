"""Check an anatomy by one real run, and find one by a run where the rules find none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vlmbench.data.synthetic import SyntheticVQA
from vlmbench.errors import AnatomyError, VlmbenchError, first_line
from vlmbench.models.anatomy.watch import watch_anatomy
from vlmbench.models.protocol import Anatomy
from vlmbench.request import Output, Request

if TYPE_CHECKING:
    from vlmbench.models.protocol import Prepared

TOKENS = 2
"""New tokens of the run: one after the prefill, so that a decode step is seen."""


# What transformers raises where a model cannot take a request of an image.
_FAILURES = (VlmbenchError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError)


class Runnable(Protocol):
    """What a check by one run needs of a model."""

    @property
    def module(self) -> Any:
        """The top-level module of transformers."""

    def prepare(self, request: Request) -> Prepared:
        """Make the inputs of a request."""

    def transfer(self, prepared: Prepared) -> Prepared:
        """Move them to the device."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What one run says of an anatomy that the rules found.

    Args:
        agrees: whether every stage is the one that the run shows; None where no run could be made.
        differences: one text a stage that is not.
        notes: what the run shows beside (parts that were never called, stages that run past their ``forward``), or why
            there was no run.
        seen: the anatomy that the run shows; None without a run.
    """

    agrees: bool | None
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seen: Anatomy | None = None

    def as_dict(self) -> dict[str, Any]:
        """As ``anatomy.json`` holds it."""
        return {
            "agrees": self.agrees,
            "new_tokens": TOKENS,
            "differences": list(self.differences),
            "notes": list(self.notes),
        }


def verify(model: Runnable, static: Anatomy) -> Verified:
    """Compare an anatomy with what one ``generate()`` of an image and two new tokens shows.

    Args:
        static: what the rules found. Stages that an override settled are taken as they are.
    """
    try:
        seen = watch_anatomy(model.module, one_run(model), static)
    except _FAILURES as error:
        return Verified(agrees=None, notes=(f"no run could be made: {_described(error)}",))
    differences = tuple(
        f"{stage}: the rules say {_listed(parts)}, a run shows {_listed(shown)}"
        for (stage, parts), (_, shown) in zip(static.stages(), seen.stages(), strict=True)
        if set(parts) != set(shown)
    )
    notes = tuple(note for note in seen.notes if note not in static.notes)
    return Verified(agrees=not differences, differences=differences, notes=notes, seen=seen)


def find_by_running(model: Runnable, failure: AnatomyError) -> Anatomy:
    """Find the stages of a model that the rules cannot read, by watching one run.

    Raises:
        AnatomyError: ``failure``, with what became of the run.
    """
    try:
        return watch_anatomy(model.module, one_run(model), Anatomy())
    except _FAILURES as error:
        raise AnatomyError(f"{failure}\nwatching one run does not tell either ({_described(error)})") from error


def one_run(model: Runnable) -> Callable[[], object]:
    """Prepare a request of one made image; the result makes one ``generate()`` of it, uncompiled."""
    sample = SyntheticVQA(num_samples=1).open()[0]
    request = Request(sample=sample, output=Output(max_new_tokens=TOKENS, forced=True))
    prepared = model.transfer(model.prepare(request))

    def run() -> object:
        import torch

        with torch.inference_mode():
            return model.module.generate(
                **prepared.inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, disable_compile=True
            )

    return run


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _listed(paths: tuple[str, ...]) -> str:
    return ", ".join(paths) or "nothing"

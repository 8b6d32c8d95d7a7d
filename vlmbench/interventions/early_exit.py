"""The decoder left early: later layers are skipped at every step, the head reads what the last one left.

What an answer is worth after that is not asked here; what it saves is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.errors import MeasurementError, UnreachablePointError
from vlmbench.interventions.language import decoder_layers, language_model, refuse_captured
from vlmbench.interventions.protocol import check_share

if TYPE_CHECKING:
    from vlmbench.models.protocol import Prepared
    from vlmbench.request import Request


@dataclass(frozen=True, kw_only=True)
class EarlyExit:
    """Runs the first decoder layers only.

    Args:
        depth: share of the decoder layers that run, above 0, at most 1; at least one runs.
    """

    depth: float

    name = "early_exit"

    def __post_init__(self) -> None:
        check_share("depth", self.depth)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The share."""
        return {"depth": self.depth}

    def request(self, request: Request, model: Any) -> Request:  # noqa: ARG002 – the protocol's arguments
        """The request itself."""
        return request

    def attach(self, model: Any) -> Exit:
        """Take the later layers out of the model's list; their weights stay in memory.

        Raises:
            UnreachablePointError: layers that depend on one another, a compiled decode, or no list of layers.
        """
        return Exit(model, self.depth, method=self.name)


class Exit:
    """The method at work: see :class:`vlmbench.interventions.protocol.Attachment`."""

    def __init__(self, model: Any, depth: float, *, method: str) -> None:
        self._method = method
        refuse_captured(model, method=method)
        self._body: Any = language_model(model, method=method)
        layers = decoder_layers(self._body, method=method)
        architecture = type(model.module).__name__
        config: Any = getattr(self._body, "config", None)
        if model.compile:
            raise UnreachablePointError(
                f"{method}: the compiled decode of {architecture} holds all its layers; use runtime=eager"
            )
        if getattr(config, "num_kv_shared_layers", 0):
            raise UnreachablePointError(f"{method}: layers of {architecture} share keys and values across the exit")
        self._owner, self._attribute = _owner(self._body, layers, method=method)
        self._whole = getattr(self._owner, self._attribute)
        self.runs = max(1, round(depth * len(layers)))
        self._cache: Any = None
        self._handle: Any = None
        setattr(self._owner, self._attribute, self._whole[: self.runs])

    def begin(self, prepared: Prepared) -> None:  # noqa: ARG002 – the protocol's argument
        """Look at the run's cache when it comes by."""
        self._unhook()
        self._cache = None
        self._handle = self._body.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002 – torch's arguments
        self._cache = kwargs.get("past_key_values")
        self._unhook()

    def values(self, num_output_tokens: int) -> dict[str, Any]:  # noqa: ARG002 – the protocol's argument
        """How many layers hold keys.

        Raises:
            MeasurementError: another number than the method says.
        """
        cache, self._cache = self._cache, None
        ran = sum(1 for layer in getattr(cache, "layers", ()) if int(layer.get_seq_length()))
        if ran != self.runs:
            raise MeasurementError(f"{self._method}: {ran} decoder layers hold keys where {self.runs} should have run")
        return {"num_decoder_layers_run": ran}

    def _unhook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def detach(self) -> None:
        """Put all layers back."""
        self._unhook()
        setattr(self._owner, self._attribute, self._whole)


def _owner(body: Any, layers: list[Any], *, method: str) -> tuple[Any, str]:
    """(module, attribute) that holds the list of decoder layers."""
    for part in body.modules():
        for name, child in part.named_children():
            if len(list(child.children())) == len(layers) and next(iter(child.children())) is layers[0]:
                return part, name
    raise UnreachablePointError(f"{method}: no list of decoder layers in {type(body).__name__}")

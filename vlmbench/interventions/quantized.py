"""Weights at a lower precision in one tower or several: torchao or bitsandbytes, weight-only, where installed.

The model's own linear layers stay in memory and are swapped for quantised copies while the method is attached, so that
an arm and its baseline can alternate in one process. What a tower's weights take is counted on the tensors themselves.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vlmbench.errors import UnreachablePointError
from vlmbench.interventions.language import refuse_captured
from vlmbench.interventions.protocol import Untouched
from vlmbench.models.weight_bytes import weight_bytes

if TYPE_CHECKING:
    from torch import nn

    from vlmbench.request import Request

KINDS = ("torchao_int8", "torchao_int4", "bitsandbytes_8bit", "bitsandbytes_4bit")
TOWERS = ("vision_encoder", "projector", "language_model", "head")
Swap = tuple[Any, str, Any, Any]  # parent, attribute, original, quantised


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Weight-only quantisation of the linear layers of some towers.

    Args:
        kind: torchao_int8, torchao_int4, bitsandbytes_8bit, bitsandbytes_4bit.
        towers: which; the decoder by default, the others keep the model's precision.
    """

    kind: str = "torchao_int8"
    towers: list[str] = field(default_factory=lambda: ["language_model"])

    name = "quantized"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"'kind' must be one of {', '.join(KINDS)} (got {self.kind!r})")
        if not self.towers or set(self.towers) - set(TOWERS):
            raise ValueError(f"'towers' must be some of {', '.join(TOWERS)} (got {self.towers!r})")

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Kind and towers."""
        return {"kind": self.kind, "towers": list(self.towers)}

    def request(self, request: Request, model: Any) -> Request:  # noqa: ARG002 – the protocol's arguments
        """The request itself."""
        return request

    def attach(self, model: Any) -> LowPrecision:
        """Swap the linear layers; the copies are made once for a model and kept.

        Raises:
            UnreachablePointError: the package is missing, the device or the shapes do not take it, or the decode is
                compiled.
        """
        return LowPrecision(model, self)


_COPIES: WeakKeyDictionary[Any, dict[tuple[str, str], list[Swap]]] = WeakKeyDictionary()


class LowPrecision(Untouched):
    """The method at work: see :class:`vlmbench.interventions.protocol.Attachment`."""

    def __init__(self, model: Any, spec: Quantized) -> None:
        if model.compile:
            raise UnreachablePointError(f"{spec.name}: the compiled decode holds the weights it was made with")
        refuse_captured(model, method=spec.name)
        self._model, self._spec = model, spec
        made = _COPIES.setdefault(model.module, {})
        self._swaps: list[Swap] = []
        for tower in spec.towers:
            if (spec.kind, tower) not in made:
                made[spec.kind, tower] = list(_swaps(model, tower, spec.kind))
            self._swaps += made[spec.kind, tower]
        if not self._swaps:
            raise UnreachablePointError(f"{spec.name}: no linear layer in {', '.join(spec.towers)} of this model")
        for parent, name, _, quantised in self._swaps:
            setattr(parent, name, quantised)

    def values(self, num_output_tokens: int) -> dict[str, Any]:  # noqa: ARG002 – the protocol's argument
        """Bytes of weights by tower, and at which precision each runs."""
        found: dict[str, Any] = {}
        for tower, paths in self._model.anatomy.stages():
            if paths:
                modules = [self._model.module.get_submodule(path) for path in paths]
                found[f"weight_bytes_{tower}"] = sum(weight_bytes(module) for module in modules)
                found[f"precision_{tower}"] = self._spec.kind if tower in self._spec.towers else "as loaded"
        return found

    def detach(self) -> None:
        """Swap them back."""
        for parent, name, original, _ in self._swaps:
            setattr(parent, name, original)


def _swaps(model: Any, tower: str, kind: str) -> Iterator[Swap]:
    """Every linear layer of a tower with its quantised copy."""
    package = kind.partition("_")[0]
    if importlib.util.find_spec(package) is None:
        raise UnreachablePointError(
            f"quantized: kind={kind} needs the package {package}, which is not installed (pip install {package})"
        )
    from torch import nn as torch_nn

    architecture = type(model.module).__name__
    others = {id(model.module.get_submodule(path)) for stage, paths in model.anatomy.stages() for path in paths}
    for path in getattr(model.anatomy, tower):
        root = model.module.get_submodule(path)
        for parent, name, child in _children(root, others - {id(root)}):
            if isinstance(child, torch_nn.Linear):
                try:
                    yield parent, name, child, quantised(child, kind)
                except Exception as error:  # whatever the package says: the arm is skipped with it
                    line = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
                    raise UnreachablePointError(
                        f"quantized: {kind} cannot be made of {name} ({child.in_features}x{child.out_features}) of "
                        f"{architecture} on {child.weight.device}: {line}"
                    ) from error


def _children(root: nn.Module, others: set[int]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, module) below a tower, not into other towers that lie inside it."""
    for name, child in root.named_children():
        if id(child) not in others:
            yield root, name, child
            yield from _children(child, others)


def quantised(layer: nn.Linear, kind: str) -> nn.Module:
    """A weight-only copy of a linear layer on the same device."""
    package, _, variant = kind.partition("_")
    if package == "torchao":
        from torch import nn as torch_nn

        ao: Any = importlib.import_module("torchao.quantization")
        config = ao.Int8WeightOnlyConfig() if variant == "int8" else ao.Int4WeightOnlyConfig()
        holder = torch_nn.Sequential(copy.deepcopy(layer).requires_grad_(False))
        ao.quantize_(holder, config)
        return holder[0]
    return _bitsandbytes(layer, variant)


def _bitsandbytes(layer: nn.Linear, variant: str) -> nn.Module:
    bnb: Any = importlib.import_module("bitsandbytes")
    shape = {"input_features": layer.in_features, "output_features": layer.out_features, "bias": layer.bias is not None}
    weight = layer.weight.detach().clone()
    if variant == "8bit":
        made = bnb.nn.Linear8bitLt(**shape, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(**shape, compute_dtype=weight.dtype, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    if layer.bias is not None:
        made.bias = layer.bias
    result: nn.Module = made.to(weight.device).eval()
    return result

"""How much the vision encoder attends to each vision token, from one row of one of its layers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError
from vlmbench.interventions.attention_row import AttentionRow, Row, attention_modules

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmbench.interventions.marks import MethodMarks
    from vlmbench.models.protocol import Prepared

METHOD = "selector=encoder_attention"


class EncoderScores:
    """Scores of the vision tokens of one image, taken while the encoder runs.

    The class token's row where the encoder has one (the weights of a query that is computed anyway); the mean of all
    rows of the last layer elsewhere, which costs one layer's full weights.

    Args:
        model: loaded.
        marks: where the method's own time is told.

    Raises:
        UnreachablePointError: no single encoder, or no layer whose attention can be seen.
    """

    def __init__(self, model: Any, marks: MethodMarks) -> None:
        architecture = type(model.module).__name__
        paths = model.anatomy.vision_encoder
        if len(paths) != 1:
            raise UnreachablePointError(f"{METHOD}: {architecture} has {len(paths)} vision encoders; one is needed")
        self._architecture = architecture
        self._tower: Any = model.module.get_submodule(paths[0])
        layer = _scored_layer(self._tower, model.module.config)
        seen = attention_modules(layer)
        if not seen:
            raise UnreachablePointError(f"{METHOD}: no attention of {architecture}'s encoder can be looked into")
        if "flash" in str(getattr(seen[0].config, "_attn_implementation", "")):
            raise UnreachablePointError(
                f"{METHOD}: the encoder of {architecture} runs a flash-attention package, whose packed calls hide the "
                "rows; use runtime.attn_implementation=sdpa"
            )
        self._has_class = _has_class_token(self._tower)
        loop = getattr(model, "loop", None)
        self._row = AttentionRow(seen[0], Row.FIRST if self._has_class else Row.MEAN, marks, loop=loop)
        self._order: torch.Tensor | None = None

    def begin(self, prepared: Prepared, device: torch.device) -> None:
        """Record the next run; the encoder's own order of patches is worked out here, outside the clock."""
        self._order = _window_order(self._tower, prepared, device)
        self.anew()

    def anew(self) -> None:
        """Forget what was recorded, and record from the next call on."""
        self._row.arm()

    def take(self, count: int) -> torch.Tensor:
        """One score a vision token, shape (count,).

        Raises:
            UnreachablePointError: it cannot be told which patches make which token.
        """
        weights = self._row.take()
        scores = (weights[:, 1:] if self._has_class else weights).reshape(-1)
        patches = scores.shape[0]
        if patches == count:
            return scores
        unit = getattr(self._tower, "spatial_merge_size", 0) ** 2
        if not unit or patches != count * unit:
            raise UnreachablePointError(
                f"{METHOD}: {patches} patches make {count} vision tokens of {self._architecture} in an order that is "
                "the model's own; take selector=norm, random or uniform"
            )
        merged = scores.view(count, unit).mean(1)  # a merger joins neighbours in the order of the sequence
        return merged if self._order is None else merged.index_select(0, self._order)

    def detach(self) -> None:
        """Leave the encoder as it was."""
        self._row.detach()


def _scored_layer(tower: nn.Module, config: Any) -> nn.Module:
    """The last layer whose output is used: LLaVA takes the features of the last but one."""
    from torch import nn as torch_nn

    lists = [part for part in tower.modules() if isinstance(part, torch_nn.ModuleList) and len(part) > 0]
    if not lists:
        raise UnreachablePointError(f"{METHOD}: no list of layers in {type(tower).__name__}")
    layers = max(lists, key=len)
    index = getattr(config, "vision_feature_layer", None)
    # hidden state -2 is the input of the last layer: the output of the last but one
    at = index if isinstance(index, int) and -len(layers) <= index < 0 else -1
    return layers[at]


def _has_class_token(tower: nn.Module) -> bool:
    return any(name.rsplit(".", 1)[-1] in ("class_embedding", "cls_token") for name, _ in tower.named_parameters())


def _window_order(tower: Any, prepared: Prepared, device: torch.device) -> torch.Tensor | None:
    """Where each merged token of an encoder with windows ends up (Qwen2.5-VL): it runs in the order of its windows."""
    import torch

    order = getattr(sys.modules[type(tower).__module__], "get_vision_window_index", None)
    grid = prepared.inputs.get("image_grid_thw")
    if order is None or grid is None or not hasattr(tower, "window_size"):
        return None
    index, _ = order(
        grid.cpu(),
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
        kwargs={},
    )
    return torch.argsort(index).to(device)

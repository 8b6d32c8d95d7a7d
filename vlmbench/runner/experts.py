"""Which experts of a mixture tokens really visit: seen in an extra run of the same inputs, which is no row and no time.

Generation is greedy, so that the extra run takes the way of the measured one. It is made once for each request, after
its row's clocks stopped and before the next row's begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbench.cost.bytes import Visits
from vlmbench.models.building import expert_layers
from vlmbench.models.protocol import Prepared, VisionLanguageModel
from vlmbench.runner.execution import PreparedRun

MOST = 32
"""Requests that are looked at; a data set of more would take twice its time."""


_NOT_TOLD = -1
"""Experts that were called with something else than the numbers of those chosen."""


@dataclass(kw_only=True)
class ExpertsSeen:
    """Looks at what the routers of one model choose.

    Args:
        model: loaded.
    """

    model: VisionLanguageModel
    _known: dict[str, Visits | None] = field(default_factory=dict)

    def of(self, run: PreparedRun, output_tokens: int) -> Visits | None:
        """The experts that one run visited; None where that cannot be seen, or enough requests were looked at.

        Args:
            output_tokens: that came out of each row.
        """
        names = " ".join(row.sample.sample_id for row in run.request.rows)
        key = f"{names} {run.shape_key} {output_tokens}"
        if key not in self._known:
            plain = run.request.intervention is None and run.prepared.cached is None
            if len(self._known) >= MOST or not plain or not self._can_see():
                return None
            self._known[key] = self._look(run.prepared, output_tokens)
        return self._known[key]

    def _can_see(self) -> bool:
        """Not where hooks would change what is compiled, or where graphs or other processes run the experts."""
        model = self.model
        return not (model.compile or model.closing_facts or model.facts.get("processes", 1) > 1)

    def _look(self, prepared: Prepared, output_tokens: int) -> Visits | None:
        chosen: list[list[int]] = []  # of each layer, distinct experts of each forward
        real = _real_positions(prepared.inputs)
        layers = expert_layers(self.model.module)
        handles = []
        for layer in layers:
            chosen.append([])
            handles.append(layer.register_forward_pre_hook(_Note(chosen[-1], real), with_kwargs=True))
        try:
            self.model.generate(self.model.transfer(prepared))
        finally:
            for handle in handles:
                handle.remove()
        if not layers or any(len(one) != output_tokens or _NOT_TOLD in one for one in chosen):
            return None
        prefill = sum(one[0] for one in chosen) / len(layers)
        steps = len(layers) * (output_tokens - 1)
        return Visits(prefill=prefill, decode=sum(sum(one[1:]) for one in chosen) / steps if steps else None)


@dataclass(frozen=True)
class _Note:
    """A hook before a layer's experts; ``real``: which positions of the prefill are no padding, None: all."""

    seen: list[int]
    real: Any

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002
        chosen: Any = next(iter([*args, *kwargs.values()][1:2]), None)  # behind the hidden states, whatever its name
        if str(getattr(chosen, "dtype", None)) not in ("torch.int64", "torch.int32"):
            self.seen.append(_NOT_TOLD)
            return
        if self.real is not None and chosen.shape[0] == self.real.numel():
            chosen = chosen[self.real.to(chosen.device)]
        self.seen.append(int(chosen.unique().numel()))


def _real_positions(inputs: Mapping[str, Any]) -> Any:
    mask = inputs.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask.bool().flatten().cpu()
